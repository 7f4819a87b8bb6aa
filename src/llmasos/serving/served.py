"""One model of the server: what it can do, and each of its abilities as a coroutine.

Texts are tokenised and answers decoded on a pool of threads, or at once where they are short; between the two the
model's scheduler computes. What is asked for is checked before it waits: a request that can never be answered is
refused at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.config import GenerateConfig, ServeConfig, WriteConfig
from ..core.errors import BundleError, DataError, UnavailableError, UsageError
from ..engines.base import Engine
from ..tasks.base import Generation, Row, Task
from .answering import Answering, Rows, decoded, encoded
from .expected import Cases, Origin, cases_of
from .facts import OWN
from .grammar import Trying
from .guard import Entry
from .limits import check_count, check_texts, check_writing
from .scheduler import Lane, Scheduler, Work
from .turns import Computing, InTurns

if TYPE_CHECKING:
    from ..generation.generator import Generator
    from ..generation.pieces import Done, Piece


BRIEF = 1000
"""Characters of a text that the event loop reads by itself."""


@dataclass(frozen=True)
class Parts:
    """What a model is served with.

    Args:
        tokenizer: the model's.
        max_length: the most tokens that it takes.
        task: what it answers, or what it makes of rows that it writes answers to.
        engine: answers; None for a model that writes.
        generator: writes; None for a model that answers.
        embeds: the task that makes vectors of texts by ``engine``, where it can.
        settled: how answers to rows are written, and what the generator is told besides.
        about: what the server tells of it.
        adapters: adapters over it, by the names that clients call them.
        own_bytes: of an adapter, what it takes besides its base.
        refused: adapters over it that cannot be served, and why.
        origin: what it was opened from.
    """

    tokenizer: Any
    max_length: int
    task: Task | None
    engine: Engine | None = None
    generator: Generator | None = None
    embeds: Task | None = None
    settled: tuple[WriteConfig, dict[str, Any]] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    adapters: Mapping[str, Parts] = field(default_factory=dict)
    own_bytes: int = 0
    refused: Mapping[str, BundleError] = field(default_factory=dict)
    origin: Origin | None = None


@dataclass(frozen=True)
class Asked:
    """Whose request it is, and how long it may take in seconds; ``entry`` is told what it comes to."""

    key: str = ""
    timeout: float | None = None
    truncate: bool = False
    entry: Entry = field(default_factory=Entry)

    @property
    def deadline(self) -> float | None:
        """When nobody waits any more, by ``time.monotonic``."""
        return None if self.timeout is None else time.monotonic() + self.timeout


class Served:
    """A loaded model with its scheduler, which adapters share with their base where both answer, or both write.

    Args:
        name: what clients call it.
        parts: the model.
        config: the server's bounds.
        pool: where texts are tokenised and answers decoded.
        trying: where JSON schemas are tried.
        base: of an adapter, what it lies on.
        computing: computes for all models of the processor, where there are several.
    """

    def __init__(
        self, name: str, parts: Parts, config: ServeConfig, pool: Executor, trying: Trying, base: Served | None = None,
        computing: Computing | None = None,
    ) -> None:  # fmt: skip
        self.name, self.parts, self._config, self._pool, self._trying = name, parts, config, pool, trying
        self.created = int(time.time())
        self._cases: Cases | None = None
        shares = base is not None and (base.parts.generator is None) == (parts.generator is None)
        self._lane = None if shares else _lane(parts, config)
        self._token_bytes = 0 if parts.generator is None else _token_bytes(parts.generator)
        if base is not None and self._lane is None:
            self.scheduler: Scheduler = base.scheduler
            return
        assert self._lane is not None
        lane = InTurns(self._lane, computing) if computing and _on_processor(parts) else self._lane
        self.scheduler = Scheduler(name, lane, most_waiting=config.max_waiting, most_tokens=config.max_waiting_tokens)

    # -- answers ------------------------------------------------------------------------------------

    async def predict(self, rows: Sequence[Row], asked: Asked, **options: Any) -> list[Any]:
        """Return one prediction a row, as ``LLM.predict`` does; ``options`` of writing, for a model that writes.

        Raises:
            UsageError: the model has no task.
            DataError: a row makes no sense, or is longer than the model takes.
            BusyError: too much is waiting.
        """
        task = self.parts.task
        if task is None:
            raise UsageError(f"{self.name} has no task", hint="ask it for what /v1/models lists")
        if task.generates:
            return await self._written(task, rows, asked, options)
        if options:
            raise UsageError(f"{next(iter(options))} does nothing for {task.tag}", hint="leave it out")
        rows_of = await self._computed(await self._encoded(task, rows, asked), asked)
        found: list[Any] = decoded(rows_of) if _brief(rows) else await self._in_pool(decoded, rows_of)
        self._keep(asked, rows, found)
        return found

    async def embed(
        self, texts: Sequence[str], asked: Asked, *, normalize: bool = True
    ) -> tuple[NDArray[np.float32], int]:
        """Return vectors, float32, (texts, width), and the tokens that were read.

        Raises:
            UsageError: the model makes none.
        """
        from ..metrics.similarity import unit

        task = self.parts.embeds
        if task is None:
            raise UsageError(f"{self.name} makes no vectors", hint="ask a model of sentence-similarity, or an encoder")
        rows = await self._encoded(task, [{"text": text} for text in texts], asked)
        found = np.asarray((await self._computed(rows, asked)).outputs, dtype=np.float32)
        self._keep(asked, texts, [])
        return unit(found) if normalize else found, rows.part.tokens

    def _keep(self, asked: Asked, inputs: Any, answers: Any) -> None:
        """Write down what was asked, as rows or tokens, and answered, where that is wanted."""
        if asked.entry.keep is not None:
            tokens = self.parts.tokenizer if isinstance(answers, str) else None
            asked.entry.keep(self.name, tokens.decode(inputs) if tokens else inputs, answers)

    async def _encoded(self, task: Task, rows: Sequence[Row], asked: Asked) -> Rows:
        check_count(len(rows), self._config)
        check_texts(rows)
        assert self.parts.engine is not None
        part = partial(encoded, task, self.parts.engine, self.parts.tokenizer, rows, self.parts.max_length,
                       truncate=asked.truncate)  # fmt: skip
        found: Rows = part() if _brief(rows) else await self._in_pool(part)
        return found

    async def _computed(self, rows: Rows, asked: Asked) -> Rows:
        if not len(rows.part):
            return rows
        work = Work(asked.key, rows.part.tokens, rows, asked.deadline)
        with asked.entry.charged(self.name, [work]):
            async for _ in self._listen(work):
                pass
        return rows

    async def _listen(self, work: Work) -> AsyncIterator[Any]:
        said = self.scheduler.submit(work)
        try:
            async for item in said:
                yield item
        finally:
            work.left = True

    async def _in_pool(self, call: Any, *args: Any) -> Any:
        """Call something on a thread.

        Raises:
            UnavailableError: the server is stopping, and waits for it no longer.
        """
        stopping, task = UnavailableError("the server is stopping", retry_after=5), asyncio.current_task()
        try:
            done = asyncio.get_running_loop().run_in_executor(self._pool, call, *args)
        except RuntimeError as error:  # the threads take no more
            raise stopping from error
        try:
            return await done
        except asyncio.CancelledError:
            if task is not None and task.cancelling():  # nobody waits
                raise
            raise stopping from None

    async def cases(self) -> Cases:
        """Return golden rows as requests, with what must be answered.

        Raises:
            NoGoldenError: there are none.
        """
        if self._cases is None:
            self._cases = await self._in_pool(cases_of, self, self._config.max_new_tokens)
        return self._cases

    # -- texts --------------------------------------------------------------------------------------

    @property
    def writes(self) -> bool:
        """Whether it writes from any prompt."""
        generator = self.parts.generator
        return generator is not None and not (generator.encodes and self.parts.task is not None)

    def check_writes(self) -> None:
        """Refuse what no prompt can be given.

        Raises:
            UsageError: the model does not write.
        """
        if not self.writes:
            raise UsageError(f"{self.name} does not write from prompts", hint="ask it for what /v1/models lists")

    async def prompt(self, content: Any, tools: Any = None) -> list[int]:
        """Return a text, or messages (with ``tools`` on offer) through the model's chat template, as tokens.

        Raises:
            UsageError: the model does not write, or the template refuses the messages.
        """
        self.check_writes()
        assert self.parts.generator is not None
        check_texts(content)
        found: list[int] = await self._in_pool(self.parts.generator.tokens, content, tools)
        return found

    async def write(
        self, prompts: Sequence[Sequence[int]], config: GenerateConfig, asked: Asked, **more: Any
    ) -> AsyncIterator[Piece | Done]:
        """Yield pieces and answers to prompts, as they come; arguments as for ``Generator.requests``.

        ``number`` of what is yielded is the place of its prompt.

        Raises:
            UsageError: options that exclude each other, or a prompt that does not fit.
            BusyError: too much is waiting.
        """
        from ..generation.pieces import Done
        from .writing import Text

        assert self.parts.generator is not None
        check_writing(prompts, config, more, self._config)
        if (schema := more.get("json_schema")) is not None:
            await self._trying.check(schema)
        make = partial(self.parts.generator.requests, prompts, config, **more)
        options = {name: value for name, value in more.items() if name != "streams"}
        works = []
        for request in await self._in_pool(make):
            tokens = len(request.prompt) + request.rules.max_new_tokens
            text = Text(self.parts.generator, request, config, options)
            works.append(Work(asked.key, tokens, text, asked.deadline))
        said: asyncio.Queue[Any] = asyncio.Queue()
        with asked.entry.charged(self.name, works):
            listeners = [asyncio.ensure_future(self._told(number, work, said)) for number, work in enumerate(works)]
            try:
                open_ = len(works)
                while open_:
                    item = await said.get()
                    if isinstance(item, BaseException):
                        raise item
                    if isinstance(item, Done):
                        open_ -= 1
                        self._keep(asked, prompts[item.number], item.generation.text)
                    yield item
            finally:
                for work, listener in zip(works, listeners, strict=True):
                    work.left = True
                    listener.cancel()

    async def _told(self, number: int, work: Work, said: asyncio.Queue[Any]) -> None:
        try:
            async for item in self._listen(work):
                said.put_nowait(item._replace(number=number))
        except Exception as error:
            said.put_nowait(error)

    async def answers(
        self, prompts: Sequence[Sequence[int]], config: GenerateConfig, asked: Asked, **more: Any
    ) -> list[Generation]:
        """Return the whole answer to each prompt."""
        from ..generation.pieces import Done

        found = {one.number: one.generation async for one in self.write(prompts, config, asked, **more)
                 if isinstance(one, Done)}  # fmt: skip
        return [found[number] for number in range(len(prompts))]

    async def _written(self, task: Task, rows: Sequence[Row], asked: Asked, options: Mapping[str, Any]) -> list[Any]:
        assert self.parts.settled is not None
        config, more = self.parts.settled
        config = replace(config, **options)
        check_texts(rows)
        prompts = await self._in_pool(partial(self._prompts, task, rows, config, truncate=asked.truncate))
        found = await self.answers(prompts, config, asked, **more)
        return [task.answer(row, one) for row, one in zip(rows, found, strict=True)]

    def _prompts(self, task: Task, rows: Sequence[Row], config: WriteConfig, *, truncate: bool) -> list[list[int]]:
        wrong = [
            f"input {i + 1}, {problem.field}: found {problem.found}, expected {problem.expected}"
            for i, row in enumerate(rows) if (problem := task.problem(row, labelled=False))
        ]  # fmt: skip
        if wrong:
            raise DataError(wrong[0], problems=wrong[1:], hint="correct the input")
        longest = None
        if truncate and task.cuts_prompts:
            longest = self.parts.max_length
            if not (self.parts.generator and self.parts.generator.encodes):
                longest -= config.max_new_tokens or min(256, longest // 2)
        return [task.prompt(row, self.parts.tokenizer, longest) for row in rows]

    @property
    def cache_bytes(self) -> int:
        """Memory of keys and values: of what is written now, at its longest, and of beginnings that are kept."""
        kept = getattr(self._lane, "kept_tokens", None)
        return 0 if kept is None else self._token_bytes * (self.scheduler.running[1] + kept)

    @property
    def bytes_outside(self) -> int:
        """Memory of programs beside this one that compute for it."""
        found = getattr(getattr(self.parts.generator, "batcher", None), "bytes_outside", None)
        return 0 if found is None else int(found())

    def close(self) -> None:
        """Stop computing; what waits is told."""
        self.scheduler.close()
        if self.parts.generator is not None:
            self.parts.generator.close()


def _brief(rows: Sequence[Row]) -> bool:
    """Say whether rows take less time to read than a thread takes to be told of them."""
    return len(rows) == 1 and all(isinstance(value, str) and len(value) <= BRIEF for value in rows[0].values())


def _on_processor(parts: Parts) -> bool:
    """Say whether torch computes it, and on the processor."""
    computing: Any = parts.generator or parts.engine
    return parts.about.get("engine") == OWN and computing.model.device.type == "cpu"


def _token_bytes(generator: Generator) -> int:
    """Return what the keys and values of a token take; 0 where the configuration does not say how many there are."""
    from ..decoders.base import cache_dtype

    own = generator.model.config.get_text_config(decoder=True)
    heads = int(getattr(own, "num_attention_heads", 0) or 0)
    width = int(getattr(own, "head_dim", 0) or getattr(own, "hidden_size", 0) // max(1, heads))
    heads = int(getattr(own, "num_key_value_heads", None) or heads)
    size = cache_dtype(generator.model.device, generator.dtype).itemsize
    return 2 * int(getattr(own, "num_hidden_layers", 0) or 0) * heads * width * size


def _lane(parts: Parts, config: ServeConfig) -> Lane:
    if parts.generator is None:
        return Answering(batch_size=config.batch_size, most_tokens=config.max_batch_tokens)
    from ..generation.relayed import Relayed
    from .relaying import Relaying
    from .writing import Writing

    most = {"most_rows": config.max_streams, "most_tokens": config.max_cache_tokens}
    if isinstance(parts.generator, Relayed):
        return Relaying(parts.generator, **most)
    return Writing(kept=config.max_prefix_tokens, **most)
