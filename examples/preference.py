"""Make a model prefer kind answers to curt ones: first it learns to answer at all, then which answer is better.

    python examples/preference.py [MODEL]

MODEL is a Hub id or a folder of a decoder that answers. Without one a small model of random weights is made on the spot
and taught both ways of answering first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from llmasos import LLM, ChatTask, PreferenceTask
from llmasos.scratch import train_tokenizer

PLACES = ["Oslo", "Lima", "Porto", "Kyoto", "Riga", "Accra", "Turin", "Quito"]


def pairs() -> list[dict[str, Any]]:
    """The same question about several places, with a kind and a curt answer."""
    return [
        {
            "prompt": f"Do you ship to {place}?",
            "chosen": f"Gladly, we ship to {place}.",
            "rejected": f"Read the page on {place}.",
        }
        for place in PLACES
    ]


def answering_model(folder: Path) -> LLM:
    """A small decoder that has learned to give either answer, saved where it can be found as the reference."""
    both = [{"prompt": p["prompt"], "completion": p[name]} for p in pairs() for name in ("chosen", "rejected")]
    texts = [text for row in both for text in row.values()]
    tokenizer = train_tokenizer(texts, 300, output=folder / "tokenizer", chat_template="chatml").path
    shape = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 192, "max_position_embeddings": 256, "tie_word_embeddings": True}  # fmt: skip
    model = LLM.from_config(shape, tokenizer=tokenizer, output=folder / "model")
    model.finetune(ChatTask(), both, eval_data=both, epochs=30, batch_size=8, learning_rate=5e-3, progress=False,
                   output=folder / "answers")  # fmt: skip
    return LLM.from_pretrained(folder / "answers")


def main(ref: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = LLM.from_pretrained(ref) if ref else answering_model(Path(folder))
        rows = pairs()
        run = model.finetune(PreferenceTask(), rows[2:], eval_data=rows[:2], epochs=8, batch_size=6, progress=False,
                             learning_rate=5e-6 if ref else 2e-4)  # fmt: skip
        accuracy, margin = run.metrics["reward_accuracy"], run.metrics["reward_margin"]
        print(f"kind answers preferred in {accuracy:.0%} of the pairs set aside, by {margin:.2f} on average")
        print(model.predict("Do you ship to Oslo?", max_new_tokens=40).text)


if __name__ == "__main__":
    main(*sys.argv[1:2])
