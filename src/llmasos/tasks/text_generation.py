"""Chat: learn the assistant's answers in conversations. What a chat task is stands in ``_chat.py``; code is one too."""

from __future__ import annotations

from ._chat import ChatTask

__all__ = ["ChatTask"]

PLUGIN = ChatTask
