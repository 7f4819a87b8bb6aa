"""The other end of ``child.py``: start a process for a framework, ask it, notice when it dies, end it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..core.config import child_environment, home
from ..core.errors import TrainingError
from .messages import Message, receive, send

PACKAGE = Path(__file__).resolve().parents[1]


class Process:
    """A running ``child.py``. Ends when asked, when an answer fails, and when this process does.

    Args:
        framework: "jax" or "tensorflow".
        settings: what ``child.Trainer`` takes.
        tensors: the weights under transformers' names.

    Raises:
        TrainingError: the process died before it was ready.
    """

    def __init__(self, framework: str, settings: dict[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
        self.framework = framework
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.child", framework],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C of the terminal goes to the run alone
            env=child_environment(PACKAGE.parent, **_environment(framework, settings["threads"])),
        )
        self.ask(settings, tensors)

    @property
    def running(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def ask(self, content: dict[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> Message:
        """Send a message and return the answer.

        Raises:
            TrainingError: the process died.
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
            raise TrainingError(
                f"the process of {self.framework} ended: {why}" + (f": {lines[-1]}" if lines else ""),
                hint="a smaller batch_size or max_length, or framework=torch",
            )
        return answer

    def _said(self) -> list[str]:
        self._log.seek(0)
        return [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with suppress(BrokenPipeError):  # what was not sent yet is for nobody
                stream.close()  # type: ignore[union-attr]


def _environment(framework: str, threads: int) -> dict[str, str]:
    """Return what the libraries are told before they are imported."""
    return {
        "KERAS_BACKEND": framework,
        "KERAS_HOME": str(home() / "keras"),  # Keras writes a file there
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "NPROC": str(threads),  # XLA's own word for the size of its thread pool
        "OMP_NUM_THREADS": str(threads),
    }
