"""An engine in a process of its own, where nothing is imported but numpy and its runtime.

So what an artifact takes of memory and time is its own, a runtime that crashes takes nothing along, and torch cannot
lend it anything. ``Apart`` is an engine like any other; ``main`` is the process that answers it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core import hardware, plugins
from ..core.children import Child, Ended
from ..core.errors import BundleError, LLMasOSError
from ..core.messages import receive, send
from ..data.batching import Batch


class Apart:
    """An engine of an artifact, in its own process; see ``GraphEngine`` for arguments.

    Attributes:
        how: in words, as for every engine.
        load_seconds: from the start of the process to its being ready; ``open_seconds`` of it in the runtime.
        seconds: spent computing so far.

    Raises:
        BundleError: the artifact cannot be opened, or its process died.
        MissingExtraError: the runtime is not installed.
    """

    at_once = 1

    def __init__(self, folder: Path, artifact: Mapping[str, Any], **options: Any) -> None:
        self._folder, self.seconds = folder, 0.0
        start = time.perf_counter()
        self._child = Child(__name__, [], {})
        ready = self._ask({"folder": str(folder), "artifact": dict(artifact), "options": options})
        self.load_seconds = time.perf_counter() - start
        self.open_seconds, self.how = float(ready["seconds"]), str(ready["how"])

    def outputs(self, batch: Batch) -> NDArray[np.float32]:
        """Return outputs as ``engines/base.py`` says."""
        arrays = {name: getattr(batch, name) for name in _ARRAYS}
        start = time.perf_counter()
        found = self._ask({"group": batch.group}, {k: v for k, v in arrays.items() if v is not None})
        self.seconds += time.perf_counter() - start
        return np.asarray(found["outputs"], dtype=np.float32)

    def together(self, batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Compute one batch after the other."""
        return [self.outputs(batch) for batch in batches]

    def peak_bytes(self) -> int:
        """Return the most memory that the process has held so far."""
        return int(self._ask({"memory": True})["peak"])

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> dict[str, Any]:
        try:
            answer = self._child.ask(content, arrays)
        except Ended as ended:
            raise BundleError(
                f"the runtime of {self._folder} died: {ended}", hint="export it again, or in another format"
            ) from ended
        if wrong := answer.content.get("error"):
            self.close()
            raise BundleError(wrong, hint=answer.content["hint"])
        return {**answer.content, **answer.arrays}


_ARRAYS = ("ids", "types", "lengths", "rows", "targets", "target_lengths", "places")


def main() -> None:
    """Answer messages until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process itself
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a runtime prints goes to the log
    first = receive(source)
    if first is None:
        return
    folder, artifact, options = (first.content[name] for name in ("folder", "artifact", "options"))
    start = time.perf_counter()
    try:
        engine = plugins.load("engines", artifact["engine"])(Path(folder), artifact, **options)
    except LLMasOSError as error:
        send(answers, {"error": error.message, "hint": error.hint})
        return
    send(answers, {"how": engine.how, "seconds": time.perf_counter() - start})
    while (message := receive(source)) is not None:
        if "memory" in message.content:
            send(answers, {"peak": hardware.peak_resident_memory()})
            continue
        parts = {name: message.arrays.get(name) for name in _ARRAYS}
        batch = Batch(**parts, group=message.content["group"])  # type: ignore[arg-type]
        try:
            send(answers, {}, {"outputs": np.ascontiguousarray(engine.outputs(batch))})
        except Exception as error:  # a runtime's own errors have no common base
            send(answers, {"error": f"{type(error).__name__}: {error}", "hint": "export it again"})


if __name__ == "__main__":
    main()
