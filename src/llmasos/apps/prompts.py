"""Prompts with typed inputs.

A template names its inputs as ``{name}`` and nothing more: no attributes, no indices, no formats, so that neither a
template nor an input can reach into the program. What is put in is not read again: braces in it are text.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from string import Formatter
from typing import Any, Literal, Union, get_args, get_origin

from ..core.errors import UsageError, did_you_mean, shown


class Prompt:
    """A text with places for inputs, each with its type.

    Args:
        template: the text; ``{name}`` is a place, ``{{`` and ``}}`` are braces.
        inputs: the type of each place: a class such as ``str`` or ``int``, a ``Literal``, or several with ``|``.

    Raises:
        UsageError: a place is not a plain name, or places and inputs are not the same.

    Example:
        >>> greet = Prompt("You work for {shop}. Answer in {language}.", shop=str, language=Literal["English", "中文"])
        >>> greet.text(shop="Fern & Co", language="English")
        'You work for Fern & Co. Answer in English.'
    """

    def __init__(self, template: str, /, **inputs: Any) -> None:
        self.template = template
        self.inputs: Mapping[str, Any] = dict(inputs)
        self._parts = _parts(template)
        places = {name for _, name in self._parts if name is not None}
        if missing := sorted(places - set(inputs)):
            raise UsageError(f"the prompt's {{{missing[0]}}} has no type", hint=f"give it: {missing[0]}=str")
        if unused := sorted(set(inputs) - places):
            raise UsageError(f"the prompt has no place {{{unused[0]}}}",
                             hint=f"{did_you_mean(unused[0], places)}places: {', '.join(sorted(places))}")  # fmt: skip

    def text(self, **values: Any) -> str:
        """Return the text with these inputs.

        Raises:
            UsageError: an input is unknown, missing or of another type.
        """
        for name, value in values.items():
            if name not in self.inputs:
                raise UsageError(f"the prompt has no input {name!r}",
                                 hint=f"{did_you_mean(name, self.inputs)}inputs: {', '.join(self.inputs)}")  # fmt: skip
            if not _fits(value, self.inputs[name]):
                wanted = _worded(self.inputs[name])
                raise UsageError(f"the prompt's input {name} is {shown(value)}", hint=f"give {wanted}")
        if missing := [name for name in self.inputs if name not in values]:
            raise UsageError(f"the prompt's input {missing[0]} is missing",
                             hint=f"give {_worded(self.inputs[missing[0]])}")  # fmt: skip
        return "".join(words + ("" if name is None else str(values[name])) for words, name in self._parts)

    def messages(self, question: str | None = None, /, **values: Any) -> list[dict[str, str]]:
        """Return messages for ``client.chat``: the prompt as the system's, the question as the user's.

        Without a question the prompt is the user's message.
        """
        text = self.text(**values)
        if question is None:
            return [{"role": "user", "content": text}]
        return [{"role": "system", "content": text}, {"role": "user", "content": question}]


def _parts(template: str) -> list[tuple[str, str | None]]:
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"the prompt is not a template: {error}", hint="write a brace of the text twice") from error
    for _, name, form, conversion in parts:
        if name is not None and (not name.isidentifier() or form or conversion):
            whole = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise UsageError(f"{{{whole}}} is not a place for an input",
                             hint="write {name} with a plain name, and braces that are text twice: {{ }}")  # fmt: skip
    return [(words, name) for words, name, _, _ in parts]


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    origin = get_origin(kind)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(kind))
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    kind = origin or kind
    if isinstance(value, bool):  # which is an int to Python, and never meant as one
        return kind is bool
    return isinstance(value, (int, float) if kind is float else type(None) if kind is None else kind)


def _worded(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    return kind.__name__ if isinstance(kind, type) else str(kind)
