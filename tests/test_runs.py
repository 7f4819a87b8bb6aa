"""The run store: every training enters it, says how it ended, and is found again, wherever its folder went."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from llmasos import LLM, TextClassificationTask, runs
from llmasos.cli import main
from llmasos.core.environment import home
from llmasos.core.events import Event, Note, Phase, Started, Step
from llmasos.errors import DataError, TrainingError, UsageError
from tiny import save_tiny_bert

TASK, ROWS = TextClassificationTask.sample()
QUICK: dict[str, Any] = {"eval_data": ROWS, "epochs": 1, "batch_size": 8, "dropout": 0.0, "threads": 1,
                         "precision": "float32", "speed": "plain"}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with three runs: into out, into other, and the newest without an output."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMASOS_HOME", str(folder / "home"))
        for options in ({"output": folder / "out"}, {"output": folder / "other", "seed": 1, "epochs": 2}, {"seed": 2}):
            LLM.from_pretrained(model).finetune(TASK, ROWS, progress=False, **{**QUICK, **options})
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``trained`` that a test may change."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "home" / "runs").glob("*.json"):
        path.write_text(path.read_text().replace(str(trained), str(tmp_path)))
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty store."""
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "home"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        code = main(["runs", *map(str, words)])
        return (code, *capsys.readouterr())

    return run


def tune(model: Path, listener: Any = False, **options: Any) -> Any:
    return LLM.from_pretrained(model).finetune(TASK, ROWS, progress=listener, **{**QUICK, **options})


def newest() -> runs.Entry:
    return runs.entries()[0]


# -- how a run ended --------------------------------------------------------------------------------------


def test_a_run_is_running_while_it_runs_and_done_when_it_is_done(model, tmp_path, own):
    seen: list[Any] = []

    def listen(event: Event) -> None:
        seen.append((newest().status, runs.place(newest()).records))

    done = tune(model, listen, output=tmp_path / "out")
    entry = newest()
    assert {status for status, _ in seen} == {"running"}
    assert seen[0][1] is None
    assert seen[-1][1] == tmp_path / "out" / "run"
    assert any(records == tmp_path / "out.unfinished" / "run" for _, records in seen)
    assert (entry.status, entry.steps, entry.model, entry.task) == ("done", 3, str(model), "text-classification")
    assert entry.metric == {"name": "accuracy", **done.report.metrics["accuracy"]._asdict()}
    assert entry.seconds >= done.seconds
    assert runs.record(entry)["result"]["metrics"] == done.metrics


def test_early_stopping_is_done_and_told(model, own):
    flipped = [{**row, "label": {"praise": "complaint", "complaint": "praise"}[row["label"]]} for row in ROWS]
    tune(model, epochs=9, patience=1, eval_data=flipped, learning_rate=1e-2)
    assert (newest().status, newest().reason) == ("done", "early stopping")


