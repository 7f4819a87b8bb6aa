"""The packed forward and its optimiser against the originals: transformers, autograd and torch's AdamW."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from llmasos.architectures import _post_norm, _proof, base
from llmasos.architectures._blocked import Blocked
from llmasos.architectures._plain import transformers_outputs
from llmasos.architectures.base import Dropout, Snapshot, find, pack
from llmasos.architectures.bert import PLUGIN
from llmasos.core.config import FinetuneConfig
from llmasos.data.batching import Batch
from llmasos.engines import torch as torch_engine
from llmasos.engines.torch import TorchEngine
from llmasos.training.optimizer import Parameters, layer_scales, schedule

FAMILY = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
VOCABULARY, LABELS = 60, 3
LENGTHS = {
    "equal": [7] * 6,
    "few different": [9, 9, 5, 5, 5, 2],
    "padded groups": [30, 29, 27, 25, 21, 20, 17, 16, 16, 9, 8, 4, 3, 3, 2, 1],
    "one row": [11],
    "one to three tokens": [3, 3, 2, 1, 1],
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Products this small only wait for each other on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(kind="bert", *, seed=0, **options):
    """A tiny random classifier in which every part of the forward weighs: large weights, uneven norms."""
    start = FAMILY[kind]
    config = getattr(transformers, f"{start}Config")(
        vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=40, type_vocab_size=2 if kind == "bert" else 1, num_labels=LABELS,
        initializer_range=0.3, pad_token_id=0 if kind == "bert" else 1, **options,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = getattr(transformers, f"{start}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def rows_of(lengths, *, pairs=False, seed=0, low=5):
    """Rows of random tokens, longest first, with targets; in pairs the second half has type 1."""
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths, dtype=np.int32)
    types = np.concatenate([np.arange(n) >= n // 2 for n in lengths]).astype(np.uint8) if pairs else None
    ids = rng.integers(low, VOCABULARY, lengths.sum()).astype(np.int32)
    return Batch(ids, types, lengths, np.arange(len(lengths)), rng.integers(0, LABELS, len(lengths)))


def loss_of(logits, batch):
    return functional.cross_entropy(logits, torch.from_numpy(batch.targets))


def originals(model, batch):
    """What transformers and autograd give: logits, and the gradient of every parameter that has one."""
    model.zero_grad()
    logits = transformers_outputs(model, batch, model.config.pad_token_id, "row")
    if logits.requires_grad:
        loss_of(logits, batch).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return logits.detach(), gradients


def packed_step(model, batch, parameters, dropout=None):
    """Forward and backward on the packed path, the gradients left in ``parameters``."""
    logits = PLUGIN.forward(model, parameters, "row")(pack(batch), dropout)
    loss_of(logits, batch).backward()
    parameters.absorb()
    return logits.detach()


def trained(model, *, used=None, rate=1e-2, dtype=torch.float32, **options):
    return Parameters(model, FinetuneConfig(**options), rate, architecture=PLUGIN, dtype=dtype, used=used)


def assert_near(got, wanted, share, name="", floor=1e-6):
    """Equal within a share of the largest value."""
    gap = (got.float() - wanted.float()).abs().max().item()
    assert gap <= share * max(wanted.abs().max().item(), floor), f"{name}: {gap}"


def assert_gradients_near(model, wanted, share):
    """Compare every gradient; one that is zero but for rounding, as a key's bias, with a hundredth of the largest."""
    floor = 1e-2 * max(gradient.abs().max().item() for gradient in wanted.values())
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(wanted)
    for name, gradient in wanted.items():
        assert_near(model.get_parameter(name).grad, gradient, share, name, floor)


# -- the forward and its backward -----------------------------------------------------------------------


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(("kind", "pairs"), [*((kind, False) for kind in FAMILY), ("bert", True)])
def test_logits_and_every_gradient_are_those_of_transformers(kind, pairs, lengths):
    model, batch = build(kind), rows_of(lengths, pairs=pairs)
    wanted, gradients = originals(model, batch)
    got = packed_step(model, batch, trained(model))
    assert_near(got, wanted, 1e-5)  # float32 carries seven digits, sums over 40 lose one
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    assert_gradients_near(model, gradients, 1e-4)


def test_rows_of_many_lengths_do_make_padded_groups():
    groups = pack(rows_of(LENGTHS["padded groups"])).groups
    assert any(group.padded is not None for group in groups)
    assert all(group.padded is None for group in pack(rows_of([16] * 5)).groups)


