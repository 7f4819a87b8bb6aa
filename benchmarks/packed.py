"""Steps packed end to end against padded ones in batches of near-equal length, for each family of models.

What ``speed="auto"`` chooses where both compute the same (``speed="buckets"`` is transformers' own forward on rows of
near-equal length) is chosen because it is faster: here it is seen whether it is. Random models of width 256 and four
layers, 32 rows a step, rows of 6 to 60 words (as sentences are) and of 60 to 220 (as documents are); encoders learn to
classify, decoders to write. The median step counts; the first few, in which kernels are compiled, are left out.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from . import child, harness
from .records import Column, Result, Run, goal, ratio

WIDTH, LAYERS, HEADS, ROWS, STEPS, WARM = 256, 4, 4, 32, 20, 12
_PLAIN = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 1024}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2, "head_dim": WIDTH // HEADS, "max_position_embeddings": 512}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": _PLAIN,
    "roberta": {**_PLAIN, "max_position_embeddings": 514},
    "distilbert": {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 1024},
    "modernbert": {**_PLAIN, "intermediate_size": 512},
    "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 512},
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "qwen3": _GROUPED,
    "gemma": _GROUPED,
}
DECODERS = ("gpt2", "llama", "mistral", "qwen3", "gemma")
LENGTHS = {"sentences": (6, 60), "documents": (60, 220)}
WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst"]


def main() -> None:
    """Measure the families, or be one of them."""
    parser = harness.parser(__doc__, seeds=2)
    options = parser.parse_args()
    if options.child:
        family, speed = options.child.split("_")
        child.report(train(family, "auto" if speed == "packed" else "buckets", Path(options.work), options.seed))
        return
    names = harness.chosen([f"{family}_{how}" for family in FAMILIES for how in ("padded", "packed")], options.only)
    with harness.workspace() as work:
        prepare(work)
        runs = harness.measure([harness.child("packed", name, work) for name in names], options.seeds, work)
    harness.finish(result(runs, names), options)


def prepare(work: Path) -> None:
    """Write the rows and a tokenizer of their words."""
    import numpy as np

    from llmasos.scratch import train_tokenizer

    rng = np.random.default_rng(0)
    for name, (least, most) in LENGTHS.items():
        texts = [" ".join(rng.choice(WORDS, n)) for n in rng.integers(least, most, ROWS * (WARM + STEPS))]
        rows = ({"text": text, "label": "yes" if "ba" in text[:9] else "no"} for text in texts)
        lines = [json.dumps(row) + "\n" for row in rows]
        (work / f"{name}.jsonl").write_text("".join(lines))
        (work / "held.jsonl").write_text("".join(lines[:32]))
    train_tokenizer(work / "documents.jsonl", 1200, masked=True, output=work / "tokenizer")


def train(family: str, speed: str, work: Path, seed: int) -> dict[str, Any]:
    """Take steps on both kinds of rows; returns milliseconds."""
    from llmasos import LLM, LanguageModelingTask, TextClassificationTask
    from llmasos.core.events import Step

    config = {"model_type": family, **FAMILIES[family]}
    out = {}
    for name in LENGTHS:
        model = LLM.from_config(config, tokenizer=work / "tokenizer", output=work / f"{family}-{speed}", overwrite=True)
        task = LanguageModelingTask() if family in DECODERS else TextClassificationTask()
        ends: list[float] = []

        def follow(event: Any, ends: list[float] = ends) -> None:
            if isinstance(event, Step):
                ends.append(time.perf_counter())

        run = model.finetune(
            task, work / f"{name}.jsonl", eval_data=work / "held.jsonl", columns={"text": "text"},
            max_steps=WARM + STEPS, epochs=2, batch_size=ROWS, max_length=256, evaluations=1, precision="auto",
            speed=speed, seed=seed, progress=follow,
        )  # fmt: skip
        forward = json.loads((run.path / "run" / "run.json").read_text())
        steps = [b - a for a, b in zip(ends[WARM:-1], ends[WARM + 1 :], strict=True)]
        out |= {name: 1e3 * statistics.median(steps), f"{name}_forward": forward.get("forward")}
    return out


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    return Result(
        name="packed",
        title=f"Packed against padded steps, {ROWS} rows, models of width {WIDTH} and {LAYERS} layers",
        columns=[Column("sentences", "sentences, ms a step", 1), Column("documents", "documents, ms a step", 1)],
        candidates=names,
        runs=runs,
        goals=[
            goal(f"{family} on {rows}: packed is the faster", ratio(runs, f"{family}_packed", f"{family}_padded", rows),
                 1.0, shown="{:.2f}x")
            for family in FAMILIES
            for rows in LENGTHS
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
