"""Scores of classifiers: equal to scikit-learn's, with intervals that hold what they promise."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sk

from llmasos.core.errors import DataError, TrainingError
from llmasos.metrics.classification import ClassificationScorer, MultiLabelScorer

AVERAGES = ("macro", "micro", "weighted")


def classes(rows: int, k: int = 4, seed: int = 0, skill: float = 1.5):
    """Logits that are right more often than not, and targets of which class 0 is the most common."""
    rng = np.random.default_rng(seed)
    targets = np.minimum(rng.integers(k, size=rows), rng.integers(k, size=rows))
    return (rng.normal(size=(rows, k)) + skill * np.eye(k)[targets]).astype(np.float32), targets


def several(rows: int, k: int = 5, seed: int = 0):
    """Logits and targets of rows with several labels, which come together more often than by chance."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((rows, k)) < rng.choice([0.1, 0.6], size=(rows, 1))).astype(np.float32)
    return (1.5 * rng.normal(size=(rows, k)) + 3 * (targets - 0.5)).astype(np.float32), targets


def fed(scorer, logits, targets, batch: int | None = None):
    for start in range(0, len(logits), batch or len(logits)):
        stop = start + (batch or len(logits))
        scorer.add(logits[start:stop], targets[start:stop])
    return scorer


def of_classes(rows: int = 500, k: int = 4, seed: int = 0):
    return fed(ClassificationScorer([f"c{i}" for i in range(k)]), *classes(rows, k, seed))


def of_several(rows: int = 500, k: int = 5, seed: int = 0):
    return fed(MultiLabelScorer([f"l{i}" for i in range(k)]), *several(rows, k, seed))


def sklearn_scores(targets, answers) -> dict[str, float]:
    out = {"accuracy": sk.accuracy_score(targets, answers)}
    for average in AVERAGES:
        scores = sk.precision_recall_fscore_support(targets, answers, average=average, zero_division=0)
        out |= {f"{name}_{average}": score for name, score in zip(("precision", "recall", "f1"), scores)}
    return out


@pytest.mark.parametrize("k", [2, 4, 30])
def test_values_and_report_of_classes_equal_scikit_learn(k):
    logits, targets = classes(400, k)
    scorer, answers = of_classes(400, k), logits.argmax(axis=1)
    expected = sklearn_scores(targets, answers) | {"mcc": sk.matthews_corrcoef(targets, answers)}
    for found in (scorer.values(), {name: m.value for name, m in scorer.report(20).metrics.items()}):
        assert {**found, "ece": 0} == pytest.approx({**expected, "ece": 0}, abs=1e-12)


def test_values_and_report_of_several_labels_equal_scikit_learn():
    logits, targets = several(400)
    answers = logits >= 0
    expected = sklearn_scores(targets, answers) | {"hamming_loss": sk.hamming_loss(targets, answers)}
    scorer = of_several(400)
    for found in (scorer.values(), {name: m.value for name, m in scorer.report(20).metrics.items()}):
        assert {**found, "ece": 0} == pytest.approx({**expected, "ece": 0}, abs=1e-12)


@pytest.mark.parametrize("kind", ["classes", "several"])
def test_scores_of_each_label_equal_scikit_learn(kind):
    logits, targets = classes(300) if kind == "classes" else several(300)
    answers = logits.argmax(axis=1) if kind == "classes" else logits >= 0
    report = (of_classes(300) if kind == "classes" else of_several(300)).report(20)
    expected = sk.precision_recall_fscore_support(targets, answers, zero_division=0)
    for name, each in zip(("precision", "recall", "f1"), expected):
        assert [scores[name].value for scores in report.per_class.values()] == pytest.approx(each.tolist())
    assert [scores["support"] for scores in report.per_class.values()] == expected[3].tolist()


def test_calibration_error_is_that_of_guo():
    logits, targets = classes(1000)
    power = np.exp(logits.astype(float))
    confidence, right = (power / power.sum(1, keepdims=True)).max(1), logits.argmax(1) == targets
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert of_classes(1000).values()["ece"] == pytest.approx(expected, abs=1e-6)  # confidences in float32


def test_calibration_error_of_several_labels_is_over_all_decisions():
    logits, targets = several(400, k=1)
    pair = np.hstack([np.zeros_like(logits), logits])  # the same decisions as two classes
    two = fed(ClassificationScorer(["no", "yes"]), pair, targets[:, 0].astype(int))
    assert of_several(400, k=1).values()["ece"] == pytest.approx(two.values()["ece"], abs=1e-6)


def test_the_confusion_matrix_is_scikit_learns():
    logits, targets = classes(300)
    confusion = of_classes(300).report(20).confusion
    assert confusion.matrix == sk.confusion_matrix(targets, logits.argmax(axis=1)).tolist()
    assert confusion.labels == ["c0", "c1", "c2", "c3"]


