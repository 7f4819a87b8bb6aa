"""What is asked of all storage behind a URL alike: a model there and back, copies and runs that break off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmasos import LLM, TextClassificationTask
from llmasos.core import parts
from llmasos.core.storage import MANIFEST, Storage
from llmasos.errors import BundleError, UsageError
from tiny import save_tiny_bert

TASK, ROWS = TextClassificationTask.sample()
TEXTS = [row["text"] for row in ROWS[:4]]
GIVEN = {"eval_data": ROWS, "epochs": 1, "batch_size": 4, "dropout": 0.0, "threads": 1, "precision": "float32",
         "checkpoint_steps": 20}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("storing") / "base")


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("storing") / "tuned"
    LLM.from_pretrained(base).finetune(TASK, ROWS, output=output, progress=False, **GIVEN)
    return output


def goes_there_and_comes_back(url: str, tuned: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save a model at a URL, and open it on another machine."""
    assert LLM.from_pretrained(tuned).save(url) == url
    monkeypatch.setenv("LLMASOS_HOME", str(elsewhere))
    there = LLM.from_pretrained(url)
    assert there.located.path.is_relative_to(elsewhere)
    assert there.verify().files
    assert there.predict(TEXTS) == LLM.from_pretrained(tuned).predict(TEXTS)
    with pytest.raises(UsageError, match="exists already"):
        there.save(url)
    there.save(url, overwrite=True)
    assert LLM.from_pretrained(url).verify().files


def goes_on_at_the_file(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Break a copy of the files a and b off in b; what has arrived is not sent again."""
    folder.mkdir()
    for name in "ab":
        (folder / name).write_bytes(name.encode() * (2 << 20))
    (folder / "config.json").write_text("{}")
    storage, sent = Storage(url), []
    own = storage._fs.put_file

    def interrupted(source: str, *rest: Any, **more: Any) -> None:
        sent.append(Path(source).name)
        if len(sent) == 2:
            raise KeyboardInterrupt
        own(source, *rest, **more)

    monkeypatch.setattr(storage._fs, "put_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage.put("", {"": folder})
    assert sent == ["a", "b"]
    with pytest.raises(BundleError, match="is not whole: a copy to it goes on, or broke off"):
        LLM.from_pretrained(url)
    storage.put("", {"": folder})
    assert sent == ["a", "b", "b", "config.json"]
    assert storage.names() == ["a", "b", "config.json", MANIFEST]
    return storage


def goes_on_within_a_file(url: str, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Break a large file off after a part, and after another; of what was changed since nothing may be taken."""
    monkeypatch.setattr(parts, "PART", 5 << 20)  # S3 takes no smaller ones
    monkeypatch.setattr(parts, "AT_ONCE", 1)
    folder.mkdir()
    content = bytearray(os.urandom(12 << 20))
    (folder / "a").write_bytes(content)
    storage, sent, most = Storage(url), list[int](), 0
    own = parts.SENDERS[kind].send

    def interrupted(self: Any, number: int, data: bytes) -> None:
        if len(sent) == most:
            raise KeyboardInterrupt
        own(self, number, data)
        sent.append(number)

    monkeypatch.setattr(parts.SENDERS[kind], "send", interrupted)
    for most in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            storage.put("", {"": folder})
        assert sent == [0, 1][:most]
        assert storage.names() == ["unfinished.json"]
    content[:4], most = b"else", 9
    (folder / "a").write_bytes(content)
    storage.put("", {"": folder})
    assert sent[2:] == ([0, 2] if kind == "s3" else [0, 1, 2])
    storage.get("", folder.with_name("back"))
    assert (folder.with_name("back") / "a").read_bytes() == content
    return storage


CODE = """
import json, sys
from llmasos import LLM, TextClassificationTask
task, _ = TextClassificationTask.sample()
given = json.loads(sys.argv[4])
LLM.from_pretrained(sys.argv[1]).finetune(task, sys.argv[2], output=sys.argv[3], progress=False, **given)
"""


def a_killed_run_goes_on(url: str, rows: str, base: Path, tmp_path: Path) -> None:
    """Kill a training after its first checkpoint; on another machine it goes on to the bits of a whole one."""
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


def shards(lines: int = 2) -> list[bytes]:
    """Return the rows as files of JSON lines."""
    texts = [json.dumps(row) + "\n" for row in ROWS]
    return ["".join(texts[number::lines]).encode() for number in range(lines)]
