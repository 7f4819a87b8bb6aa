"""Turn tokens into text as they come: whole characters only, and never a part of what is a stop string.

A character may be spread over several tokens, and a token's text may depend on the one before it (a space that
a decoder strips at the beginning). So a few tokens are always decoded together with those before them, and what
ends in a broken character waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BROKEN = "\ufffd"


class Writer:
    """The text of one request.

    Args:
        tokenizer: decodes.
        stop: strings that end the text; they are no part of it.
        streams: whether text is wanted as it comes.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), *, streams: bool = False) -> None:
        self.tokenizer, self.stop, self.streams = tokenizer, tuple(stop), streams
        self.text, self.stopped = "", False
        self._tokens: list[int] = []
        self._prefix = self._read = 0  # tokens decoded for context, and tokens whose text is known
        self._told = 0  # characters given away

    def push(self, token: int) -> str:
        """Take a token; return the text that became certain."""
        if not self.stop and not self.streams:
            return ""  # decoded at the end, at once
        self._tokens.append(token)
        before = self._decoded(self._tokens[self._prefix : self._read])
        now = self._decoded(self._tokens[self._prefix :])
        if len(now) <= len(before) or now.endswith(BROKEN):
            return ""
        self._append(now[len(before) :])
        self._prefix, self._read = self._read, len(self._tokens)
        return self._certain(0 if self.stopped else self._held())

    def finish(self, tokens: Sequence[int]) -> str:
        """End the text, whatever is still open; return what had not been given away."""
        if not self.stop and not self.streams:
            self.text = self._decoded(tokens)
            return ""
        if not self.stopped and self._read < len(self._tokens):
            before = self._decoded(self._tokens[self._prefix : self._read])
            self._append(self._decoded(self._tokens[self._prefix :])[len(before) :])
            self._read = len(self._tokens)
        return self._certain(0)

    def _append(self, text: str) -> None:
        begin = max(0, len(self.text) - max(map(len, self.stop), default=0))
        self.text += text
        found = [at for at in (self.text.find(word, begin) for word in self.stop) if at >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _held(self) -> int:
        """Return how many characters at the end may be the beginning of a stop string."""
        longest = max(map(len, self.stop), default=0)
        for size in range(min(longest - 1, len(self.text)), 0, -1):
            if any(word.startswith(self.text[-size:]) for word in self.stop):
                return size
        return 0

    def _certain(self, held: int) -> str:
        until = max(self._told, len(self.text) - held)
        piece, self._told = self.text[self._told : until], until
        return piece

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))