def test_ctrl_c_is_interrupted_with_what_was_kept(model, own):
    def press(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            signal.raise_signal(signal.SIGINT)

    assert tune(model, press).reason == "interrupted"
    assert (newest().status, newest().reason, newest().steps) == ("interrupted", "", 2)
    with pytest.raises(KeyboardInterrupt):
        tune(model, lambda event: press(Step(2, *[0] * 8)) if isinstance(event, Phase) else None)
    assert (newest().status, newest().steps) == ("interrupted", None)


class Poisoned(TextClassificationTask):
    """Rows of the third class have a loss of NaN, in training alone."""

    def loss(self, outputs: Any, batch: Any) -> Any:
        loss = super().loss(outputs, batch)
        return loss * float("nan") if outputs.requires_grad and bool((batch.targets == 2).any()) else loss


def test_a_loss_that_is_not_finite_is_stopped_and_refused_data_are_no_run(model, own):
    poison = [*ROWS, {"text": "a long and poisonous day number 25", "label": "poison"}]
    with pytest.raises(TrainingError, match="the loss is nan"):
        LLM.from_pretrained(model).finetune(
            Poisoned(labels=["complaint", "praise", "poison"]), poison, progress=False, **{**QUICK, "batch_size": 5}
        )
    assert (newest().status, newest().steps > 0) == ("stopped", True)
    assert "the loss is nan at step" in newest().reason
    with pytest.raises(DataError):
        tune(model, max_length=8, allow_truncated=0.0)
    assert [entry.status for entry in runs.entries()] == ["stopped"]


def test_a_run_that_may_not_start_is_no_run(model, tmp_path, own):
    tune(model, output=tmp_path / "out")
    with pytest.raises(UsageError, match="exists already"):
        tune(model, output=tmp_path / "out")
    assert len(runs.entries()) == 1


@pytest.mark.slow
def test_a_killed_run_is_lost_and_can_be_removed(model, tmp_path, own, call):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["finetune", model, "--data", "train.jsonl", "--output", "out", "--epochs", "1000000", "--speed", "plain"]
    run = subprocess.Popen([sys.executable, "-m", "llmasos", *map(str, words)], cwd=tmp_path, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not any((tmp_path / "out.unfinished").glob("best-*/model.safetensors")):
            assert run.poll() is None, run.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.05)
        assert newest().status == "running"
        assert call("rm", newest().id)[0] == 2
        assert call("plot", newest().id, "--output", tmp_path / "now.png")[0] == 0
    finally:
        run.kill()
        run.communicate()
    assert newest().status == "lost"
    assert "unfinished" in runs.place(newest()).note
    assert call("show", newest().id)[0] == 0
    assert call("rm", newest().id)[0] == 0
    assert runs.entries() == []
    assert any((tmp_path / "out.unfinished").glob("best-*"))
    assert list((tmp_path / "home" / "runs").iterdir()) == []


def test_two_who_ask_at_once_do_not_take_each_other_for_the_run(own):
    registered = runs.Registered.begin("aa", model="m", task="t", folder=Path("x"), has_output=True)
    lock = home() / "runs" / "aa.lock"
    assert runs.atomic.is_held(lock)
    registered._lock.pop_all()  # as if the process were gone
    del registered
    with runs.atomic.held(lock, shared=True):
        assert newest().status == "lost"


def test_a_store_that_cannot_be_written_ends_no_run(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "file"))
    events: list[Event] = []
    done = tune(model, events.append, output=tmp_path / "out")
    assert done.reason == "done"
    assert [e.level for e in events if isinstance(e, Note) and "not in the run store" in e.text] == ["warning"]


def test_a_run_says_when_it_starts_what_it_is_made_of(model, own):
    events: list[Event] = []
    done = tune(model, events.append)
    (started,) = (event for event in events if isinstance(event, Started))
    assert events.index(started) < next(i for i, event in enumerate(events) if isinstance(event, Step))
    assert (started.id, started.folder, started.task) == (newest().id, done.path, "text-classification")
    assert started.config == runs.record(newest())["config"]


# -- where its records are ----------------------------------------------------------------------------------


def test_a_folder_that_is_gone_or_holds_another_run_is_said(folder, model, call):
    _, other, out = runs.entries()
    shutil.move(folder / "other", folder / "moved")
    assert runs.place(other) == (None, f"{folder / 'other'} was moved or deleted")
    tune(model, output=folder / "out", overwrite=True)
    assert runs.place(out) == (None, f"{folder / 'out'} now holds another run")
    assert runs.place(newest()).records == folder / "out" / "run"
    assert "was moved or deleted" in call("list")[1]
    assert call("show", out.id)[0] == 0
    code, _, err = call("compare", out.id, newest().id)
    assert code == 2
    assert "now holds another run" in err


def test_rm_keeps_the_model_unless_it_is_told_to_go(folder, call):
    bare, other, out = runs.entries()
    assert call("rm", bare.id, other.id)[0] == 0
    assert not Path(bare.folder).exists()
    assert (folder / "other" / "model.safetensors").exists()
    assert call("rm", out.id, "--model-too")[0] == 0
    assert not (folder / "out").exists()
    assert call("list", "--json")[1] == '{\n  "runs": []\n}\n'


def test_rm_leaves_the_folder_of_another_run_alone(folder, model, call):
    out = runs.entries()[-1]
    tune(model, output=folder / "out", overwrite=True)
    assert call("rm", out.id, "--model-too")[0] == 0
    assert (folder / "out" / "model.safetensors").exists()


def test_a_damaged_entry_is_shown_and_can_be_removed(folder, call):
    (folder / "home" / "runs" / "0123abcd.json").write_text('{"id": ')
    assert [entry.status for entry in runs.entries()] == ["done", "done", "done", "damaged"]
    assert "damaged" in call("list")[1]
    assert call("rm", "0123abcd")[0] == 0
    assert len(runs.entries()) == 3


