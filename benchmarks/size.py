"""A data file larger than memory should hold: tokenise 2 GB of JSONL and train some steps on it.

The parent watches the resident memory of the child. The texts are made up from a list of words, rows of
200 to 400 characters; the file is deleted at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import child, data, harness, machine
from .records import Column, Result, goal, middle

LABELS = ("praise", "question", "complaint")
COMMON = (
    "the of and to in a is that it was for on are with as his they be at one have this from or had by hot but some "
    "what there we can out other were all your when up use word how said an each she which do their time if will way "
    "about many then them would write like so these her long make thing see him two has look more day could go come "
    "did my sound no most number who over know water than call first people may down side been now find any new work "
    "part take get place made live where after back little only round man year came show every good me give our under"
)


def main() -> None:
    """Write the file, train on it in a child, report the memory."""
    parser = harness.parser(__doc__, seeds=1)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the file, 10^9 bytes each (default 2)")
    options = parser.parse_args()
    if options.child:
        child.report(train(Path(options.work)))
        return
    with harness.workspace() as work:
        rows = write_rows(work / "train.jsonl", int(options.gigabytes * 1e9), seed=0)
        write_rows(work / "validation.jsonl", 60_000, seed=1)
        harness.say(f"wrote {rows:,} rows")
        runs = harness.measure([harness.child("size", "llmasos", work)], options.seeds, work, memory=True)
    peak = middle(runs, "llmasos", "peak_mb")
    phases = sorted(
        {key for run in runs for key in run.values if key.endswith("_seconds") and key != "process_seconds"}
    )
    result = Result(
        name="size",
        title=f"{options.gigabytes:g} GB of JSONL ({rows:,} rows): read, tokenised, 20 steps, saved",
        columns=[
            Column("peak_mb", "peak resident memory, MB", 0),
            Column("private_mb", "without pages of files, MB", 0),
            Column("seconds", "seconds", 0),
            *(Column(key, key.removesuffix("_seconds").replace("_", " ") + ", s", 1) for key in phases),
        ],
        candidates=["llmasos"],
        runs=runs,
        goals=[goal("resident memory below 2 GB", peak, 2000, least=False, shown="{:.0f} MB")],
        notes=["pages of memory-mapped files count as resident; the system takes them back when it needs the room"],
        about={"gigabytes": options.gigabytes, "file_rows": rows},
    )
    harness.finish(result, options, partial=options.gigabytes != parser.get_default("gigabytes"))


def write_rows(path: Path, size: int, seed: int) -> int:
    """Write rows of made-up text until the file has ``size`` bytes; return how many."""
    written = rows = 0
    with path.open("w", encoding="utf-8") as out:
        for line in made_up(seed):
            if written >= size:
                break
            written += out.write(line)
            rows += 1
    return rows


def made_up(seed: int) -> Iterator[str]:
    """Yield JSON lines for ever: phrases of 5 to 9 words, drawn once, in ever new combinations.

    Words follow Zipf's law, common ones first; drawing phrases instead of words makes 2 GB in half a minute.
    """
    random = np.random.default_rng(seed)
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprstv", "aeiou")]
    words = [*COMMON.split(), *("".join(random.choice(syllables, random.integers(2, 4))) for _ in range(5000))]
    weights = 1.0 / np.arange(3, len(words) + 3)
    drawn = random.choice(len(words), size=(40_000, 9), p=weights / weights.sum())
    phrases = [" ".join(words[i] for i in line[: random.integers(5, 10)]) for line in drawn]
    while True:
        count = 10_000
        picks = random.integers(len(phrases), size=(count, 10)).tolist()
        lengths = random.integers(6, 11, size=count).tolist()
        labels = random.integers(len(LABELS), size=count).tolist()
        for pick, length, label in zip(picks, lengths, labels):
            text = ", ".join(phrases[i] for i in pick[:length])
            yield f'{{"text": "{text}", "label": "{LABELS[label]}"}}\n'


def train(work: Path) -> dict[str, Any]:
    """Fine-tune for 20 steps and report the phases and this process's peak memory."""
    from llmasos import LLM, TextClassificationTask

    phases = child.Phases()
    LLM.from_pretrained(data.MODEL).finetune(
        TextClassificationTask(labels=LABELS),
        work / "train.jsonl",
        eval_data=work / "validation.jsonl",
        output=work / "model",
        progress=phases,
        max_steps=20,
    )
    return {**phases.values(), "peak_mb": machine.peak_memory_mb()}


if __name__ == "__main__":
    main()
