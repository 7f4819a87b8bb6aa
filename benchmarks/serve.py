"""One server for a classifier and a decoder, loaded over loopback, beside the model alone and beside other servers.

The classifier is a MiniLM tuned on SST-2: 64 clients ask for one sentence at a time, each answer is compared with
``model.predict``; then one client alone, and sentences that come at random at half the rate that was reached. The peer
is the server that is usually written: FastAPI with transformers.pipeline. The decoder is the 30M Llama of ``writers``:
1, 8 and 32 clients ask for 64 tokens each; beside it the same prompts through ``LLM.generate`` in one process, and
through ``transformers serve`` with continuous batching. Server and load share two cores, so what the load takes is
taken from the server.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import child, data, harness, predict, writers
from .load import Answered, asked, load
from .records import Column, Goal, Result, Run, goal, middle, ratio

STREAMS = (1, 8, 32)
CANDIDATES = ("predict", "fastapi_pipeline", "llmasos",
              *(f"{how}_{count}" for count in STREAMS for how in ("generate", "serve", "transformers")))  # fmt: skip
CLIENTS, ROWS, NEW = 64, 2000, 64
PIPELINE = """
import sys, uvicorn
from fastapi import FastAPI
from transformers import pipeline
pipe, app = pipeline("text-classification", sys.argv[1], device="cpu"), FastAPI()

@app.post("/v1/classify")
def classify(body: dict):
    return pipe(body["inputs"])[0]

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
"""


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__)
    data.add_options(parser)
    parser.add_argument("--stories", type=Path, default=writers.STORIES, help="folder of TinyStories")
    parser.add_argument("--model", type=Path, help="a classifier to use instead of training one")
    parser.add_argument("--decoder", type=Path, help="a decoder to use instead of training one")
    options = parser.parse_args()
    if options.child:
        child.report(work_of(options.child, Path(options.work)))
        return
    names = harness.chosen(CANDIDATES, options.only)
    with harness.workspace() as work:
        data.prepare(options.data, work, None)
        predict.write_texts(work, options.rows or ROWS)
        predict.set_up([], work, options.model)
        (work / "writer").mkdir()
        writers.prepare(options.stories, work / "writer", writers.ROWS)
        if options.decoder:
            (work / "writer" / "model").symlink_to(options.decoder.resolve(), target_is_directory=True)
        else:
            harness.run_one(harness.child("writers", "train", work / "writer"), 0, work)
        runs = harness.measure([harness.child("serve", name, work) for name in names], options.seeds, work)
    harness.finish(result(runs, names), options)


def work_of(name: str, work: Path) -> dict[str, Any]:
    """Do one candidate's work."""
    content = json.loads((work / "texts.json").read_text(encoding="utf-8"))
    kind, _, number = name.partition("_")
    if kind == "generate":
        return generated(work / "writer", int(number))
    if kind in ("serve", "transformers"):
        return written(work / "writer", kind, int(number))
    texts = [row["text"] for row in content["rows"]]
    if name == "predict":
        return predicted(work / "model", texts, content["warm"])
    argv = ["-c", PIPELINE] if name == "fastapi_pipeline" else ["-m", "llmasos", "serve"]
    argv += [str(work / "model")] if name == "fastapi_pipeline" else [f"m={work / 'model'}", "--port"]
    with server([sys.executable, *argv]) as port:
        requests = [asked("/v1/classify", {"inputs": text}) for text in texts]
        load(port, [asked("/v1/classify", {"inputs": text}) for text in content["warm"][:400]], CLIENTS)
        alone = load(port, requests[:200], 1)
        found = load(port, requests, CLIENTS)
        half = load(port, requests, CLIENTS, rate=len(texts) / found.seconds / 2)
    assert set(found.statuses) == {200}
    return {
        "rate": len(texts) / found.seconds, "p50": found.quantile(0.5), "p99": found.quantile(0.99),
        "alone_ms": alone.quantile(0.5), "half_p99": half.quantile(0.99), "equal": equal(work / "model", texts, found),
    }  # fmt: skip


def equal(model: Path, texts: list[str], found: Answered) -> float:
    """Return the share of the answers that ``model.predict`` gives too, in percent."""
    from llmasos import LLM

    expected = [str(one.label) for one in LLM.from_pretrained(model).predict(texts)]
    bodies = [json.loads(body) for body in found.bodies]
    labels = [str(body.get("result", body)["label"]).removeprefix("LABEL_") for body in bodies]
    return 100 * sum(a == b for a, b in zip(labels, expected, strict=True)) / len(texts)