def test_labels_that_never_occur_score_zero_without_a_warning():
    scorer = fed(ClassificationScorer(["a", "b", "never"]), np.array([[2, 1, 0], [1, 2, 0]]), np.array([0, 1]))
    report = scorer.report(50)
    assert report.per_class["never"]["f1"] == (0.0, 0.0, 0.0)
    assert report.metrics["f1_macro"].value == scorer.values()["f1_macro"] == 1.0


def test_one_class_only_has_no_correlation():
    scorer = fed(ClassificationScorer(["a", "b"]), np.array([[2, 1], [3, 0]]), np.array([0, 0]))
    assert scorer.values()["mcc"] == scorer.report(20).metrics["mcc"].value == 0.0


def test_the_baseline_always_names_the_most_common_class():
    _, targets = classes(300)
    expected = sklearn_scores(targets, np.zeros_like(targets)) | {"mcc": 0.0, "ece": 0.0}
    assert of_classes(300).report(20).baseline == pytest.approx(expected)


def test_the_baseline_of_several_labels_is_the_most_common_set():
    targets = np.array([[1, 0, 1], [1, 0, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]], dtype=np.float32)
    scorer = fed(MultiLabelScorer(["a", "b", "c"]), np.zeros((5, 3)), targets)
    always = np.tile([1, 0, 1], (5, 1))
    expected = sklearn_scores(targets, always) | {"hamming_loss": sk.hamming_loss(targets, always), "ece": 0.0}
    assert scorer.baseline() == pytest.approx(expected)


@pytest.mark.parametrize("scorer", [of_classes, of_several])
def test_values_report_and_baseline_have_the_same_names(scorer):
    report = scorer().report(20)
    assert set(report.metrics) == set(report.baseline) == set(scorer().values())


@pytest.mark.parametrize(("make", "draw"), [(ClassificationScorer, classes), (MultiLabelScorer, several)])
def test_batches_change_nothing(make, draw):
    logits, targets = draw(700)
    names = [str(i) for i in range(logits.shape[1])]
    whole, parts = fed(make(names), logits, targets), fed(make(names), logits, targets, batch=33)
    assert whole.report(50) == parts.report(50)


def test_rows_that_share_a_block_count_the_same_in_any_batches():
    logits, targets = several(600, k=8000)
    names = [str(i) for i in range(8000)]  # so many labels that there are only 250 blocks
    whole, parts = fed(MultiLabelScorer(names), logits, targets), fed(MultiLabelScorer(names), logits, targets, 100)
    assert whole.values() == pytest.approx(parts.values(), abs=1e-12)
    answers = (logits >= 0).astype(int)
    assert whole.values()["accuracy"] == (answers == targets).all(axis=1).mean()
    assert whole.values()["f1_micro"] == pytest.approx(sk.f1_score(targets.ravel(), answers.ravel()))


@pytest.mark.parametrize("scorer", [of_classes, of_several])
def test_the_seed_alone_decides_the_intervals(scorer):
    first, again, other = scorer().report(50, seed=1), scorer().report(50, seed=1), scorer().report(50, seed=2)
    assert first == again
    assert first.metrics["f1_macro"] != other.metrics["f1_macro"]


@pytest.mark.parametrize("scorer", [of_classes, of_several])
def test_a_report_survives_json(scorer):
    content = scorer().report(20).as_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert set(content["metrics"]["accuracy"]) == {"value", "low", "high"}


@pytest.mark.parametrize("scorer", [ClassificationScorer(["a", "b"]), MultiLabelScorer(["a", "b"])])
def test_no_rows_is_an_error(scorer):
    for ask in (scorer.values, scorer.report, scorer.baseline):
        with pytest.raises(DataError, match="no rows to score"):
            ask()


@pytest.mark.parametrize("scorer", [ClassificationScorer(["a", "b"]), MultiLabelScorer(["a", "b"])])
def test_answers_that_are_not_numbers_are_refused(scorer):
    with pytest.raises(TrainingError, match="not finite"):
        scorer.add(np.array([[np.nan, 1.0]]), np.array([0]))


def test_extreme_logits_overflow_nothing():
    huge = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype=np.float32)
    assert fed(ClassificationScorer(["a", "b"]), huge, np.array([0, 1])).values()["ece"] == 0.0
    assert fed(MultiLabelScorer(["a", "b"]), huge, np.eye(2)).values()["ece"] == 0.0


def test_the_threshold_decides():
    logits = np.log(np.array([[0.6 / 0.4, 0.2 / 0.8]]))
    targets = np.array([[1.0, 0.0]])
    assert fed(MultiLabelScorer(["a", "b"], threshold=0.5), logits, targets).values()["accuracy"] == 1.0
    assert fed(MultiLabelScorer(["a", "b"], threshold=0.7), logits, targets).values()["accuracy"] == 0.0


# -- intervals ----------------------------------------------------------------------------------------


