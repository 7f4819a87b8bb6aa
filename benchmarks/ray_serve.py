"""Two copies on a Ray cluster of two machines beside one server process, on the same cores; then copies are lost.

The cluster is that of ``llmasos deploy ray --rehearse``: both machines are this one, a copy of one thread on each. The
process beside it has two threads. A MiniLM tuned on SST-2 answers single sentences of 64 clients, of one, and requests
of 16 sentences; each answer is compared with ``model.predict``. ``ray`` asks through Ray's own proxy, ``ray_haproxy``
through the HAProxy that Ray Serve brings, which sends connections to the copies themselves. Processor time is that of
all processes of the candidate. With ``faults`` a copy is killed while 8 clients ask, then a machine with all that runs
on it; the rate is full again when there are two copies and 90 % of what was answered before.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from . import child, data, harness, predict
from .load import asked, load
from .records import Column, Result, Run, goal, ratio, values
from .serve import equal

HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
CANDIDATES = {"process": {}, "ray": {}, "ray_haproxy": HAPROXY, "faults": {}, "faults_haproxy": HAPROXY}
CLIENTS, ROWS, BLOCK, OPENING = 64, 800, 16, 180.0
HUNG, STEADY, NOTICE = 60.0, 5.0, 0.3
"""Seconds: after which a request hangs, in which a rate is counted, and in which a kill is noticed."""
FAULTS, LOSSES, LONGEST = ("faults", "faults_haproxy"), ("copy", "machine"), 120.0
COPY, MACHINE = "ray::ServeReplica:m:server", "raylet"


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__, seeds=2)
    data.add_options(parser)
    parser.add_argument("--model", type=Path, help="a classifier to use instead of training one")
    options = parser.parse_args()
    if options.child:
        child.report(work_of(options.child, Path(options.work)))
        return
    names = harness.chosen(list(CANDIDATES), options.only)
    with harness.workspace() as work:
        data.prepare(options.data, work, None)
        predict.write_texts(work, options.rows or ROWS)
        predict.set_up([], work, options.model)
        runs = harness.measure([harness.child("ray_serve", name, work) for name in names], options.seeds, work)
    harness.finish(result(runs, names), options)


def work_of(name: str, work: Path) -> dict[str, Any]:
    """Do one candidate's work."""
    content = json.loads((work / "texts.json").read_text(encoding="utf-8"))
    texts = [row["text"] for row in content["rows"]]
    if name != "process":
        child.require("ray.serve", "grpc_reflection", *(["ray_haproxy"] if CANDIDATES[name] else []))
    with started(name, work) as (process, port, key):

        def requests(rows: Sequence[Any]) -> list[bytes]:
            return [asked("/v1/classify", {"inputs": row}, authorization=f"Bearer {key}") for row in rows]

        warm = requests(content["warm"][:200])
        settled(process, port, warm)
        if name in FAULTS:
            return faults(process, port, requests(texts), labels(work / "model", texts))
        before = processor_seconds(process)
        found = load(port, requests(texts), CLIENTS)
        used = processor_seconds(process) - before
        alone = load(port, requests(texts[:100]), 1)
        blocks = [texts[i : i + BLOCK] for i in range(0, len(texts) - BLOCK + 1, BLOCK)]
        large = load(port, requests(blocks), 8)
    assert set(found.statuses) == set(large.statuses) == {200}, found.bodies[0]
    return {
        "rate": len(texts) / found.seconds, "p50": found.quantile(0.5), "p99": found.quantile(0.99),
        "alone_ms": alone.quantile(0.5), "block_rate": BLOCK * len(blocks) / large.seconds,
        "processor_ms": 1e3 * used / len(texts), "equal": equal(work / "model", texts, found),
    }  # fmt: skip


@contextmanager
def started(name: str, work: Path) -> Iterator[tuple[int, int, str]]:
    """Start the server, or the cluster; give its process, its port and a key of it, and stop it afterwards."""
    from llmasos import LLM
    from llmasos.core.children import free_port
    from llmasos.serving.keys import KeyFile

    model, port = work / "model", free_port()
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile() as log:
        keys = Path(place, "keys.json")
        key = KeyFile(keys).add("benchmark")
        words = ["llmasos", "serve", f"m={model}", "--threads", "2", "--port", str(port)]
        if name != "process":
            LLM.from_pretrained(model).deploy("ray", f"{place}/out", name="m", replicas=2, cpus=1)
            words = ["llmasos.replicas", f"{place}/out/serve.yaml", "--model", str(model), "--host", "127.0.0.1",
                     "--port", str(port)]  # fmt: skip
        environment = {**os.environ, "LLMASOS_KEYS": str(keys), **CANDIDATES[name]}
        environment.pop("TMPDIR")  # Ray's sockets lie there, and their paths must be short
        process = subprocess.Popen([sys.executable, "-m", *words], env=environment, stdout=log, stderr=log)
        try:
            yield process.pid, port, key
        finally:
            process.terminate()
            process.wait(120)
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])


def settled(process: int, port: int, warm: Sequence[bytes]) -> None:
    """Wait until each of some requests is answered, then warm up: a proxy opens anew when copies come."""
    until = time.monotonic() + OPENING
    while True:
        with suppress(OSError, EOFError):
            if set(load(port, warm, 8).statuses) == {200}:
                break
        if time.monotonic() > until or psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
            raise SystemExit(f"the server is not ready after {OPENING:g} s")
        time.sleep(1)
    load(port, warm, CLIENTS)


def processor_seconds(process: int) -> float:
    """Return the processor time of a process and of all below it."""
    total = 0.0
    for one in (psutil.Process(process), *psutil.Process(process).children(recursive=True)):
        with suppress(psutil.Error):
            total += sum(one.cpu_times()[:2])
    return total


