"""Models that write: requests join those that are being written to, and leave, at any step.

Prompts are read a bounded number of tokens at a time, so that a long one does not hold up those that are written to
already. What cannot join others (beams, decoders that begin together, runtimes that choose the tokens themselves)
waits until all before it have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.config import GenerateConfig
from ..decoders._prefixes import Prefixes
from ..generation.generator import Generator
from ..generation.loop import Request, Running, generate
from ..generation.pieces import Done, Piece
from ..generation.searching import Searching
from .scheduler import Counts, Work

READ = 2048
"""Tokens of prompts that are read before the next step is taken."""


@dataclass(eq=False)
class Text:
    """One prompt of a request.

    Args:
        generator: the model.
        request: what the decoding loop is given.
        config, options: the same for a runtime that chooses the tokens itself.
    """

    generator: Generator
    request: Request
    config: GenerateConfig
    options: dict[str, Any]

    @property
    def alone(self) -> bool:
        """Whether nothing may be written beside it."""
        return self.request.rules.num_beams > 1

    @property
    def begun(self) -> bool:
        """Whether anything has been written."""
        return bool(self.request.tokens)

    @property
    def left(self) -> int:
        """Tokens that may still be written."""
        return self.request.rules.max_new_tokens - len(self.request.tokens)


class Writing:
    """The lane of a model that writes, and of adapters over it.

    Those that the decoder computes together are written to side by side; others wait until all before them have ended.

    Args:
        most_rows: requests that are written to side by side.
        most_tokens: tokens that they may have together at their longest: what keys and values take memory for.
        kept: tokens of prompts whose keys and values are kept for others of the same key that begin alike.
    """

    def __init__(self, *, most_rows: int, most_tokens: int, kept: int) -> None:
        self._kept = kept
        self._prefixes: Prefixes | None = None
        self._most_rows, self._most_tokens = most_rows, most_tokens
        self._works: dict[int, Work] = {}
        self._running: Running | None = None
        self._new: list[Work] = []
        self._number = 0

    @property
    def running(self) -> list[Work]:
        """Works that have begun and not ended."""
        return [*self._works.values(), *self._new]

    @property
    def kept_tokens(self) -> int:
        """Tokens of beginnings that are kept."""
        return self._prefixes.tokens if self._prefixes else 0

    def admit(self, take: Callable[[], Work | None], back: Callable[[Work], None]) -> None:
        """Take prompts that can begin now."""
        if self._works and not (self._running and self._running.joins):
            return
        used, read = sum(work.tokens for work in self._works.values()), 0
        while len(self._works) + len(self._new) < self._most_rows and (work := take()) is not None:
            fits = used + work.tokens <= self._most_tokens and read + len(work.content.request.prompt) <= READ
            first = self.running[0] if self.running else None
            if first is not None and not (fits and _side_by_side(first.content, work.content)):
                back(work)
                return
            self._new.append(work)
            used, read = used + work.tokens, read + len(work.content.request.prompt)

    def advance(self, counts: Counts) -> list[Work]:
        """Read new prompts, and write a token to each request."""
        if self._new:
            new, self._new = self._new, []
            for work in new:
                self._number += 1
                work.content.request.index = self._number
                self._works[self._number] = work
            counts.tokens_read += sum(len(work.content.request.prompt) for work in new)
            generator: Generator = new[0].content.generator
            if isinstance(generator, Searching) or new[0].content.alone:
                return self._at_once(new, counts)
            requests = [work.content.request for work in new]
            for work, request in zip(new, requests, strict=True):
                request.salt = work.key
            decoder = generator.decoder(requests)
            if self._running is None or self._running.decoder is not decoder:
                decoder.prefixes = decoder.prefixes or (Prefixes(self._kept) if self._kept else None)
                self._prefixes, self._running = decoder.prefixes, Running(decoder)
            self._running.join(requests)
            for request, cached in zip(requests, self._prefixes.taken() if self._prefixes else ()):
                request.cached = cached
                counts.tokens_reused += cached
        assert self._running is not None
        counts.steps, counts.rows = counts.steps + 1, counts.rows + len(self._works)
        counts.tokens_written += len(self._works)
        ended = []
        for item in self._running.step():
            work = self._works[item.number]
            work.say(item)
            if isinstance(item, Done):
                ended.append(self._works.pop(item.number))
        return ended

    def _at_once(self, works: Sequence[Work], counts: Counts) -> list[Work]:
        """Write whole answers, which nothing can join."""
        texts: list[Text] = [work.content for work in works]
        generator = texts[0].generator
        if isinstance(generator, Searching):
            found = generator.answers([t.request.prompt for t in texts], texts[0].config, **texts[0].options)
            items: list[Any] = [Done(t.request.index, one) for t, one in zip(texts, found, strict=True)]
        else:
            requests = [text.request for text in texts]
            items = [one for one in generate(generator.decoder(requests), requests) if not isinstance(one, Piece)]
        for item in items:
            self._works[item.number].say(item)
            counts.tokens_written += len(item.generation.tokens)
        counts.steps, counts.rows = counts.steps + 1, counts.rows + len(works)
        self._works = {}
        return list(works)

    def drop(self, works: list[Work], counts: Counts) -> None:
        """Give up works that have begun: their rows are free from the next step on."""
        for work in works:
            work.content.request.finish_reason = "left"
            counts.tokens_saved += work.content.left
        self._works = {number: work for number, work in self._works.items() if work not in works}
        self._new = [work for work in self._new if work not in works]
        if not self._works:
            self._running = None

    def reset(self) -> None:
        """Forget everything, after an error."""
        self._works, self._new, self._running = {}, [], None


def _side_by_side(one: Text, other: Text) -> bool:
    """Say whether two prompts can be written to together."""
    if not one.generator.writes_beside(other.generator):
        return False
    if isinstance(one.generator, Searching):
        return one.config == other.config and one.options == other.options
    return not one.alone and not other.alone and one.request.rules.start == other.request.rules.start
