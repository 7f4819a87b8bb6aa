"""Decide what adapter a training gets, and put it on the model.

Defaults follow the literature. Decoders get a low-rank part on every linear layer, without which adapters stay
behind full training (Dettmers et al. 2023, "QLoRA", section 4); other models on the attention projections that
peft names for their architecture, as in Hu et al. 2021. Heads are trained in full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..architectures._adapters import Adapter, attach, attached, peft
from ..core.config import FinetuneConfig
from ..core.errors import HardwareError, MissingExtraError, UsageError, did_you_mean
from ..loading import grow, weight_hashes

if TYPE_CHECKING:
    import torch

    from ..sources.base import Located
    from ..tasks.base import Task

RANK = 8
RATE = 10.0
"""How much higher the learning rate is than for all weights: so Hu et al. 2021 (appendix D) and Schulman et al.
2025 ("LoRA Without Regret") found it, across models."""
ALL = "all-linear"


def fit(
    model: Any, located: Located, tokenizer: Any, task: Task, config: FinetuneConfig, fresh: tuple[str, ...] = ()
) -> list[str]:
    """Make a model that was just opened ready for its training; return notes.

    Words that the tokenizer has and the model has not get rows in its embeddings. With ``config.adapter`` the
    weights are frozen and an adapter is drawn from the run's seed, unless the model carries one, which goes on.

    Raises:
        UsageError: the options do not fit the model or the adapter that it carries.
        MissingExtraError: peft is not installed.
    """
    import torch

    there = attached(model)
    if there is not None:
        _check_same(there, config, located)
    new = 0
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        if there is not None:
            raise UsageError(
                f"the tokenizer has {len(tokenizer)} words, more than this adapter knows",
                hint="add words before the adapter's first training",
            )
        new = grow(model, len(tokenizer), config.seed)
    notes = [f"{new} new words get rows in the embeddings: they learn from your data"] if new else []
    if there is None and config.adapter != "none":
        adapter = _chosen(model, located, task, config, fresh, new)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            attach(model, adapter)
    if config.adapter != "none":
        notes.append(summary(model))
    return notes


def summary(model: Any) -> str:
    """Say in words what is trained of a model with an adapter."""
    adapter = attached(model)
    assert adapter is not None
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in model.parameters())
    heads = f", and in full {', '.join(adapter.heads)}" if adapter.heads else ""
    name = {"lora": "LoRA", "dora": "DoRA"}[adapter.kind]
    return (
        f"{name} of rank {adapter.rank} on {', '.join(adapter.targets)}{heads}: "
        f"{trained:,} of {every:,} parameters are trained ({trained / every:.1%})"
    )


def loading_options(config: FinetuneConfig, device: torch.device) -> dict[str, Any]:
    """Return how transformers shall open the base; for 4 bits, as NF4 with double quantization (Dettmers et al. 2023).

    Raises:
        HardwareError: 4 bits were asked for, and the device cannot compute with them.
        MissingExtraError: 4 bits were asked for, and bitsandbytes is not installed.
    """
    if config.base_precision != "4bit":
        return {}
    if device.type != "cuda":
        raise HardwareError(
            f"base_precision=4bit needs a CUDA GPU, for which its kernels are written; this run is on {device}",
            hint="base_precision=float32; adapter=lora alone already saves the memory of gradients and optimiser",
        )
    import torch
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise MissingExtraError("base_precision=4bit", install="bitsandbytes")
    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    return {"quantization_config": quantized, "device_map": {"": str(device)}}


def _chosen(
    model: Any, located: Located, task: Task, config: FinetuneConfig, fresh: tuple[str, ...], new: int
) -> Adapter:
    peft()
    heads = heads_of(model, task, fresh)
    excluded = _excluded(model, heads)
    rank = config.adapter_rank or RANK
    return Adapter(
        kind=config.adapter,
        rank=rank,
        alpha=config.adapter_alpha or 2.0 * rank,
        dropout=config.adapter_dropout or 0.0,
        targets=_targets(model, config.adapter_targets, excluded),
        excluded="(" + "|".join(name.replace(".", r"\.") for name in excluded) + r")(\..*)?" if excluded else None,
        heads=heads,
        tokens=_tokens(model, new),
        base={
            # a folder is named in full, since the adapter may be opened from elsewhere
            "ref": str(located.path) if located.revision is None and ":" not in located.ref else located.ref,
            "revision": located.revision,
            "source": located.source,
            "precision": config.base_precision,
            "files": weight_hashes(located.path),
        },
    )


def heads_of(model: Any, task: Task, fresh: tuple[str, ...]) -> tuple[str, ...]:
    """Return the modules to train in full: the task's head, what it reads rows by, and whatever was drawn anew."""
    names = set(fresh)
    base = model.base_model
    if task.output in ("row", "token") and base is not model:
        names |= {name for name, child in model.named_children() if child is not base and _has_weights(child)}
    if task.output == "row" and getattr(base, "pooler", None) is not None and base is not model:
        names.add(f"{model.base_model_prefix}.pooler")
    return tuple(sorted(name for name in names if not any(name.startswith(f"{other}.") for other in names)))


