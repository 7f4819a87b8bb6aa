"""Supervised fine-tuning: a random Llama of 30M weights on 1,000 instructions, against TRL's SFTTrainer.

Two epochs, about 4,096 tokens a step, learning rate 5e-4, from the same tokenizer (with a ChatML template) and the
same random weights; loss on the answers only; ``contest.py`` says the rest. TRL's defaults take rows as they are and
recompute activations; at its best it packs rows (``packing``) and keeps activations. The perplexity of the answers of
100 other instructions is found by transformers' own forward in float32.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from . import child, contest, data, harness
from .contest import BEST, Contest, Job

ROWS, HELD_OUT, VOCABULARY, LENGTH, TOKENS = 1000, 100, 4096, 1024, 4096
RECIPE: dict[str, Any] = {"epochs": 2, "rate": 5e-4}
FLAGS = {**BEST, "packing": True, "gradient_checkpointing": False}
del FLAGS["train_sampling_strategy"]  # packed rows are of one length


def unpack(source: Path, work: Path, rows: int | None) -> None:
    """Write the instructions as prompts and completions, the last hundred held out."""
    found = data.read(source / "all.jsonl")
    for split, part in (("train", found[: min(rows or ROWS, ROWS)]), ("validation", found[ROWS : ROWS + HELD_OUT])):
        with (work / f"{split}.jsonl").open("w", encoding="utf-8") as out:
            for row in part:
                asked = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
                prompt = [{"role": "user", "content": asked}]
                completion = [{"role": "assistant", "content": row["output"]}]
                out.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


def prepare(work: Path) -> None:
    """Write the tokenizer and the untrained model that all candidates begin with."""
    from llmasos.scratch import create, train_tokenizer

    texts = [
        turn["content"] for row in data.read(work / "train.jsonl") for turn in (*row["prompt"], *row["completion"])
    ]
    words = train_tokenizer(texts, VOCABULARY, output=work / "tokenizer", chat_template="chatml")
    create("llama-30m", words.path, output=work / "base")


def rendered(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the tokens of the prompt, and those of the completion behind it, to the token that ends the turn."""
    whole = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=True, return_dict=False)
    prompt = tokenizer.apply_chat_template(
        row["prompt"], tokenize=True, add_generation_prompt=True, return_dict=False
    )  # fmt: skip
    completion = whole[len(prompt) :]
    return prompt, completion[: completion.index(tokenizer.eos_token_id) + 1]  # a line break of the template follows


def batch_size(job: Job, tokenizer: Any) -> int:
    """Return how many rows make a step's tokens."""
    lengths = [sum(map(len, rendered(tokenizer, row))) for row in data.read(job.train)]
    return round(TOKENS / (sum(lengths) / len(lengths)))


def perplexity(job: Job) -> float:
    """Return the perplexity of the held-out answers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job.output, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    total = count = 0.0
    for row in data.read(job.validation):
        prompt, answer = rendered(tokenizer, row)
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        count += len(answer)
    return math.exp(total / count)


def trl(job: Job) -> dict[str, Any]:
    """Train with SFTTrainer in the way that TRL's guide shows."""
    child.require("trl", "accelerate")
    start = time.perf_counter()
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from transformers.models.llama import modeling_llama
    from trl import SFTConfig, SFTTrainer

    imports = time.perf_counter() - start
    del modeling_llama
    tokenizer = AutoTokenizer.from_pretrained(job.work / "base")
    size = TOKENS // LENGTH if job.best else batch_size(job, tokenizer)
    laps = child.Laps()
    set_seed(job.seed)
    model = AutoModelForCausalLM.from_pretrained(job.work / "base")
    rows = load_dataset("json", data_files={"train": str(job.train), "validation": str(job.validation)})
    loop = SFTTrainer(
        model=model,
        args=SFTConfig(
            **{"max_length": LENGTH, "use_cpu": True} | contest.arguments(job, batch=size, best=FLAGS, **RECIPE)
        ),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
    )
    laps.lap("prepare")
    return {**contest.run(loop, laps, lambda: loop.save_model(str(job.output))), "import_seconds": imports}


def llmasos(job: Job) -> dict[str, Any]:
    """Train with this project, as its guide shows."""
    from transformers import AutoTokenizer

    from llmasos import ChatTask

    size = batch_size(job, AutoTokenizer.from_pretrained(job.work / "base"))
    modules = ("transformers.models.llama.modeling_llama",)
    return contest.llmasos(
        job, ChatTask, model=job.work / "base", modules=modules, batch=size, max_length=LENGTH, **RECIPE
    )


CONTEST = Contest(
    name="chat",
    title="Supervised fine-tuning of a random 30M Llama on 1,000 instructions, 2 epochs, raw rows to saved model",
    source=harness.ROOT / ".." / "shared" / "data" / "instruct_1100",
    train_peer=trl,
    train_ours=llmasos,
    quality_of=perplexity,
    quality="perplexity",
    peer="trl",
    peer_name="TRL",
    better="lower",
    tolerance=5,
    scale=1.0,
    unit="in perplexity",
    best=FLAGS,
    unpack=unpack,
    prepare=prepare,
    seeds=2,
)

if __name__ == "__main__":
    CONTEST.main(__doc__)