def test_shapes_of_packs_recur():
    """A matrix product is compiled for its shape: steps of nearly the same size must share it."""
    packs = [pack(rows_of([length] * 8)) for length in (17, 18, 19)]
    assert {len(made.ids) for made in packs} == {160}
    assert [made.tokens for made in packs] == [136, 144, 152]
    assert {(group.rows, group.length) for made in packs for group in made.groups} == {(8, 24)}


@pytest.mark.parametrize("kind", FAMILY)
def test_a_row_that_holds_the_padding_token_itself_is_computed_as_transformers_does(kind):
    model, batch = build(kind), rows_of([9, 6, 6])
    batch.ids[[3, 11]] = model.config.pad_token_id  # somebody wrote "[PAD]" or "<pad>" in a text
    wanted, gradients = originals(model, batch)
    got = packed_step(model, batch, trained(model))
    assert_near(got, wanted, 1e-5)
    assert_gradients_near(model, gradients, 1e-4)


@pytest.mark.parametrize("kind", FAMILY)
def test_in_bfloat16_the_difference_is_that_of_the_format(kind):
    model, batch = build(kind), rows_of(LENGTHS["padded groups"])
    wanted, gradients = originals(model, batch)
    parameters = trained(model, dtype=torch.bfloat16)
    got = packed_step(model, batch, parameters)
    assert got.dtype == torch.float32
    assert_near(got, wanted, 0.1)  # eight bits, 2^-8 = 0.4 %, through three layers of products
    for name, parameter in model.named_parameters():
        near = functional.cosine_similarity(parameter.grad.flatten(), gradients[name].flatten(), dim=0)
        # a key's bias moves all scores of a row alike, so its gradient is zero but for rounding
        assert near > 0.98 or gradients[name].norm() < 1e-5, name
    assert parameters.gradients.dtype == parameters.master.dtype == torch.float32


def test_a_row_gets_the_same_answer_alone_and_among_others():
    model, batch = build(), rows_of(LENGTHS["padded groups"])
    forward = PLUGIN.forward(model, Snapshot(torch.float32), "row")
    ends = np.cumsum(batch.lengths)
    with torch.no_grad():
        together = forward(pack(batch))
        for i, (length, end) in enumerate(zip(batch.lengths, ends)):
            alone = forward(pack(Batch(batch.ids[end - length : end], None, batch.lengths[i : i + 1], np.zeros(1))))
            assert_near(alone[0], together[i], 1e-5)


def test_micro_batches_add_up_to_the_gradient_of_the_whole():
    batch = rows_of(LENGTHS["few different"])
    cut = int(batch.lengths[:3].sum())
    halves = [
        Batch(batch.ids[:cut], None, batch.lengths[:3], batch.rows[:3], batch.targets[:3]),
        Batch(batch.ids[cut:], None, batch.lengths[3:], batch.rows[3:], batch.targets[3:]),
    ]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        flat = []
        for parts in ([batch], halves):
            parameters = trained(model := build(), dtype=dtype, used=np.unique(batch.ids))
            forward = PLUGIN.forward(model, parameters, "row")
            for _ in range(2):  # the second step must not see the first one's gradients
                parameters.clear()
                for part in parts:
                    logits = forward(pack(part))
                    (functional.cross_entropy(logits, torch.from_numpy(part.targets), reduction="sum") / 6).backward()
                    parameters.absorb()
            flat.append(parameters.gradients.clone())
        assert_near(flat[1], flat[0], tolerance)


FROZEN = {
    "the encoder": lambda name: "encoder" in name,
    "the first layer": lambda name: "layer.0." in name,
    "all but biases": lambda name: not name.endswith("bias"),
    "norms": lambda name: "LayerNorm" in name,
    "the embeddings": lambda name: "embeddings" in name,
    "all but the head": lambda name: not name.startswith("classifier"),
}


