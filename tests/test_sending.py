"""``llmasos finetune --on``: what is sent, what is refused, and that SkyPilot reads and starts it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmasos.cli import main
from llmasos.core import environment, plugins
from llmasos.core.errors import MissingExtraError, RemoteError, UsageError
from llmasos.sending import INPUTS, launch, places, sent

SKY = environment.environment_named("LLMASOS_SKYPILOT")
WORDS: dict[str, Any] = {
    "model": "bert-base-uncased", "task": "text-classification", "data": "s3://rows/train.csv",
    "output": "s3://models/My_Model.v2", "options": {},
}  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.csv"
    path.write_text("text,label\na,b\n")
    return path


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """SkyPilot is not here."""
    monkeypatch.delenv("LLMASOS_SKYPILOT", raising=False)


def task_of(words: dict[str, Any], **machine: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(sent("skypilot", words, machine).files["task.yaml"])
    return found


@pytest.mark.usefixtures("without")
def test_the_command_there_is_the_command_here(rows: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "base").mkdir()
    words = ["finetune", "base", "--data", "train.csv", "--output", "s3://models/mine", "--epochs", "2", "--labels",
             "good,bad", "--columns", "text=opinion", "--on", "skypilot", "--dry-run"]  # fmt: skip
    assert main(words) == 0
    out, err = capsys.readouterr()
    task = yaml.safe_load(out)
    program, *told = shlex.split(task["run"].removeprefix("exec "))
    assert program.endswith("bin/llmasos")
    assert told == ["finetune", f"{INPUTS}/base", "--task", "text-classification", "--data", f"{INPUTS}/train.csv",
                    "--output", "s3://models/mine", "--columns", "text=opinion", "--set", "num_labels=2", "--set",
                    "labels=good,bad", "--set", "epochs=2"]  # fmt: skip
    assert task["file_mounts"] == {f"{INPUTS}/base": str(tmp_path / "base"), f"{INPUTS}/train.csv": str(rows)}
    assert ("llmasos[s3]==" in task["setup"], "not checked: skypilot" in err) == (True, True)
    from llmasos.cli import command_of

    command_of("finetune").make_context("finetune", told[1:]).close()  # there is no option in it that there is not


@pytest.mark.usefixtures("without")
def test_a_machine_that_is_taken_away_is_replaced(rows: Path) -> None:
    task = task_of(WORDS)
    assert task["name"] == "my-model-v2"
    assert (task["resources"]["use_spot"], task["resources"]["job_recovery"]["max_restarts_on_errors"]) == (True, 2)
    assert "--overwrite" not in task["run"]
    assert "file_mounts" not in task


@pytest.mark.usefixtures("without")
@pytest.mark.parametrize(("option", "value", "key", "told"), [
    ("cloud", "aws", "cloud", "aws"), ("region", "us-east-1", "region", "us-east-1"),
    ("instance", "g5.xlarge", "instance_type", "g5.xlarge"), ("accelerator", "A100:2", "accelerators", "A100:2"),
    ("cpus", "8", "cpus", "8+"), ("memory", "64", "memory", "64+"), ("disk", "300", "disk_size", 300),
    ("spot", "off", "use_spot", False),
    ("restarts", "0", "job_recovery", {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 0}),
])  # fmt: skip
def test_every_option_of_the_machine_counts(option: str, value: str, key: str, told: Any) -> None:
    assert task_of(WORDS)["resources"].get(key) != told
    assert task_of(WORDS, **{option: value})["resources"][key] == told


@pytest.mark.usefixtures("without")
def test_what_makes_no_sense_is_refused(rows: Path, capsys: Any) -> None:
    usual = ["finetune", "bert-base-uncased", "--data", "train.csv", "--output", "s3://models/mine"]
    for more, told in (
        (["--on", "skipilot"], "did you mean 'skypilot'"),
        (["--on", "docker"], "nothing is trained on 'docker'"),
        (["--on", "skypilot", "--overwrite"], "--overwrite says nothing"),
        (["--on", "skypilot", "--machine", "gpu=1"], "there is no option 'gpu'"),
        (["--on", "skypilot", "--output", "mine"], "is on a machine that goes away"),
        (["--on", "skypilot", "--data", "none.csv"], "none.csv is not there"),
        (["--dry-run"], "--on skypilot"),
        (["--on", "skypilot", "--epochs", "many"], "epochs"),
    ):
        assert main([*usual, *more]) == 2, more
        assert told in capsys.readouterr().err
    with pytest.raises(UsageError, match="package of this machine"):
        sent("skypilot", WORDS | {"model": "pkg:some_model"}, {})
    with pytest.raises(UsageError, match="values with commas"):
        sent("skypilot", WORDS | {"options": {"labels": ["a,b", "c"]}}, {})
    assert places() == ("skypilot",)


def test_it_is_started_by_skypilots_own_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that writes down what it was asked stands for ``sky``, which needs an account with a cloud."""
    monkeypatch.delenv("LLMASOS_SKYPILOT", raising=False)
    job = sent("skypilot", WORDS, {})
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(MissingExtraError, match="skypilot"):
        launch(job)
    program = tmp_path / "bin" / "sky"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nfor one; do last="$one"; done\necho "$@" > {tmp_path}/asked\n'
                       f'cp "$last" {tmp_path}/task.yaml\nexit ${{FAILS:-0}}\n')  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    launch(job)
    assert (tmp_path / "asked").read_text().startswith("jobs launch --name my-model-v2 ")
    assert (tmp_path / "task.yaml").read_text() == job.files["task.yaml"]
    monkeypatch.setenv("FAILS", "3")
    with pytest.raises(RemoteError, match="exit code 3"):
        launch(job)


@pytest.mark.slow
@pytest.mark.skipif(SKY is None, reason="needs LLMASOS_SKYPILOT, an environment that has skypilot")
def test_skypilot_reads_the_task_and_the_service(rows: Path, capsys: Any) -> None:
    words = ["finetune", "bert-base-uncased", "--data", "train.csv", "--output", "s3://models/mine", "--on", "skypilot",
             "--machine", "accelerator=L4", "--machine", "cloud=aws", "--json", "--dry-run"]  # fmt: skip
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["validated"] == {"tool": "skypilot", "problems": [], "missing": None}
    from golden_targets import deployment

    target = plugins.load("targets", "skypilot")
    for more in ({}, {"gpu": 1, "max_replicas": 4, "region": "us-east-1"}):
        own = {"spot": "on", "cloud": "aws"} if more else {}
        found = target.validate(target.render(deployment("skypilot", own, **more)))
        assert (found.problems, found.missing) == ((), None)
    wrong = target.validate({"task.yaml": "resources: {acelerators: L4}\n"})
    assert "acelerators" in " ".join(wrong.problems)
