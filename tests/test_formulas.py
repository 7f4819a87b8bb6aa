"""Attention and losses against their formulas, written out in float64, forward and backward.

What has its formula elsewhere: the packed causal attention, that of encoders and the head's cross entropy in
``test_pre_norm.py``, cross entropy in pieces in ``test_interface.py``, the losses of sentence similarity and of
preferences in the files of these tasks.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from llmasos.architectures import _post_norm, interface
from llmasos.architectures.base import Dropout, pack
from llmasos.architectures.llama import PLUGIN as LLAMA
from llmasos.core.config import FinetuneConfig
from llmasos.data.batching import Batch
from llmasos.decoders.llama import PLUGIN as STEP
from llmasos.tasks._chat import ChatTask
from llmasos.tasks._losses import cross_entropy
from llmasos.tasks.base import IGNORED
from llmasos.tasks.code_generation import CodeGenerationTask
from llmasos.tasks.fill_mask import MaskedLanguageModelingTask
from llmasos.tasks.language_modeling import LanguageModelingTask
from llmasos.tasks.question_answering import QuestionAnsweringTask
from llmasos.tasks.summarization import SummarizationTask
from llmasos.tasks.text_classification import TextClassificationTask
from llmasos.tasks.token_classification import TokenClassificationTask
from llmasos.tasks.translation import TranslationTask
from llmasos.training.optimizer import Parameters
from writers import tiny_writer

LENGTHS = [41, 40, 37, 33, 17, 16, 16, 9, 8, 4, 3, 3, 2, 1]
HEADS, WIDTH = 4, 8


def batch_of(lengths, targets=None, sizes=None) -> Batch:
    ids = np.arange(sum(lengths), dtype=np.int32) % 50
    lengths = np.asarray(lengths, dtype=np.int32)
    return Batch(ids, None, lengths, np.arange(len(lengths)), targets, sizes)


def softmax(scores: torch.Tensor) -> torch.Tensor:
    powers = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def attention(q, k, v, seen, kept=None):
    """softmax(Q K^T / sqrt(d)) V of one row (Vaswani et al. 2017, equation 1), (length, heads, width).

    seen: (queries, keys), what may be looked at. Heads share keys as in Ainslie et al. 2023 (grouped queries).
    kept: factors of the probabilities, which dropout draws, (heads, queries, keys).
    """
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    probabilities = softmax(scores.masked_fill(~seen, -torch.inf))
    return torch.einsum("hij,jhd->ihd", probabilities if kept is None else probabilities * kept, v)


def near(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=True)


def exact_of(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# -- attention ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keys", "path"), [(4, "kernel"), (4, "products"), (2, "kernel"), (1, "kernel")])
@pytest.mark.parametrize("window", [None, 8, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_through_the_interface_in_windows_and_with_shared_keys(causal, window, keys, path, monkeypatch):
    """Windows as in Beltagy et al. 2020 (to both sides) and Jiang et al. 2023 (back only): fewer than so many away."""
    if path == "products":
        monkeypatch.setattr(interface, "_explicit", lambda q, k: True)
    rows = pack(batch_of(LENGTHS))
    flat = random(len(rows.ids), (HEADS + 2 * keys) * WIDTH)
    slope = torch.randn(len(rows.ids), HEADS, WIDTH)
    q, k, v = flat.view(len(flat), -1, WIDTH).transpose(0, 1)[None].split([HEADS, keys, keys], 1)
    out, _ = interface.packed_attention(
        torch.nn.Identity(), q, k, v, None, pack=rows, is_causal=causal, sliding_window=window
    )
    out[0].backward(slope)
    (exact,) = exact_of(flat)
    parts = []
    for start, length in zip(np.cumsum([0, *LENGTHS]), LENGTHS, strict=False):
        away = torch.arange(length)[:, None] - torch.arange(length)[None]
        seen = (away >= 0 if causal else away == away) & (away.abs() < (window or length))
        heads = exact[start : start + length].view(length, -1, WIDTH)
        parts.append(attention(*heads.split([HEADS, keys, keys], 1), seen))
    wanted = torch.cat(parts)
    wanted.backward(slope[: rows.tokens].double())
    near(out[0, : rows.tokens], wanted)
    near(flat.grad[: rows.tokens], exact.grad[: rows.tokens])


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("only", [False, True], ids=["all", "first tokens"])
def test_attention_of_encoders_from_first_tokens_alone_and_with_dropout(only, p):
    """With dropout on the probabilities (Vaswani et al. 2017; Srivastava et al. 2014, scaled by 1 / (1 - p))."""
    rows, hidden = pack(batch_of(LENGTHS)), HEADS * WIDTH
    shape = _post_norm.LayerShape(HEADS, 1e-5, 0.0, p)
    qkv = torch.randn(len(rows.ids), 3 * hidden)
    queries = qkv[rows.first, :hidden].contiguous() if only else None
    given = qkv[:, hidden:].contiguous() if only else qkv
    got, saved = _post_norm._attend(given, queries, shape, rows.groups, Dropout(5) if p else None, keep=True)
    slope = torch.randn_like(got)
    gradient, of_queries = _post_norm._attend_backward(
        slope, saved, shape, rows.groups, len(qkv), separate=only
    )  # fmt: skip
    (exact,) = exact_of(qkv)
    draws, parts, row = Dropout(5), [], 0
    starts = rows.first.tolist()
    for group in rows.groups:  # the masks are drawn group by group
        count = 1 if only else group.length
        mask = draws.mask((group.rows, HEADS, count, group.length), p, qkv)
        for number in range(group.rows):
            length = LENGTHS[row]
            q, k, v = exact[starts[row] : starts[row] + length].view(length, 3, HEADS, WIDTH).unbind(1)
            asked = 1 if only else length
            kept = None if mask is None else mask[number, :, :asked, :length].double() / (1 - Dropout.rounded(p))
            parts.append(attention(q[:asked], k, v, torch.ones(asked, length, dtype=torch.bool), kept).flatten(1))
            row += 1
    wanted = torch.cat(parts)
    wanted.backward(slope[: len(wanted)].double())
    near(got[: len(wanted)], wanted)
    if only:
        near(of_queries, exact.grad[rows.first, :hidden])
        near(gradient[: rows.tokens], exact.grad[: rows.tokens, hidden:])
    else:
        near(gradient[: rows.tokens], exact.grad[: rows.tokens])


def norm(x, weight, epsilon):
    """x / sqrt(mean(x^2) + epsilon) times the weight (Zhang & Sennrich 2019)."""
    return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * weight.double()


def turned(x, base):
    """Pairs of components, half a head apart, turned by position / base^(2 i / d) (Su et al. 2021)."""
    half = x.shape[-1] // 2
    angles = torch.arange(len(x)).double()[:, None] / base ** (torch.arange(half).double() / half)
    pairs = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([pairs.real, pairs.imag], -1)


def logits_of_llama(model, ids):
    """Logits after each of these tokens by the formulas of Touvron et al. 2023, in float64."""
    config = model.config

    def double(layer, x):
        return x @ layer.weight.double().t() + (0.0 if layer.bias is None else layer.bias.double())

    x = model.model.embed_tokens.weight.double()[ids]
    n, epsilon, base = len(ids), config.rms_norm_eps, config.rope_parameters["rope_theta"]
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    for layer in model.model.layers:
        own = layer.self_attn
        y = norm(x, layer.input_layernorm.weight, epsilon)
        q, k, v = (double(part, y).view(n, -1, own.head_dim) for part in (own.q_proj, own.k_proj, own.v_proj))
        if hasattr(own, "q_norm"):
            q, k = norm(q, own.q_norm.weight, epsilon), norm(k, own.k_norm.weight, epsilon)
        x = x + double(own.o_proj, attention(turned(q, base), turned(k, base), v, seen).flatten(1))
        y = norm(x, layer.post_attention_layernorm.weight, epsilon)
        gate = double(layer.mlp.gate_proj, y)
        x = x + double(layer.mlp.down_proj, gate / (1 + (-gate).exp()) * double(layer.mlp.up_proj, y))
    return double(model.lm_head, norm(x, model.model.norm.weight, epsilon))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_the_packed_forward_of_llama_with_its_positions_learns_as_the_formula(kind):
    model, lengths = tiny_writer(kind, spread=0.1), [17, 16, 9, 3, 1]
    targets = np.random.default_rng(0).integers(0, 50, sum(lengths))
    batch = batch_of(lengths, targets, np.asarray(lengths, dtype=np.int32))
    parameters = Parameters(model, FinetuneConfig(), 1e-3, architecture=LLAMA, dtype=torch.float32)
    loss = cross_entropy(
        LLAMA.forward(model, parameters, "vocabulary")(pack(batch, "cpu", "vocabulary")), torch.from_numpy(targets)
    )
    loss.backward()
    parameters.absorb()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    parameters.release()
    rows = torch.from_numpy(batch.ids.astype(np.int64)).split(lengths)
    wanted = of_classes(torch.cat([logits_of_llama(model, row) for row in rows]), targets)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    gradients = torch.autograd.grad(wanted, list(model.parameters()))
    for (name, gradient), exact in zip(found.items(), gradients, strict=True):
        gap = (gradient - exact).abs().max() / max(gradient.abs().max() for gradient in gradients)
        assert gap < 1e-5, name


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@torch.no_grad()
def test_prompts_steps_and_beams_of_the_decoder_are_those_of_the_formula(kind, monkeypatch):
    """The cache holds rows of unequal length, aligned at their ends; beams branch, rows end."""
    monkeypatch.setattr("llmasos.decoders.llama.PACK", 40)  # prompts are read in several packs
    model = tiny_writer(kind)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 256, length).tolist() for length in (33, 7, 7, 1, 20)]

    def check(logits):
        wanted = torch.stack([logits_of_llama(model, row)[-1] for row in rows])
        torch.testing.assert_close(logits.double(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))

    decoder = STEP.bind(model, torch.float32)
    check(decoder.begin(rows, 40))
    for chosen in (None, None, [0, 0, 2, 1, 4], [3, 1], None):
        if chosen is not None:
            decoder.select(torch.tensor(chosen))
            rows = [rows[at] for at in chosen]
        tokens = rng.integers(0, 256, len(rows)).tolist()
        rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        check(decoder.step(torch.tensor(tokens)))


# -- losses -------------------------------------------------------------------------------------------

WEIGHTS = [0.5, 2.0, 1.0, 3.0]
NAMED = dict(zip("abcd", WEIGHTS, strict=True))


def entropy(x, target, smoothing=0.0, weights=None):
    """-sum of w_c q_c log p_c, p = softmax(x), q_c = (1 - s) [c = target] + s / classes (Szegedy et al. 2016)."""
    weights = torch.ones(len(x)) if weights is None else torch.tensor(weights)
    wanted = (1 - smoothing) * functional.one_hot(torch.tensor(target), len(x)).double() + smoothing / len(x)
    return -(weights.double() * wanted * softmax(x).log()).sum()


def of_classes(x, targets, **options):
    return sum(entropy(row, target, **options) for row, target in zip(x, targets, strict=True) if target != IGNORED)


def of_labels(x, targets, weights=None):
    """-(w y log p + (1 - y) log (1 - p)), p = 1 / (1 + exp(-x)), averaged over the labels of a text."""
    weights = torch.ones(x.shape[1]) if weights is None else torch.tensor(weights)
    y, p = torch.from_numpy(targets).double(), 1 / (1 + (-x).exp())
    return -(weights.double() * y * p.log() + (1 - y) * (1 - p).log()).mean(1).sum()


def of_spans(x, targets):
    """Both cross entropies over the tokens of a window, halved (Devlin et al. 2019, section 4.2)."""
    windows = zip(x.split(SPANS), targets, strict=True)
    return sum(entropy(part[:, side], int(place[side])) / 2 for part, place in windows for side in (0, 1))


SPANS = [6, 4, 1]
CLASSES = np.asarray([2, 0, 3, 3, 1])
SETS = np.asarray([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0]])
ALONG = np.asarray([2, IGNORED, 3, 0, IGNORED])
PLACES = np.asarray([[1, 4], [0, 3], [0, 0]])
VOCABULARY = np.asarray([7, 0, 49, 3, 7])
CLASSIFIER = {"labels": list("abcd")}
LOSSES = {
    "classes": (TextClassificationTask(**CLASSIFIER), CLASSES, (5, 4), of_classes),
    "weighted classes": (TextClassificationTask(**CLASSIFIER, class_weights=NAMED), CLASSES, (5, 4),
                         lambda x, t: of_classes(x, t, weights=WEIGHTS)),
    "smoothed classes": (TextClassificationTask(**CLASSIFIER, label_smoothing=0.2), CLASSES, (5, 4),
                         lambda x, t: of_classes(x, t, smoothing=0.2)),
    "weighted and smoothed classes": (
        TextClassificationTask(**CLASSIFIER, class_weights=NAMED, label_smoothing=0.2), CLASSES, (5, 4),
        lambda x, t: of_classes(x, t, smoothing=0.2, weights=WEIGHTS)),
    "labels": (TextClassificationTask(**CLASSIFIER, multi_label=True), SETS, (5, 4), of_labels),
    "weighted labels": (TextClassificationTask(**CLASSIFIER, multi_label=True, class_weights=NAMED), SETS, (5, 4),
                        lambda x, t: of_labels(x, t, weights=WEIGHTS)),
    "tags": (TokenClassificationTask(labels=["O", "B-A", "I-A", "B-B"], scheme="raw"), ALONG, (5, 4), of_classes),
    "answers": (QuestionAnsweringTask(), PLACES, (11, 2), of_spans),
    "masked words": (MaskedLanguageModelingTask(), VOCABULARY, (5, 50), of_classes),
    "next words": (LanguageModelingTask(), VOCABULARY, (5, 50), of_classes),
    "chat": (ChatTask(), VOCABULARY, (5, 50), of_classes),
    "code": (CodeGenerationTask(), VOCABULARY, (5, 50), of_classes),
    "translations": (TranslationTask(), VOCABULARY, (5, 50), of_classes),
    "smoothed translations": (TranslationTask(label_smoothing=0.1), VOCABULARY, (5, 50),
                              lambda x, t: of_classes(x, t, smoothing=0.1)),
    "smoothed summaries": (SummarizationTask(label_smoothing=0.1), VOCABULARY, (5, 50),
                           lambda x, t: of_classes(x, t, smoothing=0.1)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("task", "targets", "shape", "formula"), LOSSES.values(), ids=LOSSES)
def test_a_loss_and_its_gradient_are_those_of_its_formula(task, targets, shape, formula, dtype):
    """The sum over a batch; logits in bfloat16 are read as they are, and summed up in float32."""
    logits = (3 * torch.randn(shape)).to(dtype).requires_grad_()
    if formula is of_spans:
        sizes = np.asarray(SPANS, dtype=np.int32)
        batch = batch_of(SPANS, np.concatenate([np.repeat(t[None], n, 0) for t, n in zip(targets, SPANS)]), sizes)
    else:
        batch = batch_of([1] * len(targets), targets, np.ones(len(targets), dtype=np.int32))
    loss = task.loss(logits, batch)
    (exact,) = exact_of(logits)
    wanted = formula(exact, targets)
    (3.0 * loss).backward()
    (3.0 * wanted).backward()
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5}[dtype]
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=close)
    close = 2**-8 if dtype == torch.bfloat16 else close
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=close, atol=close * 1e-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nothing_to_learn_is_no_loss(smoothing):
    assert float(cross_entropy(torch.zeros(0, 50), torch.zeros(0, dtype=torch.int64), smoothing)) == 0.0
