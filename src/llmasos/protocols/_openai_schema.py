"""What OpenAI's clients send, checked: a field that is not here is a 400 that names it.

Where OpenAI takes several types, the simple one is made the general one first, so that an error names the field alone.
Fields of ``NEUTRAL`` are known, and can only say that nothing is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from ._bodies import Body, Fields, First, Many
from .base import Refused

MOST_CHOICES = 16
MOST_STOPS = 4
LONGEST_STOP = 256
MOST_PAIRS = 16

TEXTS = ("text", "input_text", "output_text")
"""Types of content that are read: all are text."""


class Strict(Fields):
    """A part of a request: nothing is guessed, and nothing unknown is let by."""

    model_config = ConfigDict(strict=True, protected_namespaces=())


# -- messages -----------------------------------------------------------------------------------------


class Part(Strict):
    """A piece of a message."""

    type: str
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("type") not in TEXTS:
            raise ValueError(f"content of type {value.get('type')!r}: this server reads text")
        return value


def _parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Content = Annotated[list[Part], First(), BeforeValidator(_parts, json_schema_input_type=str | list[Part])]


def text_of(content: list[Part] | None) -> str | None:
    """Return the text of a message; None where it has none."""
    return None if content is None else "".join(part.text for part in content)


class CalledFunction(Strict):
    """What was called: ``arguments`` is JSON."""

    name: str
    arguments: str


class ToolCall(Strict):
    """A call of a tool in a message of the assistant."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Strict):
    """One message of a conversation; ``developer`` is what ``system`` was called before."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Many[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates take it."""
        kept = self.model_dump(include={"name", "tool_calls", "tool_call_id", "reasoning_content"}, exclude_none=True)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text_of(self.content) or self.refusal, **kept}


# -- tools and shapes ---------------------------------------------------------------------------------


class Function(Strict):
    """A function on offer."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.:-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool on offer."""

    type: Literal["function"]
    function: Function


class Named(Strict):
    """A function by name."""

    name: str


def _choice(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


class ToolChoice(Strict):
    """Which tools are to be called."""

    type: Literal["none", "auto", "required", "function"]
    function: Named | None = None


Choice = Annotated[ToolChoice, BeforeValidator(_choice, json_schema_input_type=str | ToolChoice)]


class JsonSchema(Strict):
    """A JSON schema with a name."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """What an answer looks like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Strict):
    """What a stream tells besides."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


# -- what all writing has in common --------------------------------------------------------------------


def _stops(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]],
    First(),
    Field(max_length=MOST_STOPS),
    BeforeValidator(_stops, json_schema_input_type=str | list[str]),
]


def _few(value: Any) -> Any:
    if isinstance(value, Mapping) and len(value) > MOST_PAIRS:
        raise ValueError(f"{len(value)} pairs, and there may be {MOST_PAIRS}")
    return value


class Writing(Strict, Body):
    """What can be said about how an answer is written, on each of the three routes.

    ``top_k``, ``min_p`` and ``repetition_penalty`` are no fields of OpenAI's, but of most servers of its protocol.
    """

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields that are known, with the values that they may have."""

    model: str | None = Field(None, description="the model's name; the server's first if not given")
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token")
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01)
    stream: bool | None = None
    store: bool | None = Field(None, description="nothing is stored: true is refused")
    user: str | None = Field(None, description="not used")
    metadata: Annotated[dict[str, str] | None, BeforeValidator(_few)] = Field(None, description="not used")
    safety_identifier: str | None = Field(None, description="not used")
    prompt_cache_key: str | None = Field(None, description="not used")
    service_tier: str | None = None

    @model_validator(mode="after")
    def _is_neutral(self) -> Writing:
        if self.store:
            raise Refused("nothing is stored here", "store", hint="leave it out, or store=false")
        if self.service_tier not in (None, "auto", "default"):
            raise Refused("there is one tier of service here", "service_tier", hint="leave it out")
        for name, values in self.neutral.items():
            if (value := getattr(self, name)) is not None and value not in values:
                raise Refused(f"{name}={value!r} is not supported", name, hint="leave it out")
        return self


