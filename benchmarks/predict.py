"""Sentences per second of one fine-tuned classifier on SST-2 in the ways that there are to run it.

The model is trained once by this project and shared by all. Every candidate tokenises within the clock,
is warmed up first, and answers the same texts (the validation rows, then training rows), in another order
each round. Loading and exporting are outside the clock; loading is reported.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

from . import child, data, harness
from .records import Column, Goal, Result, Run, goal, middle, ratio
from .runtimes import RUNTIMES, Classify

ROWS = 3000
WARM_UP = 512


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__)
    data.add_options(parser)
    parser.add_argument("--model", type=Path, help="a classifier to use instead of training one")
    parser.add_argument("--export", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        work, name = Path(options.work), options.child
        child.report(CHILDREN.get(name, classify)(name, work, options))
        return
    names = harness.chosen(list(RUNTIMES), options.only)
    with harness.workspace() as work:
        data.prepare(options.data, work, None if options.rows is None else max(options.rows, WARM_UP))
        write_texts(work, options.rows or ROWS)
        unusable = set_up(names, work, options.model)
        able = [
            harness.child("predict", name, work) for name in names if name not in {run.candidate for run in unusable}
        ]
        runs = unusable + harness.measure(able, options.seeds, work)
    harness.finish(result(runs, names), options)


def write_texts(work: Path, rows: int) -> None:
    """Write the texts to answer (all validation rows come first) and others to warm up with."""
    train, validation = (data.read(work / f"{split}.jsonl") for split in data.SPLITS)
    content = {
        "rows": (validation + train)[:rows],
        "scored": min(rows, len(validation)),
        "warm": [row["text"] for row in train[-WARM_UP:]],
    }
    (work / "texts.json").write_text(json.dumps(content), encoding="utf-8")


def set_up(names: list[str], work: Path, model: Path | None) -> list[Run]:
    """Train the model, compute the reference labels, export; return the runs of those that cannot take part."""
    if model:
        (work / "model").symlink_to(model.resolve(), target_is_directory=True)
    for step in ("reference",) if model else ("train", "reference"):
        run = harness.run_one(harness.child("predict", step, work), 0, work)
        harness.say(f"{step}: {run.values['process_seconds']:.0f} s")
        if run.error:
            raise SystemExit(f"{step} failed: {run.error}")
    exports = [harness.child("predict", name, work, "--export") for name in names if RUNTIMES[name].export]
    return [run for run in harness.measure(exports, 1, work) if run.missing or run.error]


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    return Result(
        name="predict",
        title="Classifying SST-2 sentences, tokenisation included",
        columns=[
            Column("sentences_per_second", "sentences/s", 0),
            Column("agreement", "labels equal to fp32, %", 2),
            Column("quality", "accuracy", 4),
            Column("batch_size", "batch", 0),
            Column("load_seconds", "load, s", 1),
        ],
        candidates=names,
        runs=runs,
        baseline="pipeline",
        better="higher",
        goals=goals(runs),
        notes=["accuracy is on the validation rows; labels are compared with torch_fp32_sorted's on all texts"],
    )


def goals(runs: list[Run]) -> list[Goal]:
    """Compare with what was aimed at."""
    against = {
        name: ratio(runs, "llmasos", name, "sentences_per_second", "higher")
        for name in ("pipeline", "onnxruntime_int8", "openvino_bf16", "openvino_int8")
    }
    equal = middle(runs, "llmasos", "agreement")
    return [
        goal("at least 5x transformers.pipeline", against["pipeline"], 5, shown="{:.2f}x"),
        goal("at least 1x ONNX Runtime int8", against["onnxruntime_int8"], 1, shown="{:.2f}x"),
        goal("at least 1x OpenVINO bf16", against["openvino_bf16"], 1, shown="{:.2f}x"),
        goal("at least 1x OpenVINO calibrated int8", against["openvino_int8"], 1, shown="{:.2f}x"),
        goal("at least 99.5 % of fp32's labels", equal, 99.5, shown="{:.2f} %"),
    ]


# -- the children -------------------------------------------------------------------------------------


def train(_name: str, work: Path, _options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune the classifier that all candidates run."""
    from llmasos import LLM, TextClassificationTask

    train_rows, validation = (work / f"{split}.jsonl" for split in data.SPLITS)
    task = TextClassificationTask(num_labels=2)
    LLM.from_pretrained(data.MODEL).finetune(
        task, train_rows, eval_data=validation, output=work / "model", progress=False, epochs=1, learning_rate=5e-5
    )
    return {}


def reference(_name: str, work: Path, _options: argparse.Namespace) -> dict[str, Any]:
    """Write the labels that the float32 model gives."""
    texts = [row["text"] for row in json.loads((work / "texts.json").read_text(encoding="utf-8"))["rows"]]
    labels = data.classify(texts, data.Tokenizer(work / "model"), data.torch_logits(work / "model"))
    (work / "reference.json").write_text(json.dumps(labels), encoding="utf-8")
    return {}


def classify(name: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Export for a runtime, or load it, warm it up and time one pass over the texts."""
    runtime, content = RUNTIMES[name], json.loads((work / "texts.json").read_text(encoding="utf-8"))
    child.require(*runtime.requires)
    if options.export:
        assert runtime.export
        runtime.export(work / "model", work / name, content["warm"])
        return {}
    start = time.perf_counter()
    answer, extra = runtime.load(work / "model", work / name, content["warm"])
    loaded = time.perf_counter() - start - extra.get("tuning_seconds", 0.0)
    return {**timed(answer, content, work, options.seed), "load_seconds": loaded, **extra}


def timed(answer: Classify, content: dict[str, Any], work: Path, seed: int) -> dict[str, Any]:
    """Warm up, then time one pass over the texts in an order of their own, and score it."""
    order = list(range(len(content["rows"])))
    random.Random(seed).shuffle(order)
    texts = [content["rows"][i]["text"] for i in order]
    answer(content["warm"])
    start = time.perf_counter()
    found = answer(texts)
    seconds = time.perf_counter() - start
    labels = [label for _, label in sorted(zip(order, found))]
    expected = json.loads((work / "reference.json").read_text(encoding="utf-8"))
    scored = content["scored"]
    return {
        "sentences_per_second": len(texts) / seconds,
        "seconds": seconds,
        "agreement": 100 * data.share(labels, expected),
        "quality": data.share(labels[:scored], [row["label"] for row in content["rows"][:scored]]),
    }


CHILDREN = {"train": train, "reference": reference}

if __name__ == "__main__":
    main()
