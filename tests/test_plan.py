"""A plan says what the run then does, with reasons, and leaves no trace."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from llmasos import LLM, TextClassificationTask
from llmasos.core.events import Phase
from llmasos.errors import DataError, UsageError
from llmasos.training import curves, timing
from llmasos.training import plan as planning
from tiny import save_tiny_bert

TASK, ROWS = TextClassificationTask.sample()
BASE: dict[str, Any] = {"epochs": 1, "batch_size": 8, "precision": "float32", "threads": 1}
PLOT = curves.plot_curves
EMPTY = {"text": " ", "label": "praise"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the runs' curves: two thirds of so short a run's time, and nothing that a plan speaks of."""
    monkeypatch.setattr(curves, "plot_curves", lambda *_: None)


def make_plan(model: Path, data: Any = ROWS, **options: Any) -> planning.Plan:
    return LLM.from_pretrained(model).plan(TASK, data, **{**BASE, **options})


def files(*folders: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


@pytest.mark.parametrize(("data", "options"), [
    (ROWS, {}),
    (ROWS, {"epochs": 1.5, "batch_size": 7, "eval_split": 0.25}),
    (ROWS, {"max_steps": 2, "eval_data": ROWS[:5], "evaluations": 2}),
    (ROWS, {"eval_split": 0.0, "max_length": 8, "allow_truncated": 1.0}),
    ([*ROWS, EMPTY], {"eval_data": [*ROWS, EMPTY], "allow_dropped": 0.1}),
])  # fmt: skip
def test_the_numbers_of_a_plan_are_those_of_the_run(model, data, options):
    plan, llm = make_plan(model, data, **options), LLM.from_pretrained(model)
    run = llm.finetune(TASK, data, progress=False, **{**BASE, **options})
    assert plan.steps == run.steps
    assert plan.rows == run.ledger["kept"]
    assert plan.evaluation_rows == (run.report.rows if run.report else 0)
    record = json.loads((run.path / "run" / "run.json").read_text())
    ledger = [json.loads(line) for line in (run.path / "run" / "ledger.jsonl").read_text().splitlines()]
    texts = [data[entry["row"] - 1]["text"] for entry in ledger]
    ids = llm.tokenizer([text for text in texts if text.strip()], truncation=True, max_length=record["max_length"])
    lengths = [len(row) for row in ids["input_ids"]]
    assert (plan.tokens, plan.longest) == (sum(lengths), max(lengths))
    said = {choice.name: choice.value for choice in plan.choices}
    assert said["precision"] == record["config"]["precision"]
    assert said["metric"] == record["config"]["metric"]
    assert said["max_length"] == str(record["max_length"])
    assert float(said["learning_rate"]) == pytest.approx(record["config"]["learning_rate"], rel=1e-5)
    assert (said["forward"] == "packed") == (record["config"]["speed"] == "packed")


def test_costs_are_above_zero_and_add_up(model):
    plan = make_plan(model)
    assert plan.seconds == pytest.approx(sum(plan.phases.values()))
    assert plan.phases.keys() == {"prepare", "load", "train", "evaluate", "save"}
    assert min(plan.phases.values()) > 0
    assert plan.memory_bytes > 1e6
    assert json.loads(json.dumps(plan.as_dict()))["steps"] == plan.steps


def test_the_disk_that_is_planned_suffices(model, tmp_path, monkeypatch):
    plan = make_plan(model)
    monkeypatch.setattr(curves, "plot_curves", PLOT)  # the picture counts
    LLM.from_pretrained(model).finetune(TASK, ROWS, output=tmp_path / "out", progress=False, **BASE)
    assert plan.disk_bytes >= sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())


