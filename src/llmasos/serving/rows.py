"""What formats share that ask a model about rows, whatever it can do: inputs as rows, options, answers as JSON types.

A model with a task is asked for what the task predicts; one without makes vectors of texts, or writes on from them. One
that compares texts makes vectors of texts that come alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from ..core.config import GenerateConfig
from ..core.errors import UsageError, did_you_mean, shown
from ..tasks.base import Field
from .limits import parsed

if TYPE_CHECKING:
    from fastapi import Request

    from .desk import Desk
    from .served import Asked, Served

OPTIONS = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
"""How a model that writes may be told to write."""
_TEXT = Field("text", doc="a text")
_PROMPT = Field("prompt", doc="a text to write on from")


def fields_of(served: Served) -> tuple[Field, ...]:
    """Return the fields of a row that a model is asked about: not the answer's."""
    task = served.parts.task
    if task is None:
        return (_PROMPT,) if served.writes else (_TEXT,)
    return (*(field for field in task.fields if not field.is_answer), *((_TEXT,) if served.parts.embeds else ()))


def row_of(served: Served, given: Any, number: int = 1) -> dict[str, Any]:
    """Return an input as a row: a text stands for the first field that there must be, or is to become a vector.

    Raises:
        UsageError: it is neither a text nor a row, or has a field that the task does not know.
    """
    needed = fields_of(served)
    if isinstance(given, str):
        first = _TEXT if served.parts.embeds else next((field for field in needed if field.required), needed[0])
        row: dict[str, Any] = {first.name: given}
    elif isinstance(given, Mapping):
        row = {str(name): value for name, value in given.items()}
    else:
        raise UsageError(f"input {number} is {shown(given)}",
                         hint=f"a text, or an object with {', '.join(field.name for field in needed)}")  # fmt: skip
    task = served.parts.task
    known = [field.name for field in (*needed, *(task.fields if task else ()))]
    unknown = next((name for name in row if name not in known), None)
    if unknown is not None:
        names = ", ".join(field.name for field in needed)
        raise UsageError(f"input {number} has a field {unknown!r}",
                         hint=f"{did_you_mean(unknown, known)}its fields are {names}")  # fmt: skip
    if task is None and needed[0].name not in row:  # a task says itself what it misses
        raise UsageError(f"input {number} has no {needed[0].name}", hint=f"a text, or an object with {needed[0].name}")
    return row


