"""Pretraining: llama-10m from nothing on TinyStories, bf16, against LitGPT and a plain loop in the style of nanoGPT.

All train the same model from the same random weights, 32 x 256 tokens a step, AdamW, gradient norm clipped at 1.0. The
plain loop draws blocks at random from all stories end to end, as nanoGPT does, under autocast, and its blocks look
across the borders of stories; LitGPT's own pretraining, with its own model, is given the same blocks. LLMasOS trains on
whole stories, which do not see each other. The first steps, in which kernels are compiled, are left out. Besides the
clock on the wall, processor time is told: it is what remains comparable where other programs run. The validation loss
is that of the trained weights in float32 on stories that none has seen, by one function for all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import child, data, harness
from .records import Column, Goal, Result, Run, goal, ratio

STORIES = harness.ROOT / ".." / "shared" / "data" / "tinystories"
CANDIDATES = ("plain_loop", "litgpt_defaults", "litgpt_best", "llmasos")
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
            Column("validation_loss", "validation loss (mean)", 3, "mean"),
        ],
        candidates=names,
        runs=runs,
        baseline="plain_loop",
        goals=goals(runs),
        notes=["share of the peak: six operations for each parameter and token, over products of 2048 x 2048"],
    )


def goals(runs: list[Run]) -> list[Goal]:
    """Compare with what was aimed at."""
    peers = {
        "a plain loop": "plain_loop",
        "LitGPT with its defaults": "litgpt_defaults",
        "LitGPT with its best flags": "litgpt_best",
    }
    return [
        goal(f"at least 1.3x faster than {peer}{how}", ratio(runs, "llmasos", name, key), 1.3, shown="{:.2f}x")
        for peer, name in peers.items()
        for key, how in (("seconds", ""), ("processor_seconds", ", in processor time"))
    ]


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


def stream_of(source: Path, work: Path) -> Any:
    """Return the tokens of all stories end to end."""
    import torch
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    rows = load_dataset("json", data_files=str(source / "train.jsonl.gz"), split="train")["text"]
    ids = tokenizer(list(rows), add_special_tokens=False)["input_ids"]
    return torch.tensor([token for story in ids for token in (*story, tokenizer.eos_token_id)])


def starts(stream: Any, steps: int, seed: int) -> Iterator[list[int]]:
    """Yield where the blocks of each step begin."""
    import numpy as np

    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield rng.integers(0, len(stream) - LENGTH - 1, ROWS).tolist()


def validation_loss(logits_of: Callable[[Any], Any], source: Path, work: Path) -> float:
    """Return the mean loss over the tokens of held-out stories, each by itself and up to ``LENGTH`` tokens of it."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    border, total, count = [tokenizer.eos_token_id], 0.0, 0
    for row in data.read(source / "validation.jsonl"):
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([*border, *ids, *border])[: LENGTH + 1]
        with torch.inference_mode():
            logits = logits_of(tokens[None, :-1])[0]
        total += float(torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum"))
        count += len(tokens) - 1
    return total / count


def plain_loop(source: Path, work: Path, steps: int, seed: int) -> dict[str, Any]:
    """Train as nanoGPT's train.py does: random blocks, autocast, fused AdamW, clipping."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    stream = stream_of(source, work)
    model = AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32).train()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)
    pace = Pace()
    for at in starts(stream, WARM + steps, seed):
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
    reached = validation_loss(lambda ids: model.eval()(input_ids=ids).logits, source, work)
    return {**pace.values(sum(p.numel() for p in model.parameters())), "validation_loss": reached}


def litgpt_defaults(source: Path, work: Path, steps: int, seed: int) -> dict[str, Any]:
    """Train with LitGPT in the precision that it chooses (bf16-mixed) and its four blocks a forward pass."""
    return litgpt(source, work, steps, seed, micro=4, precision=None)


def litgpt_best(source: Path, work: Path, steps: int, seed: int) -> dict[str, Any]:
    """Train with LitGPT's flags that help on a processor: all blocks in one pass, weights and all in bfloat16."""
    return litgpt(source, work, steps, seed, micro=ROWS, precision="bf16-true")


def litgpt(source: Path, work: Path, steps: int, seed: int, **flags: Any) -> dict[str, Any]:
    """Train with ``litgpt pretrain``'s own function."""
    child.require("litgpt", "lightning")
    from . import lit

    stream, pace = stream_of(source, work), Pace()
    model = lit.train(
        work / "base", work / f"litgpt-{flags['micro']}-{seed}", stream,
        [at for step in starts(stream, WARM + steps, seed) for at in step],
        lambda loss: pace.step(ROWS * LENGTH, loss), rows=ROWS, length=LENGTH, rate=RATE, seed=seed, **flags,
    )  # fmt: skip
    reached = validation_loss(model, source, work)
    return {**pace.values(sum(p.numel() for p in model.parameters())), "validation_loss": reached}


def llmasos(source: Path, work: Path, steps: int, seed: int) -> dict[str, Any]:
    """Train with this project, as its guide shows; as many stories a step as make the same number of tokens."""
    from llmasos import LLM, LanguageModelingTask
    from llmasos.core.events import Step
    from llmasos.data.dataset import read
    from llmasos.data.encoding import encode

    model, task, pace = LLM.from_pretrained(work / "base"), LanguageModelingTask(), Pace()
    rows = source / "train.jsonl.gz"
    mean = float(encode(read(rows, task.fields), task, model.tokenizer, LENGTH).lengths.mean())

    def follow(event: Any) -> None:
        if isinstance(event, Step):
            pace.step(round(event.rows * mean), event.loss)

    model.finetune(
        task, rows, eval_data=source / "validation.jsonl", max_length=LENGTH, max_steps=WARM + steps, epochs=1000,
        batch_size=round(ROWS * LENGTH / mean), learning_rate=RATE, schedule="constant", warmup=0.0, weight_decay=0.1,
        precision="bfloat16", seed=seed, progress=follow,
    )  # fmt: skip
    trained = model.model.float().eval()
    reached = validation_loss(lambda ids: trained(input_ids=ids).logits, source, work)
    return {**pace.values(sum(p.numel() for p in trained.parameters())), "validation_loss": reached}


CHILDREN = {
    "plain_loop": plain_loop,
    "litgpt_defaults": litgpt_defaults,
    "litgpt_best": litgpt_best,
    "llmasos": llmasos,
}

if __name__ == "__main__":
    main()
