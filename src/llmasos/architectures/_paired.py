"""What the packed forward of an encoder with a decoder adds: two packs, of sources and of targets, row by row.

The rows have one order, that of the sources, and one division into groups, so that the cross attention of a group is
one batched product of its targets with its sources.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..data.batching import rectangle
from ..tasks.base import IGNORED
from ._plain import shifted
from .base import ROWS, SCORES, Pack, groups_of, laid_out


class Paired(NamedTuple):
    """The packs that an encoder and a decoder read."""

    source: Pack
    target: Pack

    def sides(self, attention: Any) -> tuple[Pack, Pack]:
        """Return the packs of an attention's queries and of its keys."""
        if not attention.is_decoder:
            return self.source, self.source
        return self.target, self.target if attention.is_causal else self.source


def paired(model: Any, source: Pack) -> Paired:
    """Lay out what the decoder reads to give the targets: what the model itself makes of them, shifted right once."""
    assert source.targets is not None
    assert source.target_lengths is not None
    labels, inside = rectangle(source.targets, source.target_lengths, IGNORED)
    ids = shifted(model, torch.from_numpy(labels)).numpy()[inside]
    lengths, device = source.target_lengths.astype(np.int64), source.ids.device
    runs = _runs(len(lengths), max(int(lengths.max()), source.groups[0].length))
    groups = groups_of(source.lengths.cpu().numpy(), runs, device)
    return Paired(replace(source, groups=groups), laid_out(ids, lengths, runs, device))


def _runs(rows: int, longest: int) -> list[tuple[int, int]]:
    """Cut rows into groups of as many as a cache holds.

    Where lengths differ on two sides, groups of near-equal length would be small and of ever new shapes, each of which
    is compiled: an epoch of 6,400 short pairs took 11 % less time so.
    """
    size = max(ROWS, SCORES // longest**2 // ROWS * ROWS)
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def why_not(model: nn.Module) -> str | None:
    """Return why an encoder with a decoder cannot run packed, or None if it can."""
    sides: list[Any] = [getattr(model.base_model, name, None) for name in ("encoder", "decoder")]
    tables = [getattr(side, "embed_positions", None) for side in sides]
    if not all(table is not None and "position_ids" in inspect.signature(table.forward).parameters for table in tables):
        return "its positions cannot begin anew within a row"
    attentions = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
    if not all(hasattr(one, "is_decoder") and hasattr(one, "is_causal") for one in attentions):
        return "its attention does not say which side it is on"
    return None


@contextmanager
def places(model: Any, packs: Paired) -> Iterator[None]:
    """Let the tables of positions be asked for the places of tokens in their own rows."""

    def told(pack: Pack) -> Any:
        return lambda _module, args, options: (args, {**options, "position_ids": pack.positions})

    sides = ((model.base_model.encoder, packs.source), (model.base_model.decoder, packs.target))
    handles = [side.embed_positions.register_forward_pre_hook(told(pack), with_kwargs=True) for side, pack in sides]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
