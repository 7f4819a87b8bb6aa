"""Messages between a process and one that it started: one line of JSON, then arrays.

The arrays follow their line as safetensors, so that nothing but numbers and words ever crosses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

from numpy.typing import NDArray


class Message(NamedTuple):
    """What is said, as JSON types, and the arrays that belong to it."""

    content: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def send(stream: IO[bytes], content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
    """Write one message."""
    from safetensors.numpy import save

    body = save(dict(arrays)) if arrays else b""
    stream.write(json.dumps({**content, "bytes": len(body)}).encode() + b"\n")
    stream.write(body)
    stream.flush()


def receive(stream: IO[bytes]) -> Message | None:
    """Read one message; None where the other side has gone, also in the middle of one."""
    from safetensors.numpy import load

    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    content = json.loads(line)
    size = content.pop("bytes")
    body = stream.read(size)
    if len(body) < size:
        return None
    return Message(content, load(body) if size else {})
