"""Tell how a model will run on a device: whether it fits, and rows or tokens a second, from bytes and operations.

A roofline (Williams, Waterman and Patterson, 2009): a step takes as long as its arithmetic at the device's rate, or as
reading its bytes at the device's bandwidth, whichever is longer. That is a bound. ``expected`` is
a share of it, by experience; ``this-machine`` runs the model and shows its own. On a card a step is never shorter than
the launches of its kernels, which is what holds small models there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .core import bundle
from .core.errors import UsageError
from .devices import Device
from .loading import load_config, quiet
from .tasks.base import Task

BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": 1.0, "int8-dynamic": 1.0, "int4": 0.5}
GGUF = {"f16": "float16", "q8_0": "int8", "q4_k": "int4"}
"""What llama.cpp's formats are computed as."""
SHARES = {"rows": 0.45, "tokens": 0.55}
"""Of the bound, what is expected. Tokens: what docs/benchmarks.md has of decoding on two cores (54 %). Rows: assumed,
below the two thirds that real runtimes reach of a vector unit's peak."""
MATRIX = 0.3
"""The same for rows where a format is computed over four times as fast as float32, by matrix units: docs/benchmarks.md
has 29 % of a small encoder with AMX."""
KERNELS = 12
"""Kernels of a layer that torch runs one by one: six products, attention, activation, and norms with their sums."""
RUNTIME = 150e6
"""Bytes that a runtime, its code and a tokenizer take, by what the export gate saw of small artifacts."""


@dataclass(frozen=True)
class Shape:
    """What of a model decides its speed.

    Args:
        parameters: all weights.
        products: the weights that a token is multiplied with: all matrices but tables of embeddings.
        layers, width, inner, heads, key_heads, head_width, vocabulary: as in its configuration.
        writes: whether it writes token by token.
    """

    parameters: int
    products: int
    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    writes: bool


@dataclass(frozen=True)
class Estimate:
    """How a model will run on a device.

    Args:
        unit: what is counted a second, ``rows`` of ``length`` tokens or ``tokens`` written after ``length``.
        bound: the most that arithmetic and memory allow, a second; ``bound_by`` what holds the model, ``memory``,
            ``compute``, or ``launches`` where these leave less than its share.
        expected: ``share`` of the bound.
        first_seconds: for a model that writes, the least time to read ``length`` tokens.
        memory_bytes: weights, what a step keeps, and the runtime; ``usable_bytes`` what the device has for it.
        would_fit: precisions in which it would, where it does not.
        measured: what this machine reached, a second, where the device is this machine.
    """

    device: str
    what: str
    precision: str
    computed_in: str
    unit: str
    length: int
    batch_size: int
    bound: float
    bound_by: str
    share: float
    expected: float
    first_seconds: float | None
    weight_bytes: float
    step_bytes: float
    memory_bytes: float
    usable_bytes: float
    fits: bool
    would_fit: tuple[str, ...]
    measured: float | None
    sources: tuple[str, ...]
    estimated: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


