"""Translation from nothing: Marian with 7M weights on the first 6,400 pairs of Multi30k, against Seq2SeqTrainer.

One epoch, batch 64, learning rate 1e-3, from the same tokenizer and the same random weights; ``contest.py`` says the
rest. The loss of the validation sentences' tokens is found by transformers' own forward in float32.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from . import child, contest, data, harness
from .contest import Contest, Job

RECIPE: dict[str, Any] = {"epochs": 1, "batch": 64, "rate": 1e-3}
ROWS, VOCABULARY = 6400, 8000


def prepare(work: Path) -> None:
    """Write the tokenizer and the untrained model that all candidates begin with."""
    from llmasos.scratch import create, train_tokenizer

    rows = data.read(work / "train.jsonl")
    words = train_tokenizer([row[side] for row in rows for side in ("en", "de")], VOCABULARY, output=work / "tokenizer")
    create("marian-7m", words.path, output=work / "base")


def pairs(tokenizer: Any, batch: dict[str, list[str]]) -> Any:
    """Tokenise both sides; what the decoder gives has an end, and begins with a word."""
    out = tokenizer(batch["en"], text_target=batch["de"])
    end = tokenizer.eos_token_id
    out["labels"] = [ids[1:] if ids[0] == end else ids for ids in out["labels"]]
    return out


def loss_of(job: Job) -> float:
    """Return the mean loss of a token."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(job.output, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    total = count = 0.0
    for row in data.read(job.validation)[:500]:
        inputs = {key: torch.tensor(ids) for key, ids in pairs(tokenizer, {k: [row[k]] for k in ("en", "de")}).items()}
        with torch.inference_mode():
            loss = model(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss
        total, count = total + float(loss) * inputs["labels"].numel(), count + inputs["labels"].numel()
    return total / count


def trainer(job: Job) -> dict[str, Any]:
    """Train with Seq2SeqTrainer in the way that transformers' translation guide shows."""
    child.require("accelerate")
    start = time.perf_counter()
    from datasets import load_dataset
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        set_seed,
    )
    from transformers.models.marian import modeling_marian

    imports = time.perf_counter() - start
    del modeling_marian
    laps = child.Laps()
    set_seed(job.seed)
    model = AutoModelForSeq2SeqLM.from_pretrained(job.work / "base")
    tokenizer = AutoTokenizer.from_pretrained(job.work / "base")
    rows = load_dataset("json", data_files={"train": str(job.train), "validation": str(job.validation)})
    columns = rows["train"].column_names
    rows = rows.map(lambda batch: pairs(tokenizer, batch), batched=True, remove_columns=columns)
    laps.lap("prepare")
    loop = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**contest.arguments(job, **RECIPE)),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
    )
    return {**contest.run(loop, laps, lambda: loop.save_model(str(job.output))), "import_seconds": imports}


def llmasos(job: Job) -> dict[str, Any]:
    """Train with this project, as its guide shows."""
    from llmasos import TranslationTask

    task = TranslationTask(source_language="en", target_language="de")
    modules = ("transformers.models.marian.modeling_marian",)
    return contest.llmasos(job, lambda: task, model=job.work / "base", modules=modules, **RECIPE)


CONTEST = Contest(
    name="translation",
    title=f"Translation from nothing, {ROWS:,} pairs of Multi30k, marian-7m, 1 epoch, raw rows to saved model",
    source=harness.ROOT / ".." / "shared" / "data" / "multi30k",
    train_peer=trainer,
    train_ours=llmasos,
    quality_of=loss_of,
    quality="loss",
    better="lower",
    tolerance=0.05,
    scale=1.0,
    unit="nats",
    peer_name="Seq2SeqTrainer",
    rows=ROWS,
    prepare=prepare,
    seeds=2,
)

if __name__ == "__main__":
    CONTEST.main(__doc__)