@pytest.mark.parametrize("is_frozen", FROZEN.values(), ids=FROZEN)
def test_frozen_parameters_get_no_gradient_and_stay(is_frozen):
    model, batch = build(), rows_of(LENGTHS["padded groups"])
    frozen = {name for name, p in model.named_parameters() if is_frozen(name)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    wanted, gradients = originals(model, batch)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    parameters = trained(model, used=np.unique(batch.ids), gradient_clip=0.0)
    assert_near(packed_step(model, batch, parameters), wanted, 1e-5)
    table = "bert.embeddings.word_embeddings.weight"
    wanted = {name: gradient for name, gradient in gradients.items() if name != table}  # of it only used rows are kept
    assert_gradients_near(model, wanted, 1e-4)
    parameters.step(1.0, 0.0)
    parameters.release()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name


def test_projections_of_one_input_of_which_some_are_frozen_are_left_to_transformers():
    model = build()
    model.bert.encoder.layer[1].attention.self.key.requires_grad_(False)  # one matrix with query and value here
    architecture, reason = find(model, "row")
    assert architecture is None
    assert "trained" in reason or "frozen" in reason


# -- which models are served ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILY)
def test_a_model_of_the_family_is_served_and_the_forward_named(kind):
    architecture, reason = find(build(kind), "row")
    assert architecture is PLUGIN
    assert reason == "packed forward of architectures/bert"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hidden_act": "relu"}, "activation relu"),
        ({"hidden_act": "gelu_new"}, "activation gelu_new"),
        ({"is_decoder": True}, "a decoder"),
        ({"add_cross_attention": True, "is_decoder": True}, "a decoder"),
    ],
)
def test_a_variant_that_computes_something_else_is_left_to_transformers(options, reason):
    model = build(**options)
    assert PLUGIN.reason_against(model, "row") == reason
    assert f"bert: {reason}" in find(model, "row")[1]


def test_relative_positions_are_left_to_transformers():
    model = build()
    model.config.position_embedding_type = "relative_key"
    assert PLUGIN.reason_against(model, "row") == "relative_key positions"


def test_another_head_is_left_to_transformers():
    model = transformers.BertForTokenClassification(build().config)
    assert PLUGIN.reason_against(model, "row") == "BertForTokenClassification has another head"
    assert PLUGIN.reason_against(model, "token") is None


def test_another_family_is_left_to_transformers():
    config = transformers.DistilBertConfig(vocab_size=VOCABULARY, dim=24, n_layers=1, n_heads=3, hidden_dim=40)
    model = transformers.DistilBertForSequenceClassification(config)
    assert PLUGIN.reason_against(model, "row") == "model type distilbert is not of this family"
    assert TorchEngine(model, 0).how == "float32, packed forward of architectures/interface"


# -- dropout --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_mask_drops_its_share_evenly(p):
    mask = Dropout(0).mask((400, 500), p, torch.empty(0))
    assert mask.shape == (400, 500)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    error = (p * (1 - p)) ** 0.5  # one element's standard deviation; five of the mean's must do
    assert abs(mask.mean() - (1 - p)) < 5 * error / 200_000**0.5
    assert (mask.mean(0) - (1 - p)).abs().max() < 5 * error / 400**0.5
    assert (mask.mean(1) - (1 - p)).abs().max() < 5 * error / 500**0.5
    for a, b in ((mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1])):  # neighbours are independent
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 5 / 199_000**0.5


@pytest.mark.parametrize("p", [0.1, 1 / 3, 0.5, 0.9])
def test_scaled_by_the_rounded_probability_the_expectation_is_exact(p):
    dropout = Dropout(0)
    every = np.arange(65536, dtype=np.uint16).view(np.uint64)  # each value that an element can draw, once
    dropout.generator = SimpleNamespace(integers=lambda *_, **__: every)
    kept = dropout.mask((65536,), p, torch.empty(0)).double().mean().item()
    assert kept == 1.0 - Dropout.rounded(p)
    assert abs(Dropout.rounded(p) - p) <= 2**-17


def test_without_dropout_there_is_no_mask():
    assert Dropout(0).mask((3, 3), 0.0, torch.empty(0)) is None


def test_masks_differ_from_call_to_call_and_repeat_with_the_seed():
    one, two, other = Dropout(7), Dropout(7), Dropout(8)
    first, again, elsewhere = (d.mask((31, 5), 0.5, torch.empty(0)) for d in (one, two, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, elsewhere)
    second = one.mask((31, 5), 0.5, torch.empty(0))
    assert not torch.equal(first, second)
    assert torch.equal(second, two.mask((31, 5), 0.5, torch.empty(0)))


def test_a_mask_has_the_precision_of_the_work():
    assert Dropout(0).mask((8,), 0.5, torch.empty(0, dtype=torch.bfloat16)).dtype == torch.bfloat16


PLACES = {
    "hidden": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0},
    "attention": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.0},
    "classifier": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.3},
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_each_dropout_probability_is_followed_in_its_own_place(kind, where):
    forward = PLUGIN.forward(build(kind, **PLACES[where]), Snapshot(torch.float32), "row")
    packed = pack(rows_of(LENGTHS["padded groups"]))
    with torch.no_grad():
        plain, dropped, again = forward(packed), forward(packed, Dropout(1)), forward(packed, Dropout(1))
    assert not torch.allclose(plain, dropped)
    assert torch.equal(dropped, again)


