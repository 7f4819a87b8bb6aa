"""``within``: a run ends in its time, with a model that was scored, and says what it gave up."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from llmasos import LLM, PreferenceTask, TextClassificationTask
from llmasos.core.events import Event, Note, Step
from llmasos.errors import UsageError
from llmasos.training import curves, deadline
from llmasos.training.deadline import Costs
from tiny import save_tiny, save_tiny_bert

TASK, ROWS = TextClassificationTask.sample()
OPTIONS: dict[str, Any] = {"eval_data": ROWS, "epochs": 5, "batch_size": 4, "dropout": 0.0, "threads": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "plot_curves", lambda *_: None)


def tune(model: Path, out: Path, listen: Any = False, **options: Any) -> Any:
    return LLM.from_pretrained(model).finetune(TASK, ROWS, output=out, progress=listen, **{**OPTIONS, **options})


def cost(monkeypatch: pytest.MonkeyPatch, *costs: Costs) -> None:
    """Let steps cost what they really do not."""
    given = iter(costs)
    monkeypatch.setattr(deadline, "measured", lambda *_: next(given))


def test_what_fits_is_trained_whole_and_equal(model, tmp_path):
    run, plain = tune(model, tmp_path / "a", within="1h"), tune(model, tmp_path / "b")
    assert "within 1h: nothing has to be given up" in run.notes
    assert run.steps == plain.steps
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second  # the steps that were measured leave no trace


def test_steps_are_cut_to_the_time(model, tmp_path, monkeypatch):
    cost(monkeypatch, Costs(step=6.0, evaluation=10.0, end=20.0))
    run = tune(model, tmp_path / "out", within="100s")
    assert 7 <= run.steps <= 9  # (95 - loading - 30 or 40) / 6
    (note,) = (note for note in run.notes if note.startswith("within 100s: "))
    assert note == f"within 100s: {run.steps} of 30 steps, {run.steps / 6:.2f} epochs"
    assert run.report is not None
    assert json.loads((tmp_path / "out" / "run" / "run.json").read_text())["config"]["max_steps"] == run.steps


def test_where_not_every_row_fits_only_the_last_layers_are_trained(model, tmp_path, monkeypatch):
    cost(monkeypatch, Costs(20.0, 10.0, 10.0), Costs(5.0, 10.0, 10.0))
    run = tune(model, tmp_path / "out", within="100s")
    (note,) = (note for note in run.notes if note.startswith("within 100s: "))
    assert note.endswith("; only last-2 is trained")
    assert run.steps > 6
    assert json.loads((tmp_path / "out" / "run" / "run.json").read_text())["config"]["trainable"] == "last-2"


def long_rows() -> list[dict[str, str]]:
    """Return rows of which every sixth is ten times as long."""
    return [row | {"text": row["text"][:5] * (10 if i % 6 == 0 else 1)} for i, row in enumerate(ROWS)]


def test_long_texts_are_cut_where_that_lets_every_row_be_seen(model, tmp_path, monkeypatch):
    cost(monkeypatch, Costs(16.0, 5.0, 5.0), Costs(8.0, 5.0, 5.0))
    options = {**OPTIONS, "eval_data": long_rows(), "within": "100s"}
    llm = LLM.from_pretrained(model)
    run = llm.finetune(TASK, long_rows(), output=tmp_path / "out", progress=False, **options)
    (note,) = (note for note in run.notes if note.startswith("within 100s: "))
    config = json.loads((tmp_path / "out" / "run" / "run.json").read_text())["config"]
    assert note.endswith(f"4 of 24 rows are cut to {config['max_length']} tokens")
    assert config["max_length"] < 20
    assert (config["trainable"], run.ledger["truncated"]) == ("all", 4)
    assert run.steps >= 6
    assert '"truncated"' in (tmp_path / "out" / "run" / "ledger.jsonl").read_text()


def test_a_length_that_was_tried_and_not_taken_leaves_the_ledgers_as_they_were(model, tmp_path, monkeypatch):
    cost(monkeypatch, Costs(16.0, 5.0, 5.0), Costs(30.0, 5.0, 5.0), Costs(8.0, 5.0, 5.0))
    options = {**OPTIONS, "eval_data": long_rows(), "within": "100s"}
    run = LLM.from_pretrained(model).finetune(TASK, long_rows(), output=tmp_path / "out", progress=False, **options)
    (note,) = (note for note in run.notes if note.startswith("within 100s: "))
    assert note.endswith("; only last-2 is trained")
    assert run.ledger["truncated"] == 0
    assert '"truncated"' not in (tmp_path / "out" / "run" / "ledger.jsonl").read_text()


@pytest.mark.parametrize(("options", "costs"), [
    ({"max_length": 40, "allow_truncated": 1.0}, [16.0, 8.0]),  # a length that was asked for stays
    ({}, [60.0, 8.0]),  # half of the texts would have to be cut
])  # fmt: skip
def test_texts_are_not_cut_where_that_is_not_wanted_or_not_enough(model, tmp_path, monkeypatch, options, costs):
    cost(monkeypatch, *(Costs(step, 5.0, 5.0) for step in costs))
    options = {**OPTIONS, "eval_data": long_rows(), "within": "100s", **options}
    run = LLM.from_pretrained(model).finetune(TASK, long_rows(), progress=False, **options)
    (note,) = (note for note in run.notes if note.startswith("within 100s: "))
    assert note.endswith("; only last-2 is trained")


def test_a_preference_keeps_what_it_is_compared_with_where_only_the_last_layers_are_trained(tmp_path, monkeypatch):
    base, (task, rows) = save_tiny(tmp_path / "llama", "AutoModelForCausalLM"), PreferenceTask.sample()
    cost(monkeypatch, Costs(60.0, 5.0, 5.0), Costs(4.0, 5.0, 5.0))
    options = {**OPTIONS, "eval_data": rows, "within": "100s", "allow_unknown": 1.0, "allow_truncated": 1.0}
    run = LLM.from_pretrained(base).finetune(task, rows, progress=False, **options)
    (note,) = (note for note in run.notes if note.startswith("within 100s: "))
    assert note.endswith("only last-2 is trained")


def test_a_time_that_is_too_short_is_refused_with_the_numbers(model, tmp_path, monkeypatch):
    cost(monkeypatch, Costs(20.0, 10.0, 100.0), Costs(20.0, 10.0, 100.0))
    with pytest.raises(UsageError, match=r"a step takes 20\.00 s, an evaluation 10\.0 s and saving 100\.0 s"):
        tune(model, tmp_path / "out", within="100s")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="'soon' is not a length of time"):
        tune(model, tmp_path / "out", within="soon")


@pytest.mark.slow
def test_a_pace_that_falls_ends_the_run_in_time_with_a_score(model, tmp_path, monkeypatch):
    """The measured pace is far too quick: the loop sees the end coming."""
    cost(monkeypatch, Costs(step=1e-4, evaluation=0.5, end=1.0))

    def slow(event: Event) -> None:
        if isinstance(event, Step):
            time.sleep(0.2)

    run = tune(model, tmp_path / "out", slow, within="15s", epochs=500)
    assert run.reason == "out of time"
    assert run.report is not None
    assert 0 < run.steps < 75  # of 0.2 s each


def test_a_run_that_goes_on_keeps_what_was_settled(model, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 3:
            raise Stop

    cost(monkeypatch, Costs(6.0, 10.0, 20.0))
    with pytest.raises(Stop):
        tune(model, tmp_path / "out", stop, within="100s", checkpoint_steps=1)
    notes: list[str] = []
    run = tune(model, tmp_path / "out", lambda e: notes.append(e.text) if isinstance(e, Note) else None,
               within="100s", checkpoint_steps=1)  # fmt: skip
    assert 7 <= run.steps <= 9
    assert any("goes on with the unfinished run" in note for note in notes)


def test_it_is_for_one_process(model, tmp_path, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="within does not work with several processes"):
        tune(model, tmp_path / "out", within="1h")
