"""Reporters with their real local back ends: what a run tells them is read back with their own tools."""

from __future__ import annotations

import builtins
import importlib
import struct
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llmasos import LLM, TextClassificationTask, runs
from llmasos.core import plugins
from llmasos.core.config import FinetuneConfig
from llmasos.core.events import Evaluated, Event, Note, Started, Step
from llmasos.errors import LLMasOSError, MissingExtraError, RemoteError, UsageError
from llmasos.reporters.base import opened
from tiny import save_tiny_bert

TASK, ROWS = TextClassificationTask.sample()
QUICK: dict[str, Any] = {"eval_data": ROWS, "epochs": 1, "batch_size": 8, "dropout": 0.0, "threads": 1, "seed": 5,
                         "precision": "float32", "speed": "plain", "evaluations": 3}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, a home, and none of the user's own settings of these tools."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tune(model: Path, report_to: str, **options: Any) -> tuple[Any, list[Event]]:
    events: list[Event] = []
    run = LLM.from_pretrained(model).finetune(
        TASK, ROWS, progress=events.append, report_to=report_to, **{**QUICK, **options}
    )
    return run, events


def of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def said(events: list[Event], word: str) -> list[str]:
    return [note.text for note in of(Note, events) if word in note.text]


# -- the real ones --------------------------------------------------------------------------------------------


def test_tensorboard_reads_its_event_files_back(model, place, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", types.ModuleType("notf"))  # do not load TensorFlow
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, events = tune(model, "tensorboard", output="out")
    (folder,) = (place / "home" / "tensorboard").iterdir()
    assert folder.name == f"out-{runs.entries()[0].id}"
    assert said(events, "tensorboard --logdir") == [
        f"TensorBoard shows the curves: tensorboard --logdir {folder.parent}"
    ]
    found = EventAccumulator(str(folder)).Reload()
    losses = [(event.step, event.loss) for event in of(Step, events)]
    assert [(s.step, s.value) for s in found.Scalars("train/loss")] == [(n, pytest.approx(x)) for n, x in losses]
    scores = [(event.step, event.metrics["accuracy"]) for event in of(Evaluated, events)]
    assert [(s.step, s.value) for s in found.Scalars("eval/accuracy")] == [(n, pytest.approx(x)) for n, x in scores]
    assert found.Scalars("final/accuracy")[0].value == pytest.approx(run.metrics["accuracy"])
    (text,) = found.Tensors("configuration")[0].tensor_proto.string_val
    assert "| batch_size | 8 |" in text.decode()
    assert "| status | done |" in found.Tensors("end")[0].tensor_proto.string_val[0].decode()


def test_mlflow_reads_its_database_back(model, place, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    run, events = tune(model, "mlflow", output="out")
    client = MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert (found.info.status, found.data.tags["llmasos.status"]) == ("FINISHED", "done")
    assert found.info.run_name == f"out-{runs.entries()[0].id}"
    (started,) = of(Started, events)
    assert found.data.params == {name: str(value) for name, value in started.config.items()} | {
        "model": str(model), "task": "text-classification"}  # fmt: skip
    history = [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "train/loss")]
    assert history == [(event.step, event.loss) for event in of(Step, events)]
    scores = [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "eval/f1_macro")]
    assert scores == [(event.step, event.metrics["f1_macro"]) for event in of(Evaluated, events)]
    assert found.data.metrics["final/accuracy"] == run.metrics["accuracy"]

    reporter = plugins.load("reporters", "mlflow")()  # names that MLflow does not take as they are, and more than 1000
    reporter.start(Started("aa", place / "search", "m", "sentence-similarity", {"seed": 0}))
    for step in range(1, 400):
        reporter.record(Evaluated(step, 0.0, 0.5, {"ndcg@10": 0.25, "recall@1": 0.5}, "ndcg@10", True))
    reporter.finish("interrupted", {"ndcg@10": 0.25})
    (search,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id], "params.model = 'm'")
    assert search.info.status == "KILLED"
    assert search.data.metrics["final/ndcg_at_10"] == 0.25
    assert len(client.get_metric_history(search.info.run_id, "eval/recall_at_1")) == 399


