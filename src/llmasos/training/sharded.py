"""Parameters, gradients and AdamW where each process holds a part of everything (``backends/fsdp.py``).

The same interface as ``optimizer.Parameters``, over the sharded parameters that torch made.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.config import FinetuneConfig
from .optimizer import FUSED, MOMENTS, layer_scales

if TYPE_CHECKING:
    from ..backends.fsdp import FullySharded


class Sharded:
    """All trained parameters of a model that was cut up, with AdamW's state.

    Args:
        source: the whole model; it lends its memory, and gets its weights back at the end.
        config: learning rate, weight decay, clipping and layer decay.
        learning_rate: the peak rate.
        backend: the backend that cuts the model up.
        dtype: precision of the work.
    """

    def __init__(
        self, source: Any, config: FinetuneConfig, learning_rate: float, backend: FullySharded, dtype: torch.dtype
    ) -> None:
        model = backend.wrap(source, dtype)
        self.model, self._source, self._backend = model, source, backend
        self.clip, self.learning_rate = config.gradient_clip, learning_rate
        scales = layer_scales(model, config.layer_decay)
        groups: dict[tuple[float, bool], list[Any]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups[scales[id(parameter)], parameter.ndim > 1].append((name, parameter))
        self._places = [pair for pairs in groups.values() for pair in pairs]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for _, p in pairs], "scale": scale, "weight_decay": config.weight_decay * decay}
                for (scale, decay), pairs in groups.items()
            ],
            lr=learning_rate,
            fused=self.master.device.type in FUSED,
        )
        for _, parameter in self._places:
            zeros = {name: torch.zeros_like(parameter) for name in MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **zeros}

    @property
    def master(self) -> torch.Tensor:
        """Some of the numbers that this process holds: they tell the device."""
        return self._places[0][1].to_local()  # type: ignore[no-any-return]

    def most(self, count: int) -> int:
        """Return the largest of the processes' numbers."""
        return self._backend.most(count)

    def absorb(self) -> None:
        """Do nothing: gradients add up where they are."""

    def reduce(self, backend: Any) -> None:
        """Do nothing: torch has added the gradients up while they were computed."""

    def norm(self) -> float:
        """Return the norm of the whole gradient."""
        own = [p.grad.to_local().float().square().sum() for _, p in self._places if p.grad is not None]
        total = torch.stack(own).sum() if own else torch.zeros(())
        return math.sqrt(float(self._backend.sum_(total)))

    def step(self, factor: float, norm: float) -> float:
        """Clip, update, and make ready for the next step. Returns the learning rate used."""
        if 0.0 < self.clip < norm:
            for _, parameter in self._places:
                if parameter.grad is not None:
                    parameter.grad.to_local().mul_(self.clip / (norm + 1e-6))
        rate = self.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.step()
        self.clear()
        return rate

    def clear(self) -> None:
        """Forget the gradients of this step."""
        self.optimizer.zero_grad()

    def write_back(self) -> None:
        """Do nothing: the model is always up to date."""

    def weights(self) -> dict[str, torch.Tensor]:
        """Return all weights of the model; every process takes part."""
        return self._backend.whole(self.model)

    def checksum(self) -> str:
        """Return nothing: no process sees all weights at once."""
        return ""

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return all that a step changes: tensors of which each process holds a part, and numbers as JSON types."""
        tensors = {f"weight.{name}": parameter for name, parameter in self._places}
        for moment in MOMENTS:
            tensors |= {f"{moment}.{name}": self.optimizer.state[parameter][moment] for name, parameter in self._places}
        return tensors, {"updates": float(self.optimizer.state[self._places[0][1]]["step"])}

    def restore(self, folder: Path, numbers: Mapping[str, Any]) -> None:
        """Take over a state that was written to a folder."""
        tensors, _ = self.state()
        with torch.no_grad():
            self._backend.load({name: tensor.detach() for name, tensor in tensors.items()}, folder)
        for _, parameter in self._places:
            self.optimizer.state[parameter]["step"].fill_(numbers["updates"])

    def release(self) -> None:
        """Give the whole model its weights."""
        whole = self.weights()
        self.optimizer.state.clear()
        with torch.no_grad():
            for name, parameter in self._source.named_parameters():
                parameter.data, parameter.grad = whole[name].to(parameter.device), None
