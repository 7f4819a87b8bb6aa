"""A real server in a thread of the tests: its address, and the desk behind it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2


class Server(NamedTuple):
    """A running server."""

    url: str
    desk: Any
    http: httpx2.Client
    app: Any
    process: Any


@contextmanager
def serving(
    models: Mapping[str, Path], *, adapters: Mapping[str, Path] | None = None, guard: Any = None, watch: Any = None,
    pinned: tuple[str, ...] = (), handed: socket.socket | None = None, **options: Any,
) -> Iterator[Server]:  # fmt: skip
    """Serve model folders until the block ends; ``watch`` makes of a desk what watches it."""
    from llmasos import LLM
    from llmasos.core.config import ServeConfig
    from llmasos.serving.app import _Uvicorn, server_config
    from llmasos.serving.guard import Guard
    from llmasos.serving.start import _tls, desk_of

    config = ServeConfig.of({"port": 0, "precision": "float32", "threads": 1, **options})
    opened, over = (
        {name: LLM.from_pretrained(path) for name, path in some.items()} for some in (models, adapters or {})
    )
    desk = desk_of(opened, config, pinned, over)
    told = watch(desk) if watch else None
    server = _Uvicorn(server_config(desk, guard or Guard(), version="test", watch=told, **_tls(config)), desk, handed)
    listening, failed = threading.Event(), []

    async def whole() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        listening.set()
        await task

    def work() -> None:
        try:
            asyncio.run(whole())
        except BaseException as error:
            failed.append(error)
            listening.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert listening.wait(60)
    assert not failed, failed
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        yield Server(server.url, desk, http, server.config.app, server)
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@contextmanager
def started(*words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command line's server; yield its process and its address. It is gone when the block ends."""
    line = [sys.executable, "-m", "llmasos", "serve", *words]
    with subprocess.Popen(
        line, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http"), "the server did not start"
            yield process, url
        finally:
            process.kill()  # or whoever leaves by an error waits for it
