"""Pretraining: llama-10m from nothing on TinyStories, bf16, against a plain loop in the style of nanoGPT.

Both train the same transformers model from the same random weights, 32 x 256 tokens a step, AdamW (fused), gradient
norm clipped at 1.0. The plain loop draws blocks at random from all stories end to end, as nanoGPT does, under autocast,
and its blocks look across the borders of stories; LLMasOS trains on whole stories, which do not see each other. The
first steps, in which kernels are compiled, are left out. Besides the clock on the wall, processor time is told: it is
what remains comparable where other programs run.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from . import child, harness
from .records import Column, Goal, Result, Run, goal, ratio

STORIES = harness.ROOT / ".." / "shared" / "data" / "tinystories"
CANDIDATES = ("plain_loop", "llmasos")
ROWS, LENGTH, WARM, RATE, VOCABULARY = 32, 256, 4, 1e-3, 4096


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__)
    parser.add_argument("--data", type=Path, default=STORIES, help="folder with train.jsonl.gz and validation.jsonl")
    parser.add_argument("--steps", type=int, default=40, help="optimiser steps that are timed (default 40)")
    options = parser.parse_args()
    if options.child:
        child.report(CHILDREN[options.child](options.data.resolve(), Path(options.work), options.steps, options.seed))
        return
    names = harness.chosen(CANDIDATES, options.only)
    with harness.workspace() as work:
        prepare(options.data, work)
        more = ("--steps", str(options.steps), "--data", str(options.data.resolve()))
        candidates = [harness.child("pretrain", name, work, *more) for name in names]
        runs = harness.measure(candidates, options.seeds, work)
    harness.finish(result(runs, names), options)


def prepare(source: Path, work: Path) -> None:
    """Write the tokenizer and the untrained model that all candidates begin with."""
    from llmasos.scratch import create, train_tokenizer

    words = train_tokenizer(source / "train.jsonl.gz", VOCABULARY, output=work / "tokenizer").path
    create("llama-10m", words, output=work / "base")


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    return Result(
        name="pretrain",
        title=f"Pretraining llama-10m from nothing on TinyStories, bf16, {ROWS} x {LENGTH} tokens a step",
        columns=[
            Column("seconds", "seconds for 100k tokens", 1),
            Column("processor_seconds", "processor seconds for 100k tokens", 1),
            Column("tokens_per_second", "tokens/s", 0),
            Column("share_of_peak", "share of the matrix peak", 3),
            Column("loss", "last training losses (mean)", 3, "mean"),
        ],
        candidates=names,
        runs=runs,
        baseline="plain_loop",
        goals=goals(runs),
        notes=["share of the peak: six operations for each parameter and token, over products of 2048 x 2048"],
    )


def goals(runs: list[Run]) -> list[Goal]:
    """Compare with what was aimed at."""
    return [
        goal("at least 1.3x faster than a plain loop", ratio(runs, "llmasos", "plain_loop", "seconds"), 1.3,
             shown="{:.2f}x"),
        goal("the same in processor time", ratio(runs, "llmasos", "plain_loop", "processor_seconds"), 1.3,
             shown="{:.2f}x"),
    ]  # fmt: skip


# -- the children -------------------------------------------------------------------------------------


class Pace:
    """Clock and processor time of the steps after the first few."""

    def __init__(self) -> None:
        self.steps, self.tokens, self.losses = 0, 0, list[float]()
        self._begun = (0.0, 0.0)
        self._ended = (0.0, 0.0)

    def step(self, tokens: int, loss: float) -> None:
        """Book a step that has ended."""
        self.steps += 1
        self._ended = (time.perf_counter(), time.process_time())
        if self.steps <= WARM:
            self._begun = self._ended
            return
        self.tokens += tokens
        self.losses.append(loss)

    def values(self, parameters: int) -> dict[str, float]:
        """Return what the table shows."""
        wall, busy = (end - begin for begin, end in zip(self._begun, self._ended, strict=True))
        last = self.losses[-10:]
        return {
            "seconds": wall / self.tokens * 1e5,
            "processor_seconds": busy / self.tokens * 1e5,
            "tokens_per_second": self.tokens / wall,
            "share_of_peak": 6 * parameters * self.tokens / wall / peak(),
            "loss": sum(last) / len(last),
        }


def peak(size: int = 2048, times: int = 5) -> float:
    """Return the operations a second of the best of a few bfloat16 products."""
    import torch

    one = torch.randn(size, size, dtype=torch.bfloat16)
    best = math.inf
    for _ in range(times):
        start = time.perf_counter()
        torch.mm(one, one)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def plain_loop(source: Path, work: Path, steps: int, seed: int) -> dict[str, Any]:
    """Train as nanoGPT's train.py does: random blocks, autocast, fused AdamW, clipping."""
    import numpy as np
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    rows = load_dataset("json", data_files=str(source / "train.jsonl.gz"), split="train")["text"]
    ids = tokenizer(list(rows), add_special_tokens=False)["input_ids"]
    stream = torch.tensor([token for story in ids for token in (*story, tokenizer.eos_token_id)])
    model = AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32).train()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)
    rng, pace = np.random.default_rng(seed), Pace()
    for _ in range(WARM + steps):
        at = torch.from_numpy(rng.integers(0, len(stream) - LENGTH - 1, ROWS))
        x = torch.stack([stream[i : i + LENGTH] for i in at])
        y = torch.stack([stream[i + 1 : i + 1 + LENGTH] for i in at])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=x, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pace.step(x.numel(), loss.item())
    return pace.values(sum(p.numel() for p in model.parameters()))


def llmasos(source: Path, work: Path, steps: int, seed: int) -> dict[str, Any]:
    """Train with this project, as its guide shows; as many stories a step as make the same number of tokens."""
    from llmasos import LLM, LanguageModelingTask
    from llmasos.core.events import Step
    from llmasos.data.dataset import read
    from llmasos.data.encoding import encode

    model, task, pace = LLM.from_pretrained(work / "base"), LanguageModelingTask(), Pace()
    data = source / "train.jsonl.gz"
    mean = float(encode(read(data, task.fields), task, model.tokenizer, LENGTH).lengths.mean())

    def follow(event: Any) -> None:
        if isinstance(event, Step):
            pace.step(round(event.rows * mean), event.loss)

    model.finetune(
        task, data, eval_data=source / "validation.jsonl", max_length=LENGTH, max_steps=WARM + steps, epochs=1000,
        batch_size=round(ROWS * LENGTH / mean), learning_rate=RATE, schedule="constant", warmup=0.0, weight_decay=0.1,
        precision="bfloat16", seed=seed, progress=follow,
    )  # fmt: skip
    return pace.values(sum(p.numel() for p in model.model.parameters()))


CHILDREN = {"plain_loop": plain_loop, "llmasos": llmasos}

if __name__ == "__main__":
    main()
