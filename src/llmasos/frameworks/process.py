"""The other end of ``child.py``: start a process for a framework, ask it, notice when it dies, end it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ..core.children import Child, Ended
from ..core.environment import home
from ..core.errors import TrainingError
from ..core.messages import Message


class Process(Child):
    """A running ``child.py``.

    Args:
        framework: "jax" or "tensorflow".
        settings: what ``child.Trainer`` takes.
        tensors: the weights under transformers' names.

    Raises:
        TrainingError: the process died before it was ready.
    """

    def __init__(self, framework: str, settings: dict[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
        self.framework = framework
        super().__init__(f"{__package__}.child", [framework], _environment(framework, settings["threads"]))
        self.ask(settings, tensors)

    def ask(self, content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> Message:
        """Send a message and return the answer.

        Raises:
            TrainingError: the process died.
        """
        try:
            return super().ask(content, arrays)
        except Ended as ended:
            raise TrainingError(
                f"the process of {self.framework} ended: {ended}",
                hint="a smaller batch_size or max_length, or framework=torch",
            ) from ended


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
