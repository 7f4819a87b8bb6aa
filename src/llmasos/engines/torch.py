"""PyTorch: the packed forward where there is one and it is proven, else transformers' own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..architectures import _proof
from ..architectures._plain import supervised, transformers_outputs
from ..architectures.base import Architecture, FastForward, Projected, Snapshot, find, pack
from ..backends.base import Backend
from ..data.batching import Batch
from ..tasks._losses import token_scores
from .base import few


class TorchEngine:
    """Run a transformers model on batches.

    Args:
        model: the model, in float32, on its device.
        pad_id: id for padding, where transformers' own forward needs it.
        output: what the task reads (``Task.output``).
        precision: "float32" or "bfloat16".
        speed: "auto" or "plain" (transformers' own forward always).
        likeliest: for output "vocabulary", how many of the likeliest tokens to give of each place.
        backend: the processes that compute side by side; one if not given.
        proven: what computes the model, where that was proven already.
    """

    def __init__(
        self, model: Any, pad_id: int, *, output: str = "row", precision: str = "float32", speed: str = "auto",
        likeliest: int = 0, backend: Backend | None = None, proven: Architecture | None = None,
    ) -> None:  # fmt: skip
        self.model = model.eval()
        self.pad_id = pad_id
        self.output, self.likeliest = output, likeliest
        self._backend = backend or Backend()
        self.at_once = self._backend.world
        self.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
        self.device = next(model.parameters()).device
        self._architecture: Architecture | None = None
        self._forward: FastForward | None = None
        self.how = f"{precision}, transformers' forward"
        if proven is not None:
            self._forward = proven.forward(model, Snapshot(self.dtype), output)
            self.how = f"{precision}, packed forward"
        elif speed == "auto":
            self._architecture, reason = find(model, output)
            self.how = f"{precision}, {reason}" if self._architecture else self.how

    def together(self, batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Compute one batch in each process, and tell all of them the outputs of all."""
        rank = self._backend.rank
        own = self.outputs(batches[min(rank, len(batches) - 1)])  # all take part, or the others would wait
        found = self._backend.gather(torch.from_numpy(own))
        return [one.numpy() for one in found[: len(batches)]]

    @torch.no_grad()
    def outputs(self, batch: Batch) -> NDArray[np.float32]:
        """Return outputs as ``engines/base.py`` says."""
        if self.output == "vocabulary" and not len(supervised(batch, "cpu")):
            return np.zeros((0, 2 + 2 * self.likeliest), dtype=np.float32)
        if self._architecture is not None and self._forward is None:
            self._prove(batch)
        out = self._outputs(batch)
        if self.output == "vocabulary":
            assert batch.targets is not None
            targets = batch.target_tensor(self.device)[supervised(batch, self.device)]
            return token_scores(out, targets, self.likeliest).cpu().numpy()
        assert isinstance(out, torch.Tensor)
        return out.float().cpu().numpy()

    def _outputs(self, batch: Batch) -> torch.Tensor | Projected:
        if self._forward is not None:
            return self._forward(pack(batch, self.device, self.output))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return transformers_outputs(self.model, batch, self.pad_id, self.output)

    def _prove(self, batch: Batch) -> None:
        """Use the packed forward only if it gives what transformers gives on a few of these rows."""
        assert self._architecture is not None
        part = few(batch)
        if part.targets is not None and not getattr(self.model.config, "is_encoder_decoder", False):
            # compared everywhere: what is asked may lie in other rows
            part = replace(part, targets=part.ids.astype(np.int64))
        proof = _proof.prove(self.model, self._architecture, part, self.pad_id, self.output)
        if proof.holds:
            self._forward = self._architecture.forward(self.model, Snapshot(self.dtype), self.output)
        else:
            self.how = f"transformers' forward: {proof.why_not}"
            self._architecture = None


PLUGIN = TorchEngine
