"""A model in another format as a decoder: what its engine computes in numpy, for the one decoding loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from ..engines.base import Stepper
    from ._prefixes import Prefixes


class Exported:
    """The decoder of a ``Stepper``; see ``base.py``."""

    prefixes: Prefixes | None = None
    members: Sequence[int] | None = None

    def __init__(self, stepper: Stepper, how: str) -> None:
        self._stepper: Any = stepper
        self.how, self.joins = how, bool(getattr(stepper, "joins", False))
        self.start: int | None = None

    def begin(self, prompts: Sequence[Sequence[int]], room: int, salts: Sequence[str] | None = None) -> Tensor:
        """Read prompts; see ``decoders/base.py``."""
        del salts
        if hasattr(self._stepper, "start"):
            self._stepper.start = self.start
        return _tensor(self._stepper.begin(prompts, room))

    def join(
        self, prompts: Sequence[Sequence[int]], room: int, rows: Sequence[int], salts: Sequence[str] | None = None
    ) -> Tensor:
        """Read more prompts into some rows, where the engine ``joins``."""
        del salts
        return _tensor(self._stepper.join(prompts, room, rows))

    def step(self, ids: Tensor) -> Tensor:
        """Append a token to each row."""
        return _tensor(self._stepper.step(ids.cpu().numpy()))

    def select(self, rows: Tensor) -> None:
        """Go on with these rows."""
        self._stepper.select(rows.cpu().numpy())


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32))
