"""``llmasos finetune --on PLACE``: the training as files of that place, shown or started."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..core.config import parse_settings
from .options import Job, options_of
from .output import say, show_json


def send(job: Job, place: str, machine: Sequence[str], *, dry_run: bool, as_json: bool) -> int:
    """Print what is sent, and with no ``dry_run`` start it."""
    from ..sending import launch, sent

    words: dict[str, Any] = {name: getattr(job, name) for name in ("model", "data", "eval_data", "output", "revision",
                                                                   "columns")}  # fmt: skip
    words |= {"task": job.task.tag, "options": {**_of_task(job), **job.options}}
    found = sent(place, words, parse_settings(list(machine)))
    if as_json:
        show_json({"name": found.training.name, "files": found.files,
                   "validated": found.validated and dataclasses.asdict(found.validated)})  # fmt: skip
    elif dry_run:
        for text in found.files.values():
            print(text, end="")
    if found.validated is not None:
        tool, missing = found.validated.tool, found.validated.missing
        say(f"not checked: {tool} needs {missing}" if missing else f"checked by {tool}")
    if not dry_run:
        say(f"starting {found.training.name} on {place}")
        launch(found)
    return 0


def _of_task(job: Job) -> dict[str, Any]:
    """Return the options of the task that are not as they would be without a word."""
    out = {}
    for field in options_of(type(job.task)):
        value = getattr(job.task, field.name)
        usual = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value is not None and value != usual:
            out[field.name] = value
    return out