def naive(logits, targets, make, samples: int = 1000):
    """Bootstrap the slow way: draw rows, score them, take percentiles."""
    rng, names, values = np.random.default_rng(1), [str(i) for i in range(logits.shape[1])], []
    for _ in range(samples):
        rows = rng.integers(len(logits), size=len(logits))
        values.append(fed(make(names), logits[rows], targets[rows]).values())
    return {name: np.quantile([v[name] for v in values], (0.025, 0.975)) for name in values[0]}


@pytest.mark.parametrize(("make", "draw"), [(ClassificationScorer, classes), (MultiLabelScorer, several)])
def test_drawing_counts_equals_drawing_rows(make, draw):
    logits, targets = draw(300)
    scorer = fed(make([str(i) for i in range(logits.shape[1])]), logits, targets)
    found, expected = scorer.report(4000).metrics, naive(logits, targets, make)
    for name in set(expected) - {"ece"}:
        width = expected[name][1] - expected[name][0]
        # the ends of 1000 draws err by about a twentieth of the width; three times that
        assert found[name][1:] == pytest.approx(expected[name], abs=0.15 * width), name


def test_drawing_cells_of_confidence_equals_drawing_rows():
    logits, targets = classes(300)
    scorer = fed(ClassificationScorer(list("abcd")), logits, targets)
    drawn = np.abs(scorer._gap_draws(4000, np.random.default_rng(0))).sum(axis=1)
    low, high = naive(logits, targets, ClassificationScorer)["ece"]
    assert np.quantile(drawn, (0.025, 0.975)) == pytest.approx((low, high), abs=0.15 * (high - low))


def coverage(simulate, make, truth: dict[str, float], runs: int) -> dict[str, float]:
    held = dict.fromkeys(truth, 0)
    for seed in range(runs):
        logits, targets = simulate(seed)
        report = fed(make([str(i) for i in range(logits.shape[1])]), logits, targets).report(200, seed)
        for name, value in truth.items():
            held[name] += report.metrics[name].low <= value <= report.metrics[name].high
    return {name: count / runs for name, count in held.items()}


@pytest.mark.parametrize(
    ("make", "draw", "runs"), [(ClassificationScorer, classes, 200), (MultiLabelScorer, several, 100)]
)
def test_intervals_hold_the_truth_in_about_95_of_100_evaluations(make, draw, runs):
    logits, targets = draw(200_000, seed=10_000)
    truth = fed(make([str(i) for i in range(logits.shape[1])]), logits, targets, 50_000).values()
    found = coverage(lambda seed: draw(400, seed=seed), make, truth, runs)
    assert all(0.90 <= share <= 1.0 if name == "ece" else 0.90 <= share <= 0.99 for name, share in found.items()), found


def test_a_well_calibrated_model_is_not_accused():
    def calibrated(seed: int):
        rng = np.random.default_rng(seed)
        logits = 2 * rng.normal(size=(300, 2))
        yes = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
        return logits, (rng.random(300) < yes).astype(int)

    assert coverage(calibrated, ClassificationScorer, {"ece": 0.0}, runs=60)["ece"] >= 0.9


def test_blocks_of_rows_give_the_width_of_single_rows_even_if_the_rows_are_sorted():
    logits, targets = several(40_000, k=2)
    right = ((logits >= 0) == targets).all(axis=1)
    order = np.argsort(right)
    scorer = fed(MultiLabelScorer(["a", "b"]), logits[order], targets[order], batch=5000)
    share, low, high = scorer.report(2000).metrics["accuracy"]
    assert share == right.mean()
    expected = 2 * 1.96 * np.sqrt(share * (1 - share) / len(right))  # of a binomial share
    assert high - low == pytest.approx(expected, rel=0.1)  # the ends of 2000 draws err by some percent


def test_every_interval_of_the_calibration_error_holds_its_value():
    for seed in range(20):
        value, low, high = of_classes(60, seed=seed).report(100).metrics["ece"]
        assert 0.0 <= low <= value <= high


# -- memory -------------------------------------------------------------------------------------------


def held_bytes(scorer) -> int:
    arrays = [a for v in vars(scorer).values() for a in (v if isinstance(v, list) else [v])]
    return sum(a.nbytes for a in arrays if isinstance(a, np.ndarray))


def test_a_million_rows_of_a_hundred_labels_stay_small():
    scorer = MultiLabelScorer([str(i) for i in range(100)])
    logits, targets = several(15_000, k=100)
    scorer.add(logits, targets)  # more rows than blocks: from here on only the targets' bits are added
    first = held_bytes(scorer)
    scorer.add(logits, targets)
    a_row = (held_bytes(scorer) - first) / len(logits)
    assert a_row == 13  # bytes: a bit per label
    assert first + a_row * (1_000_000 - len(logits)) < 0.1 * 1_000_000 * logits[0].nbytes


def test_the_scorer_of_classes_keeps_nothing_per_row():
    logits, targets = classes(10_000)
    scorer = of_classes(10)
    before = held_bytes(scorer)
    tracemalloc.start()
    for _ in range(20):
        scorer.add(logits, targets)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes(scorer) == before
    assert kept < 100_000
