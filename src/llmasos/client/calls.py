"""What can be asked of a server: each operation once, without a connection. A client performs them.

The names are the ``operationId`` of the server's OpenAPI document.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

from ..core.errors import UsageError, shown
from .answers import (
    Answer,
    Classification,
    Model,
    Ranked,
    Reply,
    Tagged,
    Written,
    read_prediction,
)
from .writing import Growing, GrowingChat, GrowingCompletion, GrowingResponse, read_chat, read_completion, read_response

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
Messages = str | Sequence[Mapping[str, Any]]
Row = str | Mapping[str, Any]


class Answered(NamedTuple):
    """What came back: the HTTP status, headers by their names in small letters, and the body."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how its answer is read.

    Args:
        method, path, body: of the request; the body is JSON.
        read: makes of the answer what the caller gets; what else it raises than an error of ours is the server's fault.
        model: who is asked; the client's own model if None.
        of_openai: whether other servers have the route too, which may want a model to be named.
        timeout: seconds; the client's own if None.
        writes: whether a model writes a text: that is not begun twice.
        statuses: what is an answer.
        streams: whether it comes as a stream.
    """

    method: str
    path: str
    read: Callable[[Answered], T]
    body: Mapping[str, Any] | None = None
    model: str | None = None
    of_openai: bool = False
    timeout: float | None = None
    writes: bool = False
    statuses: tuple[int, ...] = (200,)
    streams: bool = False

    def content(self, model: str | None) -> bytes | None:
        """Return the body, with the model that is asked.

        Raises:
            UsageError: it holds what JSON does not.
        """
        if self.body is None:
            return None
        body = self.body if model is None else {"model": model, **self.body}
        try:
            return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"the request cannot be written as JSON: {error}",
                             hint="texts, numbers, lists and mappings") from error  # fmt: skip


@dataclass(frozen=True)
class Writing(Call[Reply]):
    """A request for a text that a model writes.

    Args:
        grows: what its answer is gathered in, where it comes as a stream.
        streamed: fields of the request that ask for one.
    """

    grows: type[Growing] = GrowingChat
    streamed: Mapping[str, Any] = field(default_factory=dict)

    def as_stream(self) -> Writing:
        """Return the request for a stream."""
        return replace(self, body={**(self.body or {}), **self.streamed}, statuses=(), streams=True)


def _json(read: Callable[[Any], T]) -> Callable[[Answered], T]:
    return lambda answered: read(json.loads(answered.content))


# -- the server -----------------------------------------------------------------------------------------


def models(*, timeout: float | None = None) -> Call[list[Model]]:
    """List the models."""
    return Call("GET", "/v1/models", _json(lambda told: [Model.read(one) for one in told["data"]]), timeout=timeout)


def model(name: str, *, timeout: float | None = None) -> Call[Model]:
    """Show a model."""
    return Call("GET", f"/v1/models/{quote(name)}", _json(Model.read), timeout=timeout)


def health(*, timeout: float | None = None) -> Call[str]:
    """Tell whether the server can be asked: "ready", or "loading", "draining" or "stalled"."""
    read = _json(lambda told: str(told["status"]))
    return Call("GET", "/health/ready", read, timeout=timeout, statuses=(200, 503))


def metrics(*, timeout: float | None = None) -> Call[str]:
    """Return the server's counters, as Prometheus reads them."""
    return Call("GET", "/metrics", lambda answered: answered.content.decode(), timeout=timeout)


def golden(model: str | None = None, *, timeout: float | None = None) -> Call[dict[str, Any]]:
    """Return requests with what a model must answer; ``verify`` asks them."""
    query = f"?{urlencode({'model': model})}" if model else ""
    return Call("GET", f"/v1/golden{query}", _json(dict), timeout=timeout)


# -- tasks ----------------------------------------------------------------------------------------------


