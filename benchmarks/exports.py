"""Every export of one fine-tuned classifier on SST-2: size, load, sentences a second, memory, score.

The model is trained once by this project, and exported once by each candidate through the gate. Every candidate
tokenises within the clock, takes its best of batch 8, 16 and 32 on other texts first, and answers the same texts. An
artifact is opened by ``LLM.from_pretrained``; memory and load are those of its certificate: of a process with
nothing but the runtime. Beside them transformers itself, and its own exports with their usual settings and no gate.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmasos.serving import facts

from . import child, data, harness, predict
from .records import Column, Goal, Result, Run, goal, middle
from .runtimes import RUNTIMES, SIZES

PEERS = ("pipeline_batched", "torch_fp32_sorted", "llmasos", "onnxruntime_int8", "openvino_bf16", "openvino_int8")
APART = ("executorch", "gguf", "litert")
"""Formats whose packages are built, or do not live beside the others'."""
ROWS = 3000


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__)
    data.add_options(parser)
    parser.add_argument("--model", type=Path, help="a classifier to use instead of training one")
    parser.add_argument("--apart", action="store_true", help=f"the formats that the others leave out: {APART}")
    parser.add_argument("--export", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child.report(work_of(options.child, Path(options.work), options))
        return
    formats = [name for name in artifacts("encoder") if (name.partition(":")[0] in APART) == options.apart]
    names = harness.chosen([*(PEERS[1:3] if options.apart else PEERS), *formats], options.only)
    with harness.workspace() as work:
        data.prepare(options.data, work, None if options.rows is None else max(options.rows, predict.WARM_UP))
        predict.write_texts(work, options.rows or ROWS)
        unusable = predict.set_up([name for name in names if name in PEERS], work, options.model)
        exports = [harness.child("exports", name, work, "--export") for name in names if name not in PEERS]
        unusable += [run for run in harness.measure(exports, 1, work) if run.missing or run.error]
        refused = {run.candidate for run in unusable}
        able = [harness.child("exports", name, work) for name in names if name not in refused]
        runs = unusable + harness.measure(able, options.seeds, work)
    found = result(runs, names)
    harness.finish(replace(found, name="exports_apart", goals=[]) if options.apart else found, options)


def artifacts(kind: str) -> list[str]:
    """Return all formats and precisions of a kind of model, ``FORMAT:PRECISION``; of one engine's, the plain format."""
    from llmasos.core import plugins

    found, formats = [plugins.load("exporters", name) for name in plugins.names("exporters")], {}
    for one in sorted(found, key=lambda one: len(type(one).__mro__)):  # what is packed for a place derives from it
        if kind in one.precisions and (kind != "encoder" or "row" in one.outputs):
            formats.setdefault(one.engine, one)
    return [f"{one.target}:{precision}" for one in formats.values() for precision in one.precisions[kind]]


def work_of(name: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Export, or time one pass over the texts."""
    content = json.loads((work / "texts.json").read_text(encoding="utf-8"))
    if options.export:
        return exported(name, work)
    if name in PEERS:
        answer, extra = RUNTIMES[name].load(work / "model", work / name, content["warm"])
        return {**predict.timed(answer, content, work, options.seed), **extra}
    return answered(name, work, content, options.seed)


def format_of(engine: str) -> str:
    """Return what an engine opens, FORMAT:PRECISION of ENGINE:PRECISION; empty where it is the model itself."""
    name, _, precision = engine.partition(":")
    way = facts.ENGINES.get(name)
    return f"{way.target}:{precision}" if way and way.target else ""


def lacking(engine: str) -> str:
    """Return what is missing for an engine, and what one types to get it; empty where nothing is."""
    way = facts.ENGINES.get(engine.partition(":")[0])
    return f"it takes {lacks}" if way and (lacks := way.lacks()) else ""


def exported(name: str, work: Path, rows: int | None = None, **options: Any) -> dict[str, Any]:
    """Export through the gate, on so many labelled rows; one that is refused is missing, with the reason."""
    from llmasos import LLM, errors

    target, _, precision = name.partition(":")
    labelled = data.read(work / "validation.jsonl")[:rows]
    try:
        LLM.from_pretrained(work / "model").export(
            work / name, target, quantize=precision, data=labelled, calibration=work / "train.jsonl", **options
        )
    except errors.MissingExtraError as error:
        return {"missing": f"{error.message}: {error.hint}"}
    except (errors.ParityError, errors.BundleError) as error:
        return {"missing": " ".join(error.message.split())[:200]}
    return {}


def answered(name: str, work: Path, content: dict[str, Any], seed: int) -> dict[str, Any]:
    """Open an artifact, find its best batch size and time it."""
    from llmasos import LLM

    model, best = LLM.from_pretrained(work / name), {}
    for size in SIZES:
        model.predict(content["warm"], batch_size=size)
        start = time.perf_counter()
        model.predict(content["warm"], batch_size=size)
        best[size] = time.perf_counter() - start
    size = min(best, key=lambda one: best[one])

    def answer(texts: Sequence[str]) -> list[int]:
        return [int(one.label) for one in model.predict(list(texts), batch_size=size)]

    return {**predict.timed(answer, content, work, seed), "batch_size": size, **certified(work / name)}


def certified(folder: Path) -> dict[str, Any]:
    """Return what the certificate of an artifact says that a table shows."""
    certificate = json.loads((folder / "certificate.json").read_text(encoding="utf-8"))
    return {
        "size_mb": certificate["size_bytes"] / 1e6,
        "peak_mb": certificate["peak_bytes"] / 1e6,
        "start_seconds": certificate["load_seconds"],
        "latency_ms": certificate["latency_ms"],
        "difference": 100 * certificate["golden"]["relative"],
        "kept": certificate["kept"],
    }


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    return Result(
        name="exports",
        title="Exports of a MiniLM on SST-2, tokenisation included",
        columns=[
            Column("sentences_per_second", "sentences/s", 0),
            Column("agreement", "labels equal to fp32, %", 2),
            Column("quality", "accuracy", 4),
            Column("difference", "golden outputs apart, %", 3),
            Column("size_mb", "size, MB", 1),
            Column("start_seconds", "start of its process, s", 2),
            Column("latency_ms", "one row, ms", 1),
            Column("peak_mb", "its memory, MB", 0),
            Column("batch_size", "batch", 0),
        ],
        candidates=names,
        runs=runs,
        baseline="torch_fp32_sorted",
        better="higher",
        goals=goals(runs, names),
        notes=["accuracy is on the validation rows; labels are compared with torch_fp32_sorted's on all texts"],
    )


def goals(runs: list[Run], names: list[str]) -> list[Goal]:
    """Compare with what was aimed at: the best encoder artifact that the gate lets pass."""
    torch = middle(runs, "torch_fp32_sorted", "sentences_per_second")
    speeds = {name: middle(runs, name, "sentences_per_second") for name in names if name not in PEERS}
    best = max((speed for speed in speeds.values() if speed), default=None)
    return [
        goal("best artifact at least 2.5x torch in float32", best / torch if best and torch else None, 2.5,
             shown="{:.2f}x"),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
