"""A training that has to end in time: what fits is measured, and what does not is given up, and said.

Steps of the run itself are timed on its own model, which gets its weights back. If the time does not let every row be
seen once, long texts are cut or only the last layers trained, which is quicker; then the number of steps is cut to
what fits. The loop keeps an eye on the clock besides, since a pace can change.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.config import FinetuneConfig, parse_duration
from ..core.errors import UsageError
from ..saving import write_weights
from .prepare import Prepared
from .setup import Setup
from .timing import FINISH, evaluation_seconds, training_seconds, untouched
from .trainer import evaluation_steps

SHARE = 0.95
"""Of the time that is asked for: the rest is for a pace that changes."""
FEWER = "last-2"
"""What is trained where the time does not let every row be seen once."""


@dataclass(frozen=True)
class Costs:
    """Seconds, measured: of a step, of an evaluation, and of everything after the last one."""

    step: float
    evaluation: float
    end: float

    def of(self, setup: Setup) -> float:
        """Return the seconds of a run."""
        return setup.steps * self.step + len(evaluation_steps(setup)) * self.evaluation + self.end


Again = Callable[[FinetuneConfig, Prepared], tuple[Any, Setup, list[str]]]
Shorter = Callable[[int], Prepared]


def in_time(
    model: Any, setup: Setup, prepared: Prepared, started: float, again: Again | None, shorter: Shorter | None = None
) -> tuple[Any, Setup, Prepared, str]:
    """Cut a run to the time that ``within`` leaves; return what is trained then, and words on what was given up.

    Epochs go first. Where not every row could be seen once, long texts are cut, if that is enough; then only the last
    layers are trained.

    Args:
        model, setup, prepared: what would be trained.
        started: when the run began, as ``time.perf_counter`` gave it.
        again: opens the model for other options and rows; None where it cannot be opened again.
        shorter: prepares the rows with another longest length; None where texts may not be cut.

    Raises:
        UsageError: the time is too short for a step, an evaluation and a save.
    """
    costs = measured(model, setup, prepared)
    fits = fitted(setup, costs, seconds_left(setup, started))
    if again is not None and _too_few(fits, setup):
        share = (0 if fits is None else fits.steps) / setup.steps_per_epoch
        if shorter is not None and (length := _shorter_length(setup, share)) is not None:
            cut = shorter(length)
            found = _cheaper(again, setup, cut, started, max_length=length, allow_truncated=1.0)
            if found and found[1].steps > share * setup.steps_per_epoch:
                (model, fits, costs), prepared = found, cut
        config = setup.config
        if _too_few(fits, setup) and config.trainable == "all" and config.adapter == "none":
            given = (
                {} if fits is None else {name: getattr(fits.config, name) for name in ("max_length", "allow_truncated")}
            )
            found = _cheaper(again, setup, prepared, started, trainable=FEWER, **given)
            if found and (fits is None or found[1].steps > fits.steps):
                model, fits, costs = found
    if fits is None:
        left = max(0.0, seconds_left(setup, started))
        parts = f"a step takes {costs.step:.2f} s, an evaluation {costs.evaluation:.1f} s and saving {costs.end:.1f} s"
        raise UsageError(
            f"within={setup.config.within}: {left:.0f} s are left after loading, {parts}",
            hint="more time, fewer evaluation rows, or a smaller model",
        )
    asked = parse_duration("within", setup.config.within or "")
    ends = started + asked - costs.evaluation - costs.end - costs.step
    return model, replace(fits, ends=ends), prepared, given_up(setup, fits, prepared)


def _too_few(fits: Setup | None, setup: Setup) -> bool:
    """Say whether not every row could be seen once, as had been asked."""
    return fits is None or fits.steps < min(setup.steps, setup.steps_per_epoch)


def _cheaper(
    again: Again, setup: Setup, prepared: Prepared, started: float, **options: Any
) -> tuple[Any, Setup, Costs] | None:
    """Open the model for options that make steps cheaper; return it with what fits, and what that costs."""
    try:
        model, less, _ = again(replace(setup.config, **options), prepared)
    except UsageError:  # a model without a head, or of fewer layers
        return None
    if setup.task.needs_reference:  # with what they are compared with
        less = replace(less, train=setup.train, evaluation=setup.evaluation)
    costs = measured(model, less, prepared)
    fits = fitted(less, costs, seconds_left(setup, started))
    return None if fits is None else (model, fits, costs)


def _shorter_length(setup: Setup, share: float) -> int | None:
    """Return the longest length with which this share of the time is enough for an epoch; None if half is not.

    A step is taken to cost what its tokens do.
    """
    lengths = setup.train.lengths
    for part in (95, 90, 80, 70, 60, 50):
        length = max(8, int(np.percentile(lengths, part)))
        if length < int(lengths.max()) and float(np.minimum(lengths, length).sum()) <= share * float(lengths.sum()):
            return length
    return None


def measured(model: Any, setup: Setup, prepared: Prepared) -> Costs:
    """Time steps, an evaluation and a save; the model is as before afterwards."""
    with untouched(model):
        whole = training_seconds(model, setup, prepared).seconds
        every = max(1, len(evaluation_steps(setup)))
        evaluation = evaluation_seconds(model, setup, prepared) / every
        clock = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            write_weights(model, Path(scratch))
        end = 2 * (time.perf_counter() - clock) + FINISH
    return Costs(whole / setup.steps, evaluation, end)


def fitted(setup: Setup, costs: Costs, seconds: float) -> Setup | None:
    """Return the setup with as many steps as fit into the seconds that are left, no more than before; None for none."""
    steps = min(setup.steps, int((seconds - costs.end - costs.evaluation) / costs.step))
    while steps > 0:
        fits = setup if steps == setup.steps else replace(setup, config=replace(setup.config, max_steps=steps))
        if costs.of(fits) <= seconds:
            return fits
        steps = min(steps - 1, math.floor(steps * 0.98))
    return None


def given_up(asked: Setup, fits: Setup, prepared: Prepared) -> str:
    """Word what a run does without to be in time."""
    said = []
    if fits.steps != asked.steps:
        said.append(f"{fits.steps} of {asked.steps} steps, {fits.steps / fits.steps_per_epoch:.2f} epochs")
    if fits.config.max_length != asked.config.max_length:
        ledger = prepared.ledgers["train"]
        said.append(f"{ledger['truncated']} of {ledger['rows']} rows are cut to {prepared.max_length} tokens")
    if fits.config.trainable != asked.config.trainable:
        said.append(f"only {fits.config.trainable} is trained")
    return f"within {asked.config.within}: {'; '.join(said) or 'nothing has to be given up'}"


def seconds_left(setup: Setup, started: float) -> float:
    """Return the seconds that the rest of a run may take. ``started``: as ``time.perf_counter`` gave it."""
    assert setup.config.within is not None
    return SHARE * parse_duration("within", setup.config.within) - (time.perf_counter() - started)