def labels(model: Path, texts: list[str]) -> list[str]:
    """Return what must be answered."""
    from llmasos import LLM

    return [str(one.label) for one in LLM.from_pretrained(model).predict(texts)]


# -- losses -------------------------------------------------------------------------------------------


def faults(process: int, port: int, requests: list[bytes], right: list[str]) -> dict[str, Any]:
    """Kill a copy under load, then a machine; say what became of the requests."""
    from llmasos.core.children import processes_below

    def machine() -> list[int]:
        _, *others = processes_below(process, MACHINE)
        most = max(others, key=lambda one: len(processes_below(one, COPY)))
        return [most, *processes_below(most)]

    def copies() -> list[int]:
        return processes_below(process, COPY)

    copy = lost(port, requests, right, copies, lambda: copies()[:1])
    time.sleep(STEADY)
    return {**{f"copy_{k}": v for k, v in copy.items()},
            **{f"machine_{k}": v for k, v in lost(port, requests, right, copies, machine).items()}}  # fmt: skip


def lost(port: int, requests: list[bytes], right: list[str], copies: Callable[[], list[int]],
         chosen: Callable[[], list[int]]) -> dict[str, Any]:  # fmt: skip
    """Ask with 8 clients, kill, and go on until the rate of before is reached again, ``LONGEST`` at most."""
    ended, done, lock = threading.Event(), list[tuple[float, float, str]](), threading.Lock()

    def ask(number: int) -> None:
        while not ended.is_set():
            began = time.monotonic()
            said = one(port, requests[number % len(requests)], right[number % len(requests)])
            with lock:
                done.append((began, time.monotonic(), said))
            if said == "error":
                time.sleep(0.05)
            number += 8

    def rate(since: float, until: float) -> float:
        with lock:
            return sum(said == "right" and since < end <= until for _, end, said in done) / (until - since)

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for client in clients:
        client.start()
    time.sleep(2 * STEADY)
    killed = time.monotonic()
    before = rate(killed - STEADY, killed)
    for process in chosen():
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    again = None
    while again is None and (now := time.monotonic()) < killed + LONGEST:
        time.sleep(0.25)
        if len(copies()) >= 2 and now > killed + STEADY and rate(now - STEADY, now) >= 0.9 * before:
            again = now - killed - STEADY
    ended.set()
    for client in clients:
        client.join()
    errors = [began for began, _, said in done if said == "error"]
    again = LONGEST if again is None else again
    return {
        "wrong": sum(said == "wrong" for *_, said in done), "hung": sum(said == "hung" for *_, said in done),
        "errors": len(errors), "later_errors": sum(began > killed + NOTICE for began in errors), "again": again,
        "before": before, "asked": len(done),
    }  # fmt: skip


def one(port: int, request: bytes, right: str) -> str:
    """Ask once, on a connection of its own; say whether the answer is right, wrong, an error or does not come."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=HUNG) as line:
            line.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            content = b"".join(iter(lambda: line.recv(1 << 16), b""))
    except TimeoutError:
        return "hung"
    except OSError:
        return "error"
    head, _, body = content.partition(b"\r\n\r\n")
    if head[9:12] != b"200":
        return "error"
    try:
        return "right" if str(json.loads(body)["result"]["label"]) == right else "wrong"
    except ValueError:  # it broke off
        return "error"


# -- the table ----------------------------------------------------------------------------------------


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    best = max((value for name in ("ray", "ray_haproxy")
                if (value := ratio(runs, name, "process", "rate", "higher")) is not None), default=None)  # fmt: skip

    def losses(name: str, which: str) -> str:
        named = ("asked", "wrong", "hung", "errors", "later_errors", "again", "before")
        found = {key: max(values(runs, name, f"{which}_{key}"), default=None) for key in named}
        if any(value is None for value in found.values()):
            return f"{name}, {which} killed: not measured"
        return ("{}, {} killed: {asked:.0f} requests, {wrong:.0f} wrong, {hung:.0f} hung, {errors:.0f} errors, "
                "{later_errors:.0f} of them begun later; {again:.1f} s until 90 % of {before:.0f} a second"
                ).format(name, which, **found)  # fmt: skip

    def most(kind: str) -> float | None:
        return max((value for name in FAULTS for which in LOSSES for value in values(runs, name, f"{which}_{kind}")),
                   default=None)  # fmt: skip

    told = [losses(name, which) for name in names if name in FAULTS for which in LOSSES]
    return Result(
        name="ray_serve",
        title="Ray Serve on two local machines of one thread, beside one process of two, clients on the same two cores",
        columns=[
            Column("rate", "sentences/s", 0),
            Column("alone_ms", "one client, ms", 1),
            Column("p50", "median, ms", 1),
            Column("p99", "99 %, ms", 1),
            Column("block_rate", f"in requests of {BLOCK}, sentences/s", 0),
            Column("processor_ms", "processor ms a sentence", 1),
            Column("equal", "as predict, %", 2),
        ],
        candidates=[name for name in names if name not in FAULTS],
        runs=runs,
        baseline="process" if "process" in names else None,
        better="higher",
        goals=[
            goal("at least 85 % of one process on the same cores", best, 0.85),
            goal("no wrong answer after a loss", most("wrong"), 0, least=False, shown="{:.0f}"),
            goal("no hung request", most("hung"), 0, least=False, shown="{:.0f}"),
            goal("no error but of requests under way", most("later_errors"), 0, least=False, shown="{:.0f}"),
            goal("full rate again within 30 s", most("again"), 30, least=False, shown="{:.1f} s"),
        ],
        notes=[f"{CLIENTS} clients; losses: 8 clients, a connection for each request", *told],
    )  # fmt: skip


if __name__ == "__main__":
    main()
