"""What ``llmasos plan`` says of machines for rent: which a model fits on, how fast it is there, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.config import FinetuneConfig
from ..core.errors import UsageError
from .output import say, show_json, show_table, size

COUNT = ("model", "precision", "max_length", "batch_size")
"""The options that say something of how a model runs."""


def is_for_rent(options: Mapping[str, Any], config: Any, settings: Any) -> bool:
    """Say whether machines for rent are asked for: a model is given, and nothing that a training needs."""
    return bool(options.get("model")) and config is None and settings is None and set(options) <= set(COUNT)


def refresh(folder: str) -> None:
    """Read prices from a catalogue, and say what was found."""
    from .. import instances

    found = instances.refresh(folder)
    say(f"{len(found.types)} types from {found.source}, {found.date}")


def show_offers(target: str | None, options: Mapping[str, Any], *, as_json: bool) -> int:
    """Print what a model does on machines for rent, and costs; return 1 where it fits on none."""
    from .. import instances
    from ..llm import LLM

    if not options.get("model"):
        raise UsageError("no model given", hint=f"llmasos plan DIR{f' --target {target}' if target else ''}")
    if wrong := [name for name in options if name not in COUNT]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise UsageError(f"{flags} says nothing of how a model runs on a rented machine", hint=f"leave {flags} out")
    numbers = {key: FinetuneConfig.checked(key, options[key]) for key in ("max_length", "batch_size") if key in options}
    instances.chosen(target, instances.prices().types)  # told now, not after a model was loaded
    say(f"loading {options['model']}, and measuring this machine where processors are compared")
    found = LLM.from_pretrained(options["model"]).offers(target, precision=options.get("precision", "auto"), **numbers)
    if as_json:
        show_json({"model": options["model"], "offers": [one.as_dict() for one in found]})
        return 0 if found[0].fits else 1
    first = found[0]
    what = f"rows of {first.length} tokens" if first.unit == "rows" else f"tokens after {first.length:,}"
    say("without --data this is about machines for rent; with it, about a training")
    heads = ("type", "$ an hour", "memory", f"{first.unit} a second", "held by", f"$ a million {first.unit}", "share")
    show_table([heads, *map(_line, found)], right=(1, 3, 5))
    print(f"\nestimated for {what}, {first.batch_size} at once, in {first.precision}, on machines that are always busy")
    print("a second = share x the least that arithmetic and memory allow; share* was measured on this machine")
    print(f"prices: {first.prices}; --prices DIR reads newer ones")
    return 0 if first.fits else 1


def _line(one: Any) -> tuple[str, ...]:
    memory = f"{size(one.memory_bytes)} of {size(one.usable_bytes)}"
    name, hour = f"{one.instance.name} ({one.instance.cloud})", f"{one.instance.price:.3f}"
    if not one.fits:
        return name, hour, f"{memory}: too little", "", "", "", ""
    held = {"compute": "arithmetic"}.get(one.bound_by, one.bound_by)
    share = f"{one.share:.0%}{'*' if one.share_from.startswith('measured') else ''}"
    return name, hour, memory, f"{one.expected:,.0f}", held, f"{one.per_million:,.4f}", share
