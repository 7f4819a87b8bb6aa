"""Finding answers: MiniLM on PolicyQA's 3k questions, raw rows to saved model, against transformers.Trainer.

Two epochs, batch 32, windows of 256 tokens that overlap by 128, learning rate 2e-4 falling linearly without
warm-up, no weight decay, gradient norm clipped at 1.0 for every candidate. The clock covers reading, tokenising,
training, evaluation (Trainer's loss once at the end, LLMasOS after each epoch) and saving; it starts when the
libraries are imported. The F1 is that of the saved folder: transformers' own forward in float32, the windows
joined by one function for all, scored as SQuAD's script does.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from . import child, data, harness
from .finetune import BEST
from .records import Column, Goal, Result, Run, goal, middle, ratio

POLICYQA = harness.ROOT / ".." / "shared" / "data" / "policyqa"
CANDIDATES = ("trainer_defaults", "trainer_best", "llmasos_plain", "llmasos")
EPOCHS, RATE, LENGTH, OVERLAP = 2, 2e-4, 256, 128


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__)
    parser.add_argument("--data", type=Path, default=POLICYQA, help="folder with train and validation .jsonl.gz")
    options = parser.parse_args()
    if options.child:
        child.report(work_of(options.child, Path(options.work), options.seed))
        return
    names = harness.chosen(CANDIDATES, options.only)
    with harness.workspace() as work:
        prepare(options.data, work, options.rows)
        runs = harness.measure([harness.child("answers", name, work) for name in names], options.seeds, work)
    harness.finish(result(runs, names), options)


def prepare(source: Path, work: Path, rows: int | None) -> None:
    """Unpack the first rows of both splits into the work folder."""
    for split in data.SPLITS:
        path = source / f"{split}.jsonl.gz"
        if not path.exists():
            raise SystemExit(f"no {path}\nhint: --data names a folder with train.jsonl.gz and validation.jsonl.gz")
        with gzip.open(path, "rt", encoding="utf-8") as lines, (work / path.stem).open("w", encoding="utf-8") as out:
            out.writelines(islice(lines, rows))


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    return Result(
        name="answers",
        title=f"Finding the answers of PolicyQA with MiniLM, {EPOCHS} epochs, raw rows to saved model",
        columns=[
            Column("seconds", "seconds", 1),
            Column("quality", "F1 (mean)", 4, "mean"),
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
        goal("mean F1 at most 1 point below Trainer's", gap, -1, shown="{:+.2f} points"),
    ]


# -- the children -------------------------------------------------------------------------------------


def work_of(name: str, work: Path, seed: int) -> dict[str, Any]:
    """Do one candidate's work in this process."""
    train, validation = (work / f"{split}.jsonl" for split in data.SPLITS)
    output = work / f"model-{name}-{seed}"
    timed = CHILDREN[name](name, train, validation, output, seed)
    return {**timed, "quality": f1_of(output, data.read(train), data.read(validation))}


def f1_of(folder: Path, known: list[dict[str, Any]], rows: list[dict[str, Any]]) -> float:
    """Answer with transformers' forward in float32, whoever trained the folder."""
    from llmasos import QuestionAnsweringTask
    from llmasos.data.dataset import read
    from llmasos.data.encoding import encode
    from llmasos.engines.torch import TorchEngine
    from llmasos.evaluation import evaluate
    from llmasos.loading import load_model, load_tokenizer

    tokenizer = load_tokenizer(folder)
    task, _ = QuestionAnsweringTask(stride=OVERLAP).fitted(known, tokenizer)
    engine = TorchEngine(load_model(folder, task).model, tokenizer.pad_token_id, output=task.output, speed="plain")
    dataset = read(rows, task.fields)
    encoded = encode(dataset, task, tokenizer, LENGTH, allow_truncated=1.0)
    return evaluate(engine, task, encoded, dataset)[1].values()["f1"]


def trainer(name: str, train: Path, validation: Path, output: Path, seed: int) -> dict[str, Any]:
    """Train with transformers.Trainer as its question answering guide shows: all windows padded to full length.

    At its best it pads to the longest window of a batch of near-equal lengths.
    """
    child.require("accelerate")
    start = time.perf_counter()
    from datasets import Dataset
    from transformers import (
        AutoModelForQuestionAnswering,
        AutoTokenizer,
        DataCollatorWithPadding,
        DefaultDataCollator,
        Trainer,
        TrainingArguments,
        set_seed,
    )
    from transformers.models.bert import modeling_bert

    imports = time.perf_counter() - start
    del modeling_bert
    laps, whole = child.Laps(), name == "trainer_defaults"
    set_seed(seed)
    model = AutoModelForQuestionAnswering.from_pretrained(data.model_folder())
    tokenizer = AutoTokenizer.from_pretrained(data.model_folder())

    def windows(batch: dict[str, list[Any]]) -> Any:
        out = tokenizer(
            batch["question"], batch["context"], truncation="only_second", max_length=LENGTH, stride=OVERLAP,
            return_overflowing_tokens=True, return_offsets_mapping=True, padding="max_length" if whole else False,
        )  # fmt: skip
        owners, offsets = out.pop("overflow_to_sample_mapping"), out.pop("offset_mapping")
        places = [place_of(out.sequence_ids(i), offsets[i], batch["answers"][row]) for i, row in enumerate(owners)]
        out["start_positions"], out["end_positions"] = map(list, zip(*places, strict=True))
        return out

    rows = {}
    for split, path in (("train", train), ("validation", validation)):
        rows[split] = Dataset.from_list([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
        rows[split] = rows[split].map(windows, batched=True, remove_columns=rows[split].column_names)
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
        **({} if whole else BEST),
    )
    loop = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=DefaultDataCollator() if whole else DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    loop.train()
    laps.lap("train")
    loop.evaluate()
    laps.lap("evaluate")
    loop.save_model(str(output))
    laps.lap("save")
    return {**laps.values(), "import_seconds": imports}


def place_of(sides: list[int | None], offsets: list[tuple[int, int]], answers: dict[str, Any]) -> tuple[int, int]:
    """Return the first and the last token of the first answer in a window; the first place if it isn't whole there."""
    if not answers["text"]:
        return 0, 0
    first = answers["answer_start"][0]
    last = first + len(answers["text"][0])
    context = [i for i, side in enumerate(sides) if side == 1]
    if offsets[context[0]][0] > first or offsets[context[-1]][1] < last:
        return 0, 0
    inside = [i for i in context if offsets[i][1] > first and offsets[i][0] < last]
    return (inside[0], inside[-1]) if inside else (0, 0)


def llmasos(name: str, train: Path, validation: Path, output: Path, seed: int) -> dict[str, Any]:
    """Train with this project, as its README shows."""
    start = time.perf_counter()
    import datasets
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer
    from transformers.models.bert import modeling_bert

    from llmasos import LLM, QuestionAnsweringTask

    imports = time.perf_counter() - start
    del datasets, modeling_bert, AutoModelForQuestionAnswering, AutoTokenizer
    phases = child.Phases()
    LLM.from_pretrained(data.MODEL).finetune(
        QuestionAnsweringTask(stride=OVERLAP),
        train,
        eval_data=validation,
        output=output,
        progress=phases,
        epochs=float(EPOCHS),
        batch_size=32,
        max_length=LENGTH,
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
