"""What is asked of a training: which model shall learn which task from which rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..loading import load_config
from ..tasks.base import Task

if TYPE_CHECKING:
    from ..sources.base import Located


@dataclass(frozen=True)
class Request:
    """What ``finetune``, ``plan``, ``tune`` and ``parity`` are asked alike.

    ``located`` is the folder that the model comes from, ``known`` the task that it was saved with, if any; ``task``
    what it shall do; ``data`` and ``eval_data`` anything that ``data.dataset.read`` takes, and ``columns`` task
    field -> column. Without ``eval_data`` a stratified part of the rows is set aside.
    """

    located: Located
    tokenizer: Any
    known: Task | None
    task: Task
    data: Any
    eval_data: Any = None
    columns: Mapping[str, str] | None = None

    def suited(self) -> Request:
        """Return the request with the task as the model's configuration lets it be."""
        return replace(self, task=self.task.suited(load_config(self.located.path)))
