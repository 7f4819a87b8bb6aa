"""Adapters on a transformers model: put on, stored, read back, folded in.

The layers are peft's (LoRA: Hu et al. 2021; DoRA: Liu et al. 2024), set into the transformers model itself and
not around it, so that whoever runs the model sees the class and the modules that it knows. Heads stay
plain modules: they are trained in full, and stored under the names that peft gives to ``modules_to_save``.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ..core import bundle
from ..core.errors import BundleError, MissingExtraError

_PREFIX = "base_model.model."  # what peft writes before the name of every tensor
_FLAG = "llmasos_adapter"


@dataclass(frozen=True)
class Adapter:
    """What is put on a base model.

    ``targets`` are the names of the modules that get a low-rank part, wherever they stand but under ``excluded``
    (a regular expression); ``heads`` the modules that are trained in full; ``tokens`` maps an embedding to its
    rows that are trained. ``base`` says which model this belongs to: ``ref``, ``revision``, ``source``,
    ``precision`` and ``files``, a sha256 for each of its weight files.
    """

    kind: str
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    excluded: str | None = None
    heads: tuple[str, ...] = ()
    tokens: dict[str, list[int]] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)

    def peft_config(self, *, stored: bool = False) -> Any:
        """Return peft's own configuration; ``stored`` names the heads too, for whoever opens the folder with peft."""
        return peft().LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_dora=self.kind == "dora",
            target_modules=list(self.targets),
            exclude_modules=self.excluded,
            trainable_token_indices=dict(self.tokens) or None,
            modules_to_save=list(self.heads) if stored and self.heads else None,
            base_model_name_or_path=self.base.get("ref"),
            revision=self.base.get("revision"),
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the adapter of a folder: its shape from peft's file, its base from ``llmasos.json``.

        Raises:
            BundleError: one of the files is damaged, or the folder does not say which weights it belongs to.
        """
        path = folder / bundle.ADAPTER_CONFIG
        manifest = bundle.read_manifest(folder) or {}
        base = manifest.get("adapter", {}).get("base")
        if not isinstance(base, dict) or not base.get("ref") or not base.get("files"):
            raise BundleError(
                f"the adapter in {folder} does not say which weights it was trained on",
                hint="open adapters that LLMasOS saved; merge others with peft, and open the result",
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            excluded = content["exclude_modules"]
            if not isinstance(content["target_modules"], list) or not _ours(excluded):
                raise ValueError("not as LLMasOS writes it")
            return cls(
                "dora" if content["use_dora"] else "lora",
                int(content["r"]),
                float(content["lora_alpha"]),
                float(content["lora_dropout"]),
                tuple(content["target_modules"]),
                excluded,
                tuple(content["modules_to_save"] or ()),
                content["trainable_token_indices"] or {},
                base,
            )
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise BundleError(f"{path} makes no sense: {error!r}", hint="copy or save the adapter again") from error


def _ours(excluded: Any) -> bool:
    """Say whether this is our own kind of pattern: a file from outside shall not bring one that takes forever."""
    return excluded is None or re.fullmatch(r"\([\w\\.|]+\)\(\\\.\.\*\)\?", str(excluded)) is not None


def peft() -> Any:
    """Return the peft package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with _calm():
            import peft as package
    except ImportError as error:
        raise MissingExtraError("an adapter", install='"llmasos[adapters]"') from error
    return package


def attached(model: Any) -> Adapter | None:
    """Return the adapter that a model carries, or None."""
    return getattr(model, _FLAG, None)


def attach(model: Any, adapter: Adapter) -> None:
    """Freeze a model and put an adapter on it, drawn from torch's generator; its heads stay trainable."""
    with _calm():
        model.requires_grad_(False)
        model.add_adapter(adapter.peft_config())
    for name in adapter.heads:
        model.get_submodule(name).requires_grad_(True)
    setattr(model, _FLAG, adapter)