def _of_a_task(path: str, read: Callable[[Any], Any], doc: str) -> Callable[..., Call[Any]]:
    """Return what describes an operation on a text, a row or a list of them; one gives one answer, a list a list."""

    def describe(
        inputs: Row | Sequence[Row], *, model: str | None = None, truncate: bool = False,
        max_new_tokens: int | None = None, timeout: float | None = None,
    ) -> Call[Any]:  # fmt: skip
        body = {**_given(truncate=truncate or None, max_new_tokens=max_new_tokens)}
        if isinstance(inputs, str | Mapping):
            one = _json(lambda told: read(told["result"]))
            return Call("POST", path, one, {"inputs": inputs, **body}, model, timeout=timeout)
        if not isinstance(inputs, Sequence):
            raise UsageError(f"the inputs are {shown(inputs)}", hint="a text, a row, or a list of them")
        many = _json(lambda told: [read(answer) for answer in told["results"]])
        return Call("POST", path, many, {"inputs": list(inputs), **body}, model, timeout=timeout)

    describe.__doc__ = f"""{doc}

    Args:
        inputs: a text, a row with the task's fields, or a list of either, which gives a list.
        model: who answers.
        truncate: cut inputs that are longer than the model takes, instead of refusing them.
        max_new_tokens: the longest answer, in tokens, of a model that writes it.
        timeout: seconds.
    """
    return describe


classify = _of_a_task("/v1/classify", Classification.read, "Put texts into classes.")
tag = _of_a_task("/v1/tag", Tagged.read, "Find names and other entities in texts.")
answer = _of_a_task("/v1/answer", Answer.read, "Find answers: rows have a question and a context.")
translate = _of_a_task("/v1/translate", Written.read, "Translate texts.")
summarize = _of_a_task("/v1/summarize", Written.read, "Summarise texts.")
predict = _of_a_task("/v1/predict", read_prediction, "Answer rows, whatever the model's task.")


def similarity(
    pairs: Sequence[tuple[str, str] | Sequence[str]], *, model: str | None = None, truncate: bool = False,
    timeout: float | None = None,
) -> Call[list[float]]:  # fmt: skip
    """Tell how close pairs of texts are in meaning, -1 to 1."""
    body = {"pairs": [list(pair) for pair in pairs], **_given(truncate=truncate or None)}
    read = _json(lambda told: [float(score) for score in told["scores"]])
    return Call("POST", "/v1/similarity", read, body, model, timeout=timeout)


def rerank(
    query: str, documents: Sequence[str], top_n: int | None = None, *, model: str | None = None,
    truncate: bool = False, timeout: float | None = None,
) -> Call[list[Ranked]]:  # fmt: skip
    """Order texts by how close they are to a query, the closest first; ``top_n`` of them, or all."""
    texts = list(documents)
    body = {"query": query, "documents": texts, **_given(top_n=top_n, truncate=truncate or None)}

    def read(told: Any) -> list[Ranked]:
        found = [(int(one["index"]), float(one["relevance_score"])) for one in told["results"]]
        return [Ranked(index, score, texts[index]) for index, score in found]

    return Call("POST", "/v1/rerank", _json(read), body, model, timeout=timeout)


def embed(
    texts: str | Sequence[str], *, model: str | None = None, extra: Mapping[str, Any] | None = None,
    timeout: float | None = None,
) -> Call[NDArray[np.float32]]:  # fmt: skip
    """Make vectors of texts: float32, (texts, width); (width,) of one text."""
    many = not isinstance(texts, str)
    given = list(texts) if many else texts
    body = _body({"input": given, "encoding_format": "base64"}, extra)

    def read(told: Any) -> NDArray[np.float32]:
        found = _vectors([one["embedding"] for one in sorted(told["data"], key=lambda one: int(one["index"]))])
        if len(found) != (len(given) if many else 1):
            raise ValueError(f"{len(found)} vectors")
        return found if many else found[0]

    return Call("POST", "/v1/embeddings", _json(read), body, model, of_openai=True, timeout=timeout)


def _vectors(told: Sequence[str | Sequence[float]]) -> NDArray[np.float32]:
    """Return vectors of base64, or of numbers where a server knows no base64."""
    import numpy as np

    rows = [np.frombuffer(base64.b64decode(one), "<f4") if isinstance(one, str) else one for one in told]
    return np.array(rows, np.float32).reshape(len(rows), -1)


