"""Finding answers: MiniLM on PolicyQA's 3k questions, raw rows to saved model, against transformers.Trainer.

Two epochs, batch 32, windows of 256 tokens that overlap by 128, learning rate 2e-4; ``contest.py`` says the rest.
Trainer finds its loss once at the end, LLMasOS evaluates after each epoch. For the F1 transformers' own forward in
float32 runs, the windows are joined by one function for all and scored as SQuAD's script does.
"""

from __future__ import annotations

import json
import time
from typing import Any

from . import child, contest, data, harness
from .contest import Contest, Job

RECIPE: dict[str, Any] = {"epochs": 2, "batch": 32, "rate": 2e-4}
LENGTH, OVERLAP = 256, 128


def f1_of(job: Job) -> float:
    """Answer with transformers' forward in float32, whoever trained the folder."""
    from llmasos import QuestionAnsweringTask
    from llmasos.data.dataset import read
    from llmasos.data.encoding import encode
    from llmasos.engines.torch import TorchEngine
    from llmasos.evaluation import evaluate
    from llmasos.loading import load_model, load_tokenizer

    tokenizer = load_tokenizer(job.output)
    task, _ = QuestionAnsweringTask(stride=OVERLAP).fitted(data.read(job.train), tokenizer)
    engine = TorchEngine(load_model(job.output, task).model, tokenizer.pad_token_id, output=task.output, speed="plain")
    dataset = read(data.read(job.validation), task.fields)
    encoded = encode(dataset, task, tokenizer, LENGTH, allow_truncated=1.0)
    return evaluate(engine, task, encoded, dataset)[1].values()["f1"]


def trainer(job: Job) -> dict[str, Any]:
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
    laps, whole = child.Laps(), not job.best
    set_seed(job.seed)
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
    for split, path in (("train", job.train), ("validation", job.validation)):
        rows[split] = Dataset.from_list([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
        rows[split] = rows[split].map(windows, batched=True, remove_columns=rows[split].column_names)
    laps.lap("prepare")
    loop = Trainer(
        model=model,
        args=TrainingArguments(**contest.arguments(job, **RECIPE)),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=DefaultDataCollator() if whole else DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    return {**contest.run(loop, laps, lambda: loop.save_model(str(job.output))), "import_seconds": imports}


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


def llmasos(job: Job) -> dict[str, Any]:
    """Train with this project, as its guide shows."""
    from llmasos import QuestionAnsweringTask

    modules = ("transformers.models.bert.modeling_bert",)
    task = QuestionAnsweringTask(stride=OVERLAP)
    return contest.llmasos(job, lambda: task, modules=modules, max_length=LENGTH, **RECIPE)


CONTEST = Contest(
    name="answers",
    title="Finding the answers of PolicyQA with MiniLM, 2 epochs, raw rows to saved model",
    source=harness.ROOT / ".." / "shared" / "data" / "policyqa",
    train_peer=trainer,
    train_ours=llmasos,
    quality_of=f1_of,
    quality="F1",
    seeds=1,
)

if __name__ == "__main__":
    CONTEST.main(__doc__)
