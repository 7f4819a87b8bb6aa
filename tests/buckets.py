"""Buckets of this machine: moto's S3, Azurite and an emulator of Google's, each as its cloud answers."""

from __future__ import annotations

import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2

AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The key that Azurite's manual gives for its one account: everybody's, and no secret."""


@contextmanager
def s3() -> Iterator[dict[str, str]]:
    """Start moto's server; yield the environment that leads to it, where the bucket ``bucket`` is."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
               "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/none",
               "AWS_SHARED_CREDENTIALS_FILE": "/none", "NO_PROXY": "127.0.0.1"}  # fmt: skip
    finally:
        server.stop()


@contextmanager
def azure(program: str, folder: Path) -> Iterator[dict[str, str]]:
    """Start Azurite; yield the environment that leads to it."""
    port = free_port()
    line = [program, "--blobPort", str(port), "--location", str(folder), "--silent", "--skipApiVersionCheck"]
    with running(line, f"http://127.0.0.1:{port}/"):
        yield {"AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
               f"AccountKey={AZURITE_KEY};BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;",
               "NO_PROXY": "127.0.0.1"}  # fmt: skip


@contextmanager
def google(folder: Path) -> Iterator[dict[str, str]]:
    """Start the emulator of Google's storage; yield the environment that leads to it."""
    port = free_port()
    line = [sys.executable, "-m", "gcp_storage_emulator", "--data-dir", str(folder), "start", "--host", "127.0.0.1",
            "--port", str(port), "--quiet"]  # fmt: skip
    with running(line, f"http://127.0.0.1:{port}/"):
        yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "NO_PROXY": "127.0.0.1"}


def free_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running(line: list[str], url: str) -> Iterator[None]:
    """Start a server, and wait until it answers at all."""
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    httpx2.get(url, timeout=5)
                    break
                except httpx2.TransportError:
                    assert process.poll() is None, "the server did not start"
                    assert time.monotonic() < until
                    time.sleep(0.1)
            yield
        finally:
            process.kill()


@contextmanager
def cutting(port: int, *, times: int, after: int) -> Iterator[tuple[int, list[int]]]:
    """Lead to a server, and cut its first answers after some bytes, as a bad network does; yield port and cuts."""
    cuts: list[int] = []

    class Way(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as server:
                asking = threading.Thread(target=self.copy, args=(self.request, server), daemon=True)
                asking.start()
                self.copy(server, self.request, len(cuts) < times)
                for end in (server, self.request):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                asking.join()

        def copy(self, source: socket.socket, target: socket.socket, cut: bool = False) -> None:
            passed = 0
            with suppress(OSError):
                while piece := source.recv(1 << 14):
                    target.sendall(piece)
                    passed += len(piece)
                    if cut and passed > after:
                        cuts.append(passed)
                        return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Way) as way:
        way.daemon_threads = True
        threading.Thread(target=way.serve_forever, daemon=True).start()
        yield way.server_address[1], cuts
        way.shutdown()
