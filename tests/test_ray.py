"""A training on a Ray cluster of two machines as Ray sees them (two raylets): two processes and a machine are lost."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmasos import errors
from llmasos.cli import main
from llmasos.cluster import dealt
from tiny import save_tiny_bert

TEXTS = [f"{('bad', 'good')[i % 2]} {'very ' * (i * 7 % 5)}thing number {i}" for i in range(41)]
OPTIONS = ["--epochs", "20", "--batch-size", "4", "--dropout", "0", "--precision", "float32", "--threads", "1",
           "--learning-rate", "1e-3", "--checkpoint-steps", "5", "--evaluations", "1"]  # fmt: skip


class Machines:
    """Two machines of one processor each; ``folder`` is seen by both."""

    def __init__(self, folder: Path, homes: tuple[Path, ...] = ()) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
        one, two = ({"env_vars": {"LLMASOS_HOME": str(home)}} for home in homes) if homes else ({}, {})
        self.cluster = Cluster(initialize_head=True, head_node_args=node | one)
        self.second = self.cluster.add_node(**node, **two)
        save_tiny_bert(folder / "bert")
        rows = [{"text": text, "label": ("no", "yes")[i % 2]} for i, text in enumerate(TEXTS)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(self, output: str, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "llmasos", "finetune", "bert", "--data", "rows.jsonl", "--eval-data",
                   "rows.jsonl", "--output", output, *OPTIONS, *words]  # fmt: skip
        return subprocess.Popen(command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def on_ray(self, output: str, *words: str) -> subprocess.Popen[str]:
        return self.start(output, "--nproc", "2", "--cluster", self.cluster.address, *words)

    def losses(self, output: str) -> list[float]:
        lines = (self.folder / output / "run" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    def weights(self, output: str) -> bytes:
        return (self.folder / output / "model.safetensors").read_bytes()

    def wait_for_checkpoint(self, output: str, after: int = 0) -> int:
        """Return the newest checkpoint's step, once there is one after a step."""
        until = time.monotonic() + 300
        folder = self.folder / f"{output}.unfinished" / "checkpoints"
        while True:
            newest = max((int(path.name[5:]) for path in folder.glob("step-*") if path.name[5:].isdigit()), default=0)
            if newest > after:
                return newest
            assert time.monotonic() < until, "no checkpoint"
            time.sleep(0.05)

    def process(self, *, main: bool) -> psutil.Process:
        """Return the training's main process, or its other one: that which does not write the records."""
        for _ in range(100):
            found = [one for one in psutil.process_iter(["name", "cmdline"])
                     if "RayTrainWorker" in " ".join(one.info["cmdline"] or [])]  # fmt: skip
            for one in found:
                writes = any(file.path.endswith("metrics.jsonl") for file in one.open_files())
                if writes == main:
                    return one
            time.sleep(0.1)
        raise AssertionError("the training has no such process")


def ended(process: subprocess.Popen[str]) -> str:
    """Return what a training has said, which must have ended well."""
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        machines = Machines(tmp_path_factory.mktemp("cluster"))
        try:
            ended(machines.on_ray("whole"))
            yield machines
        finally:
            machines.cluster.shutdown()


@pytest.mark.slow
def test_two_workers_have_the_losses_of_one_process(machines):
    ended(machines.start("alone"))
    one, two = machines.losses("alone"), machines.losses("whole")
    assert len(one) == len(two) > 200
    assert two[:100] == pytest.approx(one[:100], rel=1e-3)
    record = json.loads((machines.folder / "whole" / "run" / "run.json").read_text())
    assert record["world"] == 2
    assert "--cluster" in record["command"]


@pytest.mark.slow
def test_killed_workers_are_survived_to_the_same_bits(machines):
    training = machines.on_ray("killed")
    step = machines.wait_for_checkpoint("killed")
    machines.process(main=False).kill()
    machines.wait_for_checkpoint("killed", after=step + 50)
    machines.process(main=True).kill()
    said = ended(training)
    assert said.count("a process of the training was lost") == 2
    assert re.search(r"goes on with the unfinished run in .* from step \d+", said)
    assert machines.weights("killed") == machines.weights("whole")
    assert machines.losses("killed") == machines.losses("whole")


@pytest.mark.slow
def test_ctrl_c_leaves_the_best_model(machines):
    training = machines.on_ray("stopped", "--epochs", "2000", "--evaluations", "1")
    machines.wait_for_checkpoint("stopped")
    training.send_signal(signal.SIGINT)
    shown, said = training.communicate(timeout=200)
    assert training.returncode == 130, said
    assert "model: " in shown
    assert "interrupted; the best model so far is in" in said
    record = json.loads((machines.folder / "stopped" / "run" / "run.json").read_text())
    assert record["result"]["reason"] == "interrupted"
    assert record["result"]["best_step"] > 0
    assert (machines.folder / "stopped" / "model.safetensors").exists()
    assert not (machines.folder / "stopped.unfinished").exists()


@pytest.mark.slow
def test_what_a_worker_refuses_is_said_once_and_not_tried_again(machines):
    _, said = (training := machines.on_ray("refused", "--data", "nowhere.jsonl")).communicate(timeout=300)
    assert training.returncode == 2
    assert "nowhere.jsonl" in said
    assert "all must see data and output under the same paths" in said
    assert "lost" not in said


