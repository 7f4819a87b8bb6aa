"""The space of a search: which options are tried, and between which values.

Each dimension is an option of ``FinetuneConfig``: a range ``low..high`` (``:log`` draws evenly over its
orders of magnitude) or a list of choices. Every value is held to the option's own type and bounds before
anything is trained.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.config import FinetuneConfig
from ..core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SEARCHABLE = (
    "learning_rate", "batch_size", "epochs", "warmup", "schedule", "weight_decay", "layer_decay", "gradient_clip",
    "dropout", "augment", "trainable", "adapter", "adapter_rank", "adapter_alpha", "adapter_dropout",
    "adapter_targets",
)  # fmt: skip
"""Options that change what is learned. The others change what is scored (so that scores of trials would not compare),
how it is computed, or nothing but luck (``seed``)."""

FORMS = "for example learning_rate=1e-5..5e-4:log, epochs=1..4 or batch_size=16,32,64"
_CORNERS = 200  # combinations of extremes that are tried as a configuration in advance


@dataclass(frozen=True)
class Dimension:
    """One option and what is tried for it: ``choices``, or from ``low`` to ``high``, both included."""

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        if self.choices:
            return ",".join(map(str, self.choices))
        low, high = (int(end) if self.whole else float(end) for end in (self.low, self.high))
        return f"{low}..{high}{':log' if self.log else ''}"

    @property
    def extremes(self) -> tuple[Any, ...]:
        """All choices, or both ends."""
        return self.choices or (self.low, self.high)

    def distribution(self) -> BaseDistribution:
        """Return the dimension as Optuna has it."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        if self.whole:
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.log)
        return distributions.FloatDistribution(self.low, self.high, log=self.log)


def parse_space(space: Mapping[str, Any] | Sequence[str], fixed: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """Read a space and check that every value in it makes a configuration.

    Args:
        space: option -> ``"1e-5..5e-4:log"``, ``"16,32,64"`` or a list of choices; or ``["option=values", ...]``.
        fixed: the options that are the same in all trials.

    Raises:
        UsageError: an option that there is not, cannot be searched or is fixed; a value that is out of its bounds.
    """
    if isinstance(space, Mapping):
        pairs = [(str(name).replace("-", "_"), values) for name, values in space.items()]
    else:
        pairs = [_halves(text) for text in ([space] if isinstance(space, str) else space)]
    names = [name for name, _ in pairs]
    for name in names:
        _check_name(name, names, fixed)
    dimensions = tuple(_dimension(name, values) for name, values in pairs)
    if not dimensions:
        raise UsageError("the search has nothing to try", hint=FORMS)
    corners = itertools.product(*(dimension.extremes for dimension in dimensions))
    for corner in itertools.islice(corners, _CORNERS):
        FinetuneConfig.of({**fixed, **dict(zip(names, corner))})
    return dimensions


def default_space(learning_rate: float, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is searched if nothing is said, without the options that are fixed.

    The rate is the model's default, a quarter of it to four times it.
    """
    space = {
        "learning_rate": f"{learning_rate / 4:.3g}..{learning_rate * 4:.3g}:log",
        "batch_size": [16, 32, 64],
        "warmup": "0.0..0.2",
        "weight_decay": "0.0..0.1",
    }
    return {name: values for name, values in space.items() if name not in fixed}


def _halves(text: str) -> tuple[str, str]:
    name, sign, values = text.partition("=")
    if not (sign and name.strip() and values.strip()):
        raise UsageError(f"search: {text!r} is not OPTION=VALUES", hint=FORMS)
    return name.strip().replace("-", "_"), values.strip()


def _check_name(name: str, names: Sequence[str], fixed: Mapping[str, Any]) -> None:
    if name not in SEARCHABLE:
        known = ", ".join(SEARCHABLE)
        raise UsageError(
            f"{name!r} is not an option that is searched", hint=f"{did_you_mean(name, SEARCHABLE)}known: {known}"
        )
    if names.count(name) > 1:
        raise UsageError(f"{name} is searched twice", hint="name its values once")
    if name in fixed:
        raise UsageError(f"{name} is given ({fixed[name]}) and searched", hint="leave one of them out")


def _dimension(name: str, values: Any) -> Dimension:
    text = values.strip() if isinstance(values, str) else ""
    if ".." in text:
        return _range(name, text)
    listed = [part.strip() for part in text.split(",")] if isinstance(values, str) else values
    if not isinstance(listed, list | tuple):
        raise UsageError(f"search: {name}={values!r} is neither a range nor a list", hint=FORMS)
    choices = tuple(FinetuneConfig.checked(name, value) for value in listed)
    if len(set(choices)) < max(2, len(choices)):
        raise UsageError(
            f"search: {name}={_joined(choices)} leaves nothing to choose, or names a value twice",
            hint=f"a single value is no search: give {name} as an option",
        )
    return Dimension(name, choices)


def _range(name: str, text: str) -> Dimension:
    span, _, scale = text.partition(":")
    ends = [part.strip() for part in span.split("..")]
    if len(ends) != 2 or scale not in ("", "log"):
        raise UsageError(f"search: {name}={text} is not LOW..HIGH or LOW..HIGH:log", hint=FORMS)
    low, high = (FinetuneConfig.checked(name, end) for end in ends)
    if isinstance(low, str) or low is None or high is None:
        raise UsageError(f"search: {name} has no range", hint=f"list its values: {name}=one,two")
    if low >= high:
        raise UsageError(f"search: {name}={text} ends before it begins", hint="the lower value comes first")
    if scale == "log" and low <= 0:
        raise UsageError(f"search: {name}={text} takes the logarithm of {low:g}", hint="begin above 0")
    # 1..4 draws whole numbers also where the option takes others: whole epochs are what is meant.
    whole = isinstance(low, int) or all(re.fullmatch(r"\d+", end) for end in ends)
    return Dimension(name, low=low, high=high, log=scale == "log", whole=whole)


def _joined(values: Sequence[Any]) -> str:
    return ",".join(map(str, values))
