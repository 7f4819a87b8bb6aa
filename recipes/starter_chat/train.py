"""Train ``starter-chat``, the toy that ships with LLMasOS, from nothing.

    python recipes/starter_chat/train.py BOOK.txt [BOOK.txt ...] --output DIR

The books are texts in the public domain; those of the model that ships are named in ``card.md``. A licence text
around a Project Gutenberg book is cut off. First a small Llama reads the books, then it learns the conversations of
this folder, which the project wrote, and small sums, typed in many ways (``talks.py``); its weights are rounded to
float16. The seed is 0 everywhere, so that the same machine trains the same model. Takes nine minutes of one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import talks
from talks import Talk

from llmasos import LLM, ChatTask, LanguageModelingTask
from llmasos.scratch import train_tokenizer

SEED, VOCABULARY = 0, 4096
HELD_OUT = 0.05  # of PAIRS; people would miss an opener
PASSES, SUM_PASSES = 40, 24
READING = {"epochs": 2, "batch_size": 16, "max_length": 256, "learning_rate": 2e-3, "allow_truncated": 1.0}
# One epoch: each pass over the conversations is already among the rows, typed anew.
TALKING = {"epochs": 1, "batch_size": 16, "learning_rate": 2.5e-3, "weight_decay": 0.05, "eval_split": 0.0}
_AROUND = re.compile(r"\*\*\* ?(?:START|END) OF TH[^*]*\*\*\*")


def main() -> None:
    """Read the books, learn to answer, round, write the folder and print what it knows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("books", nargs="+", type=Path, help="texts in the public domain, UTF-8")
    parser.add_argument("--output", required=True, type=Path, help="folder for the model")
    options = parser.parse_args()
    books, output = "\n".join(book(path) for path in options.books), options.output.resolve()
    rng = random.Random(SEED)
    known, held_out = talks.split(talks.conversations(talks.PAIRS), HELD_OUT, rng)
    known += talks.conversations(talks.OPENERS)
    # inside the folder, so that no record of the model names a place on the machine that trained it
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        read(books, known)
        model = LLM.from_pretrained("base")
        model.finetune(ChatTask(), talks.practice(known, PASSES, SUM_PASSES, rng), seed=SEED, **TALKING)
        model.model.half()
        model.save(output, overwrite=True)
    shutil.copy(talks.HERE / "card.md", output / "README.md")
    print(json.dumps(measure(output, known, held_out, rng), indent=2))


def book(path: Path) -> str:
    """Return the text of a book without the licence around it."""
    parts = _AROUND.split(path.read_text(encoding="utf-8-sig"))
    return max(parts, key=len).strip()


def read(books: str, known: list[Talk]) -> None:
    """Train the tokenizer and the language model, into the folder ``base``."""
    said = "\n".join(message["content"] for talk in known for message in talk["messages"])
    Path("books.txt").write_text(books, encoding="utf-8")
    Path("all.txt").write_text(books + ("\n" + said) * 4, encoding="utf-8")
    train_tokenizer("all.txt", VOCABULARY, output="tokenizer", chat_template="chatml")
    model = LLM.from_config("llama-4m", tokenizer="tokenizer", seed=SEED, output="random")
    run = model.finetune(LanguageModelingTask(), "books.txt", seed=SEED, output="base", **READING)
    print(json.dumps(run.metrics, indent=2))


def measure(folder: Path, known: list[Talk], held_out: list[Talk], rng: random.Random) -> dict[str, Any]:
    """Return how well the model of the folder knows what it learned, and how badly it answers what it did not."""
    model = LLM.from_pretrained(folder)

    def write(questions: list[str]) -> list[str]:
        return [answer.text for answer in model.predict(questions, max_new_tokens=64)]

    retyped = [talks.typed(talk, rng) for talk in known]  # other typing than it was trained on
    return {
        "conversations": {"learned": len(known), "held_out": len(held_out), "sums": len(talks.sums())},
        "learned": model.evaluate(known).as_dict()["metrics"],
        "held_out": model.evaluate(held_out).as_dict()["metrics"],
        "first answers word for word": talks.answered(known, write),
        "the same, typed anew": talks.answered(retyped, write),
        "sums right": talks.answered(talks.sums(), write),
    }


if __name__ == "__main__":
    main()
