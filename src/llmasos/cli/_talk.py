"""A conversation in the terminal: who answers, what has been said, and how an answer is shown while it comes."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from ..core.atomic import write_json
from ..core.config import GenerateConfig
from ..core.errors import UsageError, did_you_mean
from .output import say

SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "seed")
"""What can be said about how answers are written."""


class Speaker(Protocol):
    """Who answers."""

    name: str

    def answer(self, messages: list[dict[str, str]], settings: dict[str, Any]) -> Generator[str]:
        """Yield an answer in pieces; closing it ends the work."""


class Here:
    """A model that this process opens."""

    def __init__(self, model: str) -> None:
        from ..llm import LLM

        say(f"loading {model}")
        self.name, self._llm = model, LLM.from_pretrained(model)
        if not self._llm.tokenizer.chat_template:
            raise UsageError(f"{model} has no chat template, so it does not talk", hint="llmasos generate")

    def answer(self, messages: list[dict[str, str]], settings: dict[str, Any]) -> Generator[str]:
        """Yield an answer; without a temperature it is the likeliest one."""
        yield from self._llm.generate(messages, stream=True, **settings)


class Served:
    """A model of a running server that speaks OpenAI's protocol.

    Args:
        url: of the server.
        key: what it asks for, if it does.
        model: its name there; the first that the server lists if not given.
    """

    def __init__(self, url: str, key: str | None, model: str | None) -> None:
        from ..client import Client

        self._client = Client(url, key=key, timeout=600, retries=0)
        known = [one.id for one in self._client.models()]
        if not known or (model or known[0]) not in known:
            hint = f"{did_you_mean(model or '', known)}known: {', '.join(known) or 'none'}"
            raise UsageError(f"{url} has no model {model or ''}".rstrip(), hint=hint)
        self._model = model or known[0]
        self.name = f"{self._model} at {self._client.url}"

    def answer(self, messages: list[dict[str, str]], settings: dict[str, Any]) -> Generator[str]:
        """Yield an answer, written as the server does where nothing is set."""
        names = {"max_new_tokens": "max_completion_tokens"}
        told = {names.get(name, name): value for name, value in settings.items()}
        with self._client.stream(messages, model=self._model, extra=told) as pieces:
            yield from pieces


class Talk:
    """What has been said, and how answers are written.

    Args:
        speaker: who answers.
        system: what it is told about itself.
    """

    def __init__(self, speaker: Speaker, system: str | None = None) -> None:
        self.speaker, self.system = speaker, system
        self.settings: dict[str, Any] = {}
        self._said: list[dict[str, str]] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        """The whole conversation."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self._said]

    def ask(self, text: str) -> Generator[str]:
        """Yield the answer to a question, which both then belong to the conversation; what was stopped as far as it is.

        A question without an answer is forgotten.
        """
        self._said.append({"role": "user", "content": text})
        found, settings = "", dict(self.settings)
        if settings.get("temperature"):
            settings.setdefault("seed", secrets.randbits(31))  # or a question would have one answer for ever
        try:
            with closing(self.speaker.answer(self.messages, settings)) as pieces:
                for piece in pieces:
                    found += piece
                    yield piece
        finally:
            if found:
                self._said.append({"role": "assistant", "content": found})
            else:
                self._said.pop()

    def again(self) -> Generator[str]:
        """Yield another answer to the last question; the earlier one comes back if there is none.

        Raises:
            UsageError: there was no question.
        """
        if not self._said:
            raise UsageError("there is no question yet", hint="type one")
        before = [*self._said]
        del self._said[-2:]
        try:
            yield from self.ask(before[-2]["content"])
        finally:
            if len(self._said) < len(before):
                self._said = before

    def reset(self) -> None:
        """Forget what was said; what the model is told about itself stays."""
        self._said = []

    def change(self, words: Sequence[str]) -> None:
        """Take NAME=VALUE; without a value, as it was before.

        Raises:
            UsageError: there is no such setting, or no such value.
        """
        changed = dict(self.settings)
        for word in words:
            name, sign, value = word.partition("=")
            name = name.replace("-", "_")
            if name not in SETTINGS or not sign:
                raise UsageError(f"{word!r} sets nothing",
                                 hint=f"{did_you_mean(name, SETTINGS)}NAME=VALUE of {', '.join(SETTINGS)}")  # fmt: skip
            changed.pop(name, None)
            if value:
                changed[name] = value
        checked = GenerateConfig.of(changed)
        self.settings = {name: getattr(checked, name) for name in changed}

    def save(self, path: Path) -> int:
        """Write the conversation as a row that ``finetune`` reads; return how many messages it has.

        Raises:
            UsageError: there is nothing to be saved, or another kind of file is there.
        """
        if not self._said:
            raise UsageError("nothing has been said yet", hint="talk first")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"the folder {path.absolute().parent} does not exist", hint="make it first")
        if path.exists():
            try:
                _read(path)
            except UsageError as error:
                raise UsageError(f"{path} is there, and is no conversation", hint="choose another name") from error
        write_json(path, {"messages": self.messages})
        return len(self.messages)

    def load(self, path: Path) -> int:
        """Go on with a saved conversation; return how many messages it has.

        Raises:
            UsageError: the file is none.
        """
        said = _read(path)
        self.system = said.pop(0)["content"] if said[0]["role"] == "system" else None
        self._said = said
        return len(self.messages)


def _read(path: Path) -> list[dict[str, str]]:
    """Return the messages of a file, questions and answers in turn."""
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
        found = [{"role": str(one["role"]), "content": one["content"]} for one in messages]
        texts = all(isinstance(one["content"], str) for one in found)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="/load a file that /save wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} holds no conversation", hint="a file that /save wrote") from error
    turns = [one["role"] for one in found]
    turns = turns[1:] if turns[:1] == ["system"] else turns
    if not texts or not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise UsageError(f"{path} holds no questions with their answers in turn", hint="a file that /save wrote")
    return found


# -- showing ------------------------------------------------------------------------------------------


def show(pieces: Iterable[str]) -> None:
    """Write an answer while it comes: on a terminal as Markdown, paragraph by paragraph, else as it is."""
    if not sys.stdout.isatty():
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        return
    from rich.console import Console
    from rich.live import Live
    from rich.markdown import Markdown
    from rich.text import Text

    console, text = Console(), ""
    with Live(console=console, refresh_per_second=12, transient=True) as live:
        try:
            for piece in pieces:
                whole, text = _paragraphs(text + piece)
                if whole:
                    live.console.print(Markdown(whole))
                live.update(Text(text))
        finally:
            live.update(Text(""), refresh=True)
            if text:
                live.console.print(Markdown(text))


def _paragraphs(text: str) -> tuple[str, str]:
    """Cut a text behind its last whole paragraph; a block of code is one."""
    at = text.rfind("\n\n")
    while at >= 0 and text.count("```", 0, at) % 2:
        at = text.rfind("\n\n", 0, at)
    return (text[: at + 2], text[at + 2 :]) if at >= 0 else ("", text)
