"""Ways to compute the same training, tried on its own model and rows: how fast each is, and whether it is equal.

Every way but the plain one takes a step over a few rows first, without dropout. Its loss and the whole of its gradient
are compared with those of transformers' own forward in float32 on rectangles of rows at random: what differs by more
than its number format explains is not measured at all. Differences of gradients are relative to what a single row
brings, since the gradients of rows can cancel out.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..core import hardware
from ..core.events import Event, Phase
from ..loading import without_dropout
from .activations import with_cache
from .optimizer import Parameters
from .prepare import Prepared
from .run import no_compiling
from .setup import Setup
from .stepper import Stepper, seen
from .timing import training_seconds, untouched

TOLERANCE = {"float32": (1e-5, 1e-4), "bfloat16": (2e-2, 5e-2)}
"""Largest relative difference of a loss and of a gradient: float32 has seven digits, of which sums lose some;
bfloat16 has between two and three."""
MARGIN = 1.05
"""How much faster another way must be to be taken: less than that is within what a busy machine makes of one."""
COMPILING_PAYS = 600.0
"""Seconds from which on a run is long enough to try the compiler, which takes about a minute itself."""
_SECONDS = 2.0  # for the steps of a candidate
_ROWS = 8  # whose gradient is compared


@dataclass(frozen=True)
class Candidate:
    """One way to compute a training.

    ``name`` as ``FinetuneConfig.speed`` takes it; ``micro_batch_size`` where steps are cut up. ``seconds`` of all steps
    of the run and ``memory_bytes`` that they took, if it was measured; ``loss_difference`` and ``gradient_difference``
    relative to the plain way; ``verdict`` in words.
    """

    name: str
    verdict: str
    micro_batch_size: int | None = None
    seconds: float | None = None
    memory_bytes: int | None = None
    gain: float | None = None
    loss_difference: float | None = None
    gradient_difference: float | None = None
    chosen: bool = False


def fastest(
    model: Any, setup: Setup, prepared: Prepared, folder: Path
) -> Generator[Event, None, tuple[Setup, list[Candidate]]]:
    """Try the ways to compute a training; return the setup with the fastest, and all that were tried.

    Args:
        model: the model as it is before its training; it has its weights again afterwards.
        setup: what was decided, by rule where it is a matter of speed.
        prepared: the rows.
        folder: where outputs of frozen layers may be kept.

    Yields:
        What is being tried.
    """
    trials = _Trials(model, setup, prepared, folder)
    yield from trials.run()
    chosen, way = trials.settled()
    if chosen is not None:  # by name from here on, so that nothing is decided once more by rule
        way = replace(way, config=replace(way.config, speed=way.speed, precision=way.precision))
    return way, [replace(one, chosen=one is chosen, gain=trials.gain(one)) for one in trials.tried]


class _Trials:
    """What was tried so far, and the best of it."""

    def __init__(self, model: Any, setup: Setup, prepared: Prepared, folder: Path) -> None:
        self._model, self._setup, self._prepared, self._folder = model, setup, prepared, folder
        self._reference: tuple[float, dict[str, Tensor], float] | None = None
        self._rows = self._spread()
        self.tried: list[Candidate] = []
        self._measured: list[tuple[Candidate, Setup]] = []

    def gain(self, candidate: Candidate) -> float | None:
        """Return how many times as fast as the plain way a candidate is."""
        if candidate.seconds is None:
            return None
        return _seconds(self._measured[0]) / candidate.seconds

    def settled(self) -> tuple[Candidate | None, Setup]:
        """Return the way to take: the fastest, if it is ahead of what the rule takes by more than chance."""
        if not self._measured:
            return None, self._setup
        best = min(self._measured, key=_seconds)
        rule = [one for one in self._measured if one[0].micro_batch_size is None
                and one[0].name.removesuffix(",cache") == self._setup.speed]  # fmt: skip
        near = [one for one in rule if _seconds(one) <= _seconds(best) * MARGIN]
        return min(near, key=_seconds) if near else best

    def run(self) -> Iterator[Event]:
        """Try the plain way, then what might be faster, and last the best of it in micro-batches."""
        setup, formats = self._setup, self._formats()
        for precision in formats:
            yield from self._try(self._way(precision))
            if self._reference is None:  # nothing to compare with
                return
        for precision in formats:
            yield from self._try(self._way(precision, buckets=True))
        yield from self._try_packed(formats)
        yield from self._try_compiled(formats)
        _, best = self.settled()
        for size in (setup.config.batch_size // parts for parts in (2, 4)):
            if setup.config.micro_batch_size is None and size >= 4:
                yield from self._try(replace(best, config=replace(best.config, micro_batch_size=size)), size)

    def _formats(self) -> list[str]:
        """Return the number formats to try, and name the one that is not worth a try."""
        asked, device = self._setup.config.precision, next(self._model.parameters()).device
        if asked != "auto":
            return [asked]
        chosen, why = hardware.pick_precision("auto", device)
        if chosen == "bfloat16" or (device.type == "cpu" and hardware.bf16_speedup(device.type) >= 1.0):
            return ["float32", "bfloat16"]
        self.tried.append(Candidate("bf16", f"not tried: {why}"))
        return ["float32"]

    def _try_packed(self, formats: list[str]) -> Iterator[Event]:
        if self._setup.architecture is None:
            self.tried.append(Candidate("packed", f"not possible: {self._setup.forward}"))
            return
        for precision in formats:
            way = self._way(precision, packed=True)
            yield from self._try(way)
            if way.config.trainable == "all":
                continue
            cached, words = with_cache(self._model, way, self._folder, self._prepared.scale)
            if cached.activations:
                yield from self._try(cached)
            elif words:
                self.tried.append(Candidate(f"{way.speed},cache", f"not possible: {words}"))

    def _try_compiled(self, formats: list[str]) -> Iterator[Event]:
        setup, best = self._setup, min(map(_seconds, self._measured), default=0.0)
        if reason := no_compiling(setup.task, setup.config, setup.backend):
            self.tried.append(Candidate("buckets,compile", f"not possible: {reason}"))
        elif best < COMPILING_PAYS:
            self.tried.append(Candidate("buckets,compile", "not tried: compiling takes about a minute itself"))
        else:
            for precision in formats:
                yield from self._try(replace(self._way(precision, buckets=True), compiled=True))

    def _way(self, precision: str, *, packed: bool = False, buckets: bool = False) -> Setup:
        # a speed that names nothing, so that the setup's own names count
        config = replace(self._setup.config, speed="auto")
        return replace(self._setup, config=config, precision=precision, buckets=buckets, activations=None,
                       architecture=self._setup.architecture if packed else None)  # fmt: skip

    def _try(self, way: Setup, micro_batch_size: int | None = None) -> Iterator[Event]:
        """Compare a way with the plain one, measure it, and remember it if it is the best."""
        yield Phase(f"measure {way.speed}" + (f", {micro_batch_size} rows at once" if micro_batch_size else ""))
        found = Candidate(way.speed, "what the others are compared with", micro_batch_size)
        try:
            found = self._compared(way, found)
            if found.verdict.startswith("differs"):
                self.tried.append(found)
                return
            hardware.free_memory(cycles=False)
            hardware.reset_peak()
            before = hardware.resident_memory()
            with untouched(self._model):
                timed = training_seconds(self._model, way, self._prepared, _SECONDS)
        except Exception as error:  # a compiler that is not there, a model that cannot be compiled
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            self.tried.append(replace(found, verdict=f"fails: {type(error).__name__}: {said}"))
            return
        seconds = timed.seconds + (timed.first if way.compiled else 0.0)
        memory = max(0, hardware.peak_resident_memory() - before) + timed.growth
        self.tried.append(replace(found, seconds=seconds, memory_bytes=memory))
        self._measured.append((self.tried[-1], way))

    def _compared(self, way: Setup, found: Candidate) -> Candidate:
        with without_dropout(self._model):
            loss, gradients = self._gradient(way)
            if self._reference is None:
                self._reference = (loss, gradients, self._scale(way))
                return found
        wanted_loss, wanted, scale = self._reference
        apart = sum(float((gradients[name] - wanted[name]).square().sum()) for name in wanted)
        by_loss = abs(loss - wanted_loss) / max(abs(wanted_loss), 1e-6)
        by_gradient = apart**0.5 / max(scale, 1e-12)
        most = TOLERANCE[way.precision]
        equal = by_loss <= most[0] and by_gradient <= most[1] and gradients.keys() == wanted.keys()
        words = "equal" if way.precision == "float32" else "equal but for rounding"
        order = "; the rows of a step are of near-equal length" if way.buckets else ""
        verdict = words + order if equal else "differs from the plain way, and is not taken"
        return replace(found, verdict=verdict, loss_difference=by_loss, gradient_difference=by_gradient)

    def _gradient(self, way: Setup) -> tuple[float, dict[str, Tensor]]:
        """Return loss and gradient of a step over a few rows."""
        if way.config.micro_batch_size:
            way = replace(way, config=replace(way.config, micro_batch_size=_ROWS // 3))
        stepper = Stepper(self._model, way)
        try:
            loss, _ = stepper.compute(seen(way, self._rows, 0))
            parameters = stepper.parameters
            assert isinstance(parameters, Parameters)
            return loss, {name: gradient.clone() for name, gradient in parameters.named_gradients()}
        finally:
            stepper.release()

    def _scale(self, way: Setup) -> float:
        """Return the norm of a row's gradient, on average: those of rows can cancel out, but not their roundings.

        That of all where the loss compares rows with one another.
        """
        stepper, norms = Stepper(self._model, way), []
        try:
            whole = stepper.compute(seen(way, self._rows, 0))[1]
            stepper.discard()
            for row in self._rows:
                norms.append(stepper.compute(seen(way, np.asarray([row]), 0))[1])
                stepper.discard()
        finally:
            stepper.release()
        return max(whole, float(np.mean(norms)))

    def _spread(self) -> np.ndarray[Any, Any]:
        """Return a few rows of all lengths but the very longest, which could take much memory."""
        order = np.argsort(self._setup.train.sizes, kind="stable")
        picks = np.unique(np.linspace(0, 0.9 * (len(order) - 1), min(_ROWS, len(order))).astype(int))
        return np.asarray(order[picks])


def _seconds(measured: tuple[Candidate, Setup]) -> float:
    return measured[0].seconds or 0.0


def options(candidate: Candidate) -> str:
    """Return the options of the command line that compute in this way."""
    size = candidate.micro_batch_size
    precision = " --precision float32" if candidate.name == "plain" else ""
    return f"--speed {candidate.name}{precision}" + (f" --micro-batch-size {size}" if size else "")


def words(candidates: list[Candidate]) -> str:
    """Say which way is taken."""
    best = next((one for one in candidates if one.chosen), None)
    if best is None:
        return f"nothing could be measured: {candidates[-1].verdict}"
    return f"measured: {options(best)} is taken, {best.gain:.2f} times as fast as plain"
