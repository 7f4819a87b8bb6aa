"""Tiny models of tasks for a server to serve."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from llmasos import LLM
from llmasos.core import plugins
from tiny import save_tiny


def tuned(folder: Path, name: str, seed: int = 0) -> Path:
    """Write a tiny model that has learned a little of a task's sample; return its folder."""
    kind = plugins.load("tasks", name)
    task, rows = kind.sample()
    llm = LLM.from_pretrained(save_tiny(folder / "base", kind.auto_class, max_length=160))
    llm.finetune(
        task, rows, epochs=2, batch_size=8, learning_rate=2e-3, output=folder / name, progress=False,
        allow_truncated=1.0, allow_unknown=1.0,
        seed=seed,
    )  # fmt: skip
    return folder / name


def sample(name: str, most: int = 3) -> list[dict[str, Any]]:
    """Return rows of a task's sample as they are asked about."""
    task, rows = plugins.load("tasks", name).sample()
    asked = {field.name for field in task.fields if not field.is_answer}
    return [{key: value for key, value in row.items() if key in asked} for row in rows[:most]]


class Exact:
    """A model in float32, as the servers of the tests compute."""

    def __init__(self, ref: str | Path) -> None:
        self._llm = LLM.from_pretrained(ref)

    def __getattr__(self, name: str) -> Any:
        return partial(getattr(self._llm, name), precision="float32")