def test_a_plan_writes_nothing(model, tmp_path, monkeypatch):
    for name in ("home", "tmp", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    before = files(tmp_path / "home", tmp_path / "here", model)
    plan = make_plan(model, "train.jsonl")
    assert plan.rows == 22
    assert files(tmp_path / "home", tmp_path / "here", model) == before
    assert os.listdir(tmp_path / "tmp") == []


def test_a_plan_changes_nothing_for_the_run_that_follows(model):
    alone, planned = LLM.from_pretrained(model), LLM.from_pretrained(model)
    planned.plan(TASK, ROWS, **BASE)
    assert planned.task is None
    for llm in (alone, planned):
        llm.finetune(TASK, ROWS, progress=False, **BASE)
    ours, theirs = alone.model.state_dict(), planned.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_every_choice_has_a_reason(model):
    choices = make_plan(model).choices
    names = [choice.name for choice in choices]
    assert len(set(names)) == len(names)
    assert {"device", "threads", "precision", "forward", "batches", "learning_rate", "max_length"} <= set(names)
    assert all(choice.value and len(choice.why) > 3 for choice in choices)


@pytest.mark.parametrize(("options", "name", "value", "why"), [
    ({"speed": "plain"}, "forward", "transformers", "as asked"),
    ({"speed": "auto"}, "forward", "packed", "no work on padding"),
    ({"precision": "bfloat16"}, "precision", "bfloat16", "asked for"),
    ({"threads": 1}, "threads", "1", "as asked"),
    ({"device": "cpu"}, "device", "cpu", "as asked"),
    ({"learning_rate": 3e-3}, "learning_rate", "0.003", "as asked"),
    ({"max_length": 40}, "max_length", "40", "as asked"),
    ({"max_length": None}, "max_length", "64", "limit"),
    ({"metric": "mcc"}, "metric", "mcc", "best"),
    ({"batch_size": 5}, "batches", "5 rows", "padding"),
])  # fmt: skip
def test_options_are_reflected(model, options, name, value, why):
    (choice,) = [choice for choice in make_plan(model, max_steps=1, **options).choices if choice.name == name]
    assert choice.value.startswith(value)
    assert why in choice.why


def test_a_plan_refuses_what_the_run_would_refuse(model):
    for error, data, options in (
        (UsageError, ROWS, {"max_length": 65}),
        (UsageError, ROWS, {"metric": "beauty"}),
        (DataError, ROWS, {"max_length": 8}),
        (DataError, [*ROWS, EMPTY], {}),
    ):
        messages = []
        for verb in ("plan", "finetune"):
            with pytest.raises(error) as caught:
                getattr(LLM.from_pretrained(model), verb)(TASK, data, progress=False, **{**BASE, **options})
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_a_plan_tells_what_it_is_doing(model):
    events = []
    make_plan(model, progress=events.append)
    phases = [event.name for event in events if isinstance(event, Phase)]
    ways = ["measure plain", "measure buckets", "measure packed"]
    assert phases[:-1] == ["read", "tokenize", "tokenize", "load", "measure", *ways]
    assert phases[-1].endswith(", 4 rows at once")


def test_a_sample_stands_for_all_rows(model, monkeypatch):
    whole = make_plan(model, eval_data=ROWS[:6], epochs=2)
    monkeypatch.setattr(planning, "SAMPLE", 12)
    part = make_plan(model, eval_data=ROWS[:6], epochs=2)
    assert (part.rows, part.steps) == (whole.rows, whole.steps) == (24, 6)
    assert part.tokens == pytest.approx(whole.tokens, rel=0.1)  # texts of the sample differ by a token


def test_evaluation_rows_are_not_scaled_when_all_of_them_were_read(model, monkeypatch):
    monkeypatch.setattr(planning, "SAMPLE", 12)
    assert make_plan(model, eval_data=ROWS[:6]).evaluation_rows == 6


def test_memory_grows_with_the_shapes_to_come_and_never_shrinks(model, monkeypatch):
    data = [("word " * length, "praise" if length % 2 else "complaint") for length in range(1, 14)]
    held = iter(range(10**9, 10**12, 10**8))  # every look at the memory finds 100 MB more
    monkeypatch.setattr(planning.hardware, "resident_memory", lambda: next(held))
    monkeypatch.setattr(planning.hardware, "peak_resident_memory", lambda: 10**9)
    monkeypatch.setattr(timing, "BUDGET", 0.0)  # three steps are measured
    options = {"batch_size": 1, "eval_split": 0.0}
    task = TextClassificationTask()
    assert LLM.from_pretrained(model).plan(task, data, **{**BASE, **options}).memory_bytes > 10**9
    monkeypatch.setattr(timing, "_KEPT", 0)
    assert LLM.from_pretrained(model).plan(task, data, **{**BASE, **options}).memory_bytes == 10**9


def test_a_run_that_needs_more_memory_than_there_is_gets_a_warning(model, monkeypatch):
    monkeypatch.setattr(planning.hardware, "memory_available", lambda: -planning.hardware.resident_memory())
    plan = make_plan(model)
    assert any("lower micro_batch_size" in note for note in plan.notes)
