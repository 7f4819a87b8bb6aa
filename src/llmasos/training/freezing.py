"""Train a part of a model and leave the rest as it is: the head alone, or the head and the last layers.

What lies below the lowest trained layer costs no gradients and no memory of the optimiser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.config import FinetuneConfig
from ..core.errors import UsageError
from .adapters import heads_of

if TYPE_CHECKING:
    from ..tasks.base import Task

_FLAG = "llmasos_frozen"


def freeze(model: Any, task: Task, config: FinetuneConfig, fresh: tuple[str, ...] = ()) -> list[str]:
    """Freeze what ``config.trainable`` leaves out; return notes.

    Whatever an earlier run froze is free again; what somebody else froze stays so with ``trainable=all``.

    Raises:
        UsageError: the model has no head, or fewer layers.
    """
    if getattr(model, _FLAG, False):
        model.requires_grad_(True)
        setattr(model, _FLAG, False)
    if config.trainable == "all":
        return []
    heads, layers = set(heads_of(model, task, fresh)), _last(model, _count(config.trainable))
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    heads |= {name for name, module in model.named_modules() if output is not None and module is output}
    if not heads and not layers:
        raise UsageError(
            f"trainable={config.trainable}: this {model.config.model_type} has no head for {task.tag}",
            hint="trainable=last-1 trains the last layer, trainable=all everything",
        )
    model.requires_grad_(False)
    for name in (*heads, *layers):
        model.get_submodule(name).requires_grad_(True)
    setattr(model, _FLAG, True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in model.parameters())
    return [f"{', '.join(sorted((*heads, *layers)))}: {trained:,} of {every:,} parameters are trained"]


def _count(trainable: str) -> int:
    return 0 if trainable == "head" else int(trainable.removeprefix("last-"))


def _last(model: Any, count: int) -> list[str]:
    """Return the last layers of each stack, and what stands behind the layers: a final norm."""
    from torch import nn

    if not count:
        return []
    stacks = [(name, module) for name, module in model.base_model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [(n, m) for n, m in stacks if not any(n.startswith(f"{other}.") for other, _ in stacks)]
    deepest = max((len(module) for _, module in outer), default=0)
    if count > deepest:
        raise UsageError(f"trainable=last-{count}, but the model has {deepest} layers", hint="trainable=all")
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    found = []
    for name, module in outer:
        found += [f"{prefix}{name}.{i}" for i in range(max(0, len(module) - count), len(module))]
        above = model.base_model.get_submodule(name.rpartition(".")[0])
        place = prefix + name.removesuffix(name.rpartition(".")[2])
        found += [f"{place}{child}" for child, one in above.named_children() if "norm" in type(one).__name__.lower()]
    return found