def _has_weights(module: Any) -> bool:
    return next(module.parameters(), None) is not None


def _excluded(model: Any, heads: tuple[str, ...]) -> tuple[str, ...]:
    """Return the modules that get no low-rank part: heads, the output over the vocabulary, and what nobody reads."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names = [name for name, module in model.named_modules() if module is output and output is not None]
    return (*heads, *names)


def _targets(model: Any, wanted: str | None, excluded: tuple[str, ...]) -> tuple[str, ...]:
    """Settle the names of the modules that get a low-rank part.

    Raises:
        UsageError: a name matches no linear layer; those that exist are named.
    """
    there = _linear(model, excluded)
    leaves = sorted({name.rpartition(".")[2] for name in there})
    if wanted is None:
        return _usual(model, there, leaves)
    names = tuple(part.strip() for part in wanted.split(",") if part.strip())
    if names == (ALL,):
        return tuple(leaves)
    missing = [name for name in names if not any(f".{path}".endswith(f".{name}") for path in there)]
    if missing or not names:
        word = missing[0] if missing else wanted
        raise UsageError(
            f"adapter_targets: no linear layer of this {model.config.model_type} is named {word!r}",
            hint=f"{did_you_mean(word, leaves)}{ALL}, or some of {', '.join(leaves)}",
        )
    return tuple(sorted(set(names)))


def _usual(model: Any, there: list[str], leaves: list[str]) -> tuple[str, ...]:
    """Every linear layer of a decoder; else the projections of attention that peft names, or that are found."""
    if _generates(model):
        return tuple(leaves)
    known = peft().utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    named = tuple(name for name in known if name in leaves) if isinstance(known, list) else ()
    elsewhere = {name.rpartition(".")[2] for name in there if not {"attention", "attn"} & set(name.split("."))}
    return named or tuple(name for name in leaves if name not in elsewhere) or tuple(leaves)


def _linear(model: Any, excluded: tuple[str, ...]) -> list[str]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    out = tuple(f"{name}." for name in excluded)
    names = (name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return [name for name in names if not f"{name}.".startswith(out)]


def _generates(model: Any) -> bool:
    """Say whether this is a decoder alone, which writes text or reads it as one that does."""
    config = model.config
    encodes = getattr(config, "is_encoder_decoder", False)
    return not encodes and (bool(getattr(model, "can_generate", lambda: False)()) or hasattr(model, "score"))


def _tokens(model: Any, new: int) -> dict[str, list[int]]:
    """Name the new rows of the embeddings: the input's and, where it is a matrix of its own, the output's."""
    if not new:
        return {}
    reads, writes = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [reads, *([writes] if writes is not None and writes.weight is not reads.weight else [])]
    size = reads.num_embeddings
    names = [name for name, module in model.named_modules() if any(module is table for table in tables)]
    return {name: list(range(size - new, size)) for name in names}


def _check_same(there: Adapter, config: FinetuneConfig, located: Located) -> None:
    """Refuse options that an adapter which goes on cannot follow."""
    if config.adapter == "none":
        raise UsageError(
            f"{located.ref} is an adapter ({there.kind}) on frozen weights, and adapter=none trains all weights",
            hint=f"adapter={there.kind} goes on with it; merge() makes it a plain model first",
        )
    own: dict[str, Any] = {
        "adapter": there.kind,
        "adapter_rank": there.rank,
        "adapter_alpha": there.alpha,
        "adapter_dropout": there.dropout,
        "adapter_targets": ",".join(there.targets),
    }
    for name, value in own.items():
        given = getattr(config, name)
        if given is not None and given != value:
            raise UsageError(f"{name}={given!r}, but the adapter that goes on has {value!r}", hint=f"{name}={value}")


def refuse_unsaved(model: Any, config: FinetuneConfig) -> None:
    """Refuse an adapter on weights that are nowhere on disk, since it could not be opened again.

    Raises:
        UsageError: the model in memory was trained in full, or is there in another precision than asked for.
    """
    if model is not None and config.base_precision == "4bit" and not getattr(model, "is_loaded_in_4bit", False):
        raise UsageError(
            "base_precision=4bit, but the model in memory is in float32",
            hint="save() it, open that folder, and go on there",
        )
    if model is not None and config.adapter != "none" and attached(model) is None:
        raise UsageError(
            "an adapter lies on a model that is on disk, and this one was trained in memory",
            hint="save() it, open that folder, and train the adapter there",
        )
