"""Parameters, gradients and AdamW in a few flat arrays, and the learning rate's schedule.

Master weights are one float32 array; the model's own parameters are views into it, so the model is
always current. The packed forward (``architectures/``) reads a bfloat16 copy and leaves bfloat16
gradients, cast once a step. Of the word embedding only the rows that the data uses are carried: all
other rows have a gradient of exactly zero at every step, so AdamW (Loshchilov & Hutter 2019) does
nothing to them but weight decay, which is made up for when the rows are written back.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..architectures.base import Architecture
from ..backends.base import Backend
from ..core.config import FinetuneConfig
from .checkpoint import TENSORS


def schedule(config: FinetuneConfig, steps: int, step: int) -> float:
    """Return the factor on the learning rate at a step (from 0): linear warm-up, then the chosen fall."""
    warmup = math.ceil(config.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 if config.schedule == "constant" else 1.0 - progress


class _Part(NamedTuple):
    """Parameters that lie side by side, and how they are trained. ``rows``: used rows of an embedding."""

    parameters: tuple[Tensor, ...]
    packed: bool
    scale: float
    decay: bool
    rows: Tensor | None = None

    @property
    def size(self) -> int:
        if self.rows is not None:
            return len(self.rows) * self.parameters[0].shape[1]
        return sum(p.numel() for p in self.parameters)


class Parameters:
    """All trained parameters of a model with their gradients and AdamW's state (``base.Weights``).

    Args:
        model: a transformers model in float32, on its device.
        config: learning rate, weight decay, clipping and layer decay.
        learning_rate: the peak rate.
        architecture: the packed forward's family, or None for transformers' own forward.
        dtype: precision of the packed forward's work.
        used: sorted ids of the tokens that the data uses; None trains the whole embedding.
    """

    def __init__(
        self,
        model: nn.Module,
        config: FinetuneConfig,
        learning_rate: float,
        *,
        architecture: Architecture | None = None,
        dtype: torch.dtype = torch.float32,
        used: np.ndarray[Any, Any] | None = None,
    ) -> None:
        self._model = model
        self.clip = config.gradient_clip
        self.learning_rate = learning_rate
        self.fresh = True
        self.dtype = dtype
        self._table = architecture.embedding(model) if architecture and used is not None else None
        if self._table is None or not self._table.requires_grad:
            self._table = used = None
        self._rows = None if used is None else torch.as_tensor(used, dtype=torch.int64)
        self._remap = self._make_remap()
        self._untouched_decay, self._table_scale = 1.0, 1.0
        self._decays: list[float] = []  # by which the rows that no text uses were multiplied so far
        parts = self._parts(model, config, architecture)
        self._place: dict[int, tuple[int, int]] = {}
        self._shared: list[Tensor] = []
        self._fill(parts, dtype)
        self.optimizer = torch.optim.AdamW(
            self._segments(parts, config.weight_decay), lr=learning_rate, fused=self.master.device.type in FUSED
        )
        for (segment,) in (group["params"] for group in self.optimizer.param_groups):  # now, so that memory is known
            zeros = {name: torch.zeros_like(segment) for name in MOMENTS}
            self.optimizer.state[segment] = {"step": torch.zeros((), device=segment.device), **zeros}
        self._buffers_ready = False

    # -- layout -------------------------------------------------------------------------------------

    def _parts(self, model: nn.Module, config: FinetuneConfig, architecture: Architecture | None) -> list[_Part]:
        groups = architecture.layout(model) if architecture else []
        packed = {id(p) for group in groups for p in group}
        rest = [(p,) for p in model.parameters() if id(p) not in packed]
        scales = layer_scales(model, config.layer_decay)
        parts = []
        for group in [*groups, *rest]:
            if group[0].requires_grad:
                rows = self._rows if group[0] is self._table else None
                decay = group[0].ndim > 1
                parts.append(_Part(tuple(group), id(group[0]) in packed, scales[id(group[0])], decay, rows))
        return sorted(parts, key=lambda part: (not part.packed, part.scale, not part.decay))  # stable

    def _fill(self, parts: list[_Part], dtype: torch.dtype) -> None:
        """Copy the parameters into flat arrays and make them views of these."""
        size = sum(part.size for part in parts)
        device = parts[0].parameters[0].device
        self.master = torch.empty(size, dtype=torch.float32, device=device)
        self.gradients = torch.zeros(size, dtype=torch.float32, device=device)
        self._packed = sum(part.size for part in parts if part.packed)
        low = dtype != torch.float32
        self._work = torch.empty(self._packed, dtype=dtype, device=device) if low else self.master
        self._low = torch.zeros(self._packed, dtype=dtype, device=device) if low else self.gradients
        at = 0
        for part in parts:
            if part.rows is not None:
                table = part.parameters[0]
                self._table_slice, self._table_scale = slice(at, at + part.size), part.scale
                self.master[self._table_slice] = table.detach()[part.rows.to(device)].reshape(-1)
                at += part.size
                continue
            for parameter in part.parameters:
                here = slice(at, at + parameter.numel())
                self.master[here] = parameter.detach().reshape(-1)
                parameter.data = self.master[here].view_as(parameter)
                parameter.grad = self.gradients[here].view_as(parameter)
                self._place[id(parameter)] = (here.start, here.stop)
                self._shared.append(parameter)
                at = here.stop
        self._refresh()

    def _segments(self, parts: list[_Part], weight_decay: float) -> list[dict[str, Any]]:
        """Merge neighbours that are trained alike into one tensor each."""
        segments: list[dict[str, Any]] = []
        at, last = 0, None
        for part in parts:
            key = (part.packed, part.scale, part.decay)
            if key == last:
                segments[-1]["stop"] = at + part.size
            else:
                segments.append({"start": at, "stop": at + part.size, "scale": part.scale, "decay": part.decay})
            at, last = at + part.size, key
        groups = []
        for segment in segments:
            here = slice(segment["start"], segment["stop"])
            tensor = self.master[here]
            tensor.grad = self.gradients[here]
            groups.append(
                {"params": [tensor], "scale": segment["scale"], "weight_decay": weight_decay * segment["decay"]}
            )
        self._weight_decay = weight_decay
        return groups

    def _make_remap(self) -> Tensor | None:
        if self._table is None or self._rows is None:
            return None
        remap = torch.full((self._table.shape[0],), -1, dtype=torch.int64)
        remap[self._rows] = torch.arange(len(self._rows))
        return remap.to(self._table.device)

    # -- what the packed forward asks for (base.Weights) ----------------------------------------------

    def work(self, *parameters: Tensor) -> Tensor:
        """Return the stacked parameters in the work precision: a view that follows every step."""
        if id(parameters[0]) not in self._place:  # frozen
            stacked = torch.cat([p.detach() for p in parameters])
            return stacked.to(self._work.dtype)
        return self._view(self._work, parameters)

    def gradient(self, *parameters: Tensor) -> Tensor | None:
        """Return where the gradient of the stacked parameters goes; None where they are frozen."""
        return self._view(self._low, parameters) if id(parameters[0]) in self._place else None

    def rows(self, parameter: Tensor, ids: Tensor) -> Tensor:
        """Return rows of the word embedding in the work precision."""
        if self._remap is None:
            return parameter.detach()[ids].to(self._work.dtype)
        return self._compact(self.master)[self._remap[ids]].to(self._work.dtype)

    def add_rows(self, parameter: Tensor, ids: Tensor, gradient: Tensor) -> None:
        """Add the gradient of rows of the word embedding. gradient: (tokens, hidden)."""
        if self._remap is not None:
            self._compact(self.gradients).index_add_(0, self._remap[ids], gradient.float())
        elif parameter.grad is not None:
            parameter.grad.index_add_(0, ids, gradient.float())

    def _view(self, flat: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
        start, stop = self._place[id(parameters[0])][0], self._place[id(parameters[-1])][1]
        return flat[start:stop].view(-1, *parameters[0].shape[1:])

    def _compact(self, flat: Tensor) -> Tensor:
        assert self._table is not None
        return flat[self._table_slice].view(-1, self._table.shape[1])

    # -- a step ---------------------------------------------------------------------------------------

    def absorb(self) -> None:
        """Take over the packed forward's gradients after a backward pass; several add up."""
        if self._low is not self.gradients:
            here = self.gradients[: self._packed]
            here.add_(self._low) if self._buffers_ready else here.copy_(self._low)
            self._buffers_ready = True
        else:
            self.fresh = False

    def reduce(self, backend: Backend) -> None:
        """Add the gradients of all processes up."""
        backend.sum_(self.gradients)

    def norm(self) -> float:
        """Return the norm of the whole gradient."""
        return math.sqrt(float(torch.dot(self.gradients, self.gradients)))  # twice as quick as vector_norm

    def step(self, factor: float, norm: float) -> float:
        """Clip, update, and make ready for the next step. Returns the learning rate used."""
        scale = (norm + 1e-6) / self.clip if 0.0 < self.clip < norm else None
        # the fused kernel divides by it while it reads the gradients: no pass over them to clip
        self.optimizer.grad_scale = None if scale is None else self.master.new_tensor(scale)  # type: ignore[attr-defined]
        rate = self.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.step()
        self._untouched_decay *= 1.0 - rate * self._table_scale * self._weight_decay
        self._refresh()
        self.clear()
        return rate

    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the gradient of each trained parameter, in its own shape, after the backward pass of a step."""
        for name, parameter in self._model.named_parameters():
            if parameter is self._table:
                assert self._rows is not None
                whole = torch.zeros_like(parameter)
                whole[self._rows.to(whole.device)] = self._compact(self.gradients)
                yield name, whole
            elif parameter.grad is not None:
                yield name, parameter.grad

    def clear(self) -> None:
        """Forget the gradients of this step."""
        start = 0 if self._low is self.gradients else self._packed
        self.gradients[start:].zero_()
        self._buffers_ready, self.fresh = False, True

    def _refresh(self) -> None:
        if self._work is not self.master:
            self._work.copy_(self.master[: self._packed])

    def write_back(self) -> None:
        """Bring the model's word embedding up to date; all other parameters always are."""
        if self._table is None or self._rows is None:
            return
        rows = self._rows.to(self._table.device)
        if self._untouched_decay != 1.0:
            self._table.data.mul_(self._untouched_decay)
            self._decays.append(self._untouched_decay)
            self._untouched_decay = 1.0
        self._table.data[rows] = self._compact(self.master)

    def weights(self) -> dict[str, Tensor]:
        """Return copies of all weights of the model."""
        self.write_back()
        return {name: value.detach().cpu().clone() for name, value in self._model.state_dict().items()}

    # -- checkpoints ----------------------------------------------------------------------------------

    def checksum(self) -> str:
        """Return a checksum of the weights that are trained, by which a checkpoint knows its model."""
        return f"{zlib.crc32(self.master.cpu().numpy().tobytes()):08x}"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that a step changes: copies of tensors in the CPU's memory, and numbers as JSON types."""
        states = [self.optimizer.state[group["params"][0]] for group in self.optimizer.param_groups]
        moments = {name: torch.cat([state[name] for state in states]).cpu() for name in MOMENTS}
        numbers = {"updates": float(states[0]["step"]), "untouched_decay": self._untouched_decay,
                   "decays": list(self._decays)}  # fmt: skip
        return {"master": self.master.to("cpu", copy=True), **moments}, numbers

    def restore(self, folder: Path, numbers: Mapping[str, Any]) -> None:
        """Take over a state that was written to a folder, in a model that is as it was when its training began."""
        tensors = load_file(folder / TENSORS)
        self.master.copy_(tensors["master"])
        at = 0
        for group in self.optimizer.param_groups:
            state = self.optimizer.state[segment := group["params"][0]]
            state["step"].fill_(numbers["updates"])
            for name in MOMENTS:
                state[name].copy_(tensors[name][at : at + segment.numel()])
            at += segment.numel()
        if self._table is not None:
            for decay in numbers["decays"]:  # one by one: the same bits come out
                self._table.data.mul_(decay)
        self._decays, self._untouched_decay = list(numbers["decays"]), numbers["untouched_decay"]
        self._refresh()

    def release(self) -> None:
        """Give the model parameters of its own again, and drop the optimiser's memory."""
        self.write_back()
        for group in self.optimizer.param_groups:
            group["params"] = []
        self.optimizer.state.clear()
        for parameter in self._shared:
            parameter.data, parameter.grad = parameter.data.clone(), None