# -- the command line -----------------------------------------------------------------------------------------


def test_list_shows_the_newest_first_and_filters(folder, call):
    bare, other, out = runs.entries()
    assert (Path(other.folder).name, Path(out.folder).name, bare.has_output) == ("other", "out", False)

    def ids(*words: object) -> list[str]:
        return [run["id"] for run in json.loads(call("list", "--json", *words)[1])["runs"]]

    assert ids() == [bare.id, other.id, out.id]
    assert ids("--limit", 2) == [bare.id, other.id]
    assert ids("--task", "text-classification", "--model", "MODEL") == ids()
    assert ids("--task", "fill-mask") == ids("--model", "nowhere") == []
    assert [line.split()[0] for line in call("list")[1].splitlines()] == ["id", bare.id, other.id, out.id]


def test_show_has_configuration_metrics_ledger_cost_and_lineage(folder, call):
    entry = runs.entries()[-1]
    shown = " ".join(call("show", entry.id[:6])[1].split())
    record = runs.record(entry)
    low, high = (record["result"]["report"]["metrics"]["accuracy"][end] for end in ("low", "high"))
    data = record["data"]["train"]["fingerprint"][:16]
    parts = (f"{low:.4f} to {high:.4f}", "batch_size 8", "kept 24 24", "for 3 steps", f"base {entry.model}", data)
    for part in (entry.id, *parts):
        assert part in shown
    document = json.loads(call("show", entry.id, "--json")[1])
    assert (document["id"], document["record"]) == (entry.id, record)


def test_compare_shows_what_differs_and_the_metrics_side_by_side(folder, call):
    bare, other, out = runs.entries()
    document = json.loads(call("compare", out.id, other.id, "--json")[1])
    assert document["differing"] == {"epochs": {out.id: 1.0, other.id: 2.0}, "seed": {out.id: 0, other.id: 1}}
    assert document["metrics"][other.id] == runs.record(other)["result"]["report"]["metrics"]
    lines = [line.split() for line in call("compare", out.id, other.id, bare.id)[1].splitlines()]
    assert ["epochs", "1", "2", "1"] in lines
    assert ["seed", "0", "1", "2"] in lines
    assert not any(line[:1] == ["batch_size"] for line in lines)


def test_plot_draws_one_run_or_several(folder, call):
    bare, other, out = runs.entries()
    pictures = []
    for number, ids in enumerate(([out.id], [out.id, other.id], [out.id, bare.id])):
        path = folder / f"{number}.png"
        assert call("plot", *ids, "--output", path)[0] == 0
        pictures.append(matplotlib.image.imread(path))
    assert {picture.shape[:2] for picture in pictures} == {(450, 1200)}
    assert not (pictures[0] == pictures[1]).all()
    assert not (pictures[1] == pictures[2]).all()


def test_the_beginning_of_an_id_is_enough_where_it_is_not_that_of_two(own, call):
    for id in ("aabb", "aacc", "dd"):
        runs.Registered.begin(id, model="m", task="t", folder=Path("x"), has_output=True).finish(status="done")
    assert runs.find("D").id == "dd"
    assert runs.find("aab").id == "aabb"
    with pytest.raises(UsageError, match="beginning of 2 runs"):
        runs.find("aa")
    with pytest.raises(UsageError, match="there is no run 'ee'"):
        runs.find("ee")


@pytest.mark.parametrize(("words", "said"), [
    (["lst"], "did you mean 'list'?"),
    (["show"], "takes one id; 0 given"),
    (["compare", "a"], "takes two ids or more; 1 given"),
    (["list", "a"], "takes no ids; 1 given"),
    (["rm"], "takes an id; 0 given"),
    (["plot", "a"], "--output curves.png"),
    (["plot", "a", "--output", "curves.gif"], "there is no run 'a'"),
    (["show", "a", "--limit", "1"], "--limit does nothing with runs show"),
    (["list", "--model-too"], "--model-too does nothing with runs list"),
    (["list", "--task", "fil-mask"], "did you mean 'fill-mask'?"),
])  # fmt: skip
def test_words_that_make_no_sense_are_refused(own, call, words, said):
    code, _, err = call(*words)
    assert code == 2
    assert said in err
