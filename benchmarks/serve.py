"""One server for a classifier and a decoder, loaded over loopback, beside the model alone and beside other servers.

The classifier is a MiniLM tuned on SST-2: 64 clients ask for one sentence at a time, each answer is compared with
``model.predict``; then one client alone, and sentences that come at random at half the rate that was reached. The peer
is the server that is usually written: FastAPI with transformers.pipeline. The decoder is the 30M Llama of ``writers``:
1, 8 and 32 clients ask for 64 tokens each; beside it the same prompts through ``LLM.generate`` in one process, through
``transformers serve`` with continuous batching, through llama.cpp's own server (in float16), and through OpenVINO GenAI
in one process. Both models are served by other engines too, whose exports are made before: ``llmasos:ENGINE:PRECISION``
and ``serve:ENGINE:PRECISION``. Server and load share two cores, so what the load takes is taken from the server.
"""

from __future__ import annotations

import json
import math
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from . import child, data, harness, machine, predict, writers
from .exports import exported, format_of, lacking
from .load import Answered, asked, load
from .records import Column, Goal, Result, Run, goal, middle, ratio

STREAMS = (1, 8, 32)
OURS = ("serve", "serve:openvino-genai:bfloat16", "serve:llama-server:f16")
DIRECT = ("llama-server:f16", "openvino-genai:bfloat16")
CANDIDATES = (
    "predict", "fastapi_pipeline", "llmasos", "llmasos:openvino:bfloat16", "llmasos:openvino:int8",
    "llmasos:onnxruntime:int8",
    *(f"{how}_{count}" for count in STREAMS for how in ("generate", *OURS, "transformers", *DIRECT)),
)  # fmt: skip
CLIENTS, ROWS, NEW, GATE = 64, 800, 64, 100
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
    parser = harness.parser(__doc__, seeds=2)
    data.add_options(parser)
    parser.add_argument("--stories", type=Path, default=writers.STORIES, help="folder of TinyStories")
    parser.add_argument("--model", type=Path, help="a classifier to use instead of training one")
    parser.add_argument("--decoder", type=Path, help="a decoder to use instead of training one")
    options = parser.parse_args()
    if options.child:
        child.report(work_of(options.child, Path(options.work)))
        return
    names = harness.chosen(CANDIDATES, options.only)
    runs = [Run(name, 0, missing=lacks) for name in names if (lacks := lacking(engine_of(name)))]
    here = [name for name in names if name not in {run.candidate for run in runs}]
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
        exports = dict.fromkeys(made for name in here if (made := export_of(name)))
        children = [harness.child("serve", name, work) for name in exports]
        refused = {run.candidate: run for run in harness.measure(children, 1, work) if run.missing or run.error}
        runs += [replace(refused[export_of(name)], candidate=name) for name in here if export_of(name) in refused]
        able = ["machine", *(name for name in here if export_of(name) not in refused)]
        runs += harness.measure([harness.child("serve", name, work) for name in able], options.seeds, work)
    harness.finish(result(runs, names), options)


def engine_of(name: str) -> str:
    """Return the engine that a candidate computes with, ENGINE:PRECISION; empty for torch."""
    how = name.partition("_")[0]
    return how if how in DIRECT else how.partition(":")[2]


def export_of(name: str) -> str:
    """Return the candidate that makes what a candidate opens; empty where it is the model itself."""
    made = format_of(engine_of(name))
    return made and f"export:{'sst2' if name.startswith('llmasos') else 'writer'}:{made}"


def work_of(name: str, work: Path) -> dict[str, Any]:
    """Do one candidate's work."""
    if name == "machine":
        return {**machine.peaks(), "weight_mb": weights(work / "writer" / "model") * 2 / 1e6}
    if name.startswith("export:"):
        _, model, made = name.split(":", 2)
        return exported(made, work if model == "sst2" else work / "writer", GATE)
    content = json.loads((work / "texts.json").read_text(encoding="utf-8"))
    kind, _, number = name.partition("_")
    if number.isdigit():
        place, clients = work / "writer", int(number)
        if kind in ("generate", DIRECT[1]):
            return {"generate": generated, DIRECT[1]: genai}[kind](place, clients)
        return written(place, kind, clients)
    texts = [row["text"] for row in content["rows"]]
    if name == "predict":
        return predicted(work / "model", texts, content["warm"])
    argv = ["-c", PIPELINE, str(work / "model")] if name == "fastapi_pipeline" else serving(work, kind)
    with server([sys.executable, *argv]) as port:
        requests = [asked("/v1/classify", {"inputs": text}) for text in texts]
        load(port, [asked("/v1/classify", {"inputs": text}) for text in content["warm"][:200]], CLIENTS)
        alone = load(port, requests[:200], 1)
        found = load(port, requests, CLIENTS)
        half = load(port, requests, CLIENTS, rate=len(texts) / found.seconds / 2) if kind == "llmasos" else None
    assert set(found.statuses) == {200}
    return {
        "rate": len(texts) / found.seconds, "p50": found.quantile(0.5), "p99": found.quantile(0.99),
        "alone_ms": alone.quantile(0.5), "half_p99": half.quantile(0.99) if half else None,
        "equal": equal(work / "model", texts, found),
    }  # fmt: skip


def serving(work: Path, kind: str) -> list[str]:
    """Return how ``llmasos serve`` is started: with the model, or with what was exported for an engine."""
    engine = kind.partition(":")[2]
    words = ["--engine", engine.partition(":")[0]] if engine else []
    return ["-m", "llmasos", "serve", f"m={work / (format_of(engine) or 'model')}", *words, "--port"]


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


