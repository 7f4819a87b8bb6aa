"""Rows packed into one go through transformers' own modules and give what the padded batch gives, for every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from llmasos.architectures import _proof
from llmasos.architectures._plain import transformers_outputs
from llmasos.architectures.base import Dropout, Projected, QuickDropout, Snapshot, find, pack
from llmasos.data.batching import Batch
from llmasos.engines.torch import TorchEngine
from llmasos.tasks._losses import cross_entropy, token_scores
from llmasos.tasks.base import IGNORED

SIZE = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
        "max_position_embeddings": 64, "pad_token_id": 1, "initializer_range": 0.3}  # fmt: skip
DECODER = {**SIZE, "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}
CONFIGS = {
    "bert": lambda: transformers.BertConfig(**SIZE),
    "roberta": lambda: transformers.RobertaConfig(**SIZE),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=50,
        dim=24,
        n_layers=2,
        n_heads=3,
        hidden_dim=40,
        max_position_embeddings=64,
        pad_token_id=1,
        initializer_range=0.3,
    ),
    "modernbert": lambda: transformers.ModernBertConfig(
        **SIZE, local_attention=8, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3
    ),
    "deberta": lambda: transformers.DebertaV2Config(**SIZE, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=50, n_embd=24, n_layer=2, n_head=3, n_positions=64, pad_token_id=1, initializer_range=0.3
    ),
    "llama": lambda: transformers.LlamaConfig(**DECODER),
    "qwen3": lambda: transformers.Qwen3Config(**DECODER),
    "gemma": lambda: transformers.GemmaConfig(**DECODER),
    "gemma3": lambda: transformers.Gemma3TextConfig(**DECODER, sliding_window=8, query_pre_attn_scalar=8),
    "mistral": lambda: transformers.MistralConfig(**DECODER, sliding_window=8),
    "mistral, all": lambda: transformers.MistralConfig(**DECODER, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**{k: v for k, v in DECODER.items() if k != "head_dim"}),
}
ENCODERS = ("bert", "roberta", "distilbert", "modernbert", "deberta")
DECODERS = ("gpt2", "llama", "qwen3", "gemma", "gemma3", "mistral", "mistral, all", "qwen2")
CLASSES = {
    "row": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "answer": "AutoModelForQuestionAnswering",
    "masked": "AutoModelForMaskedLM",
    "next": "AutoModelForCausalLM",
    "embedding": "AutoModel",
}
OUTPUT = {"answer": "token", "masked": "vocabulary", "next": "vocabulary"}
CASES = [(kind, head) for kind in ENCODERS for head in CLASSES if head != "next"]
CASES += [(kind, head) for kind in DECODERS for head in ("next", "token", "embedding")]
CASES.remove(("gemma3", "token"))  # transformers has no such class
TRANSFORMERS_OWN = {("deberta", head) for head in CLASSES}


def build(kind: str, head: str):
    torch.manual_seed(0)
    return getattr(transformers, CLASSES[head]).from_config(CONFIGS[kind]()).float().eval()


def batch_of(lengths: list[int]) -> Batch:
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 50, sum(lengths)).astype(np.int32)
    targets = np.where(rng.random(len(ids)) < 0.4, rng.integers(4, 50, len(ids)), IGNORED)
    sizes = np.asarray(lengths, dtype=np.int32)
    return Batch(ids, None, sizes, np.arange(len(sizes)), targets, sizes)


@pytest.mark.parametrize(("kind", "head"), CASES, ids=[f"{kind} {head}" for kind, head in CASES])
def test_packed_outputs_and_gradients_are_those_of_transformers(kind, head):
    model, output = build(kind, head), OUTPUT.get(head, head)
    architecture, reason = find(model, output)
    if (kind, head) in TRANSFORMERS_OWN:
        assert architecture is None, reason
        return
    assert architecture is not None, reason
    proof = _proof.prove(model, architecture, batch_of([30, 22, 21, 9, 9, 8, 3, 2, 1]), 1, output, gradients=True)
    assert (proof.error, proof.holds) == ("", True), proof
    assert proof.logits < 1e-5


@pytest.mark.parametrize("head", ["token", "embedding", "masked"])
def test_a_row_gives_the_same_alone_as_in_a_batch(head):
    model, output = build("modernbert", head), OUTPUT.get(head, head)
    engine, batch = TorchEngine(model, 1, output=output), batch_of([30, 21, 9, 8, 2])
    together = engine.outputs(batch)
    parts = []
    for i, (a, b) in enumerate(zip(batch.offsets, batch.offsets[1:], strict=False)):
        parts.append(engine.outputs(Batch(batch.ids[a:b], None, batch.lengths[i : i + 1], np.zeros(1, np.int64),
                                          batch.targets[a:b], batch.lengths[i : i + 1])))  # fmt: skip
    np.testing.assert_allclose(np.concatenate(parts), together, atol=1e-5)
    assert engine.how == "float32, packed forward of architectures/interface"


def test_only_supervised_tokens_reach_the_head():
    model, batch = build("llama", "next"), batch_of([20, 9])
    seen = []
    model.lm_head.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[-2]))
    transformers_outputs(model, batch, 1, "vocabulary")
    assert seen == [int((batch.targets != IGNORED).sum())]


def test_cross_entropy_in_pieces_is_that_of_the_formula(monkeypatch):
    monkeypatch.setattr("llmasos.tasks._losses.PIECE", 4 * 50)
    torch.manual_seed(0)
    hidden, weight = torch.randn(11, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(0, 50, (11,))
    loss = cross_entropy(Projected(hidden, lambda states: states @ weight.t(), 50), targets)
    loss.backward()
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    logits = exact[0] @ exact[1].t()
    wanted = -(logits - logits.logsumexp(1, keepdim=True))[torch.arange(11), targets].sum()
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    for got, right in zip((hidden, weight), exact, strict=True):
        torch.testing.assert_close(got.grad.double(), right.grad, rtol=1e-5, atol=1e-5)
    scores = token_scores(Projected(hidden, lambda states: states @ weight.t(), 50), targets)
    np.testing.assert_allclose(
        scores[:, 0].detach(), functional.cross_entropy(logits, targets, reduction="none").detach(), rtol=1e-5
    )
    np.testing.assert_array_equal(scores[:, 1].detach(), (logits.argmax(1) == targets).numpy())


@pytest.mark.parametrize("kind", DECODERS)
def test_gradients_in_bfloat16_are_those_of_float32_rounded(kind):
    from llmasos.core.config import FinetuneConfig
    from llmasos.tasks._losses import asked_targets
    from llmasos.training.optimizer import Parameters

    batch, found = batch_of([30, 22, 21, 9, 9, 8, 3, 2, 1]), []
    for dtype in (torch.float32, torch.bfloat16):
        model = build(kind, "next")
        architecture = find(model, "vocabulary")[0]
        parameters = Parameters(model, FinetuneConfig(), 1e-3, architecture=architecture, dtype=dtype)
        forward = architecture.forward(model, parameters, "vocabulary")
        names = {id(p): name for name, p in model.named_parameters()}
        for _ in range(2):  # two micro-batches add up
            outputs = forward(pack(batch, "cpu", "vocabulary"))
            cross_entropy(outputs, asked_targets(outputs, batch)).backward()
            parameters.absorb()
        found.append({names[id(p)]: p.grad.clone() for p in model.parameters()})
        parameters.release()
    for name, wanted in found[0].items():
        gap = (found[1][name] - wanted).norm() / wanted.norm()
        # bfloat16 has eight bits: 0.4 % a step, some dozens of steps deep; the gradients of biases nearly cancel out
        assert gap < (0.3 if kind == "qwen2" else 0.08), (name, float(gap))


def test_modules_draw_their_dropout_from_ours():
    ones, module = torch.ones(400, 250, requires_grad=True), torch.nn.Dropout(0.25)
    drawn = []
    for seed in (0, 0, 1):
        with QuickDropout(Dropout(seed)):
            drawn.append(module(ones))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert float((drawn[0] == 0).float().mean()) == pytest.approx(0.25, abs=0.005)
    assert drawn[0].unique().tolist() == pytest.approx([0.0, 4 / 3])
    drawn[0].sum().backward()
    assert torch.equal(ones.grad, drawn[0].detach())
    with QuickDropout(Dropout(0)):
        assert torch.equal(module.eval()(ones), ones)


@pytest.mark.parametrize(("name", "head"), [("distilbert", "row"), ("gpt2", "next")])
def test_a_training_step_drops_with_the_seed_it_was_given(name, head):
    model, batch = build(name, head), batch_of([20, 9, 4])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    architecture, _ = find(model, OUTPUT.get(head, head))
    forward = architecture.forward(model, Snapshot(torch.float32), OUTPUT.get(head, head))
    packed = pack(batch, output=OUTPUT.get(head, head))
    drawn = []
    for dropout in (Dropout(0), Dropout(0), Dropout(1), None):
        torch.manual_seed(0)  # torch's own attention draws from its generator
        out = forward(packed, dropout)
        drawn.append(getattr(out, "hidden", out))
    one, same, other, none = drawn
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert not torch.allclose(one, none)
