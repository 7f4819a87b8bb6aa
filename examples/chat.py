"""Teach a model to answer as a shop would: conversations in, answers out, and a look at what is learned.

    python examples/chat.py [MODEL]

MODEL is a Hub id or a folder of a decoder. Without one a small model of random weights is made on the spot: it learns
these few conversations by heart, and nothing else.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from llmasos import LLM, ChatTask
from llmasos.scratch import train_tokenizer

ANSWERS = {
    "Do you ship to Malta?": "We do, within five days.",
    "Can I return a lamp?": "Yes, for 30 days. Please keep the box.",
    "When do you open?": "At nine, every day but Sunday.",
    "Is the desk made of oak?": "It is, and the legs are steel.",
}


def rows() -> list[dict[str, Any]]:
    """Conversations of one and of two answers."""
    single = [[ask(question), say(answer)] for question, answer in ANSWERS.items()]
    return [{"messages": talk} for talk in (*single, *(a + b for a in single for b in single if a is not b))]


def ask(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def small_model(folder: Path) -> LLM:
    """A decoder of 200,000 random weights, with a tokenizer of these very texts."""
    texts = [message["content"] for row in rows() for message in row["messages"]]
    tokenizer = train_tokenizer(texts, 360, output=folder / "tokenizer", chat_template="chatml").path
    shape = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 192, "max_position_embeddings": 256, "tie_word_embeddings": True}  # fmt: skip
    return LLM.from_config(shape, tokenizer=tokenizer, output=folder / "model")


def main(ref: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = LLM.from_pretrained(ref) if ref else small_model(Path(folder))
        options = {} if ref else {"epochs": 30, "learning_rate": 5e-3}
        run = model.finetune(ChatTask(), rows(), eval_data=rows(), batch_size=8, progress=False, **options)
        print(
            f"perplexity of answers {run.metrics['perplexity']:.2f}, tokens right {run.metrics['token_accuracy']:.1%}"
        )
        for question in ANSWERS:
            print(f"{question}\n  {model.predict(question, max_new_tokens=40).text}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
