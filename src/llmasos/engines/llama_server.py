"""llama.cpp's own server, a program on the path: decoders in GGUF, tokens chosen and requests batched by it.

It is asked for a few tokens at a time, in a slot that a request keeps, and goes on from its keys and values: as a
stream it would leave out the tokens of characters that several tokens make. A request's first part reads its prompt
anew, so that by its time nobody can tell what was asked before.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..core import hardware
from ..core.errors import UsageError
from ._supervised import Supervised
from .base import Choice, News

PROGRAM = "llama-server"
FIRST, THEN = 4, 16
"""Tokens that are asked for at once: at first, and from then on."""
_CHANCE = (1 << 32) - 1  # the seed by which it draws from chance, and below it all others


@dataclass
class _Slot:
    """A request, and the slot of the program that has its keys and values."""

    place: int
    choice: Choice
    ids: list[int]
    written: list[int] = field(default_factory=list)


class LlamaServer(Supervised):
    """Write with a GGUF file; see ``Supervised``.

    Args:
        folder: the artifact.
        artifact: what its manifest says of it.
        threads: processor threads; one a core if None.
        rows: requests written to side by side.
        tokens: what keys and values are kept of, of all of them.

    Raises:
        UsageError: there is no such program, or the model does not write.
        UnavailableError: the program cannot open the file.
    """

    name = PROGRAM
    takes: ClassVar[frozenset[str]] = frozenset({"temperature", "top_p", "top_k", "min_p", "repetition_penalty"})

    def __init__(
        self, folder: Path, artifact: Mapping[str, Any], *, threads: int | None = None, rows: int = 32,
        tokens: int = 1 << 16,
    ) -> None:  # fmt: skip
        if not artifact.get("writes"):
            raise UsageError(f"{folder} holds a model that writes no text", hint="--engine llama-cpp answers with it")
        if (program := shutil.which(PROGRAM)) is None:
            raise UsageError(
                f"the program {PROGRAM} is not on the path", hint="install llama.cpp, or --engine llama-cpp"
            )
        self._words = [
            program, "--model", str(folder / artifact["files"][0]), "--host", "127.0.0.1", "--offline", "--no-webui",
            "--parallel", str(rows), "--ctx-size", str(tokens), "--kv-unified", "--cache-ram", "0",
            "--threads", str(hardware.threads(threads)), "--threads-batch", str(hardware.threads(threads)),
        ]  # fmt: skip
        self._free = list(range(rows))
        self._slots: dict[int, _Slot] = {}
        self.how = f"{artifact['precision']}, {PROGRAM}"
        super().__init__()

    def _command(self, port: int) -> list[str]:
        return [*self._words, "--port", str(port)]

    def _environment(self, key: str) -> dict[str, str]:
        return {"LLAMA_API_KEY": key}

    def _first(self, number: int, prompt: Sequence[int], choice: Choice) -> tuple[str, dict[str, Any]]:
        self._slots[number] = _Slot(self._free.pop(), choice, list(prompt))
        return self._part(number)

    def _part(self, number: int) -> tuple[str, dict[str, Any]]:
        """Return how the next tokens of a request are asked for."""
        slot = self._slots[number]
        how, done = slot.choice, len(slot.written)
        return "/completion", {
            "prompt": [*slot.ids, *slot.written],
            "id_slot": slot.place,
            "cache_prompt": done > 0,
            "n_predict": min(THEN if done else FIRST, how.most - done),
            "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
            "temperature": how.temperature,
            "top_k": how.top_k,
            "top_p": how.top_p,
            "min_p": how.min_p,
            "repeat_penalty": how.repetition_penalty,
            "repeat_last_n": len(slot.ids) + how.most,  # all; it knows no word for that
            "seed": (how.seed + done) % _CHANCE,
            "return_tokens": True,
            "stream": False,
        }

    def _news(self, number: int, event: Mapping[str, Any]) -> tuple[News, tuple[str, dict[str, Any]] | None]:
        slot = self._slots[number]
        tokens = [int(token) for token in event["tokens"]]
        slot.written += tokens
        if event["stop_type"] == "eos":
            return News(number, tokens, "stop"), None
        if len(slot.written) >= slot.choice.most or event.get("truncated"):
            return News(number, tokens, "length"), None
        ended = any(token in slot.choice.ends for token in tokens)  # whoever asked will drop it
        return News(number, tokens), None if ended else self._part(number)

    def _ended(self, number: int) -> None:
        if (slot := self._slots.pop(number, None)) is not None:
            self._free.append(slot.place)


PLUGIN = LlamaServer
