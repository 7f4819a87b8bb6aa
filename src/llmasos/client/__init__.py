"""A client of a running server, without torch: ``Client`` waits, ``AsyncClient`` is awaited; see ``clients.py``."""

from .answers import (
    Answer,
    Choice,
    Classification,
    Entity,
    Model,
    Ranked,
    Reply,
    Span,
    Tagged,
    TaggedWord,
    TokenLogprob,
    ToolCall,
    Usage,
    Verified,
    Written,
)
from .clients import AsyncClient, Client
from .streams import AsyncStream, Stream
from .writing import Piece

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "Choice",
    "Classification",
    "Client",
    "Entity",
    "Model",
    "Piece",
    "Ranked",
    "Reply",
    "Span",
    "Stream",
    "Tagged",
    "TaggedWord",
    "TokenLogprob",
    "ToolCall",
    "Usage",
    "Verified",
    "Written",
]
