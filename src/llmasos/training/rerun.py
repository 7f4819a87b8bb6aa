"""Repeat a training from its record: ``python -m llmasos.training.rerun JOB.json``, the events as lines of JSON.

What ``verify.py`` starts, and kills.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..core import plugins
from ..core.config import FinetuneConfig, process_place
from ..core.errors import UsageError
from ..core.events import Event, Step

RECORD = Path("run") / "run.json"


def recorded(folder: Path) -> dict[str, Any]:
    """Return the record of the run in a model folder, or of the unfinished one beside it.

    Raises:
        UsageError: there is none, or its data was in memory.
    """
    for place in (folder, folder.with_name(folder.name + ".unfinished")):
        if (place / RECORD).is_file():
            record: dict[str, Any] = json.loads((place / RECORD).read_text())
            break
    else:
        raise UsageError(f"{folder} has no record of a training", hint="the folder that llmasos finetune has written")
    asked = record.get("asked", {})
    if asked.get("data") is None or asked.get("eval_data") == "memory":
        raise UsageError(
            f"the data of {folder} was in memory, so its training cannot be repeated",
            hint="train from files: finetune(task, 'train.jsonl')",
        )
    return record


def options_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a recorded run, as ``FinetuneConfig`` takes them."""
    known = {item.name for item in fields(FinetuneConfig)}
    return {name: value for name, value in record["config"].items() if name in known}


def main(job: Path) -> None:
    """Train as the job says; tell this process's id and every step."""
    from ..llm import LLM

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