def options_of(served: Served, desk: Desk, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a request, checked: ``truncate``, and for a model that writes those of writing.

    Raises:
        UsageError: there is no such option, or not such a value.
    """
    known = ("truncate", *(OPTIONS if served.parts.generator is not None else ()))
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"there is no parameter {name!r}",
                             hint=f"{did_you_mean(name, known)}known: {', '.join(known)}")  # fmt: skip
        if name == "truncate" and not isinstance(value, bool):
            raise UsageError(f"truncate={value!r}", hint="true or false")
        if name in OPTIONS and not isinstance(value, int | float):
            raise UsageError(f"{name}={value!r} is not a number", hint="write it without quotes")
    options = {name: GenerateConfig.checked(name, value) if name in OPTIONS else value for name, value in given.items()}
    most = desk.config.max_new_tokens
    if options.get("max_new_tokens", 1) > most:
        raise UsageError(f"max_new_tokens={options['max_new_tokens']}, and a request may have {most}",
                         hint=f"max_new_tokens={most}")  # fmt: skip
    return options


def read_json(body: bytes | str, where: str = "") -> Any:
    """Return JSON.

    Raises:
        UsageError: it is none.
    """
    try:
        return parsed(body)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}the request is not JSON: {error}", hint="write JSON in UTF-8") from error


def unwrapped(content: Any, lists: Mapping[str, str]) -> tuple[list[Any], str, dict[str, Any]]:
    """Return the inputs of a request, the form of its answer, and its options.

    A text or a row is one input and asks for one answer, a list for many; so does what stands under ``inputs``, with
    options under ``parameters``. Under one of ``lists`` there is a list, and its answers are a list too, or an object
    with the list under the name that is given there.

    Returns:
        Inputs; "one", "many", or the name that the list of answers shall have; options.

    Raises:
        UsageError: it is none of these.
    """
    wrapper = next((name for name in ("inputs", *lists) if isinstance(content, Mapping) and name in content), None)
    if wrapper is None:
        return (content, "many", {}) if isinstance(content, list) else ([content], "one", {})
    inputs, options = content[wrapper], content.get("parameters")
    options = {} if options is None else options
    unknown = next((name for name in content if name not in (wrapper, "parameters")), None)
    if unknown is not None:
        raise UsageError(f"there is no field {unknown!r}", hint=f"{did_you_mean(unknown, [wrapper, 'parameters'])}"
                         f"known: {wrapper}, parameters")  # fmt: skip
    if not isinstance(options, Mapping):
        raise UsageError(f"parameters is {shown(options)}", hint="an object, such as {}")
    if wrapper in lists and not isinstance(inputs, list):
        raise UsageError(f"{wrapper} is {shown(inputs)}", hint="a list of texts or rows")
    if not isinstance(inputs, list):
        return [inputs], "one", dict(options)
    return inputs, lists.get(wrapper) or "many", dict(options)


async def answered(
    desk: Desk, request: Request, served: Served, inputs: Sequence[Any], given: Mapping[str, Any]
) -> list[Any]:
    """Return what a model answers to the inputs of a request, as long as its client is there."""
    return await desk.while_there(request, answers_to(desk, served, inputs, given, desk.asked(request)))


async def answers_to(
    desk: Desk, served: Served, inputs: Sequence[Any], given: Mapping[str, Any], asked: Asked
) -> list[Any]:
    """Return what a model answers to inputs, with these options: predictions, vectors, or texts."""
    options = options_of(served, desk, given)
    rows = [row_of(served, one, number) for number, one in enumerate(inputs, 1)]
    asked = replace(asked, truncate=options.pop("truncate", False))
    if not rows:
        return []
    if served.parts.embeds is not None and all(row.keys() == {"text"} for row in rows):
        vectors, _ = await served.embed([row["text"] for row in rows], asked)
        return list(vectors)
    if served.parts.task is not None:
        return await served.predict(rows, asked, **options)
    prompts = [await served.prompt(row["prompt"]) for row in rows]  # a text, or messages
    return await served.answers(prompts, GenerateConfig(**options), asked)


def plain(prediction: Any) -> Any:
    """Return an answer as JSON types."""
    if hasattr(prediction, "as_dict"):
        return prediction.as_dict()
    return prediction.tolist() if hasattr(prediction, "tolist") else prediction


# -- answers of many rows as columns ------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One part of all answers.

    Args:
        kind: of its values: "text", "integer", "number", "numbers" (of each answer several, under ``names``), or
            "vector".
        values: one for each answer.
        names: what the numbers of each answer stand for.
    """

    kind: str
    values: list[Any]
    names: tuple[str, ...] = ()


def columns_of(answers: Sequence[Any]) -> dict[str, Column]:
    """Return those parts of answers that are of one type, always: a task's kind of answer tells which."""
    first = answers[0]
    if not is_dataclass(first):
        return {"embedding": Column("vector", [plain(one) for one in answers])} if hasattr(first, "tolist") else {}
    hints, out = get_type_hints(type(first)), {}
    for name in (field.name for field in fields(first)):
        hint, values = hints[name], [getattr(one, name) for one in answers]
        if kind := _KINDS.get(hint):
            out[name] = Column(kind, values)
        elif isinstance(hint, UnionType) and set(get_args(hint)) == {str, int}:  # labels
            out[name] = Column("text", [str(value) for value in values])
        elif get_origin(hint) is dict and get_args(hint)[1] is float:
            names = tuple(values[0])
            out[name] = Column("numbers", [[value[key] for key in names] for value in values], tuple(map(str, names)))
    return out


_KINDS = {str: "text", int: "integer", float: "number"}
