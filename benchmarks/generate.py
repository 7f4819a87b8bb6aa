"""Greedy generation on a processor: tokens/s at 1, 8 and 32 prompts against transformers.generate in bfloat16.

A Llama of 135M parameters (the shape of SmolLM2-135M, random weights), prompts of 64 tokens, 64 new tokens each,
no end token, so that everybody writes as much. Every candidate is warmed up at each size; the clock covers
tokenising, reading the prompts, writing and decoding. The best of some rounds counts.
"""

from __future__ import annotations

import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import child, harness, machine
from .records import Column, Goal, Result, Run, goal, middle, ratio

CANDIDATES = ("transformers", "llmasos_plain", "llmasos")
SIZES = (1, 8, 32)
PROMPT, NEW, ROUNDS = 64, 64, 3
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__)
    parser.add_argument("--profile", action="store_true", help="print where the time of a decode step goes, and end")
    options = parser.parse_args()
    if options.profile:
        with harness.workspace() as work:
            save_model(work / "model")
            profile(work / "model")
        return
    if options.child:
        child.report(work_of(options.child, Path(options.work), options.seed))
        return
    names = harness.chosen(CANDIDATES, options.only)
    with harness.workspace() as work:
        save_model(work / "model")
        runs = harness.measure(
            [harness.child("generate", name, work) for name in ("machine", *names)], options.seeds, work
        )
    harness.finish(result(runs, names), options)


def save_model(folder: Path) -> None:
    """Write the random model, with a tokenizer of single letters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**SHAPE, **ids)).save_pretrained(folder)
    vocabulary = {letter: number for number, letter in enumerate(["<pad>", "<unk>", *string.ascii_lowercase])}
    vocabulary |= {f"w{number}": number for number in range(len(vocabulary), SHAPE["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)


def prompts(count: int, seed: int) -> list[str]:
    """Return texts of 64 letters each."""
    import random

    draw = random.Random(seed)
    return [" ".join(draw.choices(string.ascii_lowercase, k=PROMPT)) for _ in range(count)]


# -- the parent's sums --------------------------------------------------------------------------------


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    bandwidth, weights = middle(runs, "machine", "read_gb_s"), 2 * parameters()
    limit = None if bandwidth is None else bandwidth * 1e9 / weights
    share = middle(runs, "llmasos", "tokens_s_1")
    reached = "" if limit is None or share is None else f"; llmasos reaches {100 * share / limit:.0f} % of it"
    return Result(
        name="generate",
        title="Greedy generation, 135M Llama, bfloat16, 64 + 64 tokens",
        columns=[
            Column("tokens_s_1", "tokens/s, 1 prompt", 1),
            Column("tokens_s_8", "8 prompts", 1),
            Column("tokens_s_32", "32 prompts", 1),
            Column("first_seconds", "first answer, s", 1),
        ],
        candidates=names,
        runs=runs,
        baseline="transformers",
        better="higher",
        goals=goals(runs),
        notes=[
            f"reading {weights / 1e6:.0f} MB of weights once a token limits one prompt to "
            + ("unknown" if limit is None else f"{limit:.0f} tokens/s at {bandwidth:.0f} GB/s{reached}"),
            f"best of {ROUNDS} rounds after one to warm up; the first answer includes opening the model, proving "
            "the decode step and compiling its shapes",
        ],
    )


def parameters() -> int:
    """Count the weights that a step reads, the tied head once."""
    hidden, layers, inner = SHAPE["hidden_size"], SHAPE["num_hidden_layers"], SHAPE["intermediate_size"]
    keys = hidden // SHAPE["num_attention_heads"] * SHAPE["num_key_value_heads"]
    return int(layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner) + hidden * SHAPE["vocab_size"])


def goals(runs: list[Run]) -> list[Goal]:
    """Compare with what was aimed at."""
    aims = ((1, 4), (8, 3), (32, 3))
    return [
        goal(
            f"at least {aim}x the tokens/s of transformers.generate at {size} prompt{'s' * (size > 1)}",
            ratio(runs, "llmasos", "transformers", f"tokens_s_{size}", "higher"), aim, shown="{:.2f}x",
        )
        for size, aim in aims
    ]  # fmt: skip


# -- the children -------------------------------------------------------------------------------------


def work_of(name: str, work: Path, seed: int) -> dict[str, Any]:
    """Do one candidate's work in this process."""
    if name == "machine":
        return machine.peaks()
    begin = time.perf_counter()
    write = CHILDREN[name](work / "model")
    write(prompts(1, seed))
    out: dict[str, Any] = {"first_seconds": time.perf_counter() - begin}
    for size in SIZES:
        texts = prompts(size, seed)
        write(texts)
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            count = write(texts)
            seconds.append(time.perf_counter() - start)
        assert count == size * NEW
        out[f"tokens_s_{size}"] = count / min(seconds)
    return out


def profile(folder: Path) -> None:
    """Print how long a step takes, its products alone, and what else torch's profiler finds in it."""
    import torch
    from torch.profiler import ProfilerActivity
    from transformers import AutoModelForCausalLM

    from llmasos.decoders.base import find

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    family, _ = find(model)
    assert family is not None
    decoder: Any = family.bind(model, torch.bfloat16)
    for size in SIZES:
        texts, ids = [[3 + i % 20 for i in range(PROMPT)]] * size, torch.full((size,), 5)
        hidden, inner = (torch.randn(size, SHAPE[name], dtype=torch.bfloat16)
                         for name in ("hidden_size", "intermediate_size"))  # fmt: skip

        def products(x: Any = hidden, y: Any = inner) -> None:
            for layer in decoder.layers:
                for product, states in ((layer.qkv, x), (layer.output, x), (layer.up, x), (layer.down, y)):
                    product(states)
            decoder.head(x)

        def step(tokens: Any = ids) -> None:
            decoder.step(tokens)

        def read(prompts: Any = texts) -> None:
            decoder.begin(prompts, NEW)

        works = {"reading the prompts": read, "a step": step, "its products alone": products}
        with torch.inference_mode():
            found = {name: 1000 * machine.median_seconds(work) for name, work in works.items()}
        print(f"{size} prompts: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in found.items()))
        with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(20):
                step()
        print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=40))


def by_transformers(folder: Path) -> Callable[[list[str]], int]:
    """Return what writes by transformers.generate, its model in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    def write(texts: list[str]) -> int:
        inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW)
        new = out[:, inputs["input_ids"].shape[1] :]
        tokenizer.batch_decode(new, skip_special_tokens=True)
        return int(new.numel())

    return write


def by_llmasos(folder: Path, speed: str = "auto") -> Callable[[list[str]], int]:
    """Return what writes by this project."""
    from llmasos import LLM

    llm = LLM.from_pretrained(folder)

    def write(texts: list[str]) -> int:
        answers = llm.generate(texts, max_new_tokens=NEW, precision="bfloat16", speed=speed)
        return sum(len(answer.tokens) for answer in answers)

    return write


CHILDREN: dict[str, Callable[[Path], Callable[[list[str]], int]]] = {
    "transformers": by_transformers,
    "llmasos_plain": lambda folder: by_llmasos(folder, "plain"),
    "llmasos": by_llmasos,
}

if __name__ == "__main__":
    main()
