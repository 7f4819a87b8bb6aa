"""The optimiser step in KerasHub on JAX or TensorFlow: what the loop asks of ``Stepper``, done in another process.

The loop, its batches, schedule, evaluations and records stay what they are. Only a step is computed elsewhere
(``frameworks/``), from the same weights by the same rules; for an evaluation the weights come back into the
transformers model, which is also what is saved.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ..core.events import Note
from ..data.batching import Batch, pad, rectangle, split
from ..frameworks import losses, models
from ..frameworks.process import Process
from ..tasks.base import IGNORED
from .checkpoint import TENSORS
from .optimizer import layer_scales, schedule

if TYPE_CHECKING:
    from .setup import Setup


class KerasStepper:
    """One optimiser step in ``setup.config.framework``; the contract is ``stepper.Stepper``'s.

    Args:
        model: the transformers model, on the CPU; changed by ``write_back`` and ``release``.
        setup: all that was decided; ``frameworks.supported`` has refused what can't be done.
    """

    lost = False
    """Whether the process died, and the weights since the last ``write_back`` with it."""

    def __init__(self, model: Any, setup: Setup) -> None:
        self.model, self.setup = model, setup
        self.longest = int(setup.train.lengths.max())
        scales = layer_scales(model, setup.config.layer_decay)
        tensors = dict(model.named_parameters())
        settings = {
            "model": models.described(model.config),
            "loss": losses.described(setup.task),
            "seed": setup.config.seed,
            "clip": setup.config.gradient_clip,
            "decay": setup.config.weight_decay,
            "threads": torch.get_num_threads(),
            # by torch's shapes: Keras keeps some biases as matrices, (heads, width)
            "tensors": {name: [scales[id(tensor)], tensor.ndim > 1] for name, tensor in tensors.items()},
        }
        self._process = Process(setup.config.framework, settings, {k: v.detach().numpy() for k, v in tensors.items()})

    def rehearse(self) -> list[Note]:
        """Try nothing: memory is the framework's own."""
        return []

    notes = rehearse

    def compute(self, batch: Batch, step: int = 0) -> tuple[float, float]:
        """Return the loss of the batch and the norm of its gradient."""
        config, loss, norm = self.setup.config, 0.0, 0.0
        weight = max(self.setup.task.weight(batch), 1e-12)
        size = config.micro_batch_size or config.batch_size
        for number, part in enumerate(split(batch, size)):
            arrays = self._inputs(part, size) | {"targets": _targets(part, *self._shape(part, size))}
            answer = self._ask({"do": "compute", "weight": weight, "step": step, "part": number}, arrays)
            loss, norm = loss + answer.content["loss"], answer.content["norm"]
        return loss, norm

    def update(self, step: int) -> float:
        """Update the weights; return the learning rate used."""
        rate = self.setup.learning_rate * schedule(self.setup.config, self.setup.steps, step)
        self._ask({"do": "update", "rate": rate})
        return rate

    def discard(self) -> None:
        """Forget the gradient: the next one takes its place."""

    def logits(self, batch: Batch) -> torch.Tensor:
        """Return the framework's own logits: (rows, classes), or of the supervised places, (places, vocabulary)."""
        size = len(batch)
        out = torch.from_numpy(self._ask({"do": "logits"}, self._inputs(batch, size)).arrays["logits"])
        if self.setup.task.output == "row":
            return out
        return out[torch.from_numpy(_targets(batch, *self._shape(batch, size)) != IGNORED)]

    def write_back(self) -> None:
        """Bring the transformers model up to date."""
        arrays = self._ask({"do": "give"}).arrays
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(torch.from_numpy(arrays[name]))

    def weights(self) -> dict[str, torch.Tensor]:
        """Return copies of all weights of the model, as it was written back."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    # -- checkpoints: what ``optimizer.Parameters`` does for torch ----------------------------------------

    @property
    def parameters(self) -> KerasStepper:
        """Where the state of the training is: here."""
        return self

    def checksum(self) -> str:
        """Return a checksum of the transformers model's weights, by which a checkpoint knows its model."""
        crc = 0
        for parameter in self.model.parameters():
            crc = zlib.crc32(parameter.detach().numpy().tobytes(), crc)
        return f"{crc:08x}"

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return all that a step changes: tensors, and numbers as JSON types."""
        answer = self._ask({"do": "state"})
        return {name: torch.from_numpy(array) for name, array in answer.arrays.items()}, answer.content

    def restore(self, folder: Path, numbers: Mapping[str, Any]) -> None:
        """Take over a state that was written to a folder."""
        self._ask({"do": "restore", "step": numbers["step"]}, load_file(folder / TENSORS))

    def release(self) -> None:
        """Bring the transformers model up to date and end the process."""
        try:
            if not self.lost:
                self.write_back()
        finally:
            self._process.close()

    def _ask(self, content: dict[str, Any], arrays: dict[str, NDArray[Any]] | None = None) -> Any:
        try:
            return self._process.ask(content, arrays)
        except BaseException:
            self.lost = True
            raise

    def _shape(self, batch: Batch, rows: int) -> tuple[int, int]:
        """Return the rows and the length that a batch is filled up to: few, since each shape is compiled anew."""
        length = int(batch.lengths.max())
        return rows, min(_rung(length), max(self.longest, length))

    def _inputs(self, batch: Batch, rows: int) -> dict[str, NDArray[Any]]:
        """Return the batch as rectangles under KerasHub's names."""
        shape = self._shape(batch, rows)
        inputs = {name: _filled(value, shape, 0) for name, value in pad(batch, self.setup.pad_id).items()}
        mask = inputs["attention_mask"]
        mask[len(batch) :, 0] = 1  # a row that only fills up still attends to something
        out = {"token_ids": np.where(mask, inputs["input_ids"], self.setup.pad_id), "padding_mask": mask}
        if self.setup.task.output == "row":
            out["segment_ids"] = inputs.get("token_type_ids", np.zeros_like(mask))
        return {name: value.astype(np.int32) for name, value in out.items()}


def _rung(length: int) -> int:
    """Return the next of 16, 24, 32, 48, 64, 96, ..."""
    power = 16
    while power < length:
        if length <= power * 3 // 2:
            return power * 3 // 2
        power *= 2
    return power


def _filled(array: NDArray[Any], shape: tuple[int, ...], fill: int) -> NDArray[Any]:
    """Return the array in the corner of a larger one."""
    out = np.full(shape, fill, dtype=array.dtype)
    out[tuple(slice(size) for size in array.shape)] = array
    return out


def _targets(batch: Batch, rows: int, length: int) -> NDArray[np.int32]:
    """Return what the loss compares with, as ``frameworks.losses.summed`` takes it."""
    assert batch.targets is not None
    targets = batch.targets
    if batch.target_lengths is not None:
        targets = _filled(rectangle(targets, batch.target_lengths, IGNORED)[0], (rows, length), IGNORED)
    return _filled(targets.astype(np.int32), (rows, *targets.shape[1:]), IGNORED)