@pytest.mark.parametrize("lengths", [LENGTHS["padded groups"], LENGTHS["equal"]])
def test_with_dropout_the_gradient_is_the_slope_of_the_loss(lengths):
    model, batch = build(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2), rows_of(lengths)
    weights = _proof._Recorder()

    def loss():  # the same seed draws the same masks
        return loss_of(PLUGIN.forward(model, weights, "row")(pack(batch), Dropout(3)), batch)

    loss().backward()
    names = ("bert.encoder.layer.0.attention.self.value.weight", "bert.encoder.layer.1.output.dense.weight")
    gradients = {name: weights.recorded(model.get_parameter(name)).clone() for name in names}
    for name, gradient in gradients.items():
        parameter = model.get_parameter(name)
        direction = gradient / gradient.norm()
        step, losses = 1e-2, []  # small enough for a straight line, large enough to stand above float32's rounding
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                losses.append(loss().item())
                parameter.sub_(sign * step * direction)
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(gradient.norm().item(), rel=0.02)


# -- the proof ------------------------------------------------------------------------------------------


def whole(model, lengths=LENGTHS["few different"]):
    batch = rows_of(lengths, pairs=model.config.type_vocab_size > 1)
    return _proof.prove(model, PLUGIN, batch, model.config.pad_token_id, "row", gradients=True)


