"""How much arithmetic a training needs, and how much an implementation really does.

Useful work follows the usual estimate (Kaplan et al. 2020, section 2.1): 6 floating-point operations per
token and parameter that takes part in matrix products, 2 forward and 4 backward. Only real tokens count,
and only the matrices of the encoder's layers: no embeddings, no head, no attention products (a few per
cent at these lengths). Executed work is counted by PyTorch operator by operator: padding adds to it, and
skipping what the result does not depend on takes away from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORMULA = "6 x encoder-layer matrix parameters x real tokens"


def matrix_parameters(folder: Path) -> int:
    """Return the parameters of the encoder layers' matrices: 4 of attention, 2 of the feed-forward part."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return int(config["num_hidden_layers"] * (4 * hidden * hidden + 2 * hidden * inner))


def useful(folder: Path, tokens: int, epochs: int = 1) -> float:
    """Return the useful floating-point operations of a training: ``FORMULA``."""
    return 6.0 * matrix_parameters(folder) * tokens * epochs


@contextmanager
def counted() -> Iterator[Any]:
    """Count the operations of matrix products inside the block: ``counter.get_total_flops()``.

    Slows the block down, so it never runs inside a timed one.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def attend(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def attend_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(gradient, query, key, value)

    def add_product(_sum: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
        return 2 * math.prod(left) * right[-1]

    aten = torch.ops.aten
    unlisted = {  # PyTorch's own list lacks the processor's attention kernel and products added in place
        aten._scaled_dot_product_flash_attention_for_cpu: attend,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attend_backward,
        aten.addmm_: add_product,
        aten.baddbmm_: add_product,
    }
    with FlopCounterMode(display=False, custom_mapping=unlisted) as counter:
        yield counter
