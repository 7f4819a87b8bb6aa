"""A run that was stopped and goes on ends as one that never stopped: the same bits, the same records."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmasos import LLM, TextClassificationTask
from llmasos.core.events import Event, Note, Step
from llmasos.data.batching import Batch
from llmasos.data.dataset import read
from llmasos.data.dataset import split as split_rows
from llmasos.errors import UsageError
from llmasos.tasks.text_classification import PLUGIN
from llmasos.training import checkpoint as checkpoints
from llmasos.training import curves
from tiny import save_tiny_bert

TASK = PLUGIN.from_dict({})
OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 8, "learning_rate": 1e-3, "dropout": 0.2, "evaluations": 2,
                           "checkpoint_steps": 2, "precision": "float32", "augment": 0.1}  # fmt: skip


class Stop(Exception):
    """Ends a run in the midst, as a crash does."""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "plot_curves", lambda *_: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    words, labels = ("bad", "good"), ("no", "yes")
    rows = [{"text": f"{words[i % 2]} {'very ' * (i % 5)}thing number {i}", "label": labels[i % 2]} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tune(model: Path, data: Any, out: Path, *, stop_at: int | None = None, **options: Any) -> list[Event]:
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, Step) and event.step == stop_at:
            raise Stop

    LLM.from_pretrained(model).finetune(
        TextClassificationTask(), data, eval_data=data, output=out, progress=listen, **{**OPTIONS, **options}
    )
    return events


def stopped(model: Path, data: Any, out: Path, step: int, **options: Any) -> None:
    with pytest.raises(Stop):
        tune(model, data, out, stop_at=step, **options)
    assert out.with_name(out.name + ".unfinished").is_dir()


def result(out: Path) -> tuple[bytes, list[Any], Any]:
    """Return the weights, every event's numbers (times apart), and the report."""
    lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("rows_per_second", None), line.pop("seconds_left", None)
    record = json.loads((out / "run" / "run.json").read_text())["result"]
    kept = {key: record[key] for key in ("metrics", "report", "best_step", "steps", "reason", "ledger")}
    return (out / "model.safetensors").read_bytes(), lines, kept


@pytest.fixture(scope="module")
def whole(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    tune(model, data, out)
    return out


@pytest.mark.parametrize("step", [1, 2, 3, 5, 9, 19])
def test_a_run_goes_on_to_the_same_bits(model, data, whole, tmp_path, step):
    out = tmp_path / "out"
    stopped(model, data, out, step)
    events = tune(model, data, out)
    assert result(out) == result(whole)
    first = next(event.step for event in events if isinstance(event, Step))
    assert first == (step - 1) // 2 * 2 + 1  # no earlier step is done again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_it_goes_on_many_times(model, data, whole, tmp_path):
    for step in (3, 6, 6, 11, 17):
        stopped(model, data, tmp_path / "out", step)
    tune(model, data, tmp_path / "out", resume=True)
    assert result(tmp_path / "out") == result(whole)


@pytest.mark.parametrize("options", [{"speed": "plain"}, {"micro_batch_size": 3}, {"layer_decay": 0.9},
                                     {"precision": "bfloat16"}, {"trainable": "last-1"}, {"adapter": "lora"},
                                     {"adapter": "dora", "adapter_dropout": 0.1}, {"patience": 2},
                                     {"max_steps": 13}], ids=str)  # fmt: skip
def test_every_way_to_train_goes_on(model, data, tmp_path, options):
    tune(model, data, tmp_path / "whole", **options)
    stopped(model, data, tmp_path / "out", 7, **options)
    tune(model, data, tmp_path / "out", **options)
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (tmp_path / "whole" / name).exists():
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert result_lines(tmp_path / "out") == result_lines(tmp_path / "whole")


def result_lines(out: Path) -> list[Any]:
    return [{k: v for k, v in json.loads(line).items() if k not in ("rows_per_second", "seconds_left")}
            for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]  # fmt: skip


SCRIPT = """
import os, signal, sys
from llmasos import LLM, TextClassificationTask
from llmasos.core.events import Step
from llmasos.training import curves
curves.plot_curves = lambda *_: None
model, data, out, step, number, options = sys.argv[1:]
def listen(event):
    if isinstance(event, Step) and event.step == int(step):
        os.kill(os.getpid(), getattr(signal, number))
llm, task = LLM.from_pretrained(model), TextClassificationTask()
llm.finetune(task, data, eval_data=data, output=out, progress=listen, **eval(options))
"""


@pytest.mark.parametrize(("number", "code"), [("SIGKILL", -signal.SIGKILL), ("SIGTERM", 143)])
def test_a_process_that_was_killed_goes_on_in_another(model, data, whole, tmp_path, number, code):
    words = [sys.executable, "-c", SCRIPT, model, data, tmp_path / "out", 9, number, repr(OPTIONS)]
    run = subprocess.run(list(map(str, words)), check=False, capture_output=True, text=True)
    assert run.returncode == code, run.stderr
    events = tune(model, data, tmp_path / "out")
    assert result(tmp_path / "out") == result(whole)
    first = next(event.step for event in events if isinstance(event, Step))
    # SIGTERM leaves a checkpoint of the step that was done; SIGKILL may come before step 8's was written
    assert first in ((7, 9) if number == "SIGKILL" else (10,))


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(model, data, whole, tmp_path):
    stopped(model, data, tmp_path / "out", 9)
    folder = tmp_path / "out.unfinished" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-6", "step-8"]  # keep_checkpoints
    file = folder / "step-8" / checkpoints.TENSORS
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    events = tune(model, data, tmp_path / "out")
    notes = " ".join(event.text for event in events if isinstance(event, Note))
    assert "step-8 is damaged" in notes
    assert next(event.step for event in events if isinstance(event, Step)) == 7
    assert result(tmp_path / "out") == result(whole)


def test_a_checkpoint_without_its_state_is_damaged(model, data, whole, tmp_path):
    stopped(model, data, tmp_path / "out", 5)
    for folder in (tmp_path / "out.unfinished" / "checkpoints").iterdir():
        (folder / checkpoints.STATE).write_text("{")
    events = tune(model, data, tmp_path / "out")
    assert next(event.step for event in events if isinstance(event, Step)) == 1
    assert result(tmp_path / "out") == result(whole)


@pytest.mark.parametrize(("options", "named"), [({"learning_rate": 2e-3}, "learning_rate"), ({"seed": 5}, "seed"),
                                                ({"epochs": 5}, "epochs")])  # fmt: skip
def test_another_configuration_is_refused_and_the_run_stays(model, data, whole, tmp_path, options, named):
    stopped(model, data, tmp_path / "out", 5)
    with pytest.raises(UsageError, match=f"{named} is .*, there it is") as caught:
        tune(model, data, tmp_path / "out", **options)
    assert "--overwrite" in caught.value.hint
    tune(model, data, tmp_path / "out", keep_checkpoints=1)  # this one changes no result
    assert result(tmp_path / "out") == result(whole)


def test_changed_data_is_refused(model, data, tmp_path):
    stopped(model, data, tmp_path / "out", 5)
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text().replace("thing", "think"))
    with pytest.raises(UsageError, match=r"data\.train\.fingerprint"):
        tune(model, other, tmp_path / "out")


