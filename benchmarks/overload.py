"""Ten minutes at twice what a server can do: answers that are right, memory that is bounded, refusals that are quick.

A MiniLM tuned on SST-2 is served, and asked for single sentences that come at random at twice the rate that was
reached just before. Every answer is compared with ``model.predict``; what the server does not answer it must refuse by
a 429. The memory of its process is looked at every second.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from . import child, data, harness, predict
from .load import asked, load
from .records import Column, Result, Run, goal, middle
from .serve import server

MINUTES, CLIENTS, CONNECTIONS, TEXTS = 10, 64, 512, 2000


def main() -> None:
    """Measure, or be what measures."""
    parser = harness.parser(__doc__, seeds=1)
    data.add_options(parser)
    parser.add_argument("--model", type=Path, help="a classifier to use instead of training one")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"how long (default {MINUTES})")
    options = parser.parse_args()
    if options.child:
        child.report(overloaded(Path(options.work), options.minutes))
        return
    with harness.workspace() as work:
        data.prepare(options.data, work, None)
        predict.write_texts(work, options.rows or TEXTS)
        predict.set_up([], work, options.model)
        run = harness.child("overload", "llmasos", work, "--minutes", str(options.minutes))
        runs = harness.measure([run], options.seeds, work)
    harness.finish(result(runs), options, partial=options.minutes < MINUTES)


def overloaded(work: Path, minutes: float) -> dict[str, Any]:
    """Find the server's rate, then ask for twice as much."""
    from llmasos import LLM

    content = json.loads((work / "texts.json").read_text(encoding="utf-8"))
    texts = [row["text"] for row in content["rows"]]
    right = [str(one.label) for one in LLM.from_pretrained(work / "model").predict(texts)]
    requests = [asked("/v1/classify", {"inputs": text}) for text in texts]
    with server([sys.executable, "-m", "llmasos", "serve", f"m={work / 'model'}", "--port"]) as port:
        load(port, requests[:400], CLIENTS)
        rate = len(texts) / load(port, requests, CLIENTS).seconds
        many = list(itertools.islice(itertools.cycle(requests), int(2 * rate * minutes * 60)))
        with Watch() as memory:
            found = load(port, many, CONNECTIONS, rate=2 * rate)
    answered = [number for number, status in enumerate(found.statuses) if status == 200]
    refused = [number for number, status in enumerate(found.statuses) if status == 429]
    wrong = sum(str(json.loads(found.bodies[i])["result"]["label"]) != right[i % len(texts)] for i in answered)
    later = len(memory.seen) // 10  # the first tenth warms up
    return {
        "capacity": rate, "asked": len(many) / found.seconds, "answered": len(answered) / found.seconds,
        "refused": len(refused) / found.seconds, "wrong": wrong, "minutes": found.seconds / 60,
        "other": sum(Counter(found.statuses).values()) - len(answered) - len(refused),
        "refusal_ms": 1e3 * statistics.median(found.services[i] for i in refused) if refused else None,
        "answer_ms": 1e3 * statistics.median(found.services[i] for i in answered),
        "early_mb": statistics.median(memory.seen[later : 2 * later]),
        "late_mb": statistics.median(memory.seen[-later:]),
    }  # fmt: skip


class Watch:
    """The resident memory of the processes that this one started, in megabytes, each second of a block."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self._ended = threading.Event()

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(1):
            self.seen.append(sum(one.memory_info().rss for one in psutil.Process().children(recursive=True)) / 1e6)


def result(runs: list[Run]) -> Result:
    """Put the table together."""
    early, late, wrong, other = (middle(runs, "llmasos", name) for name in ("early_mb", "late_mb", "wrong", "other"))
    return Result(
        name="overload",
        title="Ten minutes at twice the capacity, one classifier, server and clients on two cores",
        columns=[
            Column("answered", "answered a second", 0),
            Column("refused", "refused with 429 a second", 0),
            Column("capacity", "reached before, a second", 0),
            Column("asked", "asked, a second", 0),
            Column("wrong", "wrong answers", 0),
            Column("other", "lost, or another status", 0),
            Column("answer_ms", "answer, ms", 1),
            Column("refusal_ms", "refusal, ms", 1),
            Column("early_mb", "memory in the second minute, MB", 0),
            Column("late_mb", "in the last, MB", 0),
        ],
        candidates=["llmasos"],
        runs=runs,
        better="higher",
        goals=[
            goal("no answer wrong", wrong, 0, least=False, shown="{:.0f}"),
            goal("no answer lost", other, 0, least=False, shown="{:.0f}"),
            goal("memory grows by less than 5 %", 100 * (late / early - 1) if early and late else None, 5,
                 least=False, shown="{:.1f} %"),
        ],
        notes=[f"{CONNECTIONS} connections; milliseconds are medians from when a connection was free to send"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
