"""JSON schemas, tried in a process of their own before the server compiles them: what hangs or grows there is ended.

A schema that was compiled in time once is not tried again. Schemas are tried one after the other, on a thread of their
own, so that what takes its time there holds up no request without one. ``main`` is that process.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any, ClassVar

from ..core.children import Child, Ended, begun
from ..core.errors import BusyError
from ..core.messages import receive, send

SECONDS = 5.0
"""How long a schema may take to compile."""

WAITING = 64
"""Schemas that may wait for their turn."""

REMEMBERED = 1024
"""Schemas that are known to be good."""

MEMORY = 2 << 30
"""Bytes of addresses that the process may use, where the system can hold it to that."""


class Trying:
    """The process that tries schemas, started with the first one.

    Args:
        seconds: how long one may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._child: Child | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="schemas")
        self._trials: dict[bytes, asyncio.Future[str]] = {}
        self._good: OrderedDict[bytes, None] = OrderedDict()

    async def check(self, schema: Any) -> None:
        """Try a schema.

        Raises:
            UsageError: it cannot be compiled, or not in time.
            BusyError: too many wait for their turn.
        """
        text = schema if isinstance(schema, str) else json.dumps(schema)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        if digest in self._good:
            self._good.move_to_end(digest)
            return
        if digest not in self._trials:
            if len(self._trials) >= WAITING:
                raise BusyError(f"{WAITING} JSON schemas wait to be tried", retry_after=max(1, round(self._seconds)))
            trial = asyncio.get_running_loop().run_in_executor(self._thread, self._tried, text)
            self._trials[digest] = trial
            trial.add_done_callback(lambda _: self._trials.pop(digest))
        if problem := await asyncio.shield(self._trials[digest]):
            from ..generation.schema import SchemaError

            raise SchemaError(f"json_schema cannot be enforced: {problem}", hint="correct or simplify the schema")
        self._good[digest] = None
        if len(self._good) > REMEMBERED:
            self._good.popitem(last=False)

    def _tried(self, text: str) -> str:
        if self._child is None or not self._child.running:
            self._child = Child(__name__, [], {})
            self._child.ask({"schema": "{}"})  # the imports are not on the first schema's time
        timer = threading.Timer(self._seconds, self._child.stop)
        timer.start()
        try:
            return str(self._child.ask({"schema": text}).content["problem"])
        except Ended:
            self._child = None
            return f"it takes more than {self._seconds:g} s, or too much memory, to compile"
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the process, and try no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._child is not None:
            self._child.stop()  # whoever waits for it is told
        self._thread.shutdown()
        if self._child is not None:
            self._child.close()


# -- the process --------------------------------------------------------------------------------------


class _Bytes:
    """A tokenizer of single bytes: what a schema costs depends little on the tokenizer."""

    eos_token_id, bos_token_id = 256, None
    tokens: ClassVar[list[bytes]] = [bytes([i]) for i in range(256)] + [b"<end>"]
    special_token_ids: ClassVar[list[int]] = [256]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def _pieces() -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Bytes()))


def problem_of(schema: str) -> str:
    """Return why a schema cannot be compiled, in a line; empty where it can."""
    from llguidance import LLMatcher

    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        matcher = LLMatcher(_pieces(), grammar, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # lexers are built when they are first asked
        problem = str(matcher.get_error())
    except (ValueError, RuntimeError) as error:
        problem = str(error)
    return next(iter(problem.strip().splitlines()), "")


def main() -> None:
    """Answer until nobody asks any more."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    source, answers = begun()
    while (message := receive(source)) is not None:
        send(answers, {"problem": problem_of(message.content["schema"])})


if __name__ == "__main__":
    main()