def predicted(model: Path, texts: list[str], warm: list[str]) -> dict[str, Any]:
    """Answer all texts at once, in this process."""
    from llmasos import LLM

    llm = LLM.from_pretrained(model)
    llm.predict(warm)
    start = time.perf_counter()
    llm.predict(texts)
    rate = len(texts) / (time.perf_counter() - start)
    alone = []
    for text in texts[:200]:
        start = time.perf_counter()
        llm.predict([text])
        alone.append(time.perf_counter() - start)
    return {"rate": rate, "alone_ms": 1e3 * statistics.median(alone)}


def prompts(work: Path, count: int) -> list[str]:
    """Return beginnings of stories."""
    stories = [row["text"] for row in data.read(work / "validation.jsonl")]
    return [" ".join(stories[i % len(stories)].split()[: 24 + 5 * (i % 9)]) for i in range(count)]


def generated(work: Path, clients: int) -> dict[str, Any]:
    """Write in this process, as many texts at once."""
    from llmasos import LLM

    llm, texts = LLM.from_pretrained(work / "model"), prompts(work, 4 * clients)
    llm.generate(texts[:clients], max_new_tokens=NEW)
    start = time.perf_counter()
    found = [one for i in range(0, len(texts), clients)
             for one in llm.generate(texts[i : i + clients], max_new_tokens=NEW, batch_size=clients)]  # fmt: skip
    return {"rate": sum(len(one.tokens) for one in found) / (time.perf_counter() - start)}


def written(work: Path, kind: str, clients: int) -> dict[str, Any]:
    """Write through a server, for as many clients."""
    texts, model = prompts(work, 4 * clients), str(work / "model")
    argv = [sys.executable, "-m", "llmasos", "serve", f"m={model}", "--port"]
    if kind == "transformers":
        argv = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--continuous-batching",
                "--device", "cpu", "--dtype", "bfloat16", "--port"]  # fmt: skip
    with server(argv) as port:
        asking = {"model": model if kind == "transformers" else "m", "max_tokens": NEW, "temperature": 0}
        requests = [asked("/v1/completions", {**asking, "prompt": text}) for text in texts]
        load(port, requests[:clients], clients)
        found = load(port, requests, clients)
    assert set(found.statuses) == {200}, found.bodies[0]
    tokens = sum(json.loads(body)["usage"]["completion_tokens"] for body in found.bodies)
    return {"rate": tokens / found.seconds, "p50": found.quantile(0.5), "p99": found.quantile(0.99)}


@contextmanager
def server(argv: list[str]) -> Iterator[int]:
    """Start a server whose last argument is its port, and stop it afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    process = subprocess.Popen([*argv, str(port)], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "the server ended"
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


# -- the table ----------------------------------------------------------------------------------------


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    return Result(
        name="serve",
        title="Answers and texts over HTTP on loopback, server and clients on two cores",
        columns=[
            Column("rate", "sentences/s, or tokens/s", 0),
            Column("alone_ms", "one client, ms", 1),
            Column("p50", "median, ms", 1),
            Column("p99", "99 %, ms", 1),
            Column("half_p99", "99 % at half the rate, ms", 1),
            Column("equal", "as predict, %", 2),
        ],
        candidates=names,
        runs=runs,
        better="higher",
        goals=goals(runs),
        notes=[f"classification: {CLIENTS} clients; generation: {NEW} tokens for 1, 8 and 32 clients"],
    )


def goals(runs: list[Run]) -> list[Goal]:
    """Compare with what was aimed at."""
    half, alone = (middle(runs, "llmasos", name) for name in ("half_p99", "alone_ms"))
    engine = middle(runs, "predict", "alone_ms")
    return [
        goal("classification at least 0.9x model.predict", ratio(runs, "llmasos", "predict", "rate", "higher"), 0.9,
             shown="{:.2f}x"),
        goal("at least 3x FastAPI with transformers.pipeline",
             ratio(runs, "llmasos", "fastapi_pipeline", "rate", "higher"), 3, shown="{:.2f}x"),
        goal("99 % at half the load at most 3x a single request", half / alone if half and alone else None, 3,
             least=False, shown="{:.2f}x"),
        *(goal(f"{count} client{'s' * (count > 1)}: at least 0.9x the tokens/s of generate",
               ratio(runs, f"serve_{count}", f"generate_{count}", "rate", "higher"), 0.9, shown="{:.2f}x")
          for count in STREAMS),
        *(goal(f"{count} clients: at least 3x the tokens/s of transformers serve",
               ratio(runs, f"serve_{count}", f"transformers_{count}", "rate", "higher"), 3, shown="{:.2f}x")
          for count in STREAMS[1:]),
        goal("at most 2 ms over model.predict of one sentence", alone - engine if alone and engine else None, 2,
             least=False, shown="{:.2f} ms"),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
