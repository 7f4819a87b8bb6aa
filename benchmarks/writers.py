"""Every export of one decoder of 30M weights: size, start, tokens a second, memory, perplexity.

A llama-30m is trained once on stories by this project, and exported once by each candidate through the gate, which also
finds the perplexity of an artifact on stories that the model has not seen. Then every candidate writes on from the
beginnings of others, greedily, one at a time and eight together; the clock covers tokenising, reading, writing and
decoding, and counts the tokens that were written. An artifact is opened by ``LLM.from_pretrained``; memory and start
are those of its certificate: of a process with nothing but the runtime.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from . import child, data, harness
from .exports import artifacts, certified, exported
from .pretrain import STORIES
from .records import Column, Goal, Result, Run, goal, middle

PEERS = ("transformers_fp32", "transformers_bf16", "llmasos")
ROWS, VOCABULARY, PROMPT, NEW, ROUNDS, HELD = 3000, 4096, 64, 64, 3, 40
SIZES = (1, 8)
Write = Callable[[list[str]], int]


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__, seeds=2)
    parser.add_argument("--data", type=Path, default=STORIES, help="folder with train.jsonl.gz and validation.jsonl")
    parser.add_argument("--model", type=Path, help="a decoder to use instead of training one")
    parser.add_argument("--export", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child.report(work_of(options.child, Path(options.work), options.export))
        return
    names = harness.chosen([*PEERS, *artifacts("decoder")], options.only)
    with harness.workspace() as work:
        prepare(options.data, work, options.rows or ROWS)
        exports = [harness.child("writers", name, work, "--export") for name in names if name not in PEERS]
        if options.model:
            (work / "model").symlink_to(options.model.resolve(), target_is_directory=True)
        elif (trained := harness.run_one(harness.child("writers", "train", work), 0, work)).error:
            raise SystemExit(f"the training failed: {trained.error}")
        unusable = [run for run in harness.measure(exports, 1, work) if run.missing or run.error]
        refused = {run.candidate for run in unusable}
        able = [harness.child("writers", name, work) for name in names if name not in refused]
        runs = unusable + harness.measure(able, options.seeds, work)
    harness.finish(result(runs, names), options)


def prepare(source: Path, work: Path, rows: int) -> None:
    """Write the stories to learn from, those to be scored on, and the beginnings to write on from."""
    with gzip.open(source / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        (work / "train.jsonl").write_text("".join(islice(lines, rows)), encoding="utf-8")
    with (source / "validation.jsonl").open(encoding="utf-8") as lines:
        held = list(islice(lines, HELD + max(SIZES)))
    (work / "validation.jsonl").write_text("".join(held[:HELD]), encoding="utf-8")
    (work / "prompts.jsonl").write_text("".join(held[HELD:]), encoding="utf-8")


def work_of(name: str, work: Path, export: bool) -> dict[str, Any]:
    """Train, export, or write."""
    if name == "train":
        return trained(work)
    if export:
        return exported(name, work)
    write = CHILDREN.get(name, by_llmasos)(work / (name if name not in PEERS else "model"))
    stories = [next(iter(row.values())) for row in data.read(work / "prompts.jsonl")]
    texts = [" ".join(story.split()[:PROMPT]) for story in stories]
    out: dict[str, Any] = {} if name in PEERS else certified(work / name)
    for size in SIZES:
        write(texts[:size])
        rates = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            count = write(texts[:size])
            rates.append(count / (time.perf_counter() - start))
        out[f"tokens_s_{size}"] = max(rates)
    out["quality"] = perplexity(work, name)
    return out


def trained(work: Path) -> dict[str, Any]:
    """Train the model, one epoch from nothing."""
    from llmasos import LLM, LanguageModelingTask
    from llmasos.scratch import create, train_tokenizer

    words = train_tokenizer(work / "train.jsonl", VOCABULARY, output=work / "tokenizer").path
    create("llama-30m", words, output=work / "base")
    LLM.from_pretrained(work / "base").finetune(
        LanguageModelingTask(), work / "train.jsonl", eval_data=work / "validation.jsonl", output=work / "model",
        epochs=1, batch_size=16, learning_rate=1e-3, seed=0,
    )  # fmt: skip
    return {}


def perplexity(work: Path, name: str) -> float | None:
    """Return the perplexity: of an artifact by its certificate, of the model as any certificate has it."""
    for place in [work / name] if name not in PEERS else sorted(work.glob("*:*")):
        if (place / "certificate.json").exists():
            score = json.loads((place / "certificate.json").read_text(encoding="utf-8"))["score"]
            return float(score["artifact" if name not in PEERS else "model"]["value"])
    return None


def by_transformers(folder: Path, precision: str = "float32") -> Write:
    """Return what writes by transformers.generate."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    ends = tokenizer.eos_token_id

    def write(texts: list[str]) -> int:
        inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)
        new = out[:, inputs["input_ids"].shape[1] :].tolist()
        tokenizer.batch_decode(new, skip_special_tokens=True)
        return sum(row.index(ends) + 1 if ends in row else len(row) for row in new)

    return write


def by_llmasos(folder: Path) -> Write:
    """Return what writes by this project: the model in torch, or an artifact."""
    from llmasos import LLM

    llm = LLM.from_pretrained(folder)
    return lambda texts: sum(len(one.tokens) for one in llm.generate(texts, max_new_tokens=NEW))


CHILDREN: dict[str, Callable[[Path], Write]] = {
    "transformers_fp32": by_transformers,
    "transformers_bf16": lambda folder: by_transformers(folder, "bfloat16"),
}


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    return Result(
        name="writers",
        title=f"Exports of a llama-30m, {PROMPT} words read and {NEW} tokens written, greedily",
        columns=[
            Column("tokens_s_1", "tokens/s, 1 text", 1),
            Column("tokens_s_8", "8 texts", 1),
            Column("quality", "perplexity", 2),
            Column("difference", "golden outputs apart, %", 3),
            Column("size_mb", "size, MB", 1),
            Column("start_seconds", "start of its process, s", 2),
            Column("peak_mb", "its memory, MB", 0),
        ],
        candidates=names,
        runs=runs,
        baseline="transformers_fp32",
        better="higher",
        goals=goals(runs, names),
        notes=[f"perplexity: on {HELD} stories that the model has not seen, as the gate finds it"],
    )


def goals(runs: list[Run], names: list[str]) -> list[Goal]:
    """Compare the best artifact with transformers."""
    found = []
    for size in SIZES:
        key = f"tokens_s_{size}"
        plain = middle(runs, "transformers_fp32", key)
        speeds = [middle(runs, name, key) for name in names if name not in PEERS]
        best = max((speed for speed in speeds if speed), default=None)
        text = f"best artifact at least 2.5x transformers.generate in float32, {size} text{'s' * (size > 1)}"
        found.append(goal(text, best / plain if best and plain else None, 2.5, shown="{:.2f}x"))
    return found


if __name__ == "__main__":
    main()
