"""Outputs behind a URL: whole or not there, and a run goes on from them on a machine that has nothing of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from llmasos import LLM, TextClassificationTask
from llmasos.core.events import Note
from llmasos.core.storage import MANIFEST, Storage
from llmasos.errors import BundleError, RemoteError, UsageError
from tiny import save_tiny_bert

TASK, ROWS = TextClassificationTask.sample()
GIVEN = {"eval_data": ROWS, "epochs": 40, "batch_size": 4, "dropout": 0.0, "threads": 1, "precision": "float32",
         "checkpoint_steps": 20}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("storage") / "base")


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    monkeypatch.setattr("llmasos.training.curves.plot_curves", lambda *_: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("one")
    (tmp_path / "in" / "deep" / "b.bin").write_bytes(b"\x00" * 70_000)
    return tmp_path / "in"


# -- folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_folder_comes_back_as_it_was_put(folder, tmp_path, kind):
    storage = Storage(f"memory://{tmp_path.name}/x" if kind == "memory" else f"file://{tmp_path}/x")
    assert storage.names() == []
    storage.put("one", {"": folder, "more": folder / "deep"})
    storage.get("one", tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "b.bin").read_bytes() == (folder / "deep" / "b.bin").read_bytes()
    assert (tmp_path / "out" / "more" / "b.bin").exists()
    assert storage.names() == ["one"]
    storage.put("one", {"": folder / "deep"})
    assert set(storage.manifest("one") or {}) == {"b.bin"}
    storage.remove("one")
    assert storage.manifest("one") is None


def test_what_was_not_written_whole_does_not_count_and_damage_is_seen(folder, tmp_path, monkeypatch):
    storage = Storage(f"file://{tmp_path}/x")
    fs = fsspec.filesystem("file")
    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "pipe_file", lambda *_, **__: 1 / 0)
        with pytest.raises(RemoteError, match="cannot be reached: ZeroDivisionError"):
            storage.put("one", {"": folder})
    assert storage.names() == ["one"]
    assert storage.manifest("one") is None
    with pytest.raises(BundleError, match="not whole"):
        storage.get("one", tmp_path / "out")
    storage.put("one", {"": folder})
    (tmp_path / "x" / "one" / "a.txt").write_text("two")
    with pytest.raises(BundleError, match=r"a\.txt is not as it was written"):
        storage.get("one", tmp_path / "out")
    (tmp_path / "x" / "one" / MANIFEST).write_text(json.dumps({"files": {"../evil": {"bytes": 0, "sha256": ""}}}))
    with pytest.raises(BundleError, match="outside its folder"):
        storage.get("one", tmp_path / "out")


# -- runs -------------------------------------------------------------------------------------------------


def train(base: Path, output: Any, listener: Any = lambda _: None, **more: Any) -> Any:
    return LLM.from_pretrained(base).finetune(TASK, ROWS, output=output, progress=listener, **{**GIVEN, **more})


CODE = """
import json, sys
from llmasos import LLM, TextClassificationTask
task, rows = TextClassificationTask.sample()
given = json.loads(sys.argv[3])
LLM.from_pretrained(sys.argv[1]).finetune(task, rows, output=sys.argv[2], progress=False, **given)
"""


def test_a_model_goes_to_its_url_and_is_not_replaced_unasked(base, tmp_path):
    url = f"file://{tmp_path}/there/model"
    train(base, url, epochs=1)
    assert LLM.from_pretrained(tmp_path / "there" / "model").evaluate(ROWS).rows == len(ROWS)
    assert json.loads((tmp_path / "there" / "model" / MANIFEST).read_text())["files"]["model.safetensors"]["sha256"]
    assert os.listdir(tmp_path / "there") == ["model"]
    with pytest.raises(UsageError, match="exists already"):
        train(base, url, epochs=1)
    assert train(base, url, epochs=1, overwrite=True).steps
    Storage(f"file://{tmp_path}/again").put("", {"": tmp_path / "there" / "model"})
    assert LLM.from_pretrained(f"file://{tmp_path}/again", cache_dir=tmp_path / "cache").evaluate(ROWS).rows


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits_where_its_machine_is_gone(base, tmp_path):
    url, there = f"file://{tmp_path}/model", tmp_path / "model.unfinished"
    home = tmp_path / "lost"
    child = subprocess.Popen(
        [sys.executable, "-c", CODE, str(base), url, json.dumps({**GIVEN, "epochs": 150})],
        env={**os.environ, "LLMASOS_HOME": str(home)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not any(there.glob(f"step-*/{MANIFEST}")) or not any(there.glob(f"best-*/{MANIFEST}")):
        assert child.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    shutil.rmtree(home)
    (there / "step-999999").mkdir()  # an upload that was broken off
    (there / "step-999999" / "state.json").write_text("{}")
    heard: list[Any] = []
    train(base, url, heard.append, epochs=150)
    assert any("goes on with the unfinished run" in event.text for event in heard if isinstance(event, Note))
    train(base, tmp_path / "whole", epochs=150)
    one, two = tmp_path / "whole", tmp_path / "model"
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    steps = [len((path / "run" / "metrics.jsonl").read_text().splitlines()) for path in (one, two)]
    assert steps[0] == steps[1]
    assert not there.exists()


def test_checkpoints_that_cannot_be_put_there_are_told_and_the_run_goes_on(base, tmp_path, monkeypatch):
    put, fail = Storage.put, []

    def failing(self: Storage, name: str, folders: Any) -> None:
        if name.startswith("step-"):
            fail.append(name)
            raise RemoteError("the storage is away")
        put(self, name, folders)

    monkeypatch.setattr(Storage, "put", failing)
    heard: list[Any] = []
    train(base, f"file://{tmp_path}/model", heard.append, epochs=2, checkpoint_steps=2)
    assert fail
    assert any("no checkpoint was written: the storage is away" in e.text for e in heard if isinstance(e, Note))
    assert (tmp_path / "model" / MANIFEST).exists()


# -- models behind a URL ----------------------------------------------------------------------------------


def published(base: Path, name: str, *, listed: bool) -> tuple[str, Any]:
    """Put a model behind a URL in memory, with a list of its files or without one."""
    url = f"memory://{name}/model"
    Storage(url).put("", {"": base})
    fs = fsspec.filesystem("memory")
    if not listed:
        fs.rm(f"/{name}/model/{MANIFEST}")
    return url, fs


@pytest.mark.parametrize("listed", [True, False])
def test_a_model_behind_a_url_is_opened_from_the_cache(base, tmp_path, monkeypatch, listed):
    url, fs = published(base, tmp_path.name, listed=listed)
    fs.pipe_file(f"/{tmp_path.name}/model/evil.bin", b"x")
    first = LLM.from_pretrained(url, cache_dir=tmp_path / "cache").located
    assert (first.source, first.ref) == ("storage", url)
    assert (first.path / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert not (first.path / "evil.bin").exists()
    monkeypatch.setattr(Storage, "bring", None)  # nothing is copied again
    assert LLM.from_pretrained(url, cache_dir=tmp_path / "cache").located.path == first.path
    monkeypatch.undo()
    fs.pipe_file(f"/{tmp_path.name}/model/config.json", (base / "config.json").read_bytes() + b" ")
    if listed:
        shutil.rmtree(first.path)
        with pytest.raises(BundleError, match=r"damaged: config\.json"):
            LLM.from_pretrained(url, cache_dir=tmp_path / "cache")
    else:
        assert LLM.from_pretrained(url, cache_dir=tmp_path / "cache").located.path != first.path


def test_a_copy_that_broke_off_goes_on_where_it_was(base, tmp_path, monkeypatch):
    url, _ = published(base, tmp_path.name, listed=True)
    whole, storage = (base / "model.safetensors").read_bytes(), Storage(url)
    part = tmp_path / "model.part"
    part.mkdir()
    (part / "model.safetensors").write_bytes(whole[:1000])
    read = []
    monkeypatch.setattr("fsspec.callbacks.NoOpCallback.relative_update", lambda _, inc=1: read.append(inc))
    storage.bring(storage.manifest(""), tmp_path / "model")
    weights = len(whole) - 1000
    assert sum(read) == weights + sum(path.stat().st_size for path in base.iterdir()) - len(whole)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == whole
    assert not part.exists()


def test_a_copy_that_is_not_what_was_written_does_not_take_its_name(base, tmp_path):
    url, fs = published(base, tmp_path.name, listed=True)
    fs.pipe_file(f"/{tmp_path.name}/model/model.safetensors", b"\0" * (base / "model.safetensors").stat().st_size)
    with pytest.raises(BundleError, match=r"damaged: model\.safetensors"):
        LLM.from_pretrained(url, cache_dir=tmp_path / "cache")
    assert {path.suffix or path.name for path in (tmp_path / "cache").iterdir()} == {".part", ".locks"}
    with pytest.raises(UsageError, match="holds no model"):
        LLM.from_pretrained(f"memory://{tmp_path.name}/nothing")
    with pytest.raises(BundleError, match="outside its folder"):
        Storage(url).bring({"../x": {"bytes": 1}}, tmp_path / "out")
