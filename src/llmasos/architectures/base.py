"""Forwards of our own over transformers' parameters: rows packed end to end, no work on padding.

A file beside this one serves one family of architectures. It changes nothing in the transformers
model: it reads the very same parameters, and whoever uses it first proves on a real batch that it
computes what transformers computes (``training/run.py``, ``engines/torch.py``). A model of a
family without a file here runs transformers' own forward.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..core import plugins
from ..core.hardware import to_device
from ..tasks._losses import Projected as Projected
from ._plain import supervised

if TYPE_CHECKING:
    from ..data.batching import Batch


class Group(NamedTuple):
    """Neighbouring rows of (nearly) the same length, for which attention is one batched product.

    ``start``, ``stop``: their tokens in the pack. ``rows``, ``length``: shape of the rectangle.
    ``padded``: None where the rectangle is exactly the tokens; otherwise, for each of its rows x
    length places, the token there (padding repeats the first token of the pack). ``valid``: places of
    the rectangle that hold a token, in order. ``bias``: (rows, 1, 1, length), minus infinity on padding.
    """

    start: int
    stop: int
    rows: int
    length: int
    padded: torch.Tensor | None
    valid: torch.Tensor | None
    bias: torch.Tensor | None


@dataclass(frozen=True)
class Pack:
    """Rows end to end: ids (places,), token types, positions in the row, and the attention groups.

    ``tokens`` places hold a token; those behind them make its size a round one (``GRAIN``), belong to no row
    and are read by nobody. ``first`` is the place of each row's first token, (rows,); ``read`` are the places
    that are supervised, for a task of output "vocabulary"; ``targets`` and ``target_lengths`` are then the batch's
    own.
    """

    tokens: int
    ids: torch.Tensor
    types: torch.Tensor | None
    positions: torch.Tensor
    first: torch.Tensor
    groups: tuple[Group, ...]
    lengths: torch.Tensor
    read: torch.Tensor | None = None
    targets: np.ndarray[Any, Any] | None = None
    target_lengths: np.ndarray[Any, Any] | None = None

    def means(self, hidden: torch.Tensor) -> torch.Tensor:
        """Average over the tokens of each row. hidden: (tokens, width) -> (rows, width)."""
        rows = torch.repeat_interleave(torch.arange(len(self.lengths), device=hidden.device), self.lengths)
        total = hidden.new_zeros(len(self.lengths), hidden.shape[1]).index_add_(0, rows, hidden)
        return total / self.lengths[:, None]


GRAIN = 32
"""Matrix products are compiled for their shape (2 to 3 ms each on a CPU with AMX, four times the product itself),
so the shapes of steps must recur: packs are filled up to a multiple of this, which also suits the tiles, and large
ones to a sixteenth of their power of two."""
ROWS, LENGTH = 4, 8
"""The same for attention: groups of so many rows, or a multiple, and lengths that are a multiple."""
SCORES = 1 << 19
"""Scores of a group for each head. With 12 heads, 32 rows of 256 tokens took 45 ms as one group, 17 as four."""


def pack(batch: Batch, device: torch.device | str = "cpu", output: str = "row") -> Pack:
    """Lay a batch out for a packed forward. Rows must come sorted by length, longest first."""
    lengths = np.asarray(batch.lengths, dtype=np.int64)
    made = laid_out(batch.ids, lengths, _runs(lengths), device, batch.types)
    if output != "vocabulary":
        return made
    return replace(made, read=supervised(batch, device), targets=batch.targets, target_lengths=batch.target_lengths)


def laid_out(
    ids: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any], runs: Sequence[tuple[int, int]],
    device: torch.device | str, types: np.ndarray[Any, Any] | None = None,
) -> Pack:  # fmt: skip
    """Lay rows out that lie end to end; ``runs`` are the rows of each group, from and to."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    fill = -len(ids) % max(GRAIN, 1 << max(0, len(ids).bit_length() - 5))

    def filled(values: np.ndarray[Any, Any], value: int) -> torch.Tensor:
        return to_device(np.pad(values.astype(np.int64), (0, fill), constant_values=value), device)

    return Pack(
        tokens=len(ids),
        ids=filled(ids, int(ids[0])),
        types=None if types is None else filled(types, 0),
        positions=filled(positions, 1),
        first=to_device(offsets[:-1], device),
        lengths=to_device(lengths, device),
        groups=groups_of(lengths, runs, device),
    )


