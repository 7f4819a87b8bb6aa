"""A bounded load generator: so many connections, each asking again when it was answered; latencies, and every answer.

It runs on the machine that it loads, so it does little: requests are bytes made before, and a response is read by its
length, or to its end where it is a stream. Parsing is for afterwards.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answered:
    """What came of some requests.

    Args:
        seconds: from the first request to the last answer.
        latencies: of each request, in seconds, in the order of the requests.
        firsts: until the first piece of its body.
        bodies, statuses: what was answered.
    """

    seconds: float
    latencies: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Return the latency that this share of the requests does not exceed, in milliseconds."""
        return 1e3 * sorted(self.latencies)[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


def asked(path: str, body: Any) -> bytes:
    """Return a request as bytes."""
    content = json.dumps(body).encode()
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json",
             f"Content-Length: {len(content)}", "", "")  # fmt: skip
    return "\r\n".join(lines).encode() + content


def load(port: int, requests: Sequence[bytes], clients: int) -> Answered:
    """Send requests over so many connections and wait for every answer."""
    return asyncio.run(_load(port, requests, clients))


async def _load(port: int, requests: Sequence[bytes], clients: int) -> Answered:
    out = Answered(0.0, [0.0] * len(requests), [0.0] * len(requests), [b""] * len(requests), [0] * len(requests))
    numbers = iter(range(len(requests)))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            start = time.perf_counter()
            writer.write(requests[number])
            head = await reader.readuntil(b"\r\n\r\n")
            out.firsts[number] = time.perf_counter() - start
            out.statuses[number] = int(head[9:12])
            out.bodies[number] = await _body(head.lower(), reader)
            out.latencies[number] = time.perf_counter() - start
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    out.seconds = time.perf_counter() - start
    return out


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    if b"content-length:" in head:
        return await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
    pieces = []
    while size := int(await reader.readline(), 16):  # chunked
        pieces.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(pieces)
