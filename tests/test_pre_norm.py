"""The packed forward of Llama's family, attention and losses against their formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from llmasos.architectures import _post_norm, _pre_norm, _proof, base, interface
from llmasos.architectures.base import Dropout, Projected, find, pack
from llmasos.architectures.llama import PLUGIN
from llmasos.core.config import FinetuneConfig
from llmasos.data.batching import Batch
from llmasos.tasks._losses import asked_targets, cross_entropy
from llmasos.tasks.base import IGNORED
from llmasos.training.optimizer import Parameters, layer_scales

SIZE = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "initializer_range": 0.2,
}
KINDS = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
LENGTHS = [30, 29, 27, 25, 21, 20, 17, 16, 16, 9, 8, 4, 3, 3, 2, 1]


def build(kind="llama", **options):
    """A tiny random model in which norms and biases weigh too."""
    sliding = {"sliding_window": None} if kind == "mistral" else {}
    config = getattr(transformers, f"{KINDS[kind]}Config")(**SIZE | sliding | options)
    torch.manual_seed(0)
    model = getattr(transformers, f"{KINDS[kind]}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def rows_of(lengths):
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 50, sum(lengths)).astype(np.int32)
    targets = np.where(rng.random(len(ids)) < 0.6, rng.integers(4, 50, len(ids)), IGNORED)
    sizes = np.asarray(lengths, dtype=np.int32)
    return Batch(ids, None, sizes, np.arange(len(sizes)), targets, sizes)


def proven(model, lengths):
    return _proof.prove(model, PLUGIN, rows_of(lengths), 1, "vocabulary", gradients=True)


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 4}], ids=str)
@pytest.mark.parametrize("lengths", [LENGTHS, [7] * 6, [1]], ids=["padded groups", "equal", "one token"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_every_gradient_are_those_of_transformers(kind, lengths, options):
    model = build(kind, **options)
    assert find(model, "vocabulary")[1] == "packed forward of architectures/llama"
    proof = proven(model, lengths)
    assert (proof.error, proof.holds) == ("", True), proof
    assert proof.logits < 1e-5
    assert proof.gradients < 1e-4


@pytest.mark.parametrize(("name", "value"), [("_pre_norm._LARGEST", 0), ("base.SCORES", 4 * 25**2)])
def test_so_are_those_of_torchs_kernel_and_of_groups_that_are_cut(name, value, monkeypatch):
    before = len(pack(rows_of(LENGTHS)).groups)
    monkeypatch.setattr(f"llmasos.architectures.{name}", value)
    assert (len(pack(rows_of(LENGTHS)).groups) > before) == (name == "base.SCORES")
    used = []
    kernel = _pre_norm._kernel
    monkeypatch.setattr(_pre_norm, "_kernel", lambda *a, **k: used.append(1) or kernel(*a, **k))
    assert proven(build(), LENGTHS).holds
    assert bool(used) == (name == "_pre_norm._LARGEST")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"attention_dropout": 0.1}, "its attention drops out"),
        ({"mlp_bias": True}, "its products have biases"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "its positions are of type"),
    ],
)
def test_a_variant_that_computes_something_else_is_left_to_the_models_own_modules(options, reason):
    model = build(**options)
    assert reason in str(PLUGIN.reason_against(model, "vocabulary"))
    assert find(model, "vocabulary")[1] == "packed forward of architectures/interface"


def test_other_models_heads_and_adapters_are_left_to_the_models_own_modules():
    assert "sliding window" in str(PLUGIN.reason_against(build("mistral", sliding_window=8), "vocabulary"))
    assert "another head" in str(PLUGIN.reason_against(build(), "token"))
    frozen = build()
    frozen.model.layers[0].self_attn.k_proj.weight.requires_grad_(False)
    assert "frozen in parts" in str(PLUGIN.reason_against(frozen, "vocabulary"))
    frozen = build("qwen2")
    frozen.model.layers[0].self_attn.q_proj.bias.requires_grad_(False)
    assert "frozen in parts" in str(PLUGIN.reason_against(frozen, "vocabulary"))
    adapted = build()
    adapted.model.layers[0].mlp.up_proj = torch.nn.Sequential(adapted.model.layers[0].mlp.up_proj)
    assert "adapter" in str(PLUGIN.reason_against(adapted, "vocabulary"))


def gradients(model, *, times=1, dtype=torch.float32):
    parameters = Parameters(model, FinetuneConfig(), 1e-3, architecture=PLUGIN, dtype=dtype)
    forward = PLUGIN.forward(model, parameters, "vocabulary")
    names = {id(p): name for name, p in model.named_parameters()}
    for _ in range(times):
        outputs = forward(pack(batch := rows_of(LENGTHS), "cpu", "vocabulary"))
        cross_entropy(outputs, asked_targets(outputs, batch)).backward()
        parameters.absorb()
    found = {names[id(p)]: p.grad.clone() for p in model.parameters() if p.grad is not None}
    parameters.release()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_micro_batches_add_up(kind, dtype):
    once, twice = gradients(build(kind), dtype=dtype), gradients(build(kind), times=2, dtype=dtype)
    for name, one in once.items():
        torch.testing.assert_close(twice[name], 2 * one, rtol=1e-2, atol=1e-5)


def test_probabilities_that_are_not_kept_are_computed_again(monkeypatch):
    kept = gradients(build())
    computed = []
    probabilities = _pre_norm._probabilities
    monkeypatch.setattr(_pre_norm, "_probabilities", lambda *a: computed.append(1) or probabilities(*a))
    gradients(build())
    before = len(computed)
    monkeypatch.setattr(_pre_norm, "_KEPT", 4 * 4 * 32**2)  # what the first of the groups has
    for name, gradient in gradients(build()).items():
        torch.testing.assert_close(gradient, kept[name], rtol=0, atol=0)
    groups = len(pack(rows_of(LENGTHS)).groups)
    assert len(computed) - before == before + 3 * (groups - 1)  # again, in three layers, for all groups but the first


def test_the_table_of_words_learns_slowest_where_layers_decay():
    model = build()
    scales = layer_scales(model, 0.5)
    assert scales[id(model.model.embed_tokens.weight)] == 0.5**4
    assert scales[id(model.lm_head.weight)] == 1.0
    tied = build(tie_word_embeddings=True)
    assert layer_scales(tied, 0.5)[id(tied.lm_head.weight)] == 1.0


def test_what_lies_below_the_trained_layers_is_not_gone_back_through(monkeypatch):
    whole, model = gradients(build()), build()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("model.layers.2", "lm_head")))
    back = []
    kept = _pre_norm._attend_backward
    monkeypatch.setattr(_pre_norm, "_attend_backward", lambda *a: back.append(1) or kept(*a))
    found = gradients(model)
    assert len(back) == 1
    assert all(name.startswith(("model.layers.2", "lm_head")) for name in found)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-5)


# -- the formulas -------------------------------------------------------------------------------------


def attention_in_float64(q, k, v, causal):
    """softmax(Q K^T / sqrt(d)) V of one row, (length, heads, width), by the paper's formula."""
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(len(q), len(q), dtype=torch.bool).triu(1), -torch.inf)
    return torch.einsum("hij,jhd->ihd", scores.exp() / scores.exp().sum(-1, keepdim=True), v)