MOMENTS = ("exp_avg", "exp_avg_sq")
FUSED = ("cpu", "cuda", "mps", "xpu")


def layer_scales(model: nn.Module, decay: float) -> dict[int, float]:
    """Return a learning-rate factor per parameter: ``decay`` to the power of its distance from the head.

    Layer-wise rate decay as in Sun et al. 2019 ("How to Fine-Tune BERT"): the head has factor 1, the
    last layer ``decay``, the layer below ``decay`` squared, the embeddings one more.
    """
    names = dict(model.named_parameters())
    whole: Any = model
    table = getattr(whole.get_input_embeddings(), "weight", None)
    depth = max((n for name in names for n in _layer_numbers(name)), default=-1) + 1
    scales = {}
    for name, parameter in names.items():
        layer = next(_layer_numbers(name), None)
        if layer is not None:
            scales[id(parameter)] = decay ** (depth - layer)
        else:
            first = "embeddings" in name or (parameter is table and not _is_head(whole, table))
            scales[id(parameter)] = decay ** (depth + 1) if first else 1.0
    return scales


def _is_head(model: Any, table: Tensor) -> bool:
    """Say whether a decoder's table of words is also its head."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is table


def _layer_numbers(name: str) -> Iterator[int]:
    return (int(part) for part in name.split(".") if part.isdigit())