def shape_of(folder: Path, task: Task | None) -> Shape:
    """Count a model's weights from its configuration alone."""
    import torch
    import transformers

    config = load_config(folder)
    writes = task is None or task.writes()
    kind = "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"
    auto = getattr(transformers, task.auto_class if task is not None else kind)
    with quiet(), torch.device("meta"):
        model = auto.from_config(config)
    tables = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    weights = {id(weight): weight for weight in model.parameters()}
    head = model.get_output_embeddings() if writes else None
    tied = bool(getattr(config, "tie_word_embeddings", False))
    total = sum(weight.numel() for weight in weights.values())
    products = sum(weight.numel() for key, weight in weights.items() if weight.ndim > 1 and key not in tables)
    if head is not None and id(head.weight) in tables:
        products += head.weight.numel()
    elif head is not None and tied:  # counted twice, for on the meta device nothing ties them
        total -= head.weight.numel()
    heads, width = int(config.num_attention_heads), int(config.hidden_size)
    inners = (getattr(config, name, None) for name in ("intermediate_size", "d_ff", "hidden_dim", "n_inner"))
    inner = int(next(filter(None, inners), 4 * width))
    return Shape(
        total, products, int(config.num_hidden_layers), width, inner, heads,
        int(getattr(config, "num_key_value_heads", None) or heads),
        int(getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or width // heads),
        int(config.vocab_size), writes,
    )  # fmt: skip


def estimate(
    shape: Shape, device: Device, precision: str, *, length: int, batch_size: int = 1,
    weight_bytes: float | None = None, peak_bytes: float = 0.0, measure: Callable[[], float | None] | None = None,
    runtime: float | None = None,
) -> Estimate:  # fmt: skip
    """Tell how a model will run.

    Args:
        shape: the model's.
        device: where.
        precision: the number format of the weights.
        length: tokens of a row, or of what stands before the next token.
        batch_size: rows or answers at once.
        weight_bytes: what the weights take, where it is known; counted by precision if not.
        peak_bytes: what the export gate saw a process take.
        measure: returns what this machine reaches, a second.
        runtime: bytes of what runs it; ``RUNTIME`` if not given.
    """
    runtime, kind = (RUNTIME if runtime is None else runtime), GGUF.get(precision, precision)
    rate, computed_in = device.rate(kind)
    each = BYTES[kind]
    weights = weight_bytes if weight_bytes is not None else shape.parameters * each
    read = shape.products * min(each, weights / max(1, shape.parameters))
    attention = 4.0 * shape.layers * shape.heads * shape.head_width
    working = 2.0 if computed_in in ("float16", "bfloat16") else 4.0
    cache = 2.0 * shape.layers * shape.key_heads * shape.head_width * length * working
    if shape.writes:
        operations = batch_size * (2.0 * shape.products + attention * length)
        moved = read + batch_size * cache
        step = batch_size * (cache + 4.0 * shape.vocabulary)
        first = max((2.0 * shape.products + attention * length / 2) * length / rate, read / device.bandwidth)
    else:
        operations = batch_size * length * (2.0 * shape.products + attention * length)
        moved, first = read, None
        step = batch_size * length * 4.0 * (4 * shape.width + 2 * shape.inner + shape.heads * length)
    compute, memory = operations / rate, moved / device.bandwidth
    unit = "tokens" if shape.writes else "rows"
    least, launching = max(compute, memory), KERNELS * shape.layers * device.launch
    by_matrices = unit == "rows" and rate > 4 * device.rates["float32"]
    bound, share = batch_size / least, MATRIX if by_matrices else SHARES[unit]
    held = "compute" if compute > memory else "memory"
    if launching * share > least:
        share, held = least / launching, "launches"
    needed = max(weights + step + runtime, peak_bytes)
    usable = device.memory * device.usable
    others = [
        name for name, size in BYTES.items() if size < each and shape.parameters * size + step + runtime <= usable
    ]
    return Estimate(
        device=device.name, what=device.what, precision=precision, computed_in=computed_in, unit=unit, length=length,
        batch_size=batch_size, bound=bound, bound_by=held, share=share,
        expected=share * bound, first_seconds=first, weight_bytes=weights, step_bytes=step, memory_bytes=needed,
        usable_bytes=usable, fits=needed <= usable, would_fit=() if needed <= usable else tuple(others),
        measured=measure() if measure else None, sources=device.sources, estimated=device.estimated,
    )  # fmt: skip


def stored(folder: Path, manifest: Mapping[str, Any], precision: str) -> tuple[str, float | None]:
    """Return the number format of a folder's weights, and their bytes: an export's are those of its files.

    Raises:
        UsageError: another precision is asked of an export, which has its own.
    """
    artifact = bundle.artifact_of(manifest)
    if artifact is None:
        if precision not in ("auto", *BYTES):
            raise UsageError(f"precision={precision!r}", hint=f"auto, or one of {', '.join(BYTES)}")
        return ("float32" if precision == "auto" else precision), None
    if precision not in ("auto", artifact["precision"]):
        raise UsageError(
            f"precision={precision}, but this is a {artifact['target']} model in {artifact['precision']}",
            hint="leave precision out, or ask for the model that it was exported from",
        )
    return artifact["precision"], float(sum((folder / name).stat().st_size for name in artifact["files"]))