def genai(work: Path, clients: int) -> dict[str, Any]:
    """Write with OpenVINO GenAI in this process, in the precision of the export throughout.

    So many texts are under way at any time: ``generate`` would write to all that it is given at once.
    """
    import openvino
    import openvino_genai
    from transformers import AutoTokenizer

    folder, texts = work / format_of(DIRECT[1]), prompts(work, 4 * clients)
    tokenizer, scheduler = AutoTokenizer.from_pretrained(folder), openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = clients
    how = {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16",
           "INFERENCE_NUM_THREADS": machine.describe()["cores"]}  # fmt: skip
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", how)
    choice = openvino_genai.GenerationConfig()
    choice.max_new_tokens, choice.stop_token_ids = NEW, {tokenizer.eos_token_id}

    def write(texts: list[str]) -> int:
        waiting = [openvino.Tensor(np.asarray([tokenizer(text)["input_ids"]], dtype=np.int64)) for text in texts]
        going: dict[Any, list[int]] = {}
        found = []
        while waiting or going:
            while waiting and len(going) < clients:
                going[pipeline.add_request(len(waiting), waiting.pop(), choice)] = []
            pipeline.step()
            for one, ids in list(going.items()):
                while one.can_read():
                    ids += next(iter(one.read().values())).generated_ids
                if one.get_status().name != "RUNNING":
                    found.append(going.pop(one))
        tokenizer.batch_decode(found)
        return sum(map(len, found))

    write(texts[:clients])
    start = time.perf_counter()
    count = write(texts)
    return {"rate": count / (time.perf_counter() - start)}


def written(work: Path, kind: str, clients: int) -> dict[str, Any]:
    """Write through a server, for as many clients."""
    texts, model = prompts(work, 4 * clients), str(work / "model")
    if kind == "transformers":
        argv = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--continuous-batching",
                "--device", "cpu", "--dtype", "bfloat16", "--port"]  # fmt: skip
    elif kind == DIRECT[0]:
        argv = ["llama-server", "--model", str(work / format_of(kind) / "model.gguf"), "--parallel", str(clients),
                "--ctx-size", str(512 * clients), "--threads", str(machine.describe()["cores"]), "--port"]  # fmt: skip
    else:
        argv = [sys.executable, *serving(work, kind)]
    with server(argv) as port:
        asking = {"model": model if kind == "transformers" else "m", "max_tokens": NEW, "temperature": 0}
        requests = [asked("/v1/completions", {**asking, "prompt": text}) for text in texts]
        while set(load(port, requests[:clients], clients).statuses) == {503}:  # one listens before it can answer
            time.sleep(0.1)
        found = load(port, requests, clients)
    assert set(found.statuses) == {200}, found.bodies[0]
    tokens = sum(json.loads(body)["usage"]["completion_tokens"] for body in found.bodies)
    return {"rate": tokens / found.seconds, "p50": found.quantile(0.5), "p99": found.quantile(0.99)}


def weights(folder: Path) -> int:
    """Count the weights that are read for each token: all, a head that is tied to the words once."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


@contextmanager
def server(argv: list[str]) -> Iterator[int]:
    """Start a server whose last argument is its port, and stop it afterwards; one that ends at once is missing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*argv, str(port)], stdout=subprocess.DEVNULL, stderr=log)
        try:
            _await(process, port, log)
            yield port
        finally:
            process.terminate()
            process.wait(60)
            sys.stderr.write("\n".join(_lines(log)[-20:]))


def _await(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            said = [line for line in _lines(log) if line.startswith("error: ")] or _lines(log) or ["nothing said"]
            child.report({"missing": f"the server ended: {said[-1][:200]}"})
            raise SystemExit(0)
        time.sleep(0.1)


def _lines(log: IO[bytes]) -> list[str]:
    log.seek(0)
    return [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]


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
        notes=[f"classification: {CLIENTS} clients; generation: {NEW} tokens for 1, 8 and 32 clients", limit(runs)],
    )


def limit(runs: list[Run]) -> str:
    """Say how near one stream comes to what the reading of the weights allows."""
    bandwidth, size = (middle(runs, "machine", name) for name in ("read_gb_s", "weight_mb"))
    if not bandwidth or not size:
        return "the bandwidth of the memory was not measured"
    most = 1e3 * bandwidth / size
    rates = {how: middle(runs, f"{how}_1", "rate") for how in ("generate", *OURS, *DIRECT)}
    shares = ", ".join(f"{how} {100 * rate / most:.0f} %" for how, rate in rates.items() if rate)
    return (f"one stream: reading {size:.0f} MB of weights in bfloat16 for each token at {bandwidth:.0f} GB/s, as "
            f"measured in the same run, allows {most:.0f} tokens/s; of that {shares}")  # fmt: skip


def beside(runs: list[Run], count: int, peers: tuple[str, ...], text: str, least: float) -> Goal:
    """Compare our quickest engine with the quickest of some peers."""
    ours, theirs = ({how: rate for how in names if (rate := middle(runs, f"{how}_{count}", "rate"))}
                    for names in (OURS, peers))  # fmt: skip
    text = f"{count} client{'s' * (count > 1)}: at least {least:g}x {text}"
    if not ours or not theirs:
        return goal(text, None, least)
    one, other = max(ours, key=lambda how: ours[how]), max(theirs, key=lambda how: theirs[how])
    return goal(text, ours[one] / theirs[other], least, shown=f"{{:.2f}}x ({one} against {other})")


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
        *(beside(runs, count, ("transformers",), "the tokens/s of transformers serve", 3) for count in STREAMS[1:]),
        *(beside(runs, count, DIRECT, "the better of llama.cpp's server and OpenVINO GenAI", 0.95)
          for count in STREAMS),
        goal("at most 2 ms over model.predict of one sentence", alone - engine if alone and engine else None, 2,
             least=False, shown="{:.2f} ms"),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
