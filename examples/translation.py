"""Translate: train a small encoder with a decoder from nothing, and let it write.

    python examples/translation.py
    python examples/translation.py --data train.jsonl --eval-data validation.jsonl --source en --target de

The first learns to say German ages from some fifty sentences, in seconds. The second is the recipe for some ten
thousand pairs of sentences (rows like {"en": "...", "de": "..."}): a tokenizer of both languages, Marian with 7
million weights, 15 epochs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from llmasos import LLM, TranslationTask
from llmasos.data.dataset import read
from llmasos.scratch import train_tokenizer

ENGLISH = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ENGLISH_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
GERMAN = ["ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]
GERMAN_TENS = ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]

TINY = {"model_type": "marian", "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "dropout": 0.0,
        "scale_embedding": True}  # fmt: skip
BRIEF = {"epochs": 80, "batch_size": 16, "learning_rate": 3e-3}
FULL = {"epochs": 15, "batch_size": 64, "learning_rate": 1e-3, "evaluations": 1}


def numbers() -> list[dict[str, str]]:
    """Ages from 21 to 99 in English and in German."""
    return [
        {"en": f"I am {tens}-{one} years old.", "de": f"Ich bin {eins} und {zehn} Jahre alt."}
        for tens, zehn in zip(ENGLISH_TENS, GERMAN_TENS, strict=True)
        for one, eins in zip(ENGLISH, GERMAN, strict=True)
    ]


def from_nothing(task: TranslationTask, data: Any, folder: Path, *, vocab_size: int, config: Any) -> LLM:
    """Learn one tokenizer from both languages, and draw a model that goes with it."""
    pairs = read(data, task.fields)
    texts = [row[field] for rows in pairs.batches() for row in rows for field in ("source", "target")]
    tokenizer = train_tokenizer(texts, vocab_size, output=folder / "tokenizer", overwrite=True)
    return LLM.from_config(config, tokenizer=tokenizer.path, output=folder / "untrained", overwrite=True)


def main() -> None:
    flags = argparse.ArgumentParser()
    for name in ("data", "eval-data", "output"):
        flags.add_argument(f"--{name}")
    flags.add_argument("--source", default="en")
    flags.add_argument("--target", default="de")
    flags.add_argument("--epochs", type=float)
    asked = flags.parse_args()
    task = TranslationTask(source_language=asked.source, target_language=asked.target, label_smoothing=0.1)
    brief = asked.data is None
    data, held = (asked.data, asked.eval_data) if not brief else (numbers()[::2] + numbers()[3::4], numbers()[1::4])
    options = dict(BRIEF if brief else FULL) | ({} if asked.epochs is None else {"epochs": asked.epochs})
    with tempfile.TemporaryDirectory() as scratch:
        model = from_nothing(
            task, data, Path(scratch), vocab_size=320 if brief else 8192, config=TINY if brief else "marian-7m"
        )
        model.finetune(
            task, data, eval_data=held, output=asked.output or Path(scratch) / "tuned", overwrite=True,
            progress=not brief, **options,
        )  # fmt: skip
        if held is not None:
            report = model.evaluate(held)
            for name in ("bleu", "chrf"):
                print(f"{name} {report.metrics[name].value:.1f}  {report.signatures[name]}")
            sources = [row["source"] for row in read(held, task.fields).rows(range(4))]
            for source, answer in zip(sources, model.predict(sources), strict=True):
                print(f"{source} -> {answer.text}")


if __name__ == "__main__":
    main()
