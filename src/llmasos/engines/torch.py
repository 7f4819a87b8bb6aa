"""PyTorch: the packed forward where there is one and it is proven, else transformers' own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..architectures import _proof
from ..architectures.base import Architecture, FastForward, Snapshot, find, pack
from ..data.batching import Batch
from .base import few


class TorchEngine:
    """Run a transformers model on batches.

    Args:
        model: the model, in float32, on its device.
        pad_id: id for padding, where transformers' own forward needs it.
        precision: "float32" or "bfloat16".
        speed: "auto" or "plain" (transformers' own forward always).
    """

    def __init__(self, model: Any, pad_id: int, *, precision: str = "float32", speed: str = "auto") -> None:
        self.model = model.eval()
        self.pad_id = pad_id
        self.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
        self.device = next(model.parameters()).device
        self._architecture: Architecture | None = None
        self._forward: FastForward | None = None
        self.how = f"{precision}, transformers' forward"
        if speed == "auto":
            self._architecture, reason = find(model)
            self.how = f"{precision}, {reason}" if self._architecture else self.how

    @torch.no_grad()
    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """Return logits, (rows, labels)."""
        if self._architecture is not None and self._forward is None:
            self._prove(batch)
        if self._forward is not None:
            out = self._forward(pack(batch, self.device))
        else:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                out = _proof.transformers_logits(self.model, batch, self.pad_id)
        return out.float().cpu().numpy()

    def _prove(self, batch: Batch) -> None:
        """Use the packed forward only if it gives what transformers gives on a few of these rows."""
        assert self._architecture is not None
        proof = _proof.prove(self.model, self._architecture, few(batch), self.pad_id)
        if proof.holds:
            self._forward = self._architecture.forward(self.model, Snapshot(self.dtype))
        else:
            self.how = f"transformers' forward (the packed one differs by {proof.logits:.1e})"
            self._architecture = None


PLUGIN = TorchEngine
