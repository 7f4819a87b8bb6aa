"""Tagging words: MiniLM on WNUT-17's 3.4k sentences, raw rows to saved model, against transformers.Trainer.

Three epochs, batch 32, learning rate 2e-4; ``contest.py`` says the rest. Trainer evaluates once at the end, LLMasOS
after each epoch. For the F1 the validation sentences are tagged with transformers' own forward in float32 and
scored by seqeval.
"""

from __future__ import annotations

import time
from typing import Any

from . import child, contest, data, harness
from .contest import Contest, Job

RECIPE: dict[str, Any] = {"epochs": 3, "batch": 32, "rate": 2e-4}


def entity_f1(job: Job) -> float:
    """Tag sentences one by one with transformers in float32, first sub-word of each word, and score them."""
    import torch
    from seqeval.metrics import f1_score
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(job.output, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    rows, found = data.read(job.validation), []
    for row in rows:
        encoded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            best = model(**encoded).logits[0].argmax(-1).tolist()
        words = encoded.word_ids(0)
        first = {word: best[i] for i, word in reversed(list(enumerate(words))) if word is not None}
        found.append([model.config.id2label[first[i]] if i in first else "O" for i in range(len(row["tokens"]))])
    return float(f1_score([row["tags"] for row in rows], found))


def trainer(job: Job) -> dict[str, Any]:
    """Train with transformers.Trainer in the way that its token classification guide shows."""
    child.require("accelerate")
    start = time.perf_counter()
    from datasets import load_dataset
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainingArguments,
        set_seed,
    )
    from transformers.models.bert import modeling_bert

    imports = time.perf_counter() - start
    del modeling_bert
    laps = child.Laps()
    set_seed(job.seed)
    rows = load_dataset("json", data_files={"train": str(job.train), "validation": str(job.validation)})
    names = sorted({tag for row in rows["train"]["tags"] for tag in row})
    index = {tag: i for i, tag in enumerate(names)}
    model = AutoModelForTokenClassification.from_pretrained(
        data.model_folder(), num_labels=len(names), id2label=dict(enumerate(names)), label2id=index
    )
    tokenizer = AutoTokenizer.from_pretrained(data.model_folder())

    def aligned(batch: dict[str, Any]) -> Any:
        out = tokenizer(batch["tokens"], truncation=True, is_split_into_words=True)
        out["labels"] = []
        for i, tags in enumerate(batch["tags"]):
            before, labels = None, []
            for word in out.word_ids(batch_index=i):
                labels.append(-100 if word is None or word == before else index.get(tags[word], index["O"]))
                before = word
            out["labels"].append(labels)
        return out

    rows = rows.map(aligned, batched=True, remove_columns=rows["train"].column_names)
    laps.lap("prepare")
    loop = Trainer(
        model=model,
        args=TrainingArguments(**contest.arguments(job, **RECIPE)),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=DataCollatorForTokenClassification(tokenizer=tokenizer),
        processing_class=tokenizer,
    )
    return {**contest.run(loop, laps, lambda: loop.save_model(str(job.output))), "import_seconds": imports}


def llmasos(job: Job) -> dict[str, Any]:
    """Train with this project, as its guide shows."""
    from llmasos import TokenClassificationTask

    modules = ("sklearn.metrics", "transformers.models.bert.modeling_bert")
    return contest.llmasos(job, TokenClassificationTask, modules=modules, **RECIPE)


CONTEST = Contest(
    name="tokens",
    title="Tagging the words of WNUT-17 with MiniLM, 3 epochs, raw rows to saved model",
    source=harness.ROOT / ".." / "shared" / "data" / "wnut17",
    train_peer=trainer,
    train_ours=llmasos,
    quality_of=entity_f1,
    quality="entity F1",
    seeds=2,
)

if __name__ == "__main__":
    CONTEST.main(__doc__)
