"""From plain text to a small language model of your own: a tokenizer, a model from nothing, its perplexity.

    python examples/language_modeling.py [FILE]

FILE is a .txt file of running text, or a .jsonl file of documents (default: a few lines made on the spot).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from llmasos import LLM, LanguageModelingTask
from llmasos.scratch import train_tokenizer

TINY = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 256}  # fmt: skip


def written(folder: Path) -> Path:
    """Write a text of which a tiny model learns the pattern in seconds."""
    lines = [f"The {day} boat brings {load} to the {place}." for day in ("early", "late", "slow")
             for load in ("salt", "rice", "tea", "wool") for place in ("harbour", "island", "mill")]  # fmt: skip
    path = folder / "boats.txt"
    path.write_text("\n".join(lines * 40) + "\n", encoding="utf-8")
    return path


def main(file: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = written(folder) if file is None else Path(file)
        made = train_tokenizer(text, 300 if file is None else 4096, output=folder / "tokenizer")
        print(f"{made.size} tokens, {made.bytes_per_token:.2f} bytes each")
        config = TINY if file is None else "llama-4m"
        model = LLM.from_config(config, tokenizer=made.path, output=folder / "base")
        run = model.finetune(
            LanguageModelingTask(), text, epochs=2, batch_size=16, max_length=64, learning_rate=3e-3, progress=False
        )
        for metric in ("perplexity", "bits_per_byte"):
            print(f"{metric} {run.metrics[metric]:.2f}, guessing {run.report.baseline[metric]:.2f}")
        likely, odd = model.predict(["The late boat brings tea to the mill.", "To mill the brings boat tea late the."])
        print(f"a sentence like those: {likely}; its words in disorder: {odd}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