def of_the_formula(qkv, lengths, queries, keys, width, causal, slope):
    """Contexts of all rows, and the gradient of the projections where the contexts' is ``slope``."""
    exact, out, at = qkv.double().detach().requires_grad_(), [], 0
    for length in lengths:
        heads = exact[at : at + length].view(length, -1, width)
        q, k, v = heads.split([queries, keys, keys], dim=1)
        out.append(attention_in_float64(q, k, v, causal).reshape(length, -1))
        at += length
    context = torch.cat(out)
    context.backward(slope[: len(context)].double())
    return context.detach(), exact.grad


def check(got, gradient, wanted, exact, tokens):
    torch.testing.assert_close(got[:tokens].double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient[:tokens].double(), exact[:tokens], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("largest", [1 << 24, 0], ids=["products", "kernel"])
@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (4, 2), (3, 1)])
def test_causal_attention_is_that_of_the_formula(queries, keys, largest, monkeypatch):
    monkeypatch.setattr(_pre_norm, "_LARGEST", largest)
    width, rows = 8, pack(rows_of(LENGTHS))
    torch.manual_seed(0)
    qkv, slope = torch.randn(len(rows.ids), (queries + 2 * keys) * width), torch.randn(len(rows.ids), queries * width)
    still = (torch.ones(32, width), torch.zeros(32, width))  # no turning
    turns = _pre_norm.Turns(still, (still[0] * width**-0.5, still[1]))
    shape = _pre_norm.LayerShape(queries, keys, width, 1e-5, width**-0.5)
    got, saved = _pre_norm._attend(qkv, shape, rows.groups, turns, keep=True)
    read, _ = _pre_norm._attend(qkv, shape, rows.groups, turns, keep=False)
    torch.testing.assert_close(read, got, rtol=1e-5, atol=1e-5)
    gradient = _pre_norm._attend_backward(slope, saved, shape, rows.groups, turns)
    wanted, exact = of_the_formula(qkv, LENGTHS, queries, keys, width, True, slope)
    check(got, gradient, wanted, exact, rows.tokens)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("lengths", [LENGTHS, [41, 40, 37, 33]], ids=["short", "long"])
