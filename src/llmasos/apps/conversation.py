"""What was said so far, kept within bounds: the system's words always, of the turns the newest.

Tokens are counted by the server, not here: how many characters one has is learned from the usage that comes with each
answer. Where the server still finds the conversation too long, the oldest turn goes, until it fits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.atomic import write_json
from ..core.errors import TooLongError, UsageError

if TYPE_CHECKING:
    from ..client import Client, Reply

Message = dict[str, Any]
_FORMAT = 1


class Conversation:
    """Turns of a user and an assistant.

    Args:
        system: what the assistant is told first, and always.
        max_messages: the most messages that are sent beside the system's; older turns are forgotten.
        max_tokens: about the most tokens that are sent.

    Raises:
        UsageError: a bound is too small for one question.
    """

    def __init__(
        self, system: str | None = None, *, max_messages: int | None = None, max_tokens: int | None = None
    ) -> None:
        for name, bound in (("max_messages", max_messages), ("max_tokens", max_tokens)):
            if bound is not None and bound < 1:
                raise UsageError(f"{name}={bound} leaves no room for a question", hint="give 1 or more")
        self.system, self.max_messages, self.max_tokens = system, max_messages, max_tokens
        self.messages: list[Message] = []
        self._per_character = 0.3  # tokens; English has about 0.25, Chinese 0.6 to 1

    def ask(self, client: Client, text: str, **options: Any) -> Reply:
        """Ask, remember question and answer, and return the answer.

        Args:
            client: asked by ``client.chat``.
            text: the user's words.
            options: what else ``client.chat`` takes.

        Raises:
            LLMasOSError: the client's; nothing is remembered then.
        """
        turn = [*self.messages, {"role": "user", "content": text}]
        while True:
            sent = self._within(turn)
            try:
                reply = client.chat(self._sent(sent), **options)
                break
            except TooLongError as error:
                turn = _without_oldest(sent, error)
        self._learn(sent, reply)
        self.messages = [*sent, {"role": "assistant", "content": reply.text}]
        return reply

    def stream(self, client: Client, text: str, **options: Any) -> Iterator[str]:
        """Ask, and yield the answer as it comes.

        An answer that you stop reading is remembered as far as it came; one that breaks off by an error is not.
        """
        turn = [*self.messages, {"role": "user", "content": text}]
        said: list[str] = []
        while True:
            sent = self._within(turn)
            try:
                with client.stream(self._sent(sent), **options) as pieces:
                    try:
                        for piece in pieces:
                            said.append(piece)
                            yield piece
                    except GeneratorExit:
                        self._remember(sent, said)
                        raise
                    self._remember(sent, said)
                    self._learn(sent, pieces.reply)
                return
            except TooLongError as error:
                if said:
                    raise
                turn = _without_oldest(sent, error)

    def save(self, path: str | Path) -> Path:
        """Write the conversation as JSON, whole or not at all."""
        names = ("system", "max_messages", "max_tokens", "messages")
        return write_json(path, {"llmasos_conversation": _FORMAT, **{name: getattr(self, name) for name in names}})

    @classmethod
    def load(cls, path: str | Path) -> Conversation:
        """Read what ``save`` wrote.

        Raises:
            UsageError: it is something else.
        """
        try:
            kept = json.loads(Path(path).read_text(encoding="utf-8"))
            if kept["llmasos_conversation"] != _FORMAT or not all(_is_message(one) for one in kept["messages"]):
                raise ValueError("another format")
            made = cls(kept["system"], max_messages=kept["max_messages"], max_tokens=kept["max_tokens"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UsageError(f"{path} is not a conversation: {error}", hint="give a file that save() wrote") from error
        made.messages = kept["messages"]
        return made

    def _sent(self, messages: list[Message]) -> list[Message]:
        return [{"role": "system", "content": self.system}, *messages] if self.system else messages

    def _within(self, messages: list[Message]) -> list[Message]:
        """Return the newest messages that are within the bounds, beginning with one of the user; the last always."""
        first = len(messages) - 1
        left = float("inf") if self.max_tokens is None else self.max_tokens - self._tokens(self.system or "")
        left -= self._tokens(messages[first]["content"])
        for place in range(first - 1, -1, -1):
            left -= self._tokens(messages[place]["content"])
            if left < 0 or len(messages) - place > (self.max_messages or len(messages)):
                break
            if messages[place]["role"] == "user":
                first = place
        return messages[first:]

    def _tokens(self, text: str) -> float:
        return len(text) * self._per_character + 4  # what a template writes around it

    def _remember(self, sent: list[Message], said: list[str]) -> None:
        if said:
            self.messages = [*sent, {"role": "assistant", "content": "".join(said)}]

    def _learn(self, sent: list[Message], reply: Reply) -> None:
        characters = sum(len(one["content"]) for one in self._sent(sent))
        if reply.usage is not None and characters > 20:
            around = 4 * len(self._sent(sent))
            self._per_character = max(reply.usage.prompt_tokens - around, 1) / characters


def _without_oldest(messages: list[Message], error: TooLongError) -> list[Message]:
    """Return the messages from the second question on; raise the error where there is none."""
    places = [place for place, one in enumerate(messages) if one["role"] == "user"]
    if len(places) < 2:
        raise error
    return messages[places[1] :]


def _is_message(one: Any) -> bool:
    return isinstance(one, Mapping) and one.get("role") in ("user", "assistant") and isinstance(one.get("content"), str)