def state(model: Any) -> dict[str, Any]:
    """Return copies of all tensors that the adapter adds to its base, under peft's names."""
    adapter, own = attached(model), model.state_dict()
    assert adapter is not None
    with _calm():
        found = peft().get_peft_model_state_dict(model, state_dict=own, save_embedding_layers=False)
    for name in adapter.heads:
        found |= {key: value for key, value in own.items() if key.startswith(f"{name}.")}
    return {_PREFIX + key: value.detach().cpu().clone().contiguous() for key, value in found.items()}


def write(model: Any, path: Path) -> None:
    """Write the adapter alone: its tensors and peft's description of it."""
    from safetensors.torch import save_file

    adapter = attached(model)
    assert adapter is not None
    save_file(state(model), path / bundle.ADAPTER, metadata={"format": "pt"})
    with _calm():
        content = adapter.peft_config(stored=True).to_dict() | {"inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in content.items()}
    bundle.write_json(path / bundle.ADAPTER_CONFIG, plain)


def load(model: Any, path: Path, *, heads: bool = True) -> None:
    """Read back what ``write`` wrote; without ``heads`` those of the model stay.

    Raises:
        BundleError: tensors are missing, too many or of another shape.
    """
    from safetensors.torch import load_file

    adapter, wanted = attached(model), state(model)
    assert adapter is not None
    found = load_file(path / bundle.ADAPTER)
    own = tuple(f"{_PREFIX}{name}." for name in adapter.heads)
    if not heads:
        wanted, found = ({k: v for k, v in each.items() if not k.startswith(own)} for each in (wanted, found))
    wrong = sorted(wanted.keys() ^ found.keys())
    wrong += sorted(key for key in wanted.keys() & found.keys() if wanted[key].shape != found[key].shape)
    if wrong:
        raise BundleError(
            f"{path / bundle.ADAPTER} does not fit its base: {', '.join(wrong[:3])}"
            + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""),
            hint="copy or save the adapter again",
        )
    in_full = {key.removeprefix(_PREFIX): found.pop(key) for key in list(found) if own and key.startswith(own)}
    with _calm():
        peft().set_peft_model_state_dict(model, {key.removeprefix(_PREFIX): value for key, value in found.items()})
    model.load_state_dict(in_full, strict=False)


def share(model: Any, base: Any) -> None:
    """Let a model have the very weights of another, wherever its own are the same numbers."""
    there = {_bare(name, base): weight for name, weight in base.named_parameters()}
    taken: dict[int, Any] = {}
    for name, weight in model.named_parameters():
        other = there.get(_bare(name, model))
        if other is not None and (other.dtype, other.device) == (weight.dtype, weight.device) and other.equal(weight):
            taken[id(weight)] = other
        else:
            weight.data = weight.data.clone()  # or it would hold the whole file that it was read from
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and id(weight) in taken:
                module._parameters[name] = taken[id(weight)]


def _bare(name: str, model: Any) -> str:
    """Return the name of a weight as it is below any head and without adapters."""
    return str(name.replace(".base_layer.", ".").removeprefix(f"{model.base_model_prefix}."))


def fold(model: Any) -> None:
    """Add the adapter into the weights it lies on and take its layers away: a plain model remains.

    Raises:
        ValueError: a weight would not be finite.
    """
    for name, layer in list(_layers(model)):
        parent, _, leaf = name.rpartition(".")
        if hasattr(layer, "unload_and_optionally_merge_module"):
            plain = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        else:
            layer.merge(safe_merge=True)
            plain = layer.get_base_layer()
        setattr(model.get_submodule(parent), leaf, plain)
    model._hf_peft_config_loaded = False
    del model.peft_config
    delattr(model, _FLAG)
    model.tie_weights()
    model.requires_grad_(True)


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the outermost layers of the adapter, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    last: str | None = None
    for name, module in model.named_modules():
        inside = last is not None and name.startswith(f"{last}.")
        if not inside and isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            last = name
            yield name, module


@contextmanager
def _calm() -> Iterator[None]:
    """Keep peft's advice off the terminal: what matters is said or refused by us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def described(adapter: Adapter, config: Any) -> Mapping[str, Any]:
    """Return what ``llmasos.json`` says of an adapter: its base, and the configuration that it makes of it."""
    return {"base": adapter.base, "config": json.loads(config.to_json_string(use_diff=False))}