def test_attention_of_encoders_is_that_of_the_formula(lengths, keep):
    heads, width, rows = 3, 8, pack(rows_of(lengths))
    torch.manual_seed(0)
    qkv, slope = torch.randn(len(rows.ids), 3 * heads * width), torch.randn(len(rows.ids), heads * width)
    shape = _post_norm.LayerShape(heads, 1e-5, 0.0, 0.0)
    got, saved = _post_norm._attend(qkv, None, shape, rows.groups, None, keep=keep)
    wanted, exact = of_the_formula(qkv, lengths, heads, heads, width, False, slope)
    gradient = exact
    if keep:
        gradient, _ = _post_norm._attend_backward(slope, saved, shape, rows.groups, len(qkv), separate=False)
    check(got, gradient, wanted, exact, rows.tokens)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_through_the_interface_is_that_of_the_formula(causal):
    heads, width, rows = 3, 8, pack(rows_of(LENGTHS))
    torch.manual_seed(0)
    qkv = torch.randn(len(rows.ids), 3 * heads * width, requires_grad=True)
    slope = torch.randn(len(rows.ids), heads * width)
    q, k, v = qkv.view(len(qkv), 3, heads, width).permute(1, 2, 0, 3)[:, None]
    out, _ = interface.packed_attention(torch.nn.Identity(), q, k, v, None, pack=rows, is_causal=causal)
    got = out[0].reshape(len(qkv), -1)
    got.backward(slope)
    wanted, exact = of_the_formula(qkv, LENGTHS, heads, heads, width, causal, slope)
    check(got.detach(), qkv.grad, wanted, exact, rows.tokens)


def test_the_interface_keeps_scores_within_its_budget(monkeypatch):
    heads, width, rows = 3, 8, pack(rows_of(LENGTHS))
    torch.manual_seed(0)
    flat = torch.randn(len(rows.ids), 3 * heads * width, dtype=torch.bfloat16, requires_grad=True)
    q, k, v = flat.view(len(flat), 3, heads, width).permute(1, 2, 0, 3)[:, None]
    counts, outs, own = [], [], interface._attend

    def counted(*arguments, **more):
        counts[-1] += 1
        return own(*arguments, **more)

    monkeypatch.setattr(interface, "_attend", counted)
    first = rows.groups[0]
    for kept in (1 << 24, heads * first.rows * first.length**2, 0):
        monkeypatch.setattr(interface, "_KEPT", kept)
        counts.append(0)
        outs.append(interface.packed_attention(torch.nn.Identity(), q, k, v, None, pack=rows, is_causal=True)[0])
    assert counts == [len(rows.groups), 1, 0]
    torch.testing.assert_close(outs[0], outs[2], rtol=0.05, atol=0.05)


def test_with_dropout_reading_and_training_draw_the_same_masks():
    """A gradient cache reads first without a graph, and must find again what it read."""
    rows, heads, width = pack(rows_of([41, 40, 37, 33])), 3, 8
    qkv = torch.randn(len(rows.ids), 3 * heads * width)
    shape = _post_norm.LayerShape(heads, 1e-5, 0.0, 0.3)
    one, two = (
        _post_norm._attend(qkv, None, shape, rows.groups, Dropout(0), keep=keep)[0] for keep in (True, False)
    )  # fmt: skip
    torch.testing.assert_close(one, two)
    assert not torch.allclose(one, _post_norm._attend(qkv, None, shape, rows.groups, None, keep=True)[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_a_matrix_is_that_of_the_formula(smoothing, monkeypatch):
    for name, value in (("_LEAST", 2), ("_CACHED", 4 * 50), ("_GRAIN", 2)):  # pieces of 4, 4, and 3 filled up
        monkeypatch.setattr(f"llmasos.tasks._losses.{name}", value)
    torch.manual_seed(0)
    hidden, matrix = torch.randn(11, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    targets, shift = torch.randint(0, 50, (11,)), torch.randn(50)
    loss = cross_entropy(Projected(hidden, None, 50, matrix, shift), targets, smoothing)  # the head is not asked
    (3.0 * loss).backward()
    exact = [t.detach().double().requires_grad_() for t in (hidden, matrix)]
    logits = exact[0] @ exact[1].t() + shift.double()
    logarithms = logits - logits.exp().sum(1, keepdim=True).log()
    wanted = -((1 - smoothing) * logarithms[torch.arange(11), targets] + smoothing * logarithms.mean(1)).sum()
    (3.0 * wanted).backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    for got, right in zip((hidden, matrix), exact, strict=True):
        torch.testing.assert_close(got.grad.double(), right.grad, rtol=1e-5, atol=1e-5)


def test_a_frozen_matrix_gets_no_gradient():
    hidden, matrix = torch.randn(5, 8, requires_grad=True), torch.randn(50, 8)
    cross_entropy(Projected(hidden, None, 50, matrix), torch.arange(5)).backward()
    assert hidden.grad is not None
    assert matrix.grad is None


def test_groups_no_larger_than_a_cache_hold_every_row_once():
    lengths = [400] * 11 + [90] * 6
    groups = pack(rows_of(lengths)).groups
    assert [group.rows for group in groups] == [4, 4, 4, 5]
    assert all(group.rows <= base.ROWS or group.rows * group.length**2 <= base.SCORES for group in groups)
    assert [group.start for group in groups[1:]] == [group.stop for group in groups[:-1]]
