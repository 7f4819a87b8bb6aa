"""ExecuTorch programs: ``model.pte``, lowered for XNNPACK, which runs on the processors of phones and of computers.

A program reads one row at a time, of any length up to its limit: no padding, no mask, and an answer cannot depend on
the rows beside it. It gives what the task reads: logits of the row or of each token, or the embedding itself.

A decoder's program keeps keys and values inside. It takes tokens and their places, as ExecuTorch's own runners call it,
and gives the logits after the last one.

``int8``: weights by output channel, activations by token as they come (nothing to calibrate), tables of embeddings by
row. ``int4``: the same with the weights of layers in groups of 4 bits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import UsageError
from ..data.tokenizer import longest
from .base import Exporter, Source, Written, group_size, kind_of, still

FILE = "model.pte"
CHUNK = 128
"""Tokens of a prompt that a decoder reads at once: memory between its layers is planned for so many."""
LONGEST = 2048
"""Most tokens that a decoder keeps keys and values of."""


class ExecuTorchFormat(Exporter):
    """A program for ExecuTorch."""

    target = "executorch"
    engine = "executorch"
    requires = ("executorch", "torchao")
    extra = "executorch"
    precisions = {"encoder": ("float32", "int8"), "decoder": ("float32", "int8", "int4")}  # noqa: RUF012
    mixed = ("int8", "int4")

    def write(self, source: Source, folder: Path, precision: str) -> Written:
        """Write ``model.pte``."""
        from . import _executorch_graph as graph

        model, config = copy.deepcopy(source.model), source.model.config
        writes, limit = kind_of(source.task, config) == "decoder", longest_of(source)
        notes: list[str] = []
        with still():
            graph.quantize(model, source.kept, precision, self.grouped(model, precision))
            if writes:
                if limit > LONGEST:
                    limit, notes = LONGEST, [f"reads and writes up to {LONGEST} tokens"]
                more: Mapping[str, Any] = {"longest": limit, "chunk": min(CHUNK, limit - 1)}
                program = graph.decoder(model, **more)
            else:
                more = {"longest": limit, "inputs": graph.inputs(source.example())}
                program = graph.encoder(model, source.task.output, **more)
            with (folder / FILE).open("wb") as file:
                program.write_to_file(file)
        return Written([FILE], notes, {"writes": writes, **more})

    def grouped(self, model: Any, precision: str) -> int:
        """Return how many weights share a scale, where they do.

        Raises:
            UsageError: XNNPACK's groups do not divide the model's widths.
        """
        size = group_size(model)
        if precision == "int4" and size < 32:
            raise UsageError("XNNPACK has 4 bits in groups of 32 weights, which do not divide this model's widths",
                             hint="int8")  # fmt: skip
        return size


def longest_of(source: Source) -> int:
    """Return how many tokens a model takes."""
    config = source.model.config
    positions = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
    padding = getattr(config, "pad_token_id", None)
    return longest(config.model_type, positions, padding, source.tokenizer.model_max_length)
