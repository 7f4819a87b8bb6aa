"""What a server answers, as frozen dataclasses with the names that ``model.predict`` and the wire have.

Each says how it is read from JSON. Fields that are unknown here are passed over, so that a newer server can be asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """A model of a server.

    Args:
        id: its name there.
        task: what it was tuned for.
        writes, embeds: whether it writes from prompts, and whether it makes vectors.
        max_model_len: the most tokens that it takes.
        checked: whether its golden rows were compared when it was opened.
        about: all that the server tells of it.

    What a server does not tell, or not before the model is open, is None.
    """

    id: str
    task: str | None = None
    writes: bool | None = None
    embeds: bool | None = None
    max_model_len: int | None = None
    checked: bool | None = None
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Self:
        """Read it from JSON."""
        names = ("task", "writes", "embeds", "max_model_len", "checked")
        return cls(str(told["id"]), **{name: told.get(name) for name in names}, about=told)


# -- tasks --------------------------------------------------------------------------------------------

Label = str | int


@dataclass(frozen=True)
class Classification:
    """The likeliest label of a text, its probability, and that of every label.

    ``labels`` are those above the threshold, where the model may give several; else None.
    """

    label: Label
    score: float
    scores: dict[Label, float]
    labels: tuple[Label, ...] | None = None

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Self:
        """Read it from JSON, where the names of numbers have become texts."""
        label, labels = told["label"], told.get("labels")
        kind = type(label) if isinstance(label, int) else str
        scores: dict[Label, float] = {kind(name): float(score) for name, score in told["scores"].items()}
        return cls(label, float(told["score"]), scores, None if labels is None else tuple(labels))


@dataclass(frozen=True)
class Entity:
    """Neighbouring words of one type. ``start`` and ``end`` count characters, the others words; ends are behind."""

    label: str
    text: str
    start: int
    end: int
    start_word: int
    end_word: int
    score: float


@dataclass(frozen=True)
class TaggedWord:
    """A word, where it is in the text, its tag and the probability of this tag."""

    text: str
    start: int
    end: int
    tag: str
    score: float


@dataclass(frozen=True)
class Tagged:
    """The words of a text with their tags, and the entities that they make up."""

    text: str
    words: tuple[TaggedWord, ...]
    entities: tuple[Entity, ...]

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Self:
        """Read it from JSON."""
        words = tuple(_only(TaggedWord, one) for one in told["words"])
        return cls(told["text"], words, tuple(_only(Entity, one) for one in told["entities"]))


@dataclass(frozen=True)
class Span:
    """One possible answer: ``context[start:end]``, and its probability."""

    answer: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class Answer:
    """The answer to a question: ``context[start:end]``; "" without a place where the context has none.

    ``no_answer_score`` is the probability that there is none, of a model that can say so; ``n_best`` are the likeliest
    passages.
    """

    answer: str
    score: float
    start: int | None
    end: int | None
    no_answer_score: float | None
    n_best: tuple[Span, ...]

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Self:
        """Read it from JSON."""
        return _only(cls, {**told, "n_best": tuple(_only(Span, one) for one in told["n_best"])})


@dataclass(frozen=True)
class Written:
    """A text that the model wrote; ``tokens`` counts them, ``finish_reason`` is "stop", or "length" where it is cut."""

    text: str
    tokens: int
    finish_reason: str

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Self:
        """Read it from JSON."""
        return _only(cls, told)


Prediction = Classification | Tagged | Answer | Written | dict[str, Any]
_PREDICTIONS: Sequence[type[Classification | Tagged | Answer | Written]] = (Classification, Tagged, Answer, Written)


def read_prediction(told: Any) -> Any:
    """Read an answer of whatever task: as that of these whose fields it has, else as it is."""
    for kind in _PREDICTIONS:
        needed = [one.name for one in fields(kind) if one.default is not None]
        if isinstance(told, Mapping) and all(name in told for name in needed):
            return kind.read(told)
    return told


@dataclass(frozen=True)
class Ranked:
    """A document by how close it is to a query: its place among those that were sent, and the cosine."""

    index: int
    score: float
    document: str


# -- writing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model calls; ``arguments`` is JSON, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class TokenLogprob:
    """A token, the logarithm of its probability, and the likeliest tokens at its place with theirs."""

    token: str
    logprob: float
    top_logprobs: dict[str, float]


@dataclass(frozen=True)
class Choice:
    """One of several answers. ``logprobs`` is None unless asked for."""

    index: int
    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str | None
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class Usage:
    """How many tokens were read and written."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Reply:
    """What a model wrote.

    Args:
        choices: the answers: one, or ``n`` for each prompt.
        model: who wrote it, as the server calls it.
        usage: what was counted; None where the server does not tell.
        request_id: by which the server's log knows it.
    """

    choices: tuple[Choice, ...]
    model: str
    usage: Usage | None = None
    request_id: str | None = None

    @property
    def text(self) -> str:
        """The first answer."""
        return self.choices[0].text

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools that the first answer calls."""
        return self.choices[0].tool_calls

    @property
    def finish_reason(self) -> str | None:
        """Why the first answer ended: "stop", "length", "tool_calls", ..."""
        return self.choices[0].finish_reason

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Verified:
    """A model of a server that answers as it did when it was saved.

    Args:
        model: its name there.
        version: changes with the model's files, its engine and its precision.
        task: what it was tuned for.
        rows: how many golden rows were compared.
        largest: the largest difference of a number.
        tolerance: what there may be.
    """

    model: str
    version: str
    task: str
    rows: int
    largest: float
    tolerance: float


def _only(kind: type[T], told: Mapping[str, Any]) -> T:
    return kind(**{one.name: told[one.name] for one in fields(kind)})  # type: ignore[arg-type]
