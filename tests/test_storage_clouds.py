"""Models, data and runs in the storage of Azure and Google: against Azurite and an emulator, as in S3."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import buckets
from llmasos import LLM, TextClassificationTask
from llmasos.cli import main
from llmasos.core.storage import MANIFEST, Storage, opened
from llmasos.errors import BundleError, RemoteError, UsageError
from tiny import save_tiny_bert

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")]

TASK, ROWS = TextClassificationTask.sample()
TEXTS = [row["text"] for row in ROWS[:4]]
GIVEN = {"epochs": 1, "batch_size": 4, "dropout": 0.0, "threads": 1, "precision": "float32", "checkpoint_steps": 20}


class Cloud(NamedTuple):
    url: str
    fs: Any
    environment: dict[str, str]


@pytest.fixture(scope="module", params=["az", "gs"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("cloud")
    if request.param == "az":
        pytest.importorskip("adlfs", reason="needs llmasos[azure]")
        if (program := shutil.which("azurite")) is None:
            pytest.skip("needs azurite: npm install --global azurite")
        started = buckets.azure(program, folder)
    else:
        pytest.importorskip("gcsfs", reason="needs llmasos[gcs]")
        pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator")
        started = buckets.google(folder)
    with started as environment:
        yield request.param, environment


@pytest.fixture
def cloud(server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cloud:
    scheme, environment = server
    for name in [name for name in os.environ if name.startswith(("AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name, value in {**environment, "LLMASOS_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("llmasos.training.curves.plot_curves", lambda *_: None)
    forget(scheme)
    bucket = f"b{time.time_ns()}"
    fs, _ = opened(f"{scheme}://{bucket}/x")
    fs.mkdir(bucket)
    return Cloud(f"{scheme}://{bucket}", fs, environment)


def forget(scheme: str) -> None:
    """Let the next call open the storage anew, with the environment as it is now."""
    module, name = {"az": ("adlfs", "AzureBlobFileSystem"), "gs": ("gcsfs", "GCSFileSystem")}[scheme]
    getattr(importlib.import_module(module), name).clear_instance_cache()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("clouds") / "base")


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("clouds") / "tuned"
    LLM.from_pretrained(base).finetune(TASK, ROWS, output=output, progress=False, **GIVEN)
    return output


def test_a_model_goes_there_and_comes_back(cloud, tuned, tmp_path, monkeypatch):
    url = f"{cloud.url}/models/mine"
    assert LLM.from_pretrained(tuned).save(url) == url
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "elsewhere"))
    there = LLM.from_pretrained(url)
    assert there.verify().files
    assert there.predict(TEXTS) == LLM.from_pretrained(tuned).predict(TEXTS)
    with pytest.raises(UsageError, match="exists already"):
        there.save(url)
    there.save(url, overwrite=True)
    assert main(["pull", url, "--output", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == (tuned / "model.safetensors").read_bytes()


def test_other_files_are_kept_and_damage_is_seen(cloud, tuned):
    name = cloud.url.partition("://")[2]
    cloud.fs.pipe_file(f"{name}/shared/theirs.txt", b"theirs")
    with pytest.raises(UsageError, match=r"holds other files, such as theirs\.txt"):
        LLM.from_pretrained(tuned).save(f"{cloud.url}/shared", overwrite=True)
    LLM.from_pretrained(tuned).save(f"{cloud.url}/mine")
    cloud.fs.pipe_file(f"{name}/mine/config.json", (tuned / "config.json").read_bytes() + b" ")
    with pytest.raises(BundleError, match=r"damaged: config\.json"):
        LLM.from_pretrained(f"{cloud.url}/mine")


def test_a_copy_that_broke_off_goes_on(cloud, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / name).write_bytes(name.encode() * (2 << 20))
    storage, sent = Storage(f"{cloud.url}/mine"), []
    own = storage._fs.put_file

    def interrupted(source: str, *rest: Any, **more: Any) -> None:
        sent.append(Path(source).name)
        if len(sent) == 2:
            raise KeyboardInterrupt
        own(source, *rest, **more)

    monkeypatch.setattr(storage._fs, "put_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage.put("", {"": tmp_path / "in"})
    with pytest.raises(BundleError, match="is not whole"):
        LLM.from_pretrained(storage.url)
    storage.put("", {"": tmp_path / "in"})
    assert sent == ["a", "b", "b"]
    assert storage.names() == ["a", "b", MANIFEST]
    part = tmp_path / "out.part"
    part.mkdir()
    (part / "a").write_bytes(b"a" * (1 << 20))
    storage.get("", tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"a" * (2 << 20)


def test_a_bucket_that_is_not_there_is_told(cloud, tuned):
    scheme = cloud.url.partition("://")[0]
    with pytest.raises(UsageError, match="there is no bucket nothing"):
        LLM.from_pretrained(tuned).save(f"{scheme}://nothing/mine")
    with pytest.raises(UsageError, match=r"there is no bucket nothing|holds no model"):
        LLM.from_pretrained(f"{scheme}://nothing/mine")


def test_without_credentials_it_is_told_how_to_get_some(cloud, monkeypatch):
    scheme = cloud.url.partition("://")[0]
    if scheme == "gs":
        pytest.skip("an emulator asks for none")
    for name in cloud.environment:
        monkeypatch.delenv(name)
    forget(scheme)
    with pytest.raises(UsageError, match=r"there are no credentials for[\s\S]*az login"):
        LLM.from_pretrained(f"{cloud.url}/mine")


def test_a_server_that_is_not_there_is_told(cloud, monkeypatch):
    scheme = cloud.url.partition("://")[0]
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value.replace("127.0.0.1:", "127.0.0.1:9/"))
    forget(scheme)
    with pytest.raises(RemoteError, match="cannot be reached"):
        LLM.from_pretrained(f"{cloud.url}/mine")


CODE = """
import json, sys
from llmasos import LLM, TextClassificationTask
task, _ = TextClassificationTask.sample()
given = json.loads(sys.argv[4])
LLM.from_pretrained(sys.argv[1]).finetune(task, sys.argv[2], output=sys.argv[3], progress=False, **given)
"""


def test_a_killed_run_goes_on_to_the_same_bits_on_another_machine(cloud, base, tmp_path):
    url, rows = f"{cloud.url}/mine", f"{cloud.url}/rows/*.jsonl"
    lines = [json.dumps(row) + "\n" for row in ROWS]
    for number in range(2):
        text = "".join(lines[number::2]).encode()
        cloud.fs.pipe_file(f"{cloud.url.partition('://')[2]}/rows/part-{number}.jsonl", text)
    given = {**GIVEN, "eval_data": rows, "epochs": 150}
    line = [sys.executable, "-c", CODE, str(base), rows, url, json.dumps(given)]
    lost = {**os.environ, "LLMASOS_HOME": str(tmp_path / "lost")}
    child = subprocess.Popen(line, env=lost, stderr=subprocess.DEVNULL)
    there, until = Storage(f"{url}.unfinished"), time.monotonic() + 120
    while not any(name.startswith("step-") and there.manifest(name) for name in there.names()):
        assert child.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    heard: list[Any] = []
    LLM.from_pretrained(base).finetune(TASK, rows, output=url, resume=True, progress=heard.append, **given)
    assert any("goes on with the unfinished run" in getattr(event, "text", "") for event in heard)
    LLM.from_pretrained(base).finetune(TASK, rows, output=tmp_path / "whole", progress=False, **given)
    found = LLM.from_pretrained(url).located.path / "model.safetensors"
    assert found.read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert there.names() == []
