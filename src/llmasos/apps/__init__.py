"""Building blocks of applications, without torch: over any ``Client``, so over any endpoint that speaks OpenAI.

All names are loaded when they are used, and what needs a package says so then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..loaders.base import Document
    from ..stores.base import Passage
    from .answering import Answered, Citation, answer
    from .conversation import Conversation
    from .documents import Loaded, Skipped, load
    from .extraction import extract
    from .index import Added, Found, Index
    from .prompts import Prompt
    from .quoting import harmless, quoted
    from .splitting import split
    from .tools import Call, Tool, ToolRun, run_tools, tool

_HOMES = {
    "Added": ".index",
    "Answered": ".answering",
    "Call": ".tools",
    "Citation": ".answering",
    "Conversation": ".conversation",
    "Document": "..loaders.base",
    "Found": ".index",
    "Index": ".index",
    "Loaded": ".documents",
    "Passage": "..stores.base",
    "Prompt": ".prompts",
    "Skipped": ".documents",
    "Tool": ".tools",
    "ToolRun": ".tools",
    "answer": ".answering",
    "extract": ".extraction",
    "harmless": ".quoting",
    "load": ".documents",
    "quoted": ".quoting",
    "run_tools": ".tools",
    "split": ".splitting",
    "tool": ".tools",
}
__all__ = [
    "Added",
    "Answered",
    "Call",
    "Citation",
    "Conversation",
    "Document",
    "Found",
    "Index",
    "Loaded",
    "Passage",
    "Prompt",
    "Skipped",
    "Tool",
    "ToolRun",
    "answer",
    "extract",
    "harmless",
    "load",
    "quoted",
    "run_tools",
    "split",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
