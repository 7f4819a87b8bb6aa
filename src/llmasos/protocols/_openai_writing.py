"""What chat, completions and responses have in common: from a request to prompts and rules, and from text to events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from ..core.config import GenerateConfig
from ..core.errors import TooLongError, UsageError
from ..generation.pieces import Done, Piece
from ..generation.schema import SchemaError
from ..generation.writer import BROKEN
from ..serving.app import failure_of
from ..serving.calls import Reader, schemas
from ..serving.choosing import room, sampling
from ..serving.desk import begun
from ..serving.shapes import checked, one_of
from ..tasks._conversations import Wrong
from ..tasks.base import Generation
from ._openai_schema import Writing
from .base import Failure, Refused

if TYPE_CHECKING:
    from ..serving.desk import Desk
    from ..serving.served import Asked, Served


@dataclass(frozen=True)
class Wanted:
    """What a model is to write.

    Args:
        served: the model.
        asked: whose request it is.
        prompts: as tokens.
        config: how.
        tools: names of tools that it may call.
        most_calls: how many calls are taken; all if None.
        more: what ``Served.write`` takes besides.
        read_from, shaped_by, bounded_by: fields of the request: the prompt, the answer's shape, and its length.
    """

    served: Served
    asked: Asked
    prompts: Sequence[Sequence[int]]
    config: GenerateConfig
    tools: tuple[str, ...] = ()
    most_calls: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    read_from: str = "messages"
    shaped_by: str = "response_format"
    bounded_by: str = "max_tokens"

    def reader(self) -> Reader:
        """Return what tells text from calls, for one answer."""
        return Reader(self.tools, self.most_calls)

    async def answers(self, desk: Desk, request: Request) -> list[Generation]:
        """Return the whole answers, one a prompt."""
        with self._naming():
            answers = self.served.answers(self.prompts, self.config, self.asked, **self.more)
            return await desk.while_there(request, answers)

    async def pieces(self, desk: Desk, request: Request) -> AsyncIterator[Piece | Done]:
        """Return the answers as they come, once the first token is there: what is wrong has shown before."""
        stream = self.served.write(self.prompts, self.config, self.asked, **self.more, streams=True)
        with self._naming():
            return await desk.while_there(request, begun(stream))

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the field by which it was asked for what cannot be had."""
        try:
            yield
        except SchemaError as error:
            raise Refused(error.message, self.shaped_by, code="invalid_value", hint=error.hint) from error
        except TooLongError as error:
            text, hint = (part.replace("max_new_tokens", self.bounded_by) for part in (error.message, error.hint or ""))
            raise Refused(text, self.read_from, code="context_length_exceeded", hint=hint) from error


@dataclass(frozen=True)
class Tools:
    """Tools on offer, and which of them are to be called.

    Args:
        offered: as OpenAI's newer clients and chat templates have them, without the outer layer.
        choice: none, auto, required or function.
        name: of the one function that is to be called.
        parallel: whether several calls are wanted.
    """

    offered: Sequence[Mapping[str, Any]] = ()
    choice: str = "auto"
    name: str | None = None
    parallel: bool = True

    def __post_init__(self) -> None:
        names = [tool["name"] for tool in self.offered]
        if len(set(names)) < len(names):
            raise Refused("two tools have one name", "tools", code="invalid_value")
        if self.choice == "function" and self.name not in names:
            raise Refused(f"there is no tool {self.name!r} to be called", "tool_choice", code="invalid_value",
                          hint=f"offered: {', '.join(names) or 'none'}")  # fmt: skip
        if self.choice == "required" and not names:
            raise Refused("a call is required, and no tool is offered", "tool_choice", code="invalid_value",
                          hint="give tools")  # fmt: skip

    @property
    def shown(self) -> list[dict[str, Any]] | None:
        """The tools that the model is told of."""
        if self.choice == "none" or not self.offered:
            return None
        shown = [{name: value for name, value in tool.items() if name != "strict"} for tool in self.offered]
        return [{"type": "function", "function": tool} for tool in shown]

    @property
    def callable(self) -> dict[str, Any]:
        """Schemas of arguments by the names of those tools that may be called."""
        if self.choice == "none":
            return {}
        return {
            t["name"]: t.get("parameters") for t in self.offered if self.choice != "function" or t["name"] == self.name
        }

    @property
    def demanded(self) -> bool:
        """Whether nothing but a call will do."""
        return self.choice in ("required", "function")


