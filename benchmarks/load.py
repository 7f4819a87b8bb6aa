"""A bounded load generator: latencies, and every answer.

So many connections, each asking again when it was answered; or, with a rate, requests that come at random whether the
ones before were answered or not, as those of many strangers do, and wait for a free connection where there is none.

It runs on the machine that it loads, so it does little: requests are bytes made before, and a response is read by its
length, or to its end where it is a stream. Parsing is for afterwards.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

IDLE = 2.0
"""Seconds after which a connection is not used again: servers close those that are idle."""


@dataclass
class Answered:
    """What came of some requests.

    Args:
        seconds: from the first request to the last answer.
        latencies: of each request, in seconds, in the order of the requests; with a rate, from when it was due.
        services: of each request from when it was sent.
        bodies, statuses: what was answered.
    """

    seconds: float
    latencies: list[float] = field(default_factory=list)
    services: list[float] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Return the latency that this share of the requests does not exceed, in milliseconds."""
        return 1e3 * sorted(self.latencies)[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


def asked(path: str, body: Any, **headers: str) -> bytes:
    """Return a request as bytes."""
    content = json.dumps(body).encode()
    own = (f"{name}: {value}" for name, value in headers.items())
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json",
             f"Content-Length: {len(content)}", *own, "", "")  # fmt: skip
    return "\r\n".join(lines).encode() + content


def load(port: int, requests: Sequence[bytes], clients: int, rate: float | None = None) -> Answered:
    """Send requests over so many connections, ``rate`` a second if given, and wait for every answer."""
    return asyncio.run(_load(port, requests, clients, rate))


def due(count: int, rate: float) -> list[float]:
    """Return when requests come that do not know of each other: in seconds, the gaps exponential."""
    draw, now, out = random.Random(0), 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        out.append(now)
    return out


async def _load(port: int, requests: Sequence[bytes], clients: int, rate: float | None) -> Answered:
    out = Answered(0.0, [0.0] * len(requests), [0.0] * len(requests), [b""] * len(requests), [0] * len(requests))
    numbers = iter(range(len(requests)))
    times = None if rate is None else due(len(requests), rate)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        used = time.perf_counter()
        for number in numbers:
            start = sent = time.perf_counter()
            if times is not None:
                start = begun + times[number]
                await asyncio.sleep(start - sent)
                if time.perf_counter() - used > IDLE:
                    writer.close()
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                sent = time.perf_counter()
            writer.write(requests[number])
            head = await reader.readuntil(b"\r\n\r\n")
            out.statuses[number] = int(head[9:12])
            out.bodies[number] = await _body(head.lower(), reader)
            used = now = time.perf_counter()
            out.latencies[number], out.services[number] = now - start, now - sent
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    out.seconds = time.perf_counter() - begun
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
