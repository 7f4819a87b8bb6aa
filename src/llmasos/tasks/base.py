"""What a task is: the schema of its rows, their encoding, the loss, the answers and the metrics.

A task knows nothing of files, devices, loops or optimisers, and importing one costs no torch: tensor
code imports torch where it runs. Adding a task is adding a file beside this one with a ``PLUGIN``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from ..metrics.base import Scorer

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """One field of a task's rows.

    Args:
        name: the field's name in the task ("text", "label").
        aliases: column names under which data usually carries it, tried in this order.
        kind: "text" (a string) or "label" (what the task's ``problem`` accepts).
        required: whether a row without it is an error. Labels are not required for prediction.
        doc: one line for error messages and ``--help``.
    """

    name: str
    aliases: tuple[str, ...] = ()
    kind: str = "text"
    required: bool = True
    doc: str = ""


class Problem(NamedTuple):
    """What is wrong with one field of one row. ``drop`` marks rows that may be left out (empty text)."""

    field: str
    found: str
    expected: str
    drop: bool = False


class Encoding(NamedTuple):
    """Rows as token ids.

    ``ids``: one array of ids per row, special tokens included. ``types``: token type ids of the same
    lengths, or None where the tokenizer has none. ``truncated``: tokens cut from each row.
    """

    ids: list[NDArray[np.int32]]
    types: list[NDArray[np.uint8]] | None
    truncated: list[int]


class Task(ABC):
    """One of the things that a model can be tuned for. Immutable; ``fitted`` returns a new one."""

    tag: ClassVar[str]
    """The Hub's name of the task, as in ``--task``."""
    auto_class: ClassVar[str]
    """The transformers Auto class that gives the model its head."""
    default_metric: ClassVar[str]
    """Name of the metric that picks the best model; larger is better."""

    @property
    @abstractmethod
    def fields(self) -> tuple[Field, ...]:
        """The fields of a row."""

    @abstractmethod
    def fitted(self, rows: Iterable[Row]) -> tuple[Self, list[str]]:
        """Return this task with everything that it learns from data settled, and notes for the user.

        Raises:
            DataError: the rows contradict the task (one class only, more labels than ``num_labels``).
        """

    @abstractmethod
    def problem(self, row: Row, *, labelled: bool = True) -> Problem | None:
        """Return the first thing that is wrong with a row, or None."""

    @abstractmethod
    def encode(self, rows: Sequence[Row], tokenizer: Any, max_length: int) -> Encoding:
        """Turn rows into token ids, cut at ``max_length`` tokens."""

    @abstractmethod
    def targets(self, rows: Sequence[Row]) -> NDArray[Any]:
        """Return what the loss compares with, one entry (or one line) per row."""

    @abstractmethod
    def head_config(self) -> dict[str, Any]:
        """Return the arguments that transformers needs to build the head."""

    @abstractmethod
    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss summed over the rows (not their mean: see ``weight``)."""

    @abstractmethod
    def weight(self, targets: NDArray[Any]) -> float:
        """Return what the summed loss of these rows is divided by.

        The trainer divides by the weight of the whole optimiser step, so that splitting a batch
        changes nothing.
        """

    @abstractmethod
    def scorer(self) -> Scorer:
        """Return an empty scorer, to be fed logits and targets batch by batch."""

    @abstractmethod
    def decode(self, logits: NDArray[np.float32]) -> list[Any]:
        """Turn logits, (rows, outputs), into typed predictions."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the task as JSON types; ``from_dict`` is its inverse."""

    @classmethod
    @abstractmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild a task from what ``to_dict`` gave."""

    @classmethod
    @abstractmethod
    def sample(cls) -> tuple[Self, list[dict[str, Any]]]:
        """Return a task and a few rows that a tiny model learns in seconds."""
