"""Several processes train what one does: the same losses, the same scores, and on from each other's checkpoints."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from llmasos.backends.base import Backend, chosen, spread
from llmasos.cli import main
from llmasos.core import plugins
from llmasos.errors import UsageError
from llmasos.training import curves
from processes import run
from tiny import save_tiny, save_tiny_bert

HERE = Path(__file__).parent
SHARED: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "dropout": 0.0, "precision": "float32",
                          "threads": 1, "checkpoint_steps": 2, "gradient_clip": 0.5, "schedule": "constant",
                          "warmup": 0.0}  # fmt: skip
# 41 rows: the last step of an epoch is short
TEXTS = [f"{('bad', 'good')[i % 2]} {'very ' * (i * 7 % 5)}thing number {i}" for i in range(41)]
ROWS = {
    "text-classification": [{"text": text, "label": ("no", "yes")[i % 2]} for i, text in enumerate(TEXTS)],
    "sentence-similarity": [{"anchor": text, "positive": text.replace("thing", "one")} for text in TEXTS],
    "text-generation": [{"prompt": text, "completion": text[::-1]} for text in TEXTS],
}
CASES = {
    "ddp": ("text-classification", {}),
    "ddp-plain": ("text-classification", {"speed": "plain", "layer_decay": 0.9}),
    "ddp-micro": ("text-classification", {"micro_batch_size": 3}),
    "ddp-joint": ("sentence-similarity", {"epochs": 1}),
    "ddp-joint-short": ("sentence-similarity", {"epochs": 1}),
    "ddp-words": ("language-modeling", {"max_length": 16, "batch_size": 6}),
    "fsdp": ("text-classification", {"backend": "fsdp", "speed": "plain"}),
    "fsdp-micro": ("text-classification", {"backend": "fsdp", "speed": "plain", "micro_batch_size": 3}),
    "fsdp-words": ("language-modeling", {"backend": "fsdp", "speed": "plain", "max_length": 16, "batch_size": 6}),
}
"""Each is run in two processes and in one."""


class Trained:
    """The folders of all trainings: ``one`` process, ``two``, and those that went from one number to the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_tiny_bert(folder / "bert")
        save_tiny(folder / "llama", "AutoModelForCausalLM")
        for task, rows in ROWS.items():
            (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "language-modeling.txt").write_text("\n\n".join(TEXTS))

    def case(self, name: str, output: str, **changes: Any) -> dict[str, Any]:
        task, options = CASES[name]
        changes |= {"memory": 1} if name.endswith("short") else {}
        words = task == "language-modeling"
        data = f"{task}.txt" if words else f"{task}.jsonl"
        paths = {"model": "llama" if words else "bert", "output": output, "data": data}
        places = {name: str(self.folder / path) for name, path in paths.items()}
        return {"task": task, **places, "options": {**SHARED, **options}, **changes}

    def in_two(self, cases: list[dict[str, Any]]) -> None:
        (self.folder / "cases.json").write_text(json.dumps(cases))
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", HERE / "processes.py",
                 self.folder / "cases.json"]  # fmt: skip
        done = subprocess.run([sys.executable, *map(str, words)], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]

    def losses(self, output: str) -> list[float]:
        lines = (self.folder / output / "run" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    def scores(self, output: str) -> dict[str, float]:
        return json.loads((self.folder / output / "run" / "run.json").read_text())["result"]["metrics"]

    def weights(self, output: str) -> bytes:
        return (self.folder / output / "model.safetensors").read_bytes()


def alone(case: dict[str, Any]) -> None:
    case["options"]["backend"] = "auto"
    run(case)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """All trainings in one start of the processes, which takes longer than they do."""
    done = Trained(tmp_path_factory.mktemp("processes"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "plot_curves", lambda *_: None)
        for name in CASES:
            alone(done.case(name, f"one-{name}"))
        for name in ("ddp", "fsdp"):  # begun by one process, to be finished by two
            run(done.case(name, f"one-two-{name}", stop_at=7))
        done.in_two(
            [done.case(name, f"two-{name}") for name in CASES]
            + [done.case(name, f"two-two-{name}", **stop) for name in ("ddp", "fsdp") for stop in ({"stop_at": 7}, {})]
            + [done.case(name, f"one-two-{name}") for name in ("ddp", "fsdp")]
            + [done.case(name, f"two-one-{name}", stop_at=7) for name in ("ddp", "fsdp")]
        )
        for name in ("ddp", "fsdp"):
            run(done.case(name, f"two-one-{name}"))
    return done


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_losses_of_one(trained, name):
    one, two = trained.losses(f"one-{name}"), trained.losses(f"two-{name}")
    assert len(one) == len(two) > 5
    assert two == pytest.approx(one, rel=2e-4)
    assert one[0] != one[5]  # or equal losses prove nothing


def test_memory_that_runs_out_in_one_process_makes_the_parts_of_all_smaller(trained):
    notes = json.loads((trained.folder / "two-ddp-joint-short" / "run" / "run.json").read_text())["notes"]
    assert any(note.startswith("memory is short: ") for note in notes)


@pytest.mark.parametrize("name", CASES)
def test_every_row_is_scored_once(trained, name):
    one, two = trained.scores(f"one-{name}"), trained.scores(f"two-{name}")
    assert one.keys() == two.keys()
    assert two == pytest.approx(one, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_go_on_to_the_same_bits(trained, name):
    assert trained.weights(f"two-two-{name}") == trained.weights(f"two-{name}")
    assert trained.losses(f"two-two-{name}") == trained.losses(f"two-{name}")


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
@pytest.mark.parametrize("way", ["one-two", "two-one"])
def test_a_run_goes_on_with_another_number_of_processes(trained, name, way):
    assert trained.losses(f"{way}-{name}") == pytest.approx(trained.losses(f"two-{name}"), rel=2e-4)
    notes = json.loads((trained.folder / f"{way}-{name}" / "run" / "run.json").read_text())["notes"]
    assert any("world is now" in note for note in notes)


def test_the_model_of_several_processes_is_an_ordinary_one(trained):
    from llmasos import LLM

    for name in ("two-ddp", "two-fsdp", "two-one-fsdp"):
        answers = LLM.from_pretrained(trained.folder / name).predict(TEXTS[:3])
        assert {answer.label for answer in answers} <= {"no", "yes"}


COLLECTIVES = """
import torch
import torch.distributed as dist
from llmasos.backends.fsdp import GlooAllGather, GlooReduceScatter

dist.init_process_group("gloo")
rank, world, group = dist.get_rank(), dist.get_world_size(), dist.new_group()
torch.manual_seed(rank)
whole, part = torch.randn(world * 5), torch.empty(5)
expected = whole.clone()
dist.all_reduce(expected)
GlooReduceScatter()(part, whole, group, dist.ReduceOp.SUM)
torch.testing.assert_close(part, expected.chunk(world)[rank])
for in_place in (False, True):
    gathered = torch.zeros(world * 5)
    mine = gathered.chunk(world)[rank].copy_(part) if in_place else part
    GlooAllGather()(gathered, mine, group)
    torch.testing.assert_close(gathered, expected)
"""


def test_three_processes_gather_and_add_up_as_torch_does(tmp_path):
    (tmp_path / "collectives.py").write_text(COLLECTIVES)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", str(tmp_path / "collectives.py")]
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_rows_are_dealt_so_that_all_have_as_many_tokens():
    sizes = np.random.default_rng(0).integers(5, 200, 32)
    hands = spread(sizes, 3)
    assert sorted(np.concatenate(hands).tolist()) == list(range(32))
    loads = [sizes[hand].sum() for hand in hands]
    assert max(loads) - min(loads) < 0.1 * np.mean(loads)
    assert [len(hand) for hand in spread([5, 4], 3)] == [1, 1, 0]


def test_a_backend_is_chosen_by_the_processes_that_were_started(monkeypatch):
    assert type(chosen("auto")) is Backend
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    backend = chosen("auto")
    assert (backend.rank, backend.world, backend.is_main, backend.threads(16)) == (1, 4, False, 8)
    assert backend.device(torch.device("cuda")) == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="4 processes were started"):
        chosen("single")
    with pytest.raises(UsageError, match="there is no 'dpp' in backends"):
        chosen("dpp")


@pytest.mark.parametrize("name", plugins.names("backends"))
def test_one_process_alone_can_use_every_backend(name, trained, monkeypatch):
    monkeypatch.setattr(curves, "plot_curves", lambda *_: None)
    case = trained.case("fsdp", f"alone-{name}")
    case["options"] |= {"backend": name, "max_steps": 3}
    run(case)
    assert trained.losses(f"alone-{name}")[:3] == pytest.approx(trained.losses("one-fsdp")[:3], rel=1e-4)


@pytest.mark.parametrize(("name", "options", "what"), [
    ("ddp-joint", {}, "a loss that compares rows"), ("fsdp", {"adapter": "lora"}, "adapter=lora")])  # fmt: skip
def test_what_cannot_be_cut_up_is_refused(trained, name, options, what):
    case = trained.case(name, "refused")
    case["options"] |= {"backend": "fsdp", **options}
    with pytest.raises(UsageError, match=f"backend=fsdp does not train {what}"):
        run(case)


def test_nproc_must_be_a_number_of_processes(trained, capsys):
    words = ["finetune", str(trained.folder / "bert"), "--data", "x.jsonl", "--output", "x", "--nproc", "0"]
    assert main(words) == 2
    assert "--nproc 0" in capsys.readouterr().err


def words_of(trained: Trained, *options: str) -> list[str]:
    words = [sys.executable, "-m", "llmasos", "finetune", trained.folder / "bert", "--data",
             trained.folder / "text-classification.jsonl", "--batch-size", "4", "--dropout", "0", "--output", "out",
             "--checkpoint-steps", "5", "--precision", "float32", *options]  # fmt: skip
    return [str(word) for word in words]


def begun(words: list[str], folder: Path) -> tuple[subprocess.Popen[str], psutil.Process]:
    """Start a training, wait for its first checkpoint, and return it with the last of its processes."""
    training = subprocess.Popen(words, cwd=folder, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not any((folder / "out.unfinished" / "checkpoints").glob("step-*")):
        assert time.monotonic() < until
        time.sleep(0.05)
    return training, max(psutil.Process(training.pid).children(), key=lambda child: child.pid)


@pytest.mark.slow
def test_ctrl_c_that_reaches_one_process_ends_all_with_the_best_model(trained, tmp_path):
    training, worker = begun(words_of(trained, "--epochs", "4000", "--nproc", "2"), tmp_path)
    worker.send_signal(signal.SIGINT)
    _, err = training.communicate(timeout=120)
    record = json.loads((tmp_path / "out" / "run" / "run.json").read_text())
    assert record["result"]["reason"] == "interrupted", err
    assert 5 <= record["result"]["steps"] < 4000
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not (tmp_path / "out.unfinished").exists()


@pytest.mark.slow
def test_when_a_process_dies_the_others_stop_and_the_command_goes_on(trained, tmp_path):
    words = words_of(trained, "--epochs", "40")
    whole = subprocess.run([*words, "--nproc", "2"], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    (tmp_path / "out").rename(tmp_path / "whole")
    dying, worker = begun([*words, "--nproc", "2"], tmp_path)
    worker.kill()
    clock = time.monotonic()
    _, err = dying.communicate(timeout=90)
    assert time.monotonic() - clock < 60
    assert dying.returncode == 1
    assert re.search(r"process \d \(of 2, counted from 0\) was ended by SIGKILL", err)
    again = subprocess.run([*words, "--nproc", "2"], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "goes on with the unfinished run" in again.stderr
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
