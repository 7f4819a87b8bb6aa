"""How much of the texts the tokenizer has no token for, counted in the ids that are encoded anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError

if TYPE_CHECKING:
    from ..tasks.base import Task
    from .dataset import Dataset
    from .encoding import Encoded

_SAID = 0.005  # share from which the user is told
_STRETCH = 1 << 22  # tokens counted at once
_BLANK = "\u2581"  # SentencePiece's space: alone, before what it does not know, it says nothing of the text


class Unknown(NamedTuple):
    """Unknown tokens among all that stand for text, and where the first is."""

    missing: int
    total: int
    where: str

    @property
    def share(self) -> float:
        """Unknown tokens over all."""
        return self.missing / max(1, self.total)

    @property
    def is_worth_saying(self) -> bool:
        """Whether the user is told."""
        return self.share >= _SAID

    def __str__(self) -> str:
        return (
            f"the tokenizer has no token for {self.share:.1%} of the text ({self.missing:,} of {self.total:,} tokens "
            f"are unknown), for example in {self.where}"
        )


def unknown_tokens(encoded: Encoded, rows: Dataset, task: Task, tokenizer: Any) -> Unknown:
    """Count in what the model reads, and in what it is to write: the larger share counts."""
    unknown = _unknown_id(tokenizer)
    if unknown is None:
        return Unknown(0, encoded.tokens, "")
    silent = _silent(tokenizer) - {unknown}
    found = []
    written = encoded.targets if task.output == "vocabulary" else None
    for ids, offsets in ((encoded.ids, encoded.offsets), (written, encoded.target_offsets)):
        if ids is not None and offsets is not None:
            missing, total, first = _counted(ids, unknown, silent)
            example = (int(np.searchsorted(offsets, first, side="right")) - 1) // encoded.group
            found.append(Unknown(missing, total, rows.where(int(encoded.rows[example])) if missing else ""))
    encoded.forget()
    return max(found, key=lambda one: one.share)


def check_known(encoded: Encoded, rows: Dataset, task: Task, tokenizer: Any, allowed: float | None) -> list[str]:
    """Refuse a tokenizer that cannot represent the texts; return a note where it lacks a little.

    Raises:
        DataError: more of the tokens are unknown than is allowed (by the task where ``allowed`` is None), or all.
    """
    allowed = task.most_unknown if allowed is None else allowed
    found = unknown_tokens(encoded, rows, task, tokenizer)
    if found.share > allowed or found.share == 1.0:  # of nothing, nothing can be learned
        raise DataError(
            f"{found}; allowed are {allowed:.0%}",
            hint="a model that was trained on this language and script, or a tokenizer of your own "
            "(llmasos tokenizer train), or a larger allow_unknown",
        )
    return [str(found)] if found.is_worth_saying else []


def _unknown_id(tokenizer: Any) -> int | None:
    """Return the id that stands for what has no token; None where one that does other work fills its place (GPT-2)."""
    names = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    unknown: int | None = tokenizer.unk_token_id
    return None if unknown in [getattr(tokenizer, name) for name in names] else unknown


def _silent(tokenizer: Any) -> set[int]:
    """Return the ids that stand for no text. A mask does: it hides a token."""
    blank = tokenizer.convert_tokens_to_ids(_BLANK)
    return {*tokenizer.all_special_ids, *([] if blank is None else [blank])} - {tokenizer.mask_token_id}


def _counted(ids: NDArray[Any], unknown: int, silent: set[int]) -> tuple[int, int, int]:
    """Return how many tokens are unknown, how many stand for text, and the place of the first unknown one."""
    missing, total, first = 0, 0, -1
    for start in range(0, len(ids), _STRETCH):
        part = ids[start : start + _STRETCH]
        counts = np.bincount(part[part >= 0])  # negative targets ask for nothing
        here = int(counts[unknown]) if unknown < len(counts) else 0
        if here and not missing:
            first = start + int(np.argmax(part == unknown))
        missing += here
        total += int(counts.sum()) - sum(int(counts[i]) for i in silent if i < len(counts))
    return missing, total, first
