"""Engines that are server programs: started, asked, killed under load, started again, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from llmasos.core import errors, hardware
from llmasos.engines import _supervised
from llmasos.engines._supervised import Supervised
from llmasos.engines.base import Choice
from llmasos.engines.llama_server import LlamaServer
from llmasos.engines.vllm import Vllm

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script")

STAND_IN = '''#!{python}
"""Speaks as llama.cpp's server and vLLM do, and writes numbers: each token is the one before it plus one."""
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

words = dict(zip(sys.argv[1::1], sys.argv[2::1]))
open(os.environ["STAND_IN_PIDS"], "a").write(f"{{os.getpid()}}\\n")
if os.path.exists(os.environ["STAND_IN_PIDS"] + ".broken"):
    sys.exit("the model is broken")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def said(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def streamed(self, asked):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for i in range(asked["max_tokens"]):
            token = asked["prompt"][-1] + 1 + i
            ended = token in asked["stop_token_ids"]
            reason = "stop" if ended else "length" if i + 1 == asked["max_tokens"] else None
            event = {{"choices": [{{"index": 0, "text": "", "token_ids": [token], "finish_reason": reason}}]}}
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")
            if ended:
                break
        self.wfile.write(b"data: [DONE]\\n\\n")

    def do_GET(self):
        self.said(200, {{"status": "ok"}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        key = os.environ.get("LLAMA_API_KEY") or os.environ["VLLM_API_KEY"]
        if self.headers["authorization"] != "Bearer " + key:
            return self.said(401, {{"error": {{"message": "no such key"}}}})
        if self.path == "/v1/completions":
            return self.streamed(asked)
        if asked["repeat_last_n"] < len(asked["prompt"]):
            return self.said(400, {{"error": {{"message": "Value must be between 0 and more"}}}})
        if asked["temperature"] > 3:
            return self.said(400, {{"error": {{"message": "too warm"}}}})
        last = asked["prompt"][-1]
        tokens = [last + 1 + i for i in range(asked["n_predict"])]
        time.sleep(0.005 * len(tokens))
        ends = [i for i, token in enumerate(tokens) if token % 1000 == 0]
        tokens = tokens[: ends[0] + 1] if ends else tokens
        self.said(200, {{"tokens": tokens, "stop_type": "eos" if ends else "limit"}})


ThreadingHTTPServer(("127.0.0.1", int(words["--port"])), Handler).serve_forever()
'''


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in on the path; return the file in which it says its process."""
    program = tmp_path / "llama-server"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_PIDS", str(tmp_path / "pids"))
    return tmp_path / "pids"


@pytest.fixture
def engine(pids: Path, tmp_path: Path) -> Iterator[LlamaServer]:
    found = LlamaServer(tmp_path, {"files": ["model.gguf"], "precision": "f16", "writes": True}, threads=1, rows=4)
    yield found
    found.close()


def last_pid(pids: Path) -> int:
    return int(pids.read_text().split()[-1])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def ended(engine: Supervised) -> bool:
    return engine._process is None or engine._process.poll() is not None


def until(done: Any, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.02)
    return False


def written(engine: Supervised, **asked: Choice) -> dict[int, tuple[list[int], str]]:
    """Write to requests side by side, from the number of each on."""
    found: dict[int, list[int]] = {}
    reasons: dict[int, str] = {}
    for name, choice in asked.items():
        number = int(name.removeprefix("n"))
        found[number] = []
        engine.join(number, [number], choice)
    while len(reasons) < len(found):
        for news in engine.step():
            assert news.error is None
            found[news.number] += news.tokens
            reasons |= {news.number: news.reason} if news.reason else {}
    return {number: (tokens, reasons[number]) for number, tokens in found.items()}


def test_the_memory_of_the_program_is_told(engine: LlamaServer, pids: Path) -> None:
    program = hardware.resident_memory_of(last_pid(pids))
    assert program > 1 << 20
    assert engine.bytes_outside() > program, "without what stands between the two"
    engine.close()
    assert engine.bytes_outside() == 0
    assert hardware.resident_memory_of(last_pid(pids)) == 0


def test_answers_come_in_parts_that_follow_one_another(engine: LlamaServer) -> None:
    found = written(engine, n5=Choice(50, frozenset()), n990=Choice(50, frozenset({1000})), n7=Choice(3, frozenset()))
    assert found[5] == ([*range(6, 56)], "length")
    assert found[990] == ([*range(991, 1001)], "stop")
    assert found[7] == ([8, 9, 10], "length")
    assert sorted(engine._free) == [0, 1, 2, 3]


def test_the_key_is_its_own_and_not_on_the_command_line(engine: LlamaServer, pids: Path) -> None:
    body = {"prompt": [1], "n_predict": 1, "temperature": 0}
    assert httpx2.post(f"http://127.0.0.1:{engine._port}/completion", json=body).status_code == 401
    words = subprocess.run(
        ["ps", "-ww", "-o", "args=", "-p", str(last_pid(pids))], capture_output=True, text=True
    ).stdout
    assert "--port" in words
    assert engine._key not in words


def test_a_request_that_the_program_refuses_fails_alone(engine: LlamaServer) -> None:
    engine.join(1, [1], Choice(4, frozenset(), temperature=9.0))
    engine.join(2, [2], Choice(4, frozenset()))
    news = []
    assert until(
        lambda: news.extend(engine.step()) or len({one.number for one in news if one.error or one.reason}) == 2
    )
    (wrong,) = [one for one in news if one.error]
    assert wrong.number == 1
    assert isinstance(wrong.error, errors.UsageError)
    assert "too warm" in str(wrong.error)
    assert [token for one in news if one.number == 2 for token in one.tokens] == [3, 4, 5, 6]


def test_what_is_dropped_is_asked_for_no_more(engine: LlamaServer) -> None:
    engine.join(1, [1], Choice(10_000, frozenset()))
    assert until(lambda: bool(engine.step()))
    engine.drop(1)
    assert sorted(engine._free) == [0, 1, 2, 3]
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        assert engine.step() == []


def test_when_it_is_killed_under_load_all_are_told_and_the_next_are_answered(engine: LlamaServer, pids: Path) -> None:
    for number in range(4):
        engine.join(number, [number], Choice(10_000, frozenset()))
    assert until(lambda: bool(engine.step()))
    first = last_pid(pids)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(errors.UnavailableError, match=r"llama-server died") as caught:  # noqa: PT012
        end = time.monotonic() + 20
        while time.monotonic() < end:
            engine.step()
    assert caught.value.retry_after == 1
    assert not engine._under_way
    assert written(engine, n5=Choice(6, frozenset()))[5] == ([*range(6, 12)], "length")
    assert last_pid(pids) != first


def test_one_that_dies_again_and_again_is_left_alone(engine: LlamaServer, pids: Path) -> None:
    Path(f"{pids}.broken").touch()
    os.kill(last_pid(pids), signal.SIGKILL)
    told = []
    for _ in range(_supervised.MOST + 2):
        assert until(lambda: ended(engine))
        with pytest.raises(errors.UnavailableError) as caught:
            engine.join(1, [1], Choice(4, frozenset()))
        told.append(caught.value)
        assert engine._not_before <= time.monotonic() + 61
        engine._not_before = 0.0  # as if the pause were over
    assert "the model is broken" in str(told[1])
    assert "is not started again" in str(told[-1])
    assert len(pids.read_text().split()) == _supervised.MOST  # the first start, and those after each death but the last


def test_a_pause_before_the_next_start_is_told(engine: LlamaServer, pids: Path) -> None:
    Path(f"{pids}.broken").touch()
    os.kill(last_pid(pids), signal.SIGKILL)
    assert until(lambda: ended(engine))
    for said in ("died", "the model is broken", "is started again"):
        with pytest.raises(errors.UnavailableError, match=said):
            engine.join(1, [1], Choice(4, frozenset()))


def test_it_ends_with_the_engine_and_with_the_process_that_has_it(pids: Path, tmp_path: Path) -> None:
    artifact = {"files": ["model.gguf"], "precision": "f16", "writes": True}
    engine = LlamaServer(tmp_path, artifact, threads=1, rows=1)
    engine.close()
    assert until(lambda: not alive(last_pid(pids)))
    code = f"""
import time
from pathlib import Path
from llmasos.engines._supervised import Supervised
from llmasos.engines.llama_server import LlamaServer
from llmasos.engines.vllm import Vllm
engine = LlamaServer(Path({str(tmp_path)!r}), {artifact!r}, threads=1, rows=1)
print("up", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "up"
        pid = last_pid(pids)
        assert alive(pid)
        process.kill()
    assert until(lambda: not alive(pid))


def test_a_missing_program_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.UsageError, match="llama-server is not on the path"):
        LlamaServer(tmp_path, {"files": ["model.gguf"], "precision": "f16", "writes": True})


@pytest.mark.usefixtures("pids")
def test_vllm_is_asked_for_a_stream_of_tokens(tmp_path: Path) -> None:
    (tmp_path / "llama-server").rename(tmp_path / "vllm")
    engine = Vllm(tmp_path, {"precision": "float32", "writes": True}, rows=2)
    try:
        found = written(engine, n5=Choice(20, frozenset()), n990=Choice(50, frozenset({1000})))
        assert found[5] == ([*range(6, 26)], "length")
        assert found[990] == ([*range(991, 1001)], "stop")
        assert engine.how.startswith("float32, vLLM")
    finally:
        engine.close()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX alone gives orphans another parent")
def test_a_process_that_computes_ends_with_the_one_that_asked() -> None:
    busy = "import time; from llmasos.core.children import begun; begun(); time.sleep(60)"
    asks = (
        f"import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', {busy!r}], "
        "stdin=subprocess.PIPE).pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", asks], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        until = time.monotonic() + 20
        while child.num_threads() < 2 and time.monotonic() < until:  # until it looks after its parent
            time.sleep(0.1)
        parent.kill()
    child.wait(20)