def shape(tools: Tools, wanted: Any, param: str) -> dict[str, Any] | None:
    """Return the JSON schema that an answer is made to obey, if it is.

    Args:
        tools: where a call is demanded, it is a call; where one is allowed, a call or what is wanted.
        wanted: the schema that was asked for, or None.
        param: where it was asked for.

    Raises:
        Refused: a schema is too long or too deep.
    """
    try:
        if tools.demanded:
            param = "tools"
            return one_of(schemas(tools.callable))
        if wanted is None:
            return None
        return one_of([*schemas(tools.callable), checked(wanted)])
    except UsageError as error:
        raise Refused(error.message, param, code="invalid_value", hint=error.hint) from error


async def chat_prompt(served: Served, messages: Any, tools: Tools, param: str) -> list[int]:
    """Return a conversation as tokens, through the model's chat template.

    Raises:
        Refused: the template refuses something, which is named.
    """
    try:
        return await served.prompt(messages, tools.shown)
    except UsageError as error:
        wrong = error.__cause__
        place = wrong.problem.field.replace("messages", param, 1) if isinstance(wrong, Wrong) else param
        raise Refused(error.message, place, code="invalid_value", hint=error.hint) from error


def settings(
    desk: Desk, served: Served, asking: Writing, prompts: Sequence[Sequence[int]], *,
    most: int | None, param: str, default: int | None = None,
) -> GenerateConfig:  # fmt: skip
    """Return how answers are written.

    Args:
        desk, served: the server's bounds, and the model's.
        asking: the request.
        prompts: as tokens.
        most, param: the longest answer that was asked for, and by which field.
        default: the longest answer if nothing was said; None for what fits.

    Raises:
        Refused: more was asked for than this server writes.
    """
    bound = desk.config.max_new_tokens
    if most is not None and most > bound:
        raise Refused(f"{param}={most}, and at most {bound} tokens are written here", param, code="invalid_value",
                      hint=f"{param}={bound}")  # fmt: skip
    if most is None:
        most = room(served, max(map(len, prompts)), bound if default is None else min(default, bound))
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    given = {name: getattr(asking, name) for name in names}
    return sampling(served, max_new_tokens=most, seed=getattr(asking, "seed", None), **given)


# -- answers ------------------------------------------------------------------------------------------


def reason(generation: Generation) -> str:
    """Return why an answer ended, in OpenAI's words."""
    return "length" if generation.finish_reason == "length" else "stop"


def usage(generations: Iterable[Generation], copies: int = 1) -> dict[str, Any]:
    """Return the tokens read and written; a prompt that was answered several times is read once."""
    found = list(generations)
    read, written = sum(one.prompt_tokens for one in found[::copies]), sum(len(one.tokens) for one in found)
    cached = sum(one.cached_tokens or 0 for one in found[::copies])
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": cached}}  # fmt: skip


def token_text(tokenizer: Any, before: int | None, token: int) -> str:
    """Return the text of a token as it stands behind another: many tokenizers drop the first space of a text."""
    kept = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    if before is None:
        return str(tokenizer.decode([token], **kept))
    return str(tokenizer.decode([before, token], **kept))[len(str(tokenizer.decode([before], **kept))) :]


def chance(text: str, logprob: float) -> dict[str, Any]:
    """Return the chance of a token; a part of a character has no bytes of its own here."""
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": None if BROKEN in text else [*text.encode()]}


def chances(tokenizer: Any, said: Generation | Piece, top: int, before: int | None = None) -> list[dict[str, Any]]:
    """Return the chances of an answer's tokens, or of those of a piece of it, with the likeliest at each place."""
    out = []
    for place, (token, logprob) in enumerate(zip(said.tokens, said.logprobs or (), strict=True)):
        best = said.likeliest[place] if top and said.likeliest else []
        others = [chance(token_text(tokenizer, before, other), value) for other, value in best[:top]]
        out.append(chance(token_text(tokenizer, before, token), logprob) | {"top_logprobs": others})
        before = token
    return out


# -- streams ------------------------------------------------------------------------------------------


def streaming(events: AsyncIterator[bytes], failed: Callable[[Failure], bytes]) -> StreamingResponse:
    """Return a stream of events; an error in it becomes its last event."""

    async def whole() -> AsyncIterator[bytes]:
        try:
            async with aclosing(events):  # type: ignore[type-var]
                async for event in events:
                    yield event
        except Exception as error:
            yield failed(failure_of(error))

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(whole(), media_type="text/event-stream", headers=headers)