def groups_of(
    lengths: np.ndarray[Any, Any], runs: Sequence[tuple[int, int]], device: torch.device | str
) -> tuple[Group, ...]:
    """Lay rows of a pack out for attention; ``runs`` are the rows of each group, from and to."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return tuple(_group(lengths, offsets, a, b, device) for a, b in runs)


def _runs(lengths: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """Cut sorted rows into groups of near-equal length.

    Attention is a small part of the work, so a rectangle with up to a fifth of padding in it costs
    less than the many small products that exact groups of one or two rows would need. What is larger than a cache
    is cut as well.
    """
    runs, begin = [], 0
    for i in range(ROWS, len(lengths), ROWS):
        shorter = lengths[i] < 0.8 * lengths[begin] and lengths[i] <= lengths[begin] - LENGTH
        if shorter or (i + ROWS - begin) * int(lengths[begin]) ** 2 > SCORES:
            runs.append((begin, i))
            begin = i
    return [*runs, (begin, len(lengths))]


def _group(
    lengths: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any], begin: int, end: int, device: torch.device | str
) -> Group:
    start, stop, longest = int(offsets[begin]), int(offsets[end]), -(-int(lengths[begin:end].max()) // LENGTH) * LENGTH
    rows = end - begin
    if lengths[begin:end].min() == longest:
        return Group(start, stop, rows, longest, None, None, None)
    inside = np.arange(longest)[None, :] < lengths[begin:end, None]  # (rows, length)
    tokens = np.where(inside, offsets[begin:end, None] + np.arange(longest)[None, :], 0)
    bias = np.where(inside, 0.0, -np.inf).astype(np.float32)[:, None, None, :]
    return Group(
        start,
        stop,
        rows,
        longest,
        to_device(tokens.reshape(-1), device),
        to_device(np.flatnonzero(inside), device),
        to_device(bias, device),
    )


class Dropout:
    """Draw dropout masks from one generator, quickly.

    Drawing masks with ``bernoulli_`` takes an eighth of a training step on a CPU. Here each element
    costs 16 random bits, so the probability is rounded to a multiple of 2^-16 (0.1 becomes 0.100006)
    and the scale 1 / (1 - p) is that of the rounded probability: the expectation stays exact.
    """

    def __init__(self, seed: int) -> None:
        self.generator = np.random.Generator(np.random.SFC64(seed))

    @staticmethod
    def rounded(p: float) -> float:
        """Return the probability that is really drawn."""
        return round(p * 65536) / 65536

    def mask(self, shape: Sequence[int], p: float, like: torch.Tensor) -> torch.Tensor | None:
        """Return ones where an element is kept and zeros where it is dropped; None for p = 0."""
        if p == 0.0:
            return None
        if like.device.type != "cpu":
            return torch.empty(*shape, dtype=like.dtype, device=like.device).bernoulli_(1.0 - self.rounded(p))
        size = int(np.prod(shape))
        bits = self.generator.integers(0, 2**64, size=-(-size // 4), dtype=np.uint64).view(np.int16)[:size]
        out = torch.empty(size, dtype=like.dtype)
        torch.ge(torch.from_numpy(bits), round(p * 65536) - 32768, out=out)
        return out.view(*shape)


class QuickDropout(TorchFunctionMode):
    """Let modules that call ``torch.nn.functional.dropout`` draw their masks from a ``Dropout``.

    Torch's own took 51 of the 270 ms of a step of marian-7m on 64 pairs.
    """

    def __init__(self, dropout: Dropout) -> None:
        super().__init__()
        self._dropout = dropout

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Drop, or leave the function as it is."""
        kwargs = kwargs or {}
        return self._drop(*args, **kwargs) if func is nn.functional.dropout else func(*args, **kwargs)

    def _drop(self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        del inplace  # what is returned is used
        mask = self._dropout.mask(input.shape, p, input) if training else None
        return input if mask is None else input * mask.mul_(1.0 / (1.0 - Dropout.rounded(p)))


class Weights(Protocol):
    """Where a forward finds its numbers and leaves its gradients.

    ``dtype``: the precision of the work. ``work``: the parameters in it, stacked along the first axis.
    ``gradient``: the place for their gradient, of the same shape, or None where they are frozen. ``fresh`` is
    true while gradients of this step have not been written yet, so that the first write replaces: a forward is followed
    by its backward before the next one, and every backward pass reaches every trained place.
    """

    fresh: bool
    dtype: torch.dtype

    def work(self, *parameters: torch.Tensor) -> torch.Tensor:
        """Return the stacked parameters in the precision of the work."""

    def gradient(self, *parameters: torch.Tensor) -> torch.Tensor | None:
        """Return the place for the gradient of the stacked parameters, or None."""

    def rows(self, parameter: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return rows of an embedding, (len(ids), width)."""

    def add_rows(self, parameter: torch.Tensor, ids: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add to the gradient of rows of an embedding."""


def write(weights: Weights, place: torch.Tensor | None, value: torch.Tensor) -> None:
    """Leave a gradient: the first of a step replaces, later ones add."""
    if place is not None:
        place.copy_(value) if weights.fresh else place.add_(value)


class FastForward(Protocol):
    """A forward bound to one model and one set of weights: a pack in, outputs out."""

    def __call__(self, pack: Pack, dropout: Dropout | None = None) -> torch.Tensor | Projected:
        """Return what the task's ``output`` says; with ``dropout``, that of a training step."""


class Architecture(Protocol):
    """A family of models for which there is a forward here."""

    autocast: bool
    """Whether the model's own modules compute, from its own parameters, under autocast."""

    def reason_against(self, model: nn.Module, output: str) -> str | None:
        """Return why this model cannot be served for such outputs, or None if it can."""

    def layout(self, model: nn.Module) -> list[tuple[torch.Tensor, ...]]:
        """Return the parameters of the packed part; those in one tuple must lie side by side in memory."""

    def embedding(self, model: nn.Module) -> torch.Tensor | None:
        """Return the word embedding, if only its used rows need to be trained."""

    def forward(self, model: nn.Module, weights: Weights, output: str) -> FastForward:
        """Bind the forward to a model and to where its weights are."""


class Prefix(NamedTuple):
    """The frozen layers under everything that is trained: what they make of a row stays the same.

    ``width``: numbers of a state. ``per_row``: there is one state a row, not one a token, since no other is read.
    ``dropout``: the largest probability of it inside, in training.
    """

    layers: int
    width: int
    per_row: bool
    dropout: float


@runtime_checkable
class Divisible(Protocol):
    """An architecture whose forwards come in two parts (``DividedForward``)."""

    def prefix(self, model: nn.Module, output: str) -> Prefix | None:
        """Return what is below the trained layers of a model, or None where no layer is."""


class DividedForward(FastForward, Protocol):
    """A forward in two parts: ``above(below(pack), pack)`` is the whole."""

    def below(self, pack: Pack, dropout: Dropout | None = None) -> torch.Tensor:
        """Return the states under the trained layers, (places, width), or (rows, width) with ``Prefix.per_row``."""

    def above(self, states: torch.Tensor, pack: Pack, dropout: Dropout | None = None) -> torch.Tensor | Projected:
        """Return from them what the task's ``output`` says."""


def frozen_layers(embeddings: nn.Module, layers: Iterable[nn.Module]) -> int:
    """Count the layers under the first trained one; none where the embeddings are trained."""
    if _trained(embeddings):
        return 0
    return sum(1 for _ in itertools.takewhile(lambda layer: not _trained(layer), layers))


def _trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def find(model: nn.Module, output: str) -> tuple[Architecture | None, str]:
    """Return the architecture that serves a model's outputs, or None, with the reason in words.

    A forward written for the family comes before one that runs the model's own modules.
    """
    reasons = []
    families: dict[str, Architecture] = {
        name: plugins.load("architectures", name) for name in plugins.names("architectures")
    }
    for name, architecture in sorted(families.items(), key=lambda item: item[1].autocast):
        reason = architecture.reason_against(model, output)
        if reason is None:
            return architecture, f"packed forward of architectures/{name}"
        reasons.append(f"{name}: {reason}")
    return None, "; ".join(reasons)


def bare(folder: Path, output: str) -> tuple[nn.Module, Architecture] | None:
    """Open a saved model in modules of our own, which import nothing of transformers, and the family that computes it.

    Nothing has compared that with transformers yet. None where no family here knows the model.
    """
    for name in plugins.names("architectures"):
        architecture: Any = plugins.load("architectures", name)
        opens = getattr(architecture, "bare", None)
        if opens is not None and (model := opens(folder, output)) is not None:
            return model, architecture
    return None


class Snapshot:
    """Weights for inference: the model's parameters in the work precision, copied once."""

    fresh = True

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def work(self, *parameters: torch.Tensor) -> torch.Tensor:
        """Return the stacked parameters in the work precision."""
        parts = [p.detach().to(self.dtype) for p in parameters]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def gradient(self, *_parameters: torch.Tensor) -> torch.Tensor | None:
        """Return None: nothing is trained."""
        return None

    def rows(self, parameter: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return rows of an embedding in the work precision."""
        return parameter.detach()[ids].to(self.dtype)

    def add_rows(self, parameter: torch.Tensor, ids: torch.Tensor, gradient: torch.Tensor) -> None:
        """Do nothing: nothing is trained."""