@pytest.mark.parametrize("kind", FAMILY)
def test_a_right_forward_is_proven_and_leaves_no_trace(kind):
    model = build(kind).train()
    before = copy.deepcopy(model.state_dict())
    marked = model.classifier.bias if kind == "bert" else model.classifier.out_proj.bias
    marked.grad = held = torch.ones_like(marked)
    proof = whole(model)
    assert proof.holds
    assert (proof.logits < 1e-5, proof.gradients < 5e-4) == (True, True)
    assert model.training
    assert marked.grad is held
    assert torch.equal(held, torch.ones_like(held))
    assert [p.grad for p in model.parameters() if p is not marked] == [None] * (len(list(model.parameters())) - 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_loss_or_logit_that_is_no_number_is_no_proof():
    assert not _proof.Proof(float("nan"), 0.0).holds
    assert not _proof.Proof(0.0, float("nan")).holds
    model = build()
    model.classifier.weight.data[0, 0] = float("nan")
    assert not whole(model).holds


def other_epsilon(monkeypatch):
    shape = _post_norm.LayerShape
    monkeypatch.setattr("llmasos.architectures.bert.LayerShape", lambda h, e, *rest: shape(h, 1000 * e + 0.1, *rest))


def other_activation(monkeypatch):
    tanh = SimpleNamespace(gelu=lambda u: functional.gelu(u, approximate="tanh") * 1.01)
    monkeypatch.setattr(_post_norm, "functional", tanh)  # of a training; the other is fused with the product
    right = Blocked.__call__
    monkeypatch.setattr(Blocked, "__call__", lambda self, x, gelu=False: right(self, x, gelu=gelu) * (1 + 0.01 * gelu))
    tanh.layer_norm = functional.layer_norm


def other_heads(monkeypatch):
    shape = _post_norm.LayerShape
    monkeypatch.setattr("llmasos.architectures.bert.LayerShape", lambda h, *rest: shape(h // 3, *rest))


def swapped_projections(monkeypatch):
    from llmasos.architectures import bert

    layers = bert._layers
    monkeypatch.setattr(
        bert, "_layers", lambda model: [part._replace(query=part.value, value=part.query) for part in layers(model)]
    )


def shifted_positions(monkeypatch):
    lay_out = base.pack

    def shifted(*arguments):
        made = lay_out(*arguments)
        return replace(made, positions=made.positions + 1)

    for module in (_proof, torch_engine):
        monkeypatch.setattr(module, "pack", shifted)


def same_type_for_both_texts(monkeypatch):
    lay_out = base.pack
    for module in (_proof, torch_engine):
        monkeypatch.setattr(module, "pack", lambda *arguments: replace(lay_out(*arguments), types=None))


WRONG_FORWARDS = [
    other_epsilon,
    other_activation,
    other_heads,
    swapped_projections,
    shifted_positions,
    same_type_for_both_texts,
]


@pytest.mark.parametrize("wrong", WRONG_FORWARDS)
def test_a_wrong_forward_is_refused_and_the_engine_falls_back_saying_so(wrong, monkeypatch):
    model, batch = build(), rows_of(LENGTHS["few different"], pairs=True)
    wanted, _ = originals(model, batch)
    wrong(monkeypatch)
    assert not whole(model).holds
    engine = TorchEngine(model, 0)
    assert_near(torch.from_numpy(engine.outputs(batch)), wanted, 1e-6)
    assert "transformers' forward: the packed forward differs from transformers' own" in engine.how


def test_a_wrong_gradient_alone_is_refused(monkeypatch):
    wrong = _post_norm.LayerWeights.write_linear

    def double(self, which, gradient, inputs, scale=1.0, at=slice(None)):
        wrong(self, which, gradient * (2.0 if which == 2 else 1.0), inputs, scale, at)

    monkeypatch.setattr(_post_norm.LayerWeights, "write_linear", double)
    proof = whole(build())
    assert proof.logits < 1e-4
    assert proof.gradients > 0.1
    assert not proof.holds


def open_to_padding(monkeypatch):
    group = base._group

    def opened(*arguments):
        made = group(*arguments)
        return made if made.bias is None else made._replace(bias=torch.zeros_like(made.bias))

    monkeypatch.setattr(base, "_group", opened)


@pytest.mark.parametrize("first", [LENGTHS["padded groups"], [30, 29, 28, 5], [11]], ids=str)
def test_a_forward_that_is_wrong_only_in_padded_groups_is_refused_whatever_rows_come_first(monkeypatch, first):
    model, batch = build(), rows_of(LENGTHS["padded groups"])
    wanted, _ = originals(model, batch)
    open_to_padding(monkeypatch)
    assert not whole(model, LENGTHS["padded groups"]).holds
    engine = TorchEngine(model, 0)
    engine.outputs(rows_of(first))
    assert_near(torch.from_numpy(engine.outputs(batch)), wanted, 1e-5)
    assert "transformers' forward" in engine.how


def test_the_engine_says_what_it_uses_and_gives_transformers_logits_either_way():
    model, batch = build(), rows_of(LENGTHS["padded groups"])
    wanted, _ = originals(model, batch)
    packed, plain = TorchEngine(model, 0), TorchEngine(model, 0, speed="plain")
    for engine in (packed, plain):
        assert_near(torch.from_numpy(engine.outputs(batch)), wanted, 1e-5)
    assert packed.how == "float32, packed forward of architectures/bert"
    assert plain.how == "float32, transformers' forward"


# -- the optimiser --------------------------------------------------------------------------------------


def reference(model, batches, *, rate, config):
    """Train with transformers' forward and torch's AdamW over the whole table, one group per parameter."""
    scales = layer_scales(model, config.layer_decay)
    groups = [
        {"params": [p], "weight_decay": config.weight_decay * (p.ndim > 1), "scale": scales[id(p)]}
        for p in model.parameters()
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(config, len(batches), step) * group["scale"]
        optimizer.zero_grad()
        loss_of(transformers_outputs(model, batch, model.config.pad_token_id, "row"), batch).backward()
        if config.gradient_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip": 0.0},
        {"gradient_clip": 0.5},
        {"weight_decay": 0.0},
        {"layer_decay": 0.5},
        {"layer_decay": 0.5, "gradient_clip": 0.5, "schedule": "cosine"},
    ],
    ids=str,
)
def test_training_the_used_rows_alone_is_adamw_over_the_whole_table(options):
    config = FinetuneConfig(**{"weight_decay": 0.2, "schedule": "linear", "warmup": 0.4, **options})
    batches = [rows_of(LENGTHS["padded groups"], seed=seed, low=20) for seed in range(5)]
    batches[2] = rows_of([6, 6, 4], seed=9, low=40)  # most used rows have no gradient in this step
    model, wanted, start = build(), build(), build().bert.embeddings.word_embeddings.weight
    reference(wanted, batches, rate=1e-2, config=config)
    used = np.unique(np.concatenate([batch.ids for batch in batches]))
    parameters = Parameters(model, config, 1e-2, architecture=PLUGIN, used=used)
    assert len(used) < VOCABULARY - 15
    for step, batch in enumerate(batches):
        packed_step(model, batch, parameters)
        parameters.step(schedule(config, len(batches), step), parameters.norm())
        if step == 1:
            parameters.write_back()  # as for an evaluation in between
    parameters.write_back()
    table = model.bert.embeddings.word_embeddings.weight
    assert_near(table[:20], wanted.bert.embeddings.word_embeddings.weight[:20], 1e-6, "rows that no text uses")
    assert (config.weight_decay == 0.0) == torch.equal(table[:20], start[:20])
    for name, parameter in model.named_parameters():
        other = wanted.get_parameter(name)
        if name.endswith("key.bias"):  # its gradient is zero but for rounding, which Adam makes steps of
            continue
        assert_near(parameter, other, 2e-3, name)  # five steps of 1e-2: Adam divides small gradients by themselves


def test_the_norm_is_that_of_all_gradients_and_clipping_makes_it_the_limit():
    model, batch = build(), rows_of(LENGTHS["equal"])
    _, gradients = originals(model, batch)
    parameters = trained(model, used=np.unique(batch.ids))
    packed_step(model, batch, parameters)
    assert parameters.norm() == pytest.approx(
        torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients.values()])).item(), rel=1e-4
    )