def test_a_changed_model_is_refused(model, data, tmp_path):
    mine = Path(shutil.copytree(model, tmp_path / "model"))
    stopped(mine, data, tmp_path / "out", 5)
    tensors = load_file(mine / "model.safetensors")
    next(value for value in tensors.values() if value.ndim > 1)[0, 0] += 1.0
    save_file(tensors, mine / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="has changed since its checkpoint"):
        tune(mine, data, tmp_path / "out")
    assert any((tmp_path / "out.unfinished" / "checkpoints").iterdir())


def test_resume_and_overwrite_say_what_becomes_of_an_unfinished_run(model, data, whole, tmp_path):
    with pytest.raises(UsageError, match="no unfinished run"):
        tune(model, data, tmp_path / "out", resume=True)
    stopped(model, data, tmp_path / "out", 5)
    with pytest.raises(UsageError, match="holds an unfinished run"):
        tune(model, data, tmp_path / "out", resume=False)
    events = tune(model, data, tmp_path / "out", overwrite=True)
    assert next(event.step for event in events if isinstance(event, Step)) == 1
    assert result(tmp_path / "out") == result(whole)


def test_a_folder_that_is_no_run_is_not_replaced(model, data, tmp_path):
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished" / "diary.txt").write_text("dear")
    with pytest.raises(UsageError, match="is not the folder of a run"):
        tune(model, data, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out.unfinished" / "diary.txt").exists()


def test_two_processes_do_not_write_into_one_run(model, data, tmp_path):
    from llmasos.core import atomic

    stopped(model, data, tmp_path / "out", 5)
    with atomic.hold(tmp_path / "out.unfinished"):
        for options in ({}, {"overwrite": True}):
            with pytest.raises(UsageError, match="another process is at work"):
                tune(model, data, tmp_path / "out", **options)


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(model, data, whole, tmp_path, monkeypatch):
    real: Callable[..., Any] = checkpoints.atomic.write_folder

    def full(target: Path, *args: Any, **kwargs: Any) -> Path:
        if Path(target).name == "step-4":
            raise OSError(28, "No space left on device")
        return real(target, *args, **kwargs)

    monkeypatch.setattr(checkpoints.atomic, "write_folder", full)
    events = tune(model, data, tmp_path / "out")
    assert any("no checkpoint was written" in event.text for event in events if isinstance(event, Note))
    assert result(tmp_path / "out") == result(whole)


def test_checkpoints_are_due_by_steps_or_minutes(tmp_path, monkeypatch):
    from llmasos.core.config import FinetuneConfig

    by_steps = checkpoints.Checkpoints(tmp_path, FinetuneConfig(checkpoint_steps=3))
    assert [step for step in range(1, 10) if by_steps.is_due(step)] == [3, 6, 9]
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    by_minutes = checkpoints.Checkpoints(tmp_path, FinetuneConfig(checkpoint_minutes=2.0))
    now[0] = 119.0
    assert not by_minutes.is_due(1)
    now[0] = 120.0
    assert by_minutes.is_due(1)
    assert not checkpoints.Checkpoints(tmp_path, FinetuneConfig(checkpoint_minutes=0.0)).is_due(1)


def test_the_best_model_found_before_the_stop_is_the_one_that_is_saved(model, data, tmp_path):
    """A rate that explodes later: the best model is an early one, and is scored again at the end."""
    options = {"learning_rate": 0.3, "warmup": 0.0, "schedule": "constant", "epochs": 3, "gradient_clip": 0.0}
    tune(model, data, tmp_path / "whole", **options)
    assert result(tmp_path / "whole")[2]["best_step"] < result(tmp_path / "whole")[2]["steps"]
    stopped(model, data, tmp_path / "out", 13, **options)
    tune(model, data, tmp_path / "out", **options)
    assert result(tmp_path / "out") == result(tmp_path / "whole")


def test_the_command_goes_on_too(model, data, tmp_path, capsys):
    from llmasos.cli import main

    stopped(model, data, tmp_path / "out", 5)
    options = {**OPTIONS, "eval_data": data, "data": data, "output": tmp_path / "out"}
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    assert main(["finetune", str(model), *words, "--resume"]) == 0
    assert "goes on with the unfinished run" in capsys.readouterr().err
    assert torch.isfinite(next(iter(LLM.from_pretrained(tmp_path / "out").model.parameters()))).all()
    assert len(read(data, TASK.fields)) == 40


def test_the_rows_of_a_step_are_those_that_it_saw(model, data, tmp_path, capsys):
    """A loss that looks at its rows tells what they were."""
    from llmasos.cli import main

    class Watching(TextClassificationTask):
        seen: ClassVar[list[list[int]]] = []

        def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
            if outputs.requires_grad:
                self.seen.append(sorted(batch.rows.tolist()))
            return super().loss(outputs, batch)

    for name, options in (("packed", {}), ("plain", {"speed": "plain"})):
        Watching.seen.clear()
        out = tmp_path / name
        LLM.from_pretrained(model).finetune(Watching(), data, output=out, progress=False, **{**OPTIONS, **options})
        seen = Watching.seen[-len((out / "run" / "metrics.jsonl").read_text().splitlines()) :]
        rows = read(data, TASK.fields)
        kept, _ = split_rows(rows, 0.1, 0, "")
        steps = json.loads((out / "run" / "run.json").read_text())["result"]["steps"]
        for step in (1, 2, steps):
            assert main(["data", "show", "--model", str(out), "--step", str(step), "--json"]) == 0
            shown = json.loads(capsys.readouterr().out)
            numbers = [row["row"] for row in shown["rows"]]
            assert numbers == kept.numbers(seen[step - 1 - steps]).tolist()
        assert main(["data", "show", "--model", str(out), "--step", str(steps + 1)]) == 2
        assert f"the run has steps 1 to {steps}" in capsys.readouterr().err
    changed = tmp_path / "changed.jsonl"
    changed.write_text(data.read_text().replace("thing", "think"))
    assert main(["data", "show", "--model", str(out), "--step", "1", "--data", str(changed)]) == 2
    assert "has changed since this run" in capsys.readouterr().err


def test_what_cannot_be_repeated_is_refused(model, data, tmp_path, whole, capsys):
    from llmasos.cli import main

    out = tmp_path / "memory"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    tune(model, rows, out, max_steps=1)
    for folder, what in ((out, "was in memory"), (model, "has no record of a training")):
        assert main(["verify-resume", str(folder)]) == 2
        assert what in capsys.readouterr().err
    assert main(["verify-resume", str(whole), "--kills", "0"]) == 2
    assert "at least one kill" in capsys.readouterr().err


@pytest.mark.slow
def test_a_user_can_prove_that_a_run_goes_on(model, data, whole, capsys):
    from llmasos.cli import main

    assert main(["verify-resume", str(whole), "--kills", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"]
    assert found["as_saved"]
    assert len(found["killed_at"]) == 2
    assert found["weights"] == found["weights_after_kills"]


@pytest.mark.slow
def test_a_run_that_does_not_go_on_to_the_same_bits_is_found_out(model, data, tmp_path, capsys, monkeypatch):
    from llmasos.cli import main
    from llmasos.training import verify

    tune(model, data, tmp_path / "out")
    real = verify._hashes
    monkeypatch.setattr(verify, "_hashes", lambda folder: (real(folder)[0] + folder.name, real(folder)[1]))
    assert main(["verify-resume", str(tmp_path / "out"), "--kills", "1", "--max-steps", "3"]) == 1
    assert "differs from the whole one in their weights alone" in capsys.readouterr().err