@pytest.mark.slow
def test_a_cluster_answers_each_row_once_in_order(machines):
    rows = [{"text": f"a {('bad', 'good')[i % 2]} thing number {i}"} for i in range(2500)]
    (machines.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "llmasos", "predict", "whole", "--data", "in.jsonl", "--json"]
    plain, dealt = (
        subprocess.run([*command, *more], cwd=machines.folder, check=True, capture_output=True, text=True)
        for more in ([], ["--cluster", machines.cluster.address])
    )
    one, two = (json.loads(done.stdout)["predictions"] for done in (plain, dealt))
    assert [answer["text"] for answer in two] == [row["text"] for row in rows]
    assert [answer["label"] for answer in two] == [answer["label"] for answer in one]
    assert [answer["score"] for answer in two] == pytest.approx([answer["score"] for answer in one], abs=1e-6)


@pytest.mark.slow
def test_a_lost_machine_is_survived_with_those_that_are_left(machines):
    training = machines.on_ray("fewer")
    machines.wait_for_checkpoint("fewer")
    machines.cluster.remove_node(machines.second, allow_graceful=False)
    said = ended(training)
    assert "room for 1 processes of 2" in said
    assert "world is now 1, it was 2" in said
    assert len(machines.losses("fewer")) == len(machines.losses("whole"))
    training = machines.on_ray("too-many")
    _, said = training.communicate(timeout=300)
    assert training.returncode == 2
    assert "room for 1 processes of 1 processors, not for 2" in said


@pytest.mark.slow
def test_machines_that_share_no_disk_meet_behind_a_url_and_a_lost_one_is_survived(machines, tmp_path, monkeypatch):
    monkeypatch.delenv("LLMASOS_HOME")  # else it goes along to all machines
    homes = tmp_path / "one", tmp_path / "two"
    machines.cluster.shutdown()
    apart = Machines(tmp_path, homes)
    try:
        there = tmp_path / "model.unfinished"
        training = apart.on_ray(f"file://{tmp_path}/model")
        until = time.monotonic() + 300
        while not any(there.glob("step-*/manifest.json")):
            assert training.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        main = apart.process(main=True)
        main.kill()
        main.wait()
        for home in homes:  # what the killed process had on its disk is gone
            shutil.rmtree(home / "outputs", ignore_errors=True)
        said = ended(training)
    finally:
        apart.cluster.shutdown()
    assert "a process of the training was lost" in said
    assert re.search(r"goes on with the unfinished run in .* from step \d+", said)
    assert apart.weights("model") == machines.weights("whole")
    assert apart.losses("model") == machines.losses("whole")
    assert not there.exists()
    assert not (tmp_path / ".model.ray").exists()


def test_only_a_file_is_answered_on_a_cluster(capsys):
    assert main(["predict", "any", "a text", "--cluster", "auto"]) == 2
    assert "--cluster without --data" in capsys.readouterr().err


def test_ray_data_is_refused_from_outside_a_cluster():
    with pytest.raises(errors.UsageError, match="Ray Data does not run from outside"):
        next(dealt(lambda: lambda start, stop: "", 1, "ray://127.0.0.1:10001"))


def words(tmp_path: Path, cluster: str) -> list[str]:
    return ["finetune", "any", "--data", str(tmp_path / "x"), "--output", str(tmp_path / "y"), "--cluster", cluster]


@pytest.mark.parametrize("scheme", ["ray://", ""])
def test_a_cluster_that_is_not_there_is_told_at_once(scheme, tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{free.getsockname()[1]}"
        clock = time.monotonic()
        assert main(words(tmp_path, address)) == 1
    assert time.monotonic() - clock < 20
    said = capsys.readouterr().err
    assert f"the Ray cluster {address} cannot be reached" in said
    assert "ray start --head" in said


def test_a_cluster_that_is_gone_is_told_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    clock = time.monotonic()
    assert main(words(tmp_path, "auto")) == 1
    assert time.monotonic() - clock < 60
    assert re.search(r"the Ray cluster [\d.]+:1 cannot be reached", capsys.readouterr().err)


def test_an_address_must_be_one(tmp_path, capsys):
    assert main(words(tmp_path, "over-there")) == 2
    assert "ray://host:port, host:port, auto or local" in capsys.readouterr().err


def test_a_missing_ray_is_told_with_the_pip_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(words(tmp_path, "auto")) == 2
    assert 'pip install "llmasos[ray]"' in capsys.readouterr().err


def test_a_process_of_several_starts_no_others(tmp_path, capsys, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert main(words(tmp_path, "auto")) == 2
    assert "Ray starts the processes" in capsys.readouterr().err


@pytest.mark.parametrize("error", [
    errors.UsageError("wrong", hint="right"), errors.MissingExtraError("this", install="that"),
    errors.DataError("rows", problems=["row 1"], count=3, hint="look"), errors.TrainingError("stopped")])  # fmt: skip
def test_errors_come_whole_from_other_processes(error: Any):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