def test_a_step_with_factor_zero_changes_nothing_and_the_next_starts_clean():
    model, batch = build(), rows_of(LENGTHS["equal"])
    before = copy.deepcopy(model.state_dict())
    parameters = trained(model, used=np.unique(batch.ids), weight_decay=0.3)
    packed_step(model, batch, parameters)
    assert parameters.step(0.0, parameters.norm()) == 0.0
    assert parameters.norm() == 0.0
    parameters.write_back()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_after_release_the_parameters_are_the_models_own_and_keep_their_values():
    model, batch = build(), rows_of(LENGTHS["equal"])
    parameters = trained(model, used=np.unique(batch.ids))
    packed_step(model, batch, parameters)
    parameters.step(1.0, parameters.norm())
    parameters.release()
    after = copy.deepcopy(model.state_dict())
    parameters.master.zero_()
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("linear", [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("constant", [1 / 3, 2 / 3, *[1] * 8]),
        ("cosine", [1 / 3, 2 / 3, *(0.5 * (1 + np.cos(np.pi * i / 8)) for i in range(8))]),
    ],
)
def test_the_schedule_rises_over_the_warmup_and_then_falls_as_named(name, wanted):
    config = FinetuneConfig(schedule=name, warmup=0.2)
    assert [schedule(config, 10, step) for step in range(10)] == pytest.approx(wanted)


@pytest.mark.parametrize("steps", [1, 2, 3, 17])
@pytest.mark.parametrize("warmup", [0.0, 0.06, 1.0])
@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_every_step_of_a_schedule_moves_and_none_above_the_peak(name, warmup, steps):
    config = FinetuneConfig(schedule=name, warmup=warmup)
    assert all(0.0 < schedule(config, steps, step) <= 1.0 for step in range(steps))


def test_layer_decay_takes_a_power_for_each_layer_below_the_head():
    model = build()
    scales = {name: layer_scales(model, 0.5)[id(p)] for name, p in model.named_parameters()}
    assert scales["classifier.weight"] == scales["bert.pooler.dense.bias"] == 1.0
    assert [scales[f"bert.encoder.layer.{i}.output.dense.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert {scales[name] for name in scales if "embeddings" in name} == {0.0625}
    assert set(layer_scales(model, 1.0).values()) == {1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_in_blocks_is_a_linear_layer(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(40, 64).to(dtype), torch.randn(96, 64).to(dtype), torch.randn(96).to(dtype)
    product, most = Blocked(weight, bias), 1e-4 if dtype == torch.float32 else 0.1
    expected = torch.nn.functional.linear(x.float(), weight.float(), bias.float())
    torch.testing.assert_close(product(x).float(), expected, atol=most, rtol=most)
    torch.testing.assert_close(
        product(x, gelu=True).float(), torch.nn.functional.gelu(expected), atol=most, rtol=most
    )  # fmt: skip
    torch.testing.assert_close(product(x[:1]).float(), product(x)[:1].float(), atol=most, rtol=most)
