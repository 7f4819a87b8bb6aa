"""What the record of a run says of it, so that it can be looked at and repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..core.config import FinetuneConfig
from ..core.errors import UsageError

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
