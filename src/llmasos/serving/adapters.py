"""LoRA adapters beside the model that they were trained on, whose weights are in memory once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..architectures._adapters import Adapter, peft, share
from ..core import bundle, hardware
from ..core.errors import BundleError, LLMasOSError, UsageError

if TYPE_CHECKING:
    from ..opening import Opened
    from .served import Parts

PROMPTS = ("Hello, world!", "1, 2, 3, 4, 5, 6,", "What can you do? Please tell me about it in a few words.")
"""What models that write together are proven on, besides golden rows."""


def over(
    adapters: Mapping[str, Opened | BundleError], models: Mapping[str, Opened]
) -> tuple[dict[str, dict[str, Opened]], dict[str, BundleError]]:
    """Return the adapters over each model, known by its weights, to be opened over that model's own files.

    Those that are damaged are returned apart, each with what is wrong.

    Raises:
        UsageError: one is no adapter, has the name of a model, or was trained on none of them.
        MissingExtraError: what adapters need is not installed.
    """
    from ..loading import weight_hashes

    peft()
    hashes = {
        name: weight_hashes(model.located.path) for name, model in models.items()
        if not bundle.is_adapter(model.located.path) and bundle.artifact_of(model._manifest) is None
    }  # fmt: skip
    out: dict[str, dict[str, Opened]] = {}
    damaged: dict[str, BundleError] = {}
    for name, adapter in adapters.items():
        if name in models:
            raise UsageError(f"a model and an adapter are called {name}", hint="--adapter OTHER=DIR names it otherwise")
        if isinstance(adapter, BundleError):
            damaged[name] = adapter
            continue
        if not bundle.is_adapter(adapter.located.path):
            raise UsageError(f"{adapter.ref} is no adapter", hint="a whole model is served without --adapter")
        try:
            wanted = Adapter.read(adapter.located.path).base
        except BundleError as error:
            damaged[name] = error
            continue
        base = next((one for one, files in hashes.items() if files == wanted["files"]), None)
        if base is None:
            raise UsageError(
                f"the adapter {name} was trained on other weights than {', '.join(models)} (their sha256 differ)",
                hint=f"serve its base beside it, which was {wanted['ref']}",
            )
        over_it = copy(adapter)
        over_it.located = adapter.located._replace(base=models[base].located.path)
        out.setdefault(base, {})[name] = over_it
    return out, damaged


def opened(model: Opened, adapters: Mapping[str, Opened], options: Mapping[str, Any]) -> Parts:
    """Open a model, so that nothing of it stays when it is closed, and adapters over it.

    An adapter that cannot be opened, or does not answer as it did, is left out, and ``Parts.refused`` says why.

    Raises:
        BundleError: the model itself is damaged, or does not answer as it did when it was saved.
    """
    refused: dict[str, BundleError] = {}
    while True:
        left = {name: adapter for name, adapter in adapters.items() if name not in refused}
        try:
            return replace(_family(model, left, options), refused=refused)
        except _RefusedError as wrong:
            refused[wrong.name] = wrong.why  # what wrote beside it is opened anew: nothing of it may stay there


def _family(model: Opened, adapters: Mapping[str, Opened], options: Mapping[str, Any]) -> Parts:
    for name, adapter in adapters.items():
        with _refusing(name):  # before anything is opened
            bundle.verify(adapter.located.path, ending=".safetensors")
    base = _fresh(model)
    parts = base._parts(options)
    if not adapters:
        return base._compared(parts)
    whole = _models(parts)[0]
    members, found = {name: _fresh(adapter) for name, adapter in adapters.items()}, dict[str, Any]()
    for name, one in members.items():
        with _refusing(name):
            share(one.model.to(whole.device), whole)
            found[name] = one._parts(options)
    if parts.generator is not None:
        from ..generation.generator import join

        writers = [one.generator for one in found.values() if one.generator is not None]
        join([parts.generator, *writers], [parts.generator.tokens(prompt) for prompt in PROMPTS])
    parts = base._compared(parts)
    there = {id(weight) for weight in _weights(parts)}
    for name, one in members.items():
        own = sum(w.numel() * w.element_size() for w in _weights(found[name]) if id(w) not in there)
        with _refusing(name):
            found[name] = replace(one._compared(found[name]), own_bytes=own)
    return replace(parts, adapters=found)


class _RefusedError(Exception):
    def __init__(self, name: str, why: BundleError) -> None:
        self.name, self.why = name, why


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Say of an error whose it is: that of an adapter, and not of memory that ran out."""
    try:
        yield
    except BundleError as error:
        raise _RefusedError(name, error) from error
    except Exception as error:
        if hardware.is_out_of_memory(error):
            raise
        why = error.message if isinstance(error, LLMasOSError) else f"{type(error).__name__}: {error}"
        wrong = BundleError(f"the adapter {name} cannot be opened: {why}", hint="copy or save it again")
        raise _RefusedError(name, wrong) from error


def _fresh(model: Opened) -> Opened:
    fresh = copy(model)
    fresh._forget()
    return fresh


def _models(parts: Parts) -> list[Any]:
    """Return the transformers models that compute, their copies in another precision too."""
    engine: Any = parts.engine
    return [engine.model] if parts.generator is None else parts.generator.models


def _weights(parts: Parts) -> Iterable[Any]:
    """Return each of their weights once."""
    return {id(weight): weight for model in _models(parts) for weight in model.parameters()}.values()