class Sampled(Writing):
    """What chat and completions have in common."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},),
    }  # fmt: skip

    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    seed: int | None = None
    stop: Stop | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    frequency_penalty: float | None = Field(None, description="only 0; repetition_penalty discounts repetitions")
    presence_penalty: float | None = Field(None, description="only 0")
    logit_bias: dict[str, Any] | None = Field(None, description="only empty")

    @model_validator(mode="after")
    def _has_a_stream(self) -> Sampled:
        if self.stream_options is not None and not self.stream:
            raise Refused("stream_options without a stream do nothing", "stream_options", hint="stream=true")
        return self


# -- the requests --------------------------------------------------------------------------------------


class Chat(Sampled):
    """A conversation that is to be answered."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {**Sampled.neutral, "modalities": (["text"],)}

    messages: Many[Message] = Field(min_length=1, examples=[[{"role": "user", "content": "Hello, who are you?"}]])
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Many[Tool] | None = Field(None, max_length=128)
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    modalities: Many[str] | None = None


def _prompts(value: Any) -> Any:
    """Return prompts as a list of them: texts, or tokens."""
    many = isinstance(value, list) and not (value and all(type(one) is int for one in value))
    prompts = value if many else [value]
    if not prompts or not all(isinstance(one, str) or _is_tokens(one) for one in prompts):
        raise ValueError("a prompt is a text or a list of token ids, and there may be a list of them")
    return prompts


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int and one >= 0 for one in value)


class Completion(Sampled):
    """Texts that are to be gone on with."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {**Sampled.neutral, "echo": (False,), "suffix": ()}

    prompt: Annotated[
        list[Any],
        BeforeValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ] = Field(examples=["It is a truth universally acknowledged"])
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = Field(None, description="only the value of n")

    @model_validator(mode="after")
    def _is_best_of_all(self) -> Completion:
        if self.best_of not in (None, self.n or 1):
            raise Refused(f"best_of={self.best_of} is not supported", "best_of", hint="n gives several answers")
        return self


def _texts(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a text or a list of texts: tokens are those of one tokenizer, and it makes its own")
    return texts


class Embedding(Strict, Body):
    """Texts of which vectors are to be made."""

    input: Annotated[
        list[str], Field(min_length=1), BeforeValidator(_texts, json_schema_input_type=str | list[str])
    ] = Field(examples=["where is my parcel"])
    model: str | None = Field(None, description="the model's name; the server's first if not given")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, description="only what the model's vectors have")
    user: str | None = Field(None, description="not used")


class FlatTool(Function):
    """A tool on offer, as the newer route has it."""

    type: Literal["function"]


class FlatChoice(Strict):
    """Which tools are to be called."""

    type: Literal["none", "auto", "required", "function"]
    name: str | None = None


class TextFormat(Strict):
    """What an answer looks like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    """How a text is to be."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Item(Strict):
    """A message, a call, or what came of one."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content | None = None
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Content | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Item:
        needed = {
            "message": ("role", "content"),
            "function_call": ("call_id", "name", "arguments"),
            "function_call_output": ("call_id", "output"),
        }[self.type]
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"a {self.type} has {' and '.join(needed)}; {missing[0]} is missing")
        return self


def _items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class Respond(Writing):
    """What is to be answered, by the newer route; nothing is kept from one request to the next."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "truncation": ("disabled",), "background": (False,), "top_logprobs": (0,),
        "include": ([], ["reasoning.encrypted_content"]),
        "reasoning": ({}, {"effort": None}, {"effort": None, "summary": None}), "max_tool_calls": (),
        "conversation": (), "stream_options": ({}, {"include_obfuscation": False}),
    }  # fmt: skip

    input: Annotated[
        list[Item], First(), Field(min_length=1), BeforeValidator(_items, json_schema_input_type=str | list[Item])
    ] = Field(examples=["Hello, who are you?"])
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextOptions | None = None
    tools: Many[FlatTool] | None = Field(None, max_length=128)
    tool_choice: Annotated[
        FlatChoice | None, BeforeValidator(_choice, json_schema_input_type=str | FlatChoice | None)
    ] = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = Field(None, description="nothing is stored: send the whole conversation")
    truncation: str | None = Field(None, description="only disabled")
    background: bool | None = Field(None, description="only false")
    top_logprobs: int | None = Field(None, description="only 0")
    include: Many[str] | None = Field(None, description="only empty: there is no more")
    reasoning: dict[str, Any] | None = Field(None, description="only empty")
    max_tool_calls: int | None = Field(None, description="not supported")
    conversation: Any = Field(None, description="nothing is stored: send the whole conversation")
    stream_options: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _is_alone(self) -> Respond:
        if self.previous_response_id is not None:
            raise Refused("nothing is stored here, so there is no earlier response", "previous_response_id",
                          hint="send the whole conversation as input")  # fmt: skip
        return self
