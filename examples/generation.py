"""Write with a model: one prompt, many at once, as it comes, drawn, searched, and as JSON that obeys a schema.

    python examples/generation.py [MODEL]

MODEL is a Hub id or a folder of a model that writes. Without one a small model of random weights is made on the
spot: what it writes makes no sense, but it obeys.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

from llmasos import LLM
from llmasos.scratch import train_tokenizer

TEXTS = ["The parcel arrived on Monday.", "The lamp is broken.", "Where is my parcel?", "Thank you, it works."]
SCHEMA = {
    "type": "object",
    "properties": {"topic": {"enum": ["parcel", "lamp"]}, "urgent": {"type": "boolean"}},
    "required": ["topic", "urgent"],
    "additionalProperties": False,
}


def small_model(folder: Path) -> LLM:
    """A decoder of random weights, with a tokenizer of these very texts."""
    tokenizer = train_tokenizer(TEXTS, 300, output=folder / "tokenizer").path
    shape = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 192, "max_position_embeddings": 256}  # fmt: skip
    return LLM.from_config(shape, tokenizer=tokenizer, output=folder / "model")


def main(ref: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = LLM.from_pretrained(ref) if ref else small_model(Path(folder))
        answer = model.generate("The parcel", max_new_tokens=12)
        print(f"greedy: {answer.text!r} ({answer.finish_reason}, {len(answer.tokens)} tokens)")
        for prompt, one in zip(TEXTS, model.generate(TEXTS, max_new_tokens=8, stop=["\n"])):
            print(f"batch:  {prompt!r} -> {one.text!r}")
        pieces = model.generate("The lamp", max_new_tokens=12, temperature=0.8, top_p=0.9, seed=1, stream=True)
        print("stream:", "|".join(pieces))
        print(f"beams:  {model.generate('The lamp', max_new_tokens=8, num_beams=4).text!r}")
        if importlib.util.find_spec("llguidance"):  # pip install 'llmasos[generation]'
            print("schema:", model.generate("As JSON: ", json_schema=SCHEMA, max_new_tokens=60).text)


if __name__ == "__main__":
    main(*sys.argv[1:2])
