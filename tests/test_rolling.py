"""One server after another, and none of its clients notices: sockets handed over, connections that end in time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from llmasos.core import environment
from llmasos.core.children import handing
from llmasos.core.forwarding import Forwarder
from llmasos.serving.connections import Patient
from served import serving
from served_models import tuned

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows hands no sockets over")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned(tmp_path_factory.mktemp("rolled"), "text-classification")


@contextmanager
def handed(listener: socket.socket, *words: str, home: Path, count: int = 1) -> Iterator[subprocess.Popen[str]]:
    """Start the server with a socket, as systemd does."""
    line = handing(listener, [sys.executable, "-m", "llmasos", "serve", *words], count=count)
    variables = {**os.environ, "LLMASOS_HOME": str(home), "LLMASOS_KEYS": ""}
    with subprocess.Popen(line, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables,
                          pass_fds=[listener.fileno()]) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def test_a_request_that_was_read_before_the_server_is_told_to_stop_is_answered(model: Path, monkeypatch: Any) -> None:
    body, read = {"inputs": "a good day"}, Patient.on_headers_complete
    with serving({"mood": model}) as server:

        def told(connection: Patient) -> None:
            read(connection)
            server.process.handle_exit(signal.SIGTERM, None)  # as a signal comes: between any two steps of the loop

        monkeypatch.setattr(Patient, "on_headers_complete", told)
        answer = server.http.post("/v1/classify", json=body)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")


def test_what_was_taken_from_a_handed_socket_just_then_is_answered_too(model: Path, monkeypatch: Any) -> None:
    made = Patient.connection_made
    with socket.create_server(("127.0.0.1", 0)) as listener, serving({"mood": model}, handed=listener) as server:

        def told(connection: Patient, transport: Any) -> None:
            server.process._drain(time.monotonic() + 30)  # a step before, where it is not yet among the connections
            made(connection, transport)

        monkeypatch.setattr(Patient, "connection_made", told)
        answer = server.http.post("/v1/classify", json={"inputs": "a good day"})
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")


@pytest.mark.slow
def test_who_asks_between_two_servers_on_one_socket_waits_and_is_answered(model: Path, tmp_path: Path) -> None:
    words = [f"mood={model}", "--threads", "1", "--host", "192.0.2.1", "--port", "1"]  # the socket says where
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        body, found = {"inputs": "a good day"}, list[Any]()
        with handed(listener, *words, home=tmp_path) as process, httpx2.Client(base_url=url, timeout=60) as kept:
            assert process.stdout.readline().strip() == url, process.stderr.read()
            first = kept.post("/v1/classify", json=body).json()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        waiting = threading.Thread(
            target=lambda: found.append(httpx2.post(f"{url}/v1/classify", json=body, timeout=60))
        )
        waiting.start()
        with handed(listener, *words, home=tmp_path):
            waiting.join(60)
    assert found[0].json() == first


@pytest.mark.parametrize(("host", "count", "told"), [
    ("0.0.0.0", 1, "0.0.0.0 can be reached from elsewhere, and there is no key"),
    ("127.0.0.1", 2, "2 sockets were handed over"),
    (None, 1, "one that listens to TCP is taken"),
])  # fmt: skip
def test_where_the_socket_listens_decides_whether_keys_are_needed(
    model: Path, tmp_path: Path, host: str | None, count: int, told: str
) -> None:
    with socket.create_server((host, 0)) if host else socket.socket() as listener:
        words = [f"mood={model}", "--host", "127.0.0.1", "--port", "0"]
        with handed(listener, *words, home=tmp_path, count=count) as process:
            assert told in process.communicate(timeout=60)[1]
            assert process.returncode == 2


def test_a_socket_that_was_handed_to_another_process_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for pid, count in ((os.getpid(), 1), (1, 0)):
        monkeypatch.setenv("LISTEN_PID", str(pid))
        monkeypatch.setenv("LISTEN_FDS", "1")
        assert environment.handed_over() == (count, 3)
        assert "LISTEN_FDS" not in os.environ


def test_the_forwarder_sends_what_comes_to_those_that_are_there() -> None:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [server.getsockname()[1] for server in servers]
    front = Forwarder([ports[0]])
    with socket.create_connection(("127.0.0.1", front.port)) as one:
        first, _ = servers[0].accept()
        front.ports = [ports[1]]
        with first, socket.create_connection(("127.0.0.1", front.port)) as other:
            second, _ = servers[1].accept()
            with second:
                one.sendall(b"to the first")
                other.sendall(b"to the second")
                assert (first.recv(64), second.recv(64)) == (b"to the first", b"to the second")
                first.sendall(b"back")
                assert one.recv(64) == b"back"
        assert one.recv(64) == b""
    front.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", front.port))
    for server in servers:
        server.close()
