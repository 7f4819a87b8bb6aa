"""Answers of an engine that chooses tokens and batches requests by itself: requests are handed over, news become text.

What the engine cannot do is refused before anything waits, and so is a model whose own settings it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ..core.config import GenerateConfig
from ..core.errors import UsageError
from ..engines.base import Batcher, Choice
from .generator import Generator, processors_of
from .loop import Request, finished, taken
from .pieces import Done, Piece
from .schema import SchemaError

_OFF = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "num_beams": 1}


class Relayed(Generator):
    """A model that writes, through a ``Batcher``.

    Args:
        model: what the files say of it: ``config``, ``generation_config``.
        tokenizer: the model's.
        limit: the most tokens that it can take.
        batcher: the engine.

    Raises:
        UsageError: the model's own settings ask for what the engine does not know.
    """

    def __init__(self, model: Any, tokenizer: Any, limit: int, batcher: Batcher) -> None:
        super().__init__(model, tokenizer, limit)
        self.batcher = batcher
        if rules := processors_of(model, self.ends, 1, None):
            raise UsageError(
                f"the model's settings ask for {type(rules[0]).__name__}, which cannot be had from {batcher.how}",
                hint="serve it with --engine torch",
            )

    @property
    def how(self) -> str:
        """In words: precision and engine."""
        return self.batcher.how

    def pieces(self, prompts: Sequence[Sequence[int]], config: GenerateConfig, **more: Any) -> Iterator[Piece | Done]:
        """Write answers; see ``Generator.pieces``, and ``requests`` for what is refused."""
        relay = Relay(self.batcher)
        try:
            for request in self.requests(prompts, config, **more):
                relay.join(request)
            while relay.going:
                for item in relay.step():
                    if isinstance(item, Failed):
                        raise item.error
                    yield item
        finally:
            relay.clear()

    def requests(self, prompts: Sequence[Sequence[int]], config: GenerateConfig, **more: Any) -> list[Request]:
        """Return what the engine is given, in order; see ``Generator.requests``.

        Raises:
            UsageError: as there, and for each option that the engine does not honour.
        """
        given = [name for name, off in _OFF.items() if getattr(config, name) != off and name not in self.batcher.takes]
        names = ("json_schema", "logprobs", "top_logprobs", "first_token", "start_token")
        if wrong := [*given, *(name for name in names if more.get(name))]:
            kind = SchemaError if wrong[0] == "json_schema" else UsageError
            raise kind(f"{wrong[0]} cannot be had from this model's engine ({self.how})",
                       hint="leave it out, or serve the model with --engine torch")  # fmt: skip
        return super().requests(prompts, config, **more)

    def close(self) -> None:
        """End the engine."""
        self.batcher.close()


class Failed(NamedTuple):
    """A request that the engine could not go on with."""

    number: int
    error: Exception


class Relay:
    """Requests that a ``Batcher`` writes to; what has ``finish_reason`` is told no more of.

    Attributes:
        written: tokens that came with the last step.
    """

    def __init__(self, batcher: Batcher) -> None:
        self._batcher, self._requests = batcher, dict[int, Request]()
        self.written = 0

    @property
    def going(self) -> int:
        """How many requests have not ended."""
        return len(self._requests)

    def join(self, request: Request) -> None:
        """Hand a request over, under its index."""
        rules, how = request.rules, request.rules.sampling
        self._batcher.join(request.index, request.prompt, Choice(
            rules.max_new_tokens, rules.ends, how.temperature, how.top_p, how.top_k, how.min_p, how.repetition_penalty,
            request.random.initial_seed(),
        ))  # fmt: skip
        self._requests[request.index] = request

    def step(self) -> Iterator[Piece | Done | Failed]:
        """Let the engine write on, and tell what became certain by it."""
        self.written = 0
        for news in self._batcher.step():
            if (request := self._requests.get(news.number)) is None:
                continue
            if news.error is not None:
                del self._requests[news.number]
                yield Failed(news.number, news.error)
                continue
            for token in news.tokens:
                self.written += 1
                yield from taken(request, token)
                if request.finish_reason:
                    break
            if news.reason and not request.finish_reason:
                yield from finished(request, news.reason)
            if request.finish_reason:
                del self._requests[news.number]
                if not news.reason:
                    self._batcher.drop(news.number)

    def drop(self, request: Request) -> None:
        """Give a request up."""
        if self._requests.pop(request.index, None) is not None:
            self._batcher.drop(request.index)

    def clear(self) -> None:
        """Give up all requests, also where the engine is gone."""
        for request in list(self._requests.values()):
            with suppress(Exception):  # whatever is wrong with it, nothing of it shall stay
                self.drop(request)
