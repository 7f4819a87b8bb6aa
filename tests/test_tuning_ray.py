"""A search whose trials run side by side on a Ray cluster: the same trials, whatever ends first or is killed."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmasos import LLM, TextClassificationTask
from llmasos.cli import main
from llmasos.core.events import Note, Trial
from llmasos.errors import UsageError
from llmasos.training import study as studies
from llmasos.training.space import parse_space
from tiny import save_tiny_bert

TASK, ROWS = TextClassificationTask.sample()
GIVEN = {"epochs": 2, "dropout": 0.0, "threads": 1, "precision": "float32", "trials": 4, "eval_data": ROWS,
         "space": {"learning_rate": "1e-4..5e-3:log", "batch_size": [4, 8]}}  # fmt: skip
HERE = {"cluster": "local", "parallel": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tuning") / "base")


@pytest.fixture(autouse=True)
def _no_reports(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


def search(base: Path, output: Path, listener: Any = lambda _: None, **more: Any) -> Any:
    return LLM.from_pretrained(base).tune(TASK, ROWS, output=output, progress=listener, **{**GIVEN, **more})


def told(found: Any) -> list[Any]:
    return [(t.number, t.values, t.evaluations, t.status) for t in found.trials if t.status != "interrupted"]


@pytest.mark.slow
def test_trials_side_by_side_are_those_of_one_after_the_other_also_after_ctrl_c(base, tmp_path):
    heard: list[Any] = []

    def stop(event: Any) -> None:
        heard.append(event)
        if isinstance(event, Trial) and (event.number, event.status) == (4, "begun"):
            raise KeyboardInterrupt

    one = search(base, tmp_path / "one")
    with pytest.raises(KeyboardInterrupt, match="best model so far is in"):
        search(base, tmp_path / "two", stop, **HERE)
    trials = [(event.number, event.status) for event in heard if isinstance(event, Trial)]
    assert trials[:2] == [(1, "begun"), (2, "begun")]
    assert any("on the Ray cluster: 2" in event.text for event in heard if isinstance(event, Note))
    heard.clear()
    two = search(base, tmp_path / "two", heard.append, **HERE)
    assert {event.number for event in heard if isinstance(event, Trial)} <= {3, 4}
    assert told(two) == told(one)
    assert two.best.number == one.best.number
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    assert (tmp_path / "two" / "run" / "tuning.png").exists()
    assert not (tmp_path / "two.tuning").exists()


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_one_that_is_lost_for_good_counts(base, tmp_path, monkeypatch):
    monkeypatch.setattr("llmasos.training.cluster.RETRIES", 1)
    more = {"space": {"learning_rate": [1e-3, 1.1e-3]}, "epochs": 100, "batch_size": 4, "trials": 3,
            "evaluations": 1, "checkpoint_steps": 5}  # fmt: skip
    heard: list[Any] = []
    kills = {1: 1, 2: 2}
    over = threading.Event()

    def kill() -> None:
        while any(kills.values()) and not over.is_set():
            for process in workers():
                with contextlib.suppress(psutil.Error):
                    writes = " ".join(file.path for file in process.open_files() if "metrics.jsonl" in file.path)
                    number = next(
                        (number for number, left in kills.items() if left and f"/trial-{number}." in writes), 0
                    )
                    if number and any((tmp_path / f"two.tuning/trial-{number}.unfinished").glob("checkpoints/step-*")):
                        process.kill()
                        process.wait()
                        kills[number] -= 1
            time.sleep(0.02)

    one = search(base, tmp_path / "one", **more)
    killer = threading.Thread(target=kill)
    killer.start()
    two = search(base, tmp_path / "two", heard.append, **more, **HERE)
    over.set()
    killer.join()
    assert not any(kills.values())
    said = [event.text for event in heard if isinstance(event, Note)]
    assert sum("trial 1: its process was lost: it is started again" in text for text in said) == 1
    assert sum("trial 2: its process was lost 2 times: it counts as lost" in text for text in said) == 1
    assert [trial.status for trial in two.trials] == ["complete", "lost", "complete"]
    assert told(two)[0] == told(one)[0]
    assert told(two)[2] == told(one)[2]


def workers() -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if "ray::_train" in " ".join(one.info["cmdline"] or [])]


def test_a_trial_knows_those_that_are_surely_over_when_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "STARTUP", 2)
    space = parse_space({"learning_rate": "1e-5..1e-2:log"}, {})

    def drawn(folder: Path, values: dict[int, float]) -> float:
        folder.mkdir()
        (folder / "search.json").write_text(json.dumps({"prune": "median"}))
        study = studies.open_study(folder)
        for number, value in values.items():
            watched = studies.Watched(*studies.draw(study, number, space, seed=0, places=2), float("inf"))
            watched.status, watched.metric, watched.value = "complete", "accuracy", value
            studies.tell(study, watched, 1.0)
        assert studies.next_number(study, 9, running=(), places=2) == 5
        return float(studies.draw(study, 5, space, seed=0, places=2)[0].params["learning_rate"])

    with studies.quiet():
        first = drawn(tmp_path / "a", {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.0})
        assert first == drawn(tmp_path / "b", {2: 0.2, 1: 0.1, 4: 1.0, 3: 0.3})  # ended in another order, 4 otherwise
        assert first != drawn(tmp_path / "c", {1: 0.3, 2: 0.2, 3: 0.1, 4: 0.0})
        study = studies.open_study(tmp_path / "a")
        assert studies.next_number(study, 9, running=(5, 6), places=2) is None  # 7 waits for 5
        assert studies.next_number(study, 4, running=(), places=2) is None


def test_a_cluster_that_is_not_there_is_told_at_once(base, tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["tune", str(base), "--data", str(tmp_path / "train.jsonl"), "--output", str(tmp_path / "best")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        clock = time.monotonic()
        assert main([*words, "--cluster", address]) == 1
    assert time.monotonic() - clock < 20
    assert f"the Ray cluster {address} cannot be reached" in capsys.readouterr().err
    assert not (tmp_path / "best").exists()


def test_trials_at_once_need_a_cluster(base, tmp_path):
    with pytest.raises(UsageError, match="parallel=2 without a cluster"):
        search(base, tmp_path / "best", parallel=2)
