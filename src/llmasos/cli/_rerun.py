"""Repeat a training from its record: ``python -m llmasos.cli._rerun JOB.json``, its steps as lines of JSON.

What ``training/verify.py`` starts, and kills.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ..core import plugins
from ..core.environment import process_place
from ..core.events import Event, Step
from ..llm import LLM


def main(job: Path) -> None:
    """Train as the job says; tell this process's id and every step."""
    content = json.loads(job.read_text())
    asked, rank = content["asked"], process_place()[0]

    def tell(line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    def listen(event: Event) -> None:
        if rank == 0 and isinstance(event, Step):
            tell({"step": event.step})

    tell({"pid": os.getpid(), "rank": rank})
    LLM.from_pretrained(asked["model"]).finetune(
        plugins.load("tasks", content["tag"]).from_dict(content["task"]), asked["data"], eval_data=asked["eval_data"],
        columns=asked["columns"] or None, output=content["output"], progress=listen, **content["options"],
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
