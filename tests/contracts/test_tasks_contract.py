"""What every task promises, whatever it is for.

A new task is covered by its ``sample()`` alone. Variants of a task, under its tag in VARIANTS, are
pairs of a task and rows, and keep the same promises.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from llmasos import LLM
from llmasos.core import plugins
from llmasos.data.dataset import read
from llmasos.data.encoding import encode
from llmasos.engines.torch import TorchEngine
from llmasos.evaluation import evaluate
from llmasos.loading import load_model
from llmasos.tasks.base import Row, Task
from tiny import save_tiny_bert, tiny_tokenizer

NAMES = plugins.names("tasks")


def _variants() -> dict[str, dict[str, tuple[Task, list[dict[str, Any]]]]]:
    from llmasos import TextClassificationTask as Classify

    _, rows = Classify.sample()
    several = [{**row, "label": [["praise"], ["complaint", "praise"], []][i % 3]} for i, row in enumerate(rows)]
    pairs = [{"text": "today", "text_pair": row["text"], "label": row["label"]} for row in rows]
    numbers = [{**row, "label": 7 * (row["label"] == "praise")} for row in rows]
    return {
        "text-classification": {
            "several labels": (Classify(multi_label=True, threshold=0.3), several),
            "several weighted labels": (Classify(multi_label=True, class_weights={"praise": 3.0}), several),
            "pairs": (Classify(), pairs),
            "numbered labels": (Classify(class_weights={0: 2.0, 7: 0.5}), numbers),
            "balanced and smoothed": (Classify(class_weights="balanced", label_smoothing=0.1), rows[:-5]),
        }
    }


class Case(NamedTuple):
    """A task with its labels settled, its rows, and the logits of a tiny model with its head."""

    name: str
    task: Task
    rows: list[dict[str, Any]]
    logits: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any]


CASES = [(name, "sample") for name in NAMES] + [(tag, variant) for tag, v in _variants().items() for variant in v]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module", params=CASES, ids=[f"{name}: {variant}" for name, variant in CASES])
def case(request: pytest.FixtureRequest, model: Path) -> Case:
    name, variant = request.param
    task, rows = plugins.load("tasks", name).sample() if variant == "sample" else _variants()[name][variant]
    task, _ = task.fitted(rows)
    encoded = encode(read(rows, task.fields), task, tiny_tokenizer(), 64)
    engine = TorchEngine(load_model(model, task, seed=3).model, tiny_tokenizer().pad_token_id, speed="plain")
    kept = _Kept()
    evaluate(engine, _Watching(task, kept), encoded, batch_size=5)  # type: ignore[arg-type]
    return Case(name, task, rows, np.concatenate(kept.logits), np.concatenate(kept.targets))


class _Kept:
    """A scorer that keeps what it is given."""

    def __init__(self) -> None:
        self.logits: list[Any] = []
        self.targets: list[Any] = []

    def add(self, logits: Any, targets: Any) -> None:
        self.logits.append(logits)
        self.targets.append(targets)


class _Watching:
    """A task whose scorer is ours."""

    def __init__(self, task: Task, scorer: _Kept) -> None:
        self._task, self._scorer = task, scorer

    def scorer(self) -> _Kept:
        return self._scorer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def required_text(task: Task) -> str:
    return next(field.name for field in task.fields if field.kind == "text" and field.required)


def without_labels(task: Task, row: Row) -> dict[str, Any]:
    labels = {field.name for field in task.fields if field.kind == "label"}
    return {name: value for name, value in row.items() if name not in labels}


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_model_learns_the_sample(name, model):
    task, rows = plugins.load("tasks", name).sample()
    llm = LLM.from_pretrained(model)
    run = llm.finetune(task, rows, eval_data=rows, epochs=20, batch_size=8, learning_rate=3e-3, dropout=0.0,
                       precision="float32", threads=1, evaluations=1, progress=False)  # fmt: skip
    assert run.metrics[task.default_metric] >= 0.9 > run.report.baseline[task.default_metric]
    assert len(llm.predict([without_labels(task, row) for row in rows], threads=1)) == len(rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_found_under_its_tag(name):
    assert plugins.load("tasks", name).tag == name


def test_a_task_survives_being_stored(case):
    for task in (case.task, type(case.task).sample()[0]):  # with its labels settled, and before
        stored = task.to_dict()
        assert stored["tag"] == case.name
        for content in (stored, json.loads(json.dumps(stored))):
            back = type(task).from_dict(content)
            assert (back, back.to_dict()) == (task, stored)
    again = type(case.task).from_dict(json.loads(json.dumps(case.task.to_dict())))
    np.testing.assert_array_equal(again.targets(case.rows), case.task.targets(case.rows))
    assert again.head_config() == case.task.head_config()


def test_settling_a_task_twice_changes_nothing(case):
    assert case.task.fitted(case.rows)[0] == case.task


def test_good_rows_are_accepted_and_damaged_ones_named(case):
    assert [case.task.problem(row) for row in case.rows] == [None] * len(case.rows)
    for field in (field for field in case.task.fields if field.required):
        for value in (None, 1.5, {}):
            assert case.task.problem({**case.rows[0], field.name: value}).field == field.name
        assert not case.task.problem({**case.rows[0], field.name: None}).drop
    assert case.task.problem({**case.rows[0], required_text(case.task): "  "}).drop
    assert case.task.problem(without_labels(case.task, case.rows[0]), labelled=False) is None


def test_encoding_keeps_to_max_length_and_tells_what_it_cut(case):
    tokenizer, text = tiny_tokenizer(), required_text(case.task)
    rows = [*case.rows, {**case.rows[0], text: "long " * 40}]
    full, cut = (case.task.encode(rows, tokenizer, longest) for longest in (10_000, 12))
    assert set(full.truncated) == {0}
    assert max(len(ids) for ids in cut.ids) == 12
    assert len(full.ids) == len(cut.ids) == len(cut.truncated) == len(rows)
    for whole, kept, lost in zip(full.ids, cut.ids, cut.truncated, strict=True):
        assert len(kept) + lost == len(whole)
        assert kept[-1] == whole[-1] == tokenizer.sep_token_id  # what is cut is text, not the model's own tokens
        assert kept.dtype == np.int32
    if cut.types is not None:
        assert [len(types) for types in cut.types] == [len(ids) for ids in cut.ids]


def test_a_row_is_encoded_alike_whatever_is_beside_it(case):
    together = case.task.encode(case.rows, tiny_tokenizer(), 14)
    for i, row in enumerate(case.rows):
        alone = case.task.encode([row], tiny_tokenizer(), 14)
        np.testing.assert_array_equal(alone.ids[0], together.ids[i])
        assert alone.truncated == together.truncated[i : i + 1]


def test_the_summed_loss_of_a_batch_is_the_sum_of_its_parts(case):
    logits, targets = torch.from_numpy(case.logits), torch.from_numpy(case.targets)
    whole = float(case.task.loss(logits, targets))
    for size in (1, 7):
        parts = zip(logits.split(size), targets.split(size), strict=True)
        assert sum(float(case.task.loss(*part)) for part in parts) == pytest.approx(whole, rel=1e-5)
        weights = [case.task.weight(part.numpy()) for part in targets.split(size)]
        assert sum(weights) == pytest.approx(case.task.weight(case.targets))
    assert 0 < whole < np.inf
    assert case.task.weight(case.targets) > 0


def test_the_loss_falls_along_its_gradient_also_in_half_precision(case):
    targets = torch.from_numpy(case.targets)
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.from_numpy(case.logits).to(dtype).requires_grad_()
        loss = case.task.loss(logits, targets)
        loss.backward()
        assert (loss.ndim, loss.dtype, logits.grad.dtype) == (0, torch.float32, dtype)
        assert float(case.task.loss((logits - 0.5 * logits.grad).detach(), targets)) < float(loss.detach())


def test_there_is_one_answer_per_row_and_it_is_json(case):
    answers = case.task.decode(case.logits)
    assert len(answers) == len(case.rows)
    for answer in answers:
        content = answer.as_dict()
        assert json.loads(json.dumps(content, allow_nan=False)).keys() == content.keys()
    assert case.task.decode(case.logits[:0]) == []


def test_answers_and_losses_of_extreme_logits_stay_finite(case):
    extreme = np.where(case.logits > np.median(case.logits), np.float32(1e4), np.float32(-1e4))
    for answer in case.task.decode(extreme):
        json.dumps(answer.as_dict(), allow_nan=False)
    assert np.isfinite(float(case.task.loss(torch.from_numpy(extreme), torch.from_numpy(case.targets))))


def test_scores_are_finite_and_do_not_depend_on_the_batches(case):
    whole, parts = case.task.scorer(), case.task.scorer()
    whole.add(case.logits, case.targets)
    for start in range(0, len(case.rows), 5):
        parts.add(case.logits[start : start + 5], case.targets[start : start + 5])
    values = whole.values()
    assert case.task.default_metric in values
    assert values == pytest.approx(parts.values())
    assert np.isfinite(list(values.values())).all()
    assert np.isfinite(list(whole.baseline().values())).all()
    report = whole.report(samples=50)
    assert report.rows == len(case.rows)
    json.dumps(report.as_dict(), allow_nan=False)
    assert all(low <= value <= high for value, low, high in report.metrics.values())


def test_the_head_fits_the_targets(case):
    assert len(case.logits) == len(case.targets) == len(case.rows)
    assert case.logits.shape[1] == case.task.head_config()["num_labels"]
