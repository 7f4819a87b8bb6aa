"""A program on a leash: it ends when it is let go, and when the process that holds it ends, however that ends.

Between the two stands a small process of this file, which ends the program as soon as its standard input is closed. The
program is of another session: Ctrl-C of the terminal goes to its holder alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from .environment import child_environment

PATIENCE = 5.0
"""Seconds that a program may take to end when it is told to."""


def leashed(
    command: Sequence[str], *, stdout: int | IO[bytes], stderr: int | IO[bytes] | None, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a program; ``let_go`` ends it. A program that a signal ended has the exit code 128 + signal."""
    words = [sys.executable, "-P", "-m", __name__, *command]
    package = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, env=child_environment(package, **environment),
        start_new_session=True,
    )  # fmt: skip


def let_go(process: subprocess.Popen[bytes]) -> None:
    """End a program, whatever it is doing."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(2 * PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    """Run a program until it ends, or standard input does."""
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def watch() -> None:
        os.read(0, 1)  # not through a buffer, whose lock would be held at the end
        program.terminate()
        with suppress(subprocess.TimeoutExpired):
            program.wait(PATIENCE)
        program.kill()

    threading.Thread(target=watch, daemon=True).start()
    code = program.wait()
    raise SystemExit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
