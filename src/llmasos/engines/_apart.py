"""An engine in a process of its own, where nothing is imported but numpy and its runtime.

So what an artifact takes of memory and time is its own, a runtime that crashes takes nothing along, and torch cannot
lend it anything. ``Apart`` is an engine like any other; ``main`` is the process that answers it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core import hardware, plugins
from ..core.children import Child, Ended, begun
from ..core.errors import BundleError, LLMasOSError
from ..core.messages import Message, receive, send
from ..data.batching import Batch
from ._writing import author_of
from .base import Found, Search


class Apart:
    """An engine of an artifact, in its own process; see ``GraphEngine`` for arguments.

    Attributes:
        how: in words, as for every engine.
        searches: whether it is a ``Searcher``, as the artifact says.
        start: see ``Stepper``.
        load_seconds: from the start of the process to its being ready; ``open_seconds`` of it in the runtime.
        seconds: spent computing so far.

    Raises:
        BundleError: the artifact cannot be opened, or its process died.
        MissingExtraError: the runtime is not installed.
    """

    at_once = 1

    def __init__(self, folder: Path, artifact: Mapping[str, Any], **options: Any) -> None:
        self._folder, self.seconds = folder, 0.0
        self.start: int | None = None
        self.searches = bool(artifact.get("searches"))
        start = time.perf_counter()
        self._child = Child(__name__, [], {})
        ready = self._ask({"folder": str(folder), "artifact": dict(artifact), "options": options})
        self.load_seconds = time.perf_counter() - start
        self.open_seconds, self.how = float(ready["seconds"]), str(ready["how"])

    def outputs(self, batch: Batch) -> NDArray[np.float32]:
        """Return outputs as ``engines/base.py`` says."""
        arrays = {name: getattr(batch, name) for name in _ARRAYS}
        return self._computed("outputs", {"group": batch.group}, {k: v for k, v in arrays.items() if v is not None})

    def together(self, batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Compute one batch after the other."""
        return [self.outputs(batch) for batch in batches]

    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> NDArray[np.float32]:
        """Read prompts; see ``Stepper``."""
        asked = {"prompts": [list(prompt) for prompt in prompts], "room": room, "start": self.start}
        return self._computed("begin", asked)

    def step(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append a token to each row; see ``Stepper``."""
        return self._computed("step", {}, {"ids": np.asarray(ids, dtype=np.int64)})

    def select(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows; see ``Stepper``."""
        self._ask({"do": "select"}, {"rows": np.asarray(rows, dtype=np.int64)})

    def forced(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, start: int | None = None
    ) -> list[NDArray[np.float32]]:
        """Score answers; see ``Author``."""
        asked = {"prompts": [list(one) for one in prompts], "answers": [list(one) for one in answers], "start": start}
        found = self._computed("forced", asked)
        return np.split(found, np.cumsum([len(answer) for answer in answers])[:-1])

    def greedy(
        self, prompts: Sequence[Sequence[int]], most: int, ends: Sequence[int], *, first: int | None = None,
        start: int | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """Write the likeliest tokens; see ``Author``."""
        asked = {"prompts": [list(prompt) for prompt in prompts], "most": most, "ends": list(ends), "first": first,
                 "start": start}  # fmt: skip
        return [list(map(int, one)) for one in self._ask({"do": "greedy", **asked})["answers"]]

    def search(self, prompts: Sequence[Sequence[int]], search: Search) -> list[Found]:
        """Write answers; see ``Searcher``."""
        start = time.perf_counter()
        found = self._ask({"do": "search", "prompts": [list(prompt) for prompt in prompts], "search": asdict(search)})
        self.seconds += time.perf_counter() - start
        return [Found(list(map(int, tokens)), bool(ended)) for tokens, ended in found["answers"]]

    def _computed(
        self, what: str, content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None
    ) -> NDArray[np.float32]:
        start = time.perf_counter()
        found = self._ask({"do": what, **content}, arrays)
        self.seconds += time.perf_counter() - start
        return np.asarray(found["outputs"], dtype=np.float32)

    def peak_bytes(self) -> int:
        """Return the most memory that the process has held so far."""
        return int(self._ask({"do": "memory"})["peak"])

    def model_bytes(self) -> int | None:
        """Return how much of that came after the runtime itself was loaded, if the engine tells."""
        found = self._ask({"do": "memory"})
        return int(found["peak"] - found["bare"]) if found["bare"] else None

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
    source, answers = begun()
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
        try:
            send(answers, *_done(engine, message))
        except Exception as error:  # a runtime's own errors have no common base
            send(answers, {"error": f"{type(error).__name__}: {error}", "hint": "export it again"})


def _done(engine: Any, message: Message) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Do what a message asks for."""
    asked, arrays = message
    author = author_of(engine)
    match asked["do"]:
        case "memory":
            return {"peak": hardware.peak_resident_memory(), "bare": getattr(engine, "bare_bytes", 0)}, {}
        case "select":
            engine.select(arrays["rows"])
            return {}, {}
        case "greedy":
            how = {name: asked[name] for name in ("first", "start")}
            return {"answers": author.greedy(asked["prompts"], asked["most"], asked["ends"], **how)}, {}
        case "search":
            search = Search(**{name: _frozen(value) for name, value in asked["search"].items()})
            return {"answers": [list(one) for one in engine.search(asked["prompts"], search)]}, {}
        case "begin":
            if hasattr(engine, "start"):
                engine.start = asked["start"]
            out = engine.begin(asked["prompts"], asked["room"])
        case "step":
            out = engine.step(arrays["ids"])
        case "forced":
            found = author.forced(asked["prompts"], asked["answers"], start=asked["start"])
            out = np.concatenate(found) if found else np.zeros((0, 2), dtype=np.float32)
        case _:
            parts: dict[str, Any] = {name: arrays.get(name) for name in _ARRAYS}
            out = engine.outputs(Batch(**parts, group=asked["group"]))
    return {}, {"outputs": np.ascontiguousarray(out)}


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
