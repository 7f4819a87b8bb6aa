"""Tagging words: MiniLM on WNUT-17's 3.4k sentences, raw rows to saved model, against transformers.Trainer.

Three epochs, batch 32, learning rate 2e-4 falling linearly without warm-up, no weight decay, gradient norm
clipped at 1.0 for every candidate. The clock covers reading, tokenising, training, evaluation (Trainer once at
the end, LLMasOS after each epoch) and saving; it starts when the libraries are imported. The F1 is that of the
saved folder: one function for all tags the validation sentences with transformers' own forward and lets seqeval
score them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import child, data, harness
from .finetune import BEST
from .records import Column, Goal, Result, Run, goal, middle, ratio

WNUT = harness.ROOT / ".." / "shared" / "data" / "wnut17"
CANDIDATES = ("trainer_defaults", "trainer_best", "llmasos_plain", "llmasos")
EPOCHS, RATE = 3, 2e-4


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__)
    parser.add_argument("--data", type=Path, default=WNUT, help="folder with train.jsonl and validation.jsonl")
    options = parser.parse_args()
    if options.child:
        child.report(work_of(options.child, Path(options.work), options.seed))
        return
    names = harness.chosen(CANDIDATES, options.only)
    with harness.workspace() as work:
        data.prepare(options.data, work, options.rows)
        runs = harness.measure([harness.child("tokens", name, work) for name in names], options.seeds, work)
    harness.finish(result(runs, names), options)


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    return Result(
        name="tokens",
        title=f"Tagging the words of WNUT-17 with MiniLM, {EPOCHS} epochs, raw rows to saved model",
        columns=[
            Column("seconds", "seconds", 1),
            Column("quality", "entity F1 (mean)", 4, "mean"),
            Column("train_seconds", "training loop, s", 1),
            Column("import_seconds", "imports, s", 1),
        ],
        candidates=names,
        runs=runs,
        baseline="trainer_defaults",
        goals=goals(runs),
        notes=[f"trainer_best: {', '.join(f'{key}={value!r}' for key, value in BEST.items())}"],
    )


def goals(runs: list[Run]) -> list[Goal]:
    """Compare with what was aimed at."""
    defaults, best = (ratio(runs, "llmasos", f"trainer_{name}", "seconds") for name in ("defaults", "best"))
    ours, theirs = (middle(runs, name, "quality", "mean") for name in ("llmasos", "trainer_defaults"))
    gap = None if ours is None or theirs is None else 100 * (ours - theirs)
    return [
        goal("at least 2x faster than Trainer with its defaults", defaults, 2, shown="{:.2f}x"),
        goal("at least 1.3x faster than Trainer with its best flags", best, 1.3, shown="{:.2f}x"),
        goal("mean entity F1 at most 1 point below Trainer's", gap, -1, shown="{:+.2f} points"),
    ]


# -- the children -------------------------------------------------------------------------------------


def work_of(name: str, work: Path, seed: int) -> dict[str, Any]:
    """Do one candidate's work in this process."""
    train, validation = (work / f"{split}.jsonl" for split in data.SPLITS)
    output = work / f"model-{name}-{seed}"
    timed = CHILDREN[name](name, train, validation, output, seed)
    return {**timed, "quality": entity_f1(output, data.read(validation))}


def entity_f1(folder: Path, rows: list[dict[str, Any]]) -> float:
    """Tag sentences one by one with transformers in float32, first sub-word of each word, and score them."""
    import torch
    from seqeval.metrics import f1_score
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows:
        encoded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            best = model(**encoded).logits[0].argmax(-1).tolist()
        words = encoded.word_ids(0)
        first = {word: best[i] for i, word in reversed(list(enumerate(words))) if word is not None}
        found.append([model.config.id2label[first[i]] if i in first else "O" for i in range(len(row["tokens"]))])
    return float(f1_score([row["tags"] for row in rows], found))


def trainer(name: str, train: Path, validation: Path, output: Path, seed: int) -> dict[str, Any]:
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
    set_seed(seed)
    rows = load_dataset("json", data_files={"train": str(train), "validation": str(validation)})
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
    arguments = TrainingArguments(
        output_dir=str(output.with_suffix(".trainer")),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=32,
        learning_rate=RATE,
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=seed,
        **(BEST if name == "trainer_best" else {}),
    )
    loop = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=DataCollatorForTokenClassification(tokenizer=tokenizer),
        processing_class=tokenizer,
    )
    loop.train()
    laps.lap("train")
    loop.evaluate()
    laps.lap("evaluate")
    loop.save_model(str(output))
    laps.lap("save")
    return {**laps.values(), "import_seconds": imports}


def llmasos(name: str, train: Path, validation: Path, output: Path, seed: int) -> dict[str, Any]:
    """Train with this project, as its README shows."""
    start = time.perf_counter()
    import datasets
    import sklearn.metrics
    from transformers import AutoModelForTokenClassification, AutoTokenizer
    from transformers.models.bert import modeling_bert

    from llmasos import LLM, TokenClassificationTask

    imports = time.perf_counter() - start
    del datasets, sklearn, modeling_bert, AutoModelForTokenClassification, AutoTokenizer
    phases = child.Phases()
    LLM.from_pretrained(data.MODEL).finetune(
        TokenClassificationTask(),
        train,
        eval_data=validation,
        output=output,
        progress=phases,
        epochs=float(EPOCHS),
        batch_size=32,
        learning_rate=RATE,
        schedule="linear",
        warmup=0.0,
        weight_decay=0.0,
        gradient_clip=1.0,
        seed=seed,
        speed="plain" if name == "llmasos_plain" else "auto",
    )
    return {**phases.values(), "import_seconds": imports}


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    "trainer_defaults": trainer,
    "trainer_best": trainer,
    "llmasos_plain": llmasos,
    "llmasos": llmasos,
}

if __name__ == "__main__":
    main()
