"""A process beside this one that answers messages: for libraries that must not, or need not, share a process.

Such a process reads messages on its standard input and writes one answer to each on its standard output, see
``messages.py``. Whatever else it or its libraries print goes to a log, of which the last line is told when it dies.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from .environment import child_environment
from .messages import Message, receive, send

PACKAGE = Path(__file__).resolve().parents[1]


class Ended(RuntimeError):
    """The process died instead of answering; ``str`` says how, and the last line that it wrote."""


class Child:
    """A running process of this package. Ends when asked, when an answer fails, and when this process does.

    Args:
        module: what it runs, under its full name.
        words: its arguments.
        environment: what its libraries are told before they are imported.
    """

    def __init__(self, module: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C of the terminal goes to the run alone
            env=child_environment(PACKAGE.parent, **environment),
        )

    @property
    def running(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def ask(self, content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> Message:
        """Send a message and return the answer.

        Raises:
            Ended: the process died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            send(self._process.stdin, content, arrays)
            answer = receive(self._process.stdout)
        except BrokenPipeError:
            answer = None
        except BaseException:  # half an answer may be under way: nothing sensible can follow
            self.close()
            raise
        if answer is None:
            code = self._process.wait()
            why = f"signal {-code}, as when memory runs out" if code < 0 else f"exit code {code}"
            lines = self._said()
            self.close()
            raise Ended(why + (f": {lines[-1]}" if lines else ""))
        return answer

    def _said(self) -> list[str]:
        self._log.seek(0)
        return [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]

    def stop(self) -> None:
        """Kill the process while another thread waits for its answer, which is then ``Ended``."""
        self._process.kill()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with suppress(BrokenPipeError):  # what was not sent yet is for nobody
                stream.close()  # type: ignore[union-attr]


_HANDING = """
import os, sys
number, count, *words = sys.argv[1:]
os.dup2(int(number), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=count)
os.execvp(words[0], words)
"""


def handing(listener: socket.socket, words: Sequence[str], *, count: int = 1) -> list[str]:
    """Return a command line that runs a program with a socket handed over, as systemd does.

    ``subprocess`` must be told to pass it. ``count`` is how many the program is told of.
    """
    return [sys.executable, "-I", "-S", "-c", _HANDING, str(listener.fileno()), str(count), *words]


def begun() -> tuple[BinaryIO, BinaryIO]:
    """Begin such a process, from the inside; return where messages come from, and where answers go.

    Ctrl-C is for the parent, which ends this process itself; should the parent be killed, it ends as well, for a long
    computation would not see that nobody asks any more.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    return sys.stdin.buffer, answers


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def processes_below(process: int, called: str = "") -> list[int]:
    """Return the numbers of the processes below another one, the oldest first: all, or whose command begins so."""
    import psutil

    found = []
    with suppress(psutil.Error):
        for one in psutil.Process(process).children(recursive=True):
            with suppress(psutil.Error):
                line = " ".join(one.cmdline())
                if line.startswith(called) or Path(line.partition(" ")[0]).name == called:
                    found.append((one.create_time(), one.pid))
    return [number for _, number in sorted(found)]


def free_port() -> int:
    """Return a port of this machine that nothing listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
