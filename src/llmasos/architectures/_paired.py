"""What the packed forward of an encoder with a decoder adds: two packs, of sources and of targets, row by row.

The rows have one order, that of the sources, and one division into groups, so that the cross attention of a group is
one batched product of its targets with its sources.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..data.batching import rectangle
from ..tasks.base import IGNORED
from ._plain import shifted
from .base import Pack, laid_out


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
    rows = np.cumsum([0, *(group.rows for group in source.groups)])
    runs = list(itertools.pairwise(rows))
    return Paired(source, laid_out(ids, np.asarray(source.target_lengths, dtype=np.int64), runs, source.ids.device))


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
    handles = [
        side.embed_positions.register_forward_pre_hook(told(pack), with_kwargs=True) for side, pack in sides
    ]  # fmt: skip
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
