"""Train ``starter-chat``, the toy that ships with LLMasOS, from nothing.

    python recipes/starter_chat/train.py BOOK.txt [BOOK.txt ...] --output DIR

The books are texts in the public domain; those of the model that ships are named in ``card.md``. A licence text
around a Project Gutenberg book is cut off. First a small Llama reads the books, then it learns the conversations of
``pairs_en.jsonl`` and ``pairs_zh.jsonl``, which the project wrote; its weights are rounded to float16. The seed is 0
everywhere, so that the same machine trains the same model. Takes some six minutes on two cores.
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

from llmasos import LLM, ChatTask, LanguageModelingTask
from llmasos.scratch import train_tokenizer

HERE = Path(__file__).resolve().parent
PAIRS = ("pairs_en.jsonl", "pairs_zh.jsonl")
SEED, VOCABULARY = 0, 4096
READING = {"epochs": 4, "batch_size": 16, "max_length": 256, "learning_rate": 2e-3, "allow_truncated": 1.0}
# It is to know its conversations by heart: held-out ones were answered no better after more than four epochs.
TALKING = {"epochs": 30, "batch_size": 16, "learning_rate": 1e-3, "weight_decay": 0.05, "eval_split": 0.0}
_AROUND = re.compile(r"\*\*\* ?(?:START|END) OF TH[^*]*\*\*\*")


def main() -> None:
    """Read the books, learn to answer, round, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("books", nargs="+", type=Path, help="texts in the public domain, UTF-8")
    parser.add_argument("--output", required=True, type=Path, help="folder for the model")
    options = parser.parse_args()
    books, output, talks = "\n".join(book(path) for path in options.books), options.output.resolve(), conversations()
    # inside the folder, so that no record of the model names a place on the machine that trained it
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        read(books, talks)
        model = LLM.from_pretrained("base")
        model.finetune(ChatTask(), talks, seed=SEED, **TALKING)
        model.model.half()
        model.save(output, overwrite=True)
    shutil.copy(HERE / "card.md", output / "README.md")
    print(json.dumps(LLM.from_pretrained(output).evaluate(talks).as_dict()["metrics"], indent=2))


def book(path: Path) -> str:
    """Return the text of a book without the licence around it."""
    parts = _AROUND.split(path.read_text(encoding="utf-8-sig"))
    return max(parts, key=len).strip()


def conversations() -> list[dict[str, Any]]:
    """Return all conversations in an order of their own."""
    rows = [json.loads(line) for name in PAIRS for line in (HERE / name).read_text(encoding="utf-8").splitlines()]
    random.Random(SEED).shuffle(rows)
    return rows


def read(books: str, talks: list[dict[str, Any]]) -> None:
    """Train the tokenizer and the language model, into the folder ``base``."""
    said = "\n".join(message["content"] for talk in talks for message in talk["messages"])
    Path("books.txt").write_text(books, encoding="utf-8")
    Path("all.txt").write_text(books + ("\n" + said) * 4, encoding="utf-8")
    train_tokenizer("all.txt", VOCABULARY, output="tokenizer", chat_template="chatml")
    model = LLM.from_config("llama-4m", tokenizer="tokenizer", seed=SEED, output="random")
    run = model.finetune(LanguageModelingTask(), "books.txt", seed=SEED, output="base", **READING)
    print(json.dumps(run.metrics, indent=2))


if __name__ == "__main__":
    main()
