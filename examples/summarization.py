"""Summarize: fine-tune a model that reads and writes on documents with their summaries.

    python examples/summarization.py [MODEL]

MODEL is a Hub id or a folder of an encoder with a decoder (BART, T5, Pegasus, ...), or of a decoder alone, which gets
the document in a prompt. Without one, a tiny model learns from nothing what an order is about, in seconds.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from llmasos import LLM, SummarizationTask
from llmasos.scratch import train_tokenizer

TINY = {"model_type": "marian", "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "dropout": 0.0,
        "scale_embedding": True}  # fmt: skip
GOODS = ["lamps", "chairs", "kettles", "shelves"]
STORIES = [
    ("Ms {name} bought {goods} last week. Two of them came broken, and she would like new ones.", "broken {goods}"),
    ("We waited for {goods} all of Monday. Nobody came, {name} says, and nobody called.", "late {goods}"),
    ("{name} writes that the {goods} are lovely and that everything came on time.", "praise for {goods}"),
]


def rows() -> list[dict[str, Any]]:
    """Letters of customers and what they are about."""
    return [
        {"document": story.format(name=name, goods=goods), "summary": summary.format(goods=goods)}
        for name in ("Lin", "Mena", "Obi", "Petrova", "Sam")
        for goods in GOODS
        for story, summary in STORIES
    ]


def main(ref: str | None = None) -> None:
    data = rows()
    train, held = data[:-12], data[-12:]
    with tempfile.TemporaryDirectory() as scratch:
        if ref is None:
            texts = [row[field] for row in train for field in ("document", "summary")]
            tokenizer = train_tokenizer(texts, 360, output=Path(scratch) / "tokenizer")
            model = LLM.from_config(TINY, tokenizer=tokenizer.path, output=Path(scratch) / "untrained")
        else:
            model = LLM.from_pretrained(ref)
        rate = {"learning_rate": 5e-3} if ref is None else {}
        model.finetune(SummarizationTask(), train, eval_data=held, epochs=40, batch_size=8, progress=False, **rate)
        report = model.evaluate(held)
        print(f"ROUGE-L {report.metrics['rougeL'].value:.2f}; first sentences alone {report.baseline['rougeL']:.2f}")
        for row in held[:3]:
            print(f"{row['document']}\n  -> {model.predict(row['document']).text}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
