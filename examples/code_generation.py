"""Teach a model to write small programs, and run them with their tests where this machine can isolate them.

    python examples/code_generation.py [MODEL]

MODEL is a Hub id or a folder of a decoder. Without one a small model of random weights is made on the spot: it learns
these few programs by heart, and nothing else.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from llmasos import LLM, CodeGenerationTask
from llmasos.core.errors import HardwareError
from llmasos.scratch import train_tokenizer

PROGRAMS = {
    "double": ("def double(x):\n    return 2 * x", "assert double(4) == 8"),
    "square": ("def square(x):\n    return x * x", "assert square(3) == 9"),
    "negate": ("def negate(x):\n    return -x", "assert negate(5) == -5"),
}


def rows() -> list[dict[str, Any]]:
    return [{"prompt": f"Write {name}.", "completion": code, "tests": [test]}
            for name, (code, test) in PROGRAMS.items()]  # fmt: skip


def small_model(folder: Path) -> LLM:
    """A decoder of 200,000 random weights, with a tokenizer of these very texts."""
    texts = [text for row in rows() for text in (row["prompt"], row["completion"], *row["tests"])]
    tokenizer = train_tokenizer(texts, 300, output=folder / "tokenizer", chat_template="chatml").path
    shape = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 192, "max_position_embeddings": 256, "tie_word_embeddings": True}  # fmt: skip
    return LLM.from_config(shape, tokenizer=tokenizer, output=folder / "model")


def main(ref: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = LLM.from_pretrained(ref) if ref else small_model(Path(folder))
        options = {} if ref else {"epochs": 30, "learning_rate": 5e-3}
        model.finetune(CodeGenerationTask(), rows() * 8, eval_data=rows(), batch_size=8, progress=False, **options)
        print(model.predict(rows()[0], max_new_tokens=60).text)
        try:
            report = model.evaluate(rows())
        except HardwareError as error:
            print(f"not run: {error}")
        else:
            print(f"pass@1 {report.metrics['pass@1'].value:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
