"""Account for every input row: kept, cut by how much, dropped and why, seen before, also in the evaluation data.

Rows are compared by a 64-bit hash of their stripped texts, so that a ledger costs about 21 bytes of
memory a row; two different texts are taken for equal once in some 10^5 runs over ten million rows.
Hashes are Python's own and differ between processes: they are compared, never stored.
"""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from ..core.errors import HardwareError

_EXAMPLES = 5
_PARTS = 16  # duplicates are found among a sixteenth of the hashes at a time, which bounds the memory


class Ledger:
    """The account of one pass over a dataset.

    Args:
        path: where ``close`` writes one JSON object a row; None writes nothing.
        evaluation: the closed ledger of the evaluation data, whose rows are marked in this one.
    """

    def __init__(self, path: Path | None = None, *, evaluation: Ledger | None = None) -> None:
        self.path = path
        self._evaluation = evaluation
        self._reasons: dict[str, int] = {}  # why a row was dropped -> its code, from 1; 0 is kept
        self._parts: list[tuple[NDArray[Any], ...]] = []
        self._hashes: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._closed: dict[str, Any] | None = None

    def add(
        self,
        numbers: NDArray[np.int64],
        texts: Sequence[tuple[str, ...]],
        labels: Sequence[Any],
        cut: Sequence[int],
        dropped: Sequence[str | None],
    ) -> None:
        """Enter rows, in order.

        Args:
            numbers: their numbers in the source, from 1.
            texts: the texts of each row.
            labels: the label of each row, or None.
            cut: tokens cut from each row.
            dropped: why a row was dropped, or None.
        """
        codes = [0 if why is None else self._reasons.setdefault(why, len(self._reasons) + 1) for why in dropped]
        self._parts.append(
            (
                numbers.astype(np.uint32),
                np.asarray([hash(tuple(map(str.strip, row))) for row in texts], dtype=np.int64),
                np.asarray([hash(_comparable(label)) & 0xFFFFFFFF for label in labels], dtype=np.uint32),
                np.asarray(cut, dtype=np.uint32),
                np.asarray(codes, dtype=np.uint8),
            )
        )

    def close(self) -> dict[str, Any]:
        """Find the duplicates, write the file and return the summary.

        Raises:
            HardwareError: the disk is full.
        """
        if self._closed is not None:
            return self._closed
        empty = np.empty(0, dtype=np.int64)
        numbers, hashes, labels, cut, codes = (
            [np.concatenate(column) for column in zip(*self._parts)] if self._parts else [empty] * 5
        )
        self._parts.clear()
        self._hashes = hashes[codes == 0]
        evaluation = np.empty(0, dtype=np.int64) if self._evaluation is None else self._evaluation.hashes
        first, leaked = _repeats(hashes, codes == 0, evaluation)
        clash = (first >= 0) & (labels != labels[first])
        self._closed = self._counted(numbers, first, clash, leaked, cut, codes)
        if self.path is not None:
            _write(self.path, self._lines(numbers, first, clash, leaked, cut, codes))
        return self._closed

    def summary(self) -> dict[str, Any]:
        """Return the counts, the reasons and a few examples by row number, as JSON types.

        ``kept`` (``truncated`` rows among them) and ``dropped`` add up to ``rows``. Duplicates and
        rows that are also in the evaluation data are kept; ``contradictory`` duplicates have another
        label than the row that they repeat.
        """
        return self.close()

    @property
    def hashes(self) -> NDArray[np.int64]:
        """The hashes of the kept rows."""
        self.close()
        return self._hashes

    def _counted(self, numbers: NDArray[Any], first: NDArray[np.int64], clash: NDArray[np.bool_],
                 leaked: NDArray[np.bool_], cut: NDArray[Any], codes: NDArray[Any]) -> dict[str, Any]:  # fmt: skip
        marks = {
            "truncated": cut > 0,
            "dropped": codes > 0,
            "duplicates": first >= 0,
            "contradictory": clash,
            "in_evaluation_data": leaked,
        }
        by_code = Counter(codes.tolist())
        return {
            "rows": len(numbers),
            "kept": int((codes == 0).sum()),
            "tokens_cut": int(cut.sum()),
            **{name: int(mark.sum()) for name, mark in marks.items()},
            "reasons": {why: by_code[code] for why, code in self._reasons.items()},
            "examples": {
                name: [int(n) for n in numbers[np.flatnonzero(mark)[:_EXAMPLES]]] for name, mark in marks.items()
            },
        }

    def _lines(self, numbers: NDArray[Any], first: NDArray[np.int64], clash: NDArray[np.bool_],
               leaked: NDArray[np.bool_], cut: NDArray[Any], codes: NDArray[Any]) -> Iterator[str]:  # fmt: skip
        reasons = {code: why for why, code in self._reasons.items()}
        plain = (cut == 0) & (codes == 0) & (first < 0) & ~leaked
        for i, number in enumerate(numbers):
            if plain[i]:
                yield f'{{"row":{number},"status":"kept"}}\n'
                continue
            status = "dropped" if codes[i] else "truncated" if cut[i] else "kept"
            entry: dict[str, Any] = {"row": int(number), "status": status}
            if codes[i]:
                entry["why"] = reasons[int(codes[i])]
            if cut[i]:
                entry["tokens_cut"] = int(cut[i])
            if first[i] >= 0:
                entry["duplicate_of"] = int(numbers[first[i]])
            if clash[i]:
                entry["contradictory"] = True
            if leaked[i]:
                entry["in_evaluation_data"] = True
            yield json.dumps(entry, separators=(",", ":"), ensure_ascii=False) + "\n"


def _comparable(label: Any) -> Any:
    return tuple(sorted(map(str, label))) if isinstance(label, list | tuple) else label


def _repeats(
    hashes: NDArray[np.int64], kept: NDArray[np.bool_], others: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return for each row the first kept row with its hash (-1: none before it), and whether others have it."""
    first = np.full(len(hashes), -1, dtype=np.int64)
    shared = np.zeros(len(hashes), dtype=np.bool_)
    for part in range(_PARTS):
        rows = np.flatnonzero(kept & (hashes % _PARTS == part))
        if not len(rows):
            continue
        _, at, group = np.unique(hashes[rows], return_index=True, return_inverse=True)
        earliest = rows[at][group]
        first[rows] = np.where(earliest == rows, -1, earliest)
        if len(others):
            shared[rows] = np.isin(hashes[rows], others)
    return first, shared


def _write(path: Path, lines: Iterator[str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file: TextIO
        with path.open("w", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise HardwareError(f"no space left for {path}", hint="free some space, or write to a larger disk") from error
