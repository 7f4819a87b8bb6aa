"""Scored pairs: MiniLM on STS-B's 5.7k pairs, raw rows to saved model, against sentence-transformers' trainer.

One epoch, batch 16, squared error of the cosine, learning rate 1.6e-4 falling linearly without warm-up, no
weight decay, gradient norm clipped at 1.0 for every candidate. The clock covers reading, tokenising, training,
one evaluation and saving; it starts when the libraries are imported. The Spearman correlation is that of the
saved folder: one function for all embeds the validation pairs with transformers' own forward.
"""

from __future__ import annotations

import gzip
import time
from itertools import islice
from pathlib import Path
from typing import Any

from . import child, data, harness, machine
from .records import Column, Goal, Result, Run, goal, middle, ratio

STSB = harness.ROOT / ".." / "shared" / "data" / "stsb"
CANDIDATES = ("sentence_transformers_defaults", "sentence_transformers_best", "llmasos_plain", "llmasos")
EPOCHS, RATE, BATCH = 1, 1.6e-4, 16
BEST = {"bf16": machine.has_bf16(), "per_device_eval_batch_size": 64, "use_cpu": True, "disable_tqdm": True}


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__)
    parser.add_argument("--data", type=Path, default=STSB, help="folder with train.jsonl.gz and validation.jsonl")
    options = parser.parse_args()
    if options.child:
        child.report(work_of(options.child, Path(options.work), options.seed))
        return
    names = harness.chosen(CANDIDATES, options.only)
    with harness.workspace() as work:
        prepare(options.data, work, options.rows)
        runs = harness.measure([harness.child("similarity", name, work) for name in names], options.seeds, work)
    harness.finish(result(runs, names), options)


def prepare(source: Path, work: Path, rows: int | None) -> None:
    """Copy the first rows of both splits, unpacked where they are packed."""
    for split in data.SPLITS:
        path = next((p for p in (source / f"{split}.jsonl", source / f"{split}.jsonl.gz") if p.exists()), None)
        if path is None:
            raise SystemExit(f"no {source / split}.jsonl\nhint: --data names a folder with both splits of STS-B")
        opened = gzip.open if path.suffix == ".gz" else open
        with (
            opened(path, "rt", encoding="utf-8") as lines,
            (work / f"{split}.jsonl").open("w", encoding="utf-8") as out,
        ):
            out.writelines(islice(lines, rows))


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    return Result(
        name="similarity",
        title=f"Scored pairs of STS-B with MiniLM, {EPOCHS} epoch, raw rows to saved model",
        columns=[
            Column("seconds", "seconds", 1),
            Column("quality", "Spearman (mean)", 4, "mean"),
            Column("train_seconds", "training loop, s", 1),
            Column("import_seconds", "imports, s", 1),
        ],
        candidates=names,
        runs=runs,
        baseline="sentence_transformers_defaults",
        goals=goals(runs),
        notes=[f"sentence_transformers_best: {', '.join(f'{key}={value!r}' for key, value in BEST.items())}"],
    )


def goals(runs: list[Run]) -> list[Goal]:
    """Compare with what was aimed at."""
    peer = "sentence_transformers"
    defaults, best = (ratio(runs, "llmasos", f"{peer}_{name}", "seconds") for name in ("defaults", "best"))
    ours, theirs = (middle(runs, name, "quality", "mean") for name in ("llmasos", f"{peer}_defaults"))
    gap = None if ours is None or theirs is None else 100 * (ours - theirs)
    return [
        goal("at least 2x faster than sentence-transformers with its defaults", defaults, 2, shown="{:.2f}x"),
        goal("at least 1.3x faster than sentence-transformers with its best flags", best, 1.3, shown="{:.2f}x"),
        goal("mean Spearman at most 1 point below sentence-transformers'", gap, -1, shown="{:+.2f} points"),
    ]


# -- the children -------------------------------------------------------------------------------------


def work_of(name: str, work: Path, seed: int) -> dict[str, Any]:
    """Do one candidate's work in this process."""
    train, validation = (work / f"{split}.jsonl" for split in data.SPLITS)
    output = work / f"model-{name}-{seed}"
    run = llmasos if name.startswith("llmasos") else sentence_transformers
    timed = run(name, train, validation, output, seed)
    return {**timed, "quality": spearman(output, data.read(validation))}


def spearman(folder: Path, rows: list[dict[str, Any]]) -> float:
    """Embed pair by pair with transformers in float32, mean over the tokens, and correlate with the scores."""
    import torch
    from scipy.stats import spearmanr
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def vector(text: str) -> torch.Tensor:
        with torch.inference_mode():
            return model(**tokenizer(text, truncation=True, return_tensors="pt")).last_hidden_state[0].mean(0)

    found = [torch.cosine_similarity(vector(r["sentence1"]), vector(r["sentence2"]), dim=0).item() for r in rows]
    return float(spearmanr(found, [row["score"] for row in rows]).statistic)


def sentence_transformers(name: str, train: Path, validation: Path, output: Path, seed: int) -> dict[str, Any]:
    """Train in the way that sentence-transformers' guide for STS-B shows."""
    child.require("sentence_transformers", "accelerate")
    start = time.perf_counter()
    from datasets import load_dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import CosineSimilarityLoss
    from transformers import set_seed

    imports = time.perf_counter() - start
    laps = child.Laps()
    set_seed(seed)
    rows = load_dataset("json", data_files={"train": str(train), "validation": str(validation)})
    rows = rows.select_columns(["sentence1", "sentence2", "score"]).map(lambda row: {"score": row["score"] / 5.0})
    model = SentenceTransformer(str(data.model_folder()))
    laps.lap("prepare")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output.with_suffix(".trainer")),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=seed,
        **(BEST if name.endswith("_best") else {}),
    )
    loop = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        loss=CosineSimilarityLoss(model),
    )
    loop.train()
    laps.lap("train")
    loop.evaluate()
    laps.lap("evaluate")
    model.save_pretrained(str(output))
    laps.lap("save")
    return {**laps.values(), "import_seconds": imports}


def llmasos(name: str, train: Path, validation: Path, output: Path, seed: int) -> dict[str, Any]:
    """Train with this project, as its guide shows."""
    start = time.perf_counter()
    import datasets
    import scipy.stats
    from transformers import AutoModel, AutoTokenizer
    from transformers.models.bert import modeling_bert

    from llmasos import LLM, SentenceSimilarityTask

    imports = time.perf_counter() - start
    del datasets, scipy, modeling_bert, AutoModel, AutoTokenizer
    phases = child.Phases()
    LLM.from_pretrained(data.MODEL).finetune(
        SentenceSimilarityTask(score_range=(0, 5)),
        train,
        eval_data=validation,
        output=output,
        progress=phases,
        epochs=float(EPOCHS),
        batch_size=BATCH,
        learning_rate=RATE,
        schedule="linear",
        warmup=0.0,
        weight_decay=0.0,
        gradient_clip=1.0,
        seed=seed,
        speed="plain" if name == "llmasos_plain" else "auto",
    )
    return {**phases.values(), "import_seconds": imports}


if __name__ == "__main__":
    main()