def test_wandb_writes_its_log_offline(model, place, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, events = tune(model, "wandb", output="out")
    wandb.teardown()  # its own process writes on for a moment
    (log,) = place.glob("wandb/offline-run-*/*.wandb")
    records = read_wandb(log)
    (begun,) = (record.run for record in records if record.HasField("run"))
    assert (begun.project, begun.display_name) == ("llmasos", f"out-{runs.entries()[0].id}")
    assert {item.key: item.value_json for item in begun.config.update}["batch_size"] == "8"
    rows = [{item.key or item.nested_key[0]: float(item.value_json) for item in record.history.item}
            for record in records if record.HasField("history")]  # fmt: skip
    assert [(row["_step"], row["train/loss"]) for row in rows] == [(e.step, e.loss) for e in of(Step, events)]
    assert [row["eval/accuracy"] for row in rows] == [e.metrics["accuracy"] for e in of(Evaluated, events)]
    summary = {item.key or item.nested_key[0]: item.value_json for record in records for item in record.summary.update}
    assert (summary["status"], float(summary["final/accuracy"])) == ('"done"', run.metrics["accuracy"])
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


def read_wandb(log: Path) -> list[Any]:
    """Read wandb's log: LevelDB's format, blocks of 32 KiB, behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, records, part = log.read_bytes(), 7, [], b""
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        part, at = part + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(part))
            part = b""
    return records


# -- before anything is computed --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", plugins.names("reporters"))
def test_a_missing_package_is_told_before_anything_is_computed(model, place, monkeypatch, name):
    find = builtins.__import__

    def missing(module: str, *words: Any, **more: Any) -> Any:
        if module.split(".")[0] == name and not (words and words[3:] and words[3]):
            raise ImportError(f"No module named {module!r}")
        return find(module, *words, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=rf"pip install llmasos\[{name}\]"):
        tune(model, name, output="out")
    assert not (place / "home").exists()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(("report_to", "message"), [
    ("tensorbord", "did you mean 'tensorboard'"),
    ("mlflow,", "there is no ''"),
    ("none,mlflow", "there is no 'none'"),
])  # fmt: skip
def test_an_unknown_name_is_refused(report_to, message):
    with pytest.raises(UsageError, match=message):
        FinetuneConfig(report_to=report_to)


def test_names_are_joined_with_commas():
    assert FinetuneConfig().reporters == ()
    assert FinetuneConfig(report_to="wandb, mlflow,wandb").reporters == ("wandb", "mlflow")


def test_mlflow_without_a_place_and_wandb_without_an_account_are_refused(model, place, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    (place / "file").write_text("no folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/file/mlflow.db")
    with pytest.raises(RemoteError, match="MLflow cannot use sqlite"):
        opened(["mlflow"])
    wandb = importlib.import_module("wandb")
    monkeypatch.setattr(wandb, "setup", lambda: types.SimpleNamespace(
        settings=types.SimpleNamespace(mode="online", project=None)))  # fmt: skip
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(UsageError, match="knows no account"):
        opened(["wandb"])


# -- during a run -------------------------------------------------------------------------------------------------


class Told:
    """A reporter that remembers what it heard, and fails where it shall."""

    fails_at = ""
    heard: list[Any]

    def __init__(self) -> None:
        type(self).heard = []

    def hear(self, moment: str, what: Any) -> None:
        self.heard.append((moment, what))
        if moment == self.fails_at:
            raise OSError("the line is cut")

    def start(self, run: Started) -> str:
        self.hear("start", run)
        return "heard"

    def record(self, event: Step | Evaluated) -> None:
        self.hear("record", event)

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        self.hear("finish", (status, dict(metrics)))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> type[Told]:
    """A reporter of this test under a name of its own, beside those of the package."""
    load, names = plugins.load, plugins.names
    monkeypatch.setattr(plugins, "names", lambda kind: (*names(kind), *(["told"] if kind == "reporters" else [])))
    monkeypatch.setattr(plugins, "load", lambda kind, name: Told if name == "told" else load(kind, name))
    monkeypatch.setattr(Told, "fails_at", "")
    return Told


def test_a_reporter_hears_the_start_every_step_and_the_end(model, place, told):
    run, events = tune(model, "told")
    (_, started), *between, (last, end) = told.heard
    assert started == of(Started, events)[0]
    assert [event for _, event in between] == of(Step | Evaluated, events)
    assert (last, end) == ("finish", ("done", run.metrics))
    assert said(events, "heard") == ["heard"]


@pytest.mark.parametrize("moment", ["start", "record", "finish"])
def test_a_reporter_that_fails_is_told_of_once_and_asked_no_more(model, place, told, monkeypatch, moment):
    monkeypatch.setattr(told, "fails_at", moment)
    run, events = tune(model, "told")
    assert run.reason == "done"
    assert [note.level for note in of(Note, events) if "the line is cut" in note.text] == ["warning"]
    assert [heard for heard, _ in told.heard].count(moment) == 1
    assert told.heard[-1][0] == moment


def test_a_run_that_fails_tells_its_reporters_only_if_it_had_begun(model, place, told):
    with pytest.raises(LLMasOSError):
        tune(model, "told", max_length=8, allow_truncated=0.0)
    assert told.heard == []

    def fail(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            raise ValueError("of the listener")

    with pytest.raises(ValueError, match="of the listener"):
        LLM.from_pretrained(model).finetune(TASK, ROWS, progress=fail, report_to="told", **QUICK)
    assert told.heard[-1] == ("finish", ("failed", {}))


def test_ctrl_c_while_a_reporter_ends_keeps_the_model(model, place, told, monkeypatch):
    def press(self: Told, status: str, metrics: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(told, "finish", press)
    llm = LLM.from_pretrained(model)
    with pytest.raises(KeyboardInterrupt):
        llm.finetune(TASK, ROWS, progress=False, report_to="told", **QUICK)
    assert llm.predict("a good day").label in ("praise", "complaint")
    assert runs.entries()[0].status == "done"
