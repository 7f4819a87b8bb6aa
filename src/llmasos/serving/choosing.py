"""How tokens are chosen where a request does not say: as the model's own settings have it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from ..core.config import GenerateConfig

if TYPE_CHECKING:
    from .served import Served

_NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def sampling(served: Served, *, max_new_tokens: int, seed: int | None = None, **given: Any) -> GenerateConfig:
    """Return how an answer is written: what was given, else the model's ``generation_config``, else temperature 1.

    That is what vLLM does; llama.cpp's server has temperature 0.8 instead. A model whose runtime chooses the tokens
    itself takes the likeliest ones. At temperature 0 there is nothing to be filtered.

    Args:
        served: the model.
        max_new_tokens: the longest answer.
        seed: what draws are made from; without one, from chance.
        **given: temperature, top_p, top_k, min_p, repetition_penalty; None where nothing is said.
    """
    generator = served.parts.generator
    own = {} if generator is None else {name: getattr(generator.model.generation_config, name, None)
                                        for name in _NEUTRAL}  # fmt: skip
    if generator is not None and not generator.draws:
        own["temperature"] = 0.0
    values: dict[str, Any] = {}
    for name, neutral in _NEUTRAL.items():
        said = given.get(name) if given.get(name) is not None else own.get(name)
        values[name] = neutral if said is None else said
    if values["temperature"] == 0:
        values |= {name: _NEUTRAL[name] for name in ("top_p", "top_k", "min_p")}
    values["top_p"] = max(1e-6, values["top_p"])
    seed = secrets.randbits(48) if seed is None else seed % (1 << 48)
    return GenerateConfig.of({**values, "max_new_tokens": max_new_tokens, "seed": seed})


def room(served: Served, longest: int, most: int) -> int:
    """Return how many tokens an answer may have where nothing is said: as many as fit behind the longest prompt.

    At least one, so that a prompt which leaves none is refused with its numbers.
    """
    generator = served.parts.generator
    left = served.parts.max_length if generator and generator.encodes else served.parts.max_length - longest
    return max(1, min(most, left))