# -- writing --------------------------------------------------------------------------------------------


def chat(
    messages: Messages, *, system: str | None = None, model: str | None = None, max_tokens: int | None = None,
    temperature: float | None = None, top_p: float | None = None, seed: int | None = None,
    stop: str | Sequence[str] | None = None, n: int | None = None, tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str | Mapping[str, Any] | None = None, response_format: Mapping[str, Any] | None = None,
    logprobs: bool | None = None, top_logprobs: int | None = None, extra: Mapping[str, Any] | None = None,
    timeout: float | None = None,
) -> Writing:  # fmt: skip
    """Answer a conversation.

    Args:
        messages: mappings with role and content, or one question.
        system: what the model is told before.
        model: who answers.
        max_tokens: the longest answer, in tokens.
        temperature, top_p, seed: how tokens are chosen; as the server does where not given.
        stop: texts that end an answer.
        n: how many answers.
        tools, tool_choice: functions that the model may call.
        response_format: the shape of the answer, as OpenAI has it.
        logprobs, top_logprobs: whether tokens come with their chances, and with those of how many others.
        extra: fields of the request besides; None takes one away.
        timeout: seconds.
    """
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    if system is not None:
        said = [{"role": "system", "content": system}, *said]
    wanted = _given(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop, n=n, tools=tools,
        tool_choice=tool_choice, response_format=response_format, logprobs=logprobs, top_logprobs=top_logprobs,
    )  # fmt: skip
    return _writing("/v1/chat/completions", read_chat, GrowingChat, {"messages": said, **wanted}, model, extra, timeout)


def complete(
    prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], *, model: str | None = None,
    max_tokens: int | None = None, temperature: float | None = None, top_p: float | None = None,
    seed: int | None = None, stop: str | Sequence[str] | None = None, n: int | None = None,
    logprobs: int | None = None, extra: Mapping[str, Any] | None = None, timeout: float | None = None,
) -> Writing:  # fmt: skip
    """Write on from a text, or from its tokens; of several there are as many choices, or ``n`` for each.

    ``logprobs`` is how many tokens come with their chances at each place; the others are those of ``chat``.
    """
    wanted = _given(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop, n=n, logprobs=logprobs
    )
    body = {"prompt": prompt, **wanted}
    return _writing("/v1/completions", read_completion, GrowingCompletion, body, model, extra, timeout)


def respond(
    input: str | Sequence[Mapping[str, Any]], *, instructions: str | None = None, model: str | None = None,
    max_tokens: int | None = None, temperature: float | None = None, top_p: float | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None, tool_choice: str | Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None, extra: Mapping[str, Any] | None = None, timeout: float | None = None,
) -> Writing:  # fmt: skip
    """Answer a conversation by OpenAI's newer route; ``tools`` and ``text`` (the shape) are written as it has them."""
    wanted = _given(
        instructions=instructions, max_output_tokens=max_tokens, temperature=temperature, top_p=top_p, tools=tools,
        tool_choice=tool_choice, text=text,
    )  # fmt: skip
    return _writing("/v1/responses", read_response, GrowingResponse, {"input": input, **wanted}, model, extra, timeout)


def _writing(
    path: str, read: Callable[[Any, str | None], Reply], grows: type[Growing], body: Mapping[str, Any],
    model: str | None, extra: Mapping[str, Any] | None, timeout: float | None,
) -> Writing:  # fmt: skip
    def found(answered: Answered) -> Reply:
        return read(json.loads(answered.content), answered.headers.get("x-request-id"))

    streamed = {"stream": True, **({"stream_options": {"include_usage": True}} if grows.counts else {})}
    return Writing("POST", path, found, _body(body, extra), model, of_openai=True, timeout=timeout, writes=True,
                   grows=grows, streamed=_body(streamed, extra))  # fmt: skip


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _body(body: Mapping[str, Any], extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a body with fields more, or, where they are None, less."""
    return _given(**{**body, **(extra or {})})
