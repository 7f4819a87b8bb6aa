"""The training loop. There is one, and it reads from top to bottom.

One optimiser step: a batch of rows (cut into micro-batches where memory asks for it), forward, the
task's summed loss divided by the weight of the whole batch, backward, clip, AdamW. The loop yields
events; it prints nothing and opens no file of its own.
"""

from __future__ import annotations

import itertools
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..architectures._plain import transformers_outputs
from ..architectures.base import Architecture, Dropout, Projected, pack
from ..core.config import FinetuneConfig
from ..core.errors import TrainingError
from ..core.events import Evaluated, Event, Note, Phase, Progress, Step
from ..data.augment import augmented_order
from ..data.batching import POOL, Batch, encoded, epoch_order, gather, split
from ..data.dataset import Dataset
from ..data.encoding import Encoded
from ..engines.torch import TorchEngine
from ..evaluation import evaluate
from ..metrics.base import LOWER_IS_BETTER, Scorer
from ..tasks.base import Task
from .diagnosis import not_learning, overfitting
from .optimizer import Parameters, schedule
from .prepare import used_tokens


@dataclass(frozen=True)
class Setup:
    """Everything that is decided before the first step, so that the loop has nothing left to choose."""

    task: Task
    train: Encoded
    evaluation: Encoded | None
    evaluation_rows: Dataset | None
    config: FinetuneConfig
    learning_rate: float
    metric: str
    precision: str
    architecture: Architecture | None
    forward: str
    """Which forward is trained through, or why it is transformers' own."""
    special_ids: frozenset[int]
    pad_id: int
    describe: Callable[[int], str]
    """Words a place in ``train`` for an error message: file, row, line."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the rows."""
        return math.ceil(len(self.train) / self.config.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        steps = math.ceil(self.config.epochs * self.steps_per_epoch)
        return min(steps, self.config.max_steps or steps)

    def order(self, epoch: int) -> list[np.ndarray[Any, Any]]:
        """Return the rows of each step of an epoch: at random where nothing is padded."""
        pool = POOL if self.architecture is None else 1
        return epoch_order(self.train.sizes, self.config.batch_size, self.config.seed, epoch, pool)

    @property
    def speed(self) -> str:
        """How evaluations run: as the training does."""
        return "auto" if self.architecture else "plain"

    def engine(self, model: Any) -> TorchEngine:
        """Return what runs the model for an evaluation."""
        return TorchEngine(model, self.pad_id, output=self.task.output, precision=self.precision, speed=self.speed)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the work."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


@dataclass
class Progressed:
    """What the loop knows so far; ``reason`` says why it ended."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    best_step: int = 0
    best_scorer: Scorer | None = None
    reason: str = "done"
    broken: bool = False
    """Whether the weights of the last step are of no use: they gave no finite answers."""
    history: list[Evaluated] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class Stepper:
    """One optimiser step: forward and backward in micro-batches, then clip and update.

    ``compute`` leaves the gradient of the batch's mean loss, whatever the micro-batches; ``update``
    applies it; ``discard`` forgets it. ``release`` gives the model its parameters back.

    Where the loss of a row depends on the rows beside it, micro-batches still give the whole batch's gradient:
    all outputs are computed first, without a graph; the loss gives the gradient at each; then each micro-batch
    runs again, with the same dropout, and takes its part of it back (Gao et al. 2021, gradient cache).
    """

    def __init__(self, model: Any, setup: Setup) -> None:
        self.setup = setup
        noise = type(setup.task).noised is not Task.noised  # it may bring tokens that the texts lack
        rows_alone = setup.architecture is not None and not setup.architecture.autocast and not noise
        self.parameters = Parameters(
            model,
            setup.config,
            setup.learning_rate,
            architecture=setup.architecture,
            dtype=setup.dtype,
            used=used_tokens(setup.train) if rows_alone else None,
        )
        self.release, self.discard = self.parameters.release, self.parameters.clear
        self._dropout = Dropout(setup.config.seed)
        self._forward = _forward(model, setup, self.parameters, self._dropout)

    def compute(self, batch: Batch) -> tuple[float, float]:
        """Return the loss of the batch and the norm of its gradient."""
        task, loss = self.setup.task, 0.0
        weight = max(task.weight(batch), 1e-12)
        parts = split(batch, self.setup.config.micro_batch_size or len(batch))
        if task.joint and len(parts) > 1:
            loss = self._cached(batch, parts, weight)
        else:
            for part in parts:
                part_loss = task.loss(self._forward(part), part) / weight
                part_loss.backward()  # type: ignore[no-untyped-call]
                self.parameters.absorb()
                loss += float(part_loss.detach())
        self.norm = self.parameters.norm()
        return loss, self.norm

    def _cached(self, batch: Batch, parts: list[Batch], weight: float) -> float:
        """Leave the gradient of a joint loss, computed part by part; return the loss."""
        states, outputs = [], []
        for part in parts:
            states.append(self._random_state())
            with torch.no_grad():
                outputs.append(self._forward(part).detach())
        places = [torch.from_numpy(at).to(outputs[0].device) for at in _places(batch, parts)]
        whole = outputs[0].new_empty(len(batch.lengths), *outputs[0].shape[1:])
        for at, out in zip(places, outputs, strict=True):
            whole[at] = out
        loss = self.setup.task.loss(whole.requires_grad_(), batch) / weight
        loss.backward()  # type: ignore[no-untyped-call]
        assert whole.grad is not None
        for part, at, state in zip(parts, places, states, strict=True):
            self._restore(state)
            self._forward(part).backward(whole.grad[at])
            self.parameters.absorb()
        return float(loss.detach())

    def _random_state(self) -> list[Any]:
        """Return the state of all generators that dropout draws from."""
        device = self.parameters.master.device
        accelerator = torch.get_device_module(device).get_rng_state(device) if device.type != "cpu" else None
        return [self._dropout.generator.bit_generator.state, torch.get_rng_state(), accelerator]

    def _restore(self, state: list[Any]) -> None:
        self._dropout.generator.bit_generator.state = state[0]
        torch.set_rng_state(state[1])
        if state[2] is not None:
            device = self.parameters.master.device
            torch.get_device_module(device).set_rng_state(state[2], device)

    def update(self, step: int) -> float:
        """Update the weights; return the learning rate used."""
        return self.parameters.step(schedule(self.setup.config, self.setup.steps, step), self.norm)


def train(model: Any, setup: Setup, keep: Callable[[], None], state: Progressed) -> Iterator[Event]:
    """Train a model in place.

    Args:
        model: a transformers model in float32 on its device; changed in place.
        setup: all that was decided.
        keep: called when the model is the best so far and the run goes on: it must store the weights.
        state: filled as the run goes; afterwards the model holds the weights of its last step.

    Yields:
        Step, Evaluated, Note.

    Raises:
        TrainingError: the loss or the gradient is not finite. The model keeps the weights from before
            that step.
    """
    stepper = Stepper(model, setup)
    evaluate_at = evaluation_steps(setup)
    clock = _Clock(setup.steps)
    since: list[float] = []  # losses since the last evaluation
    try:
        with interruptible() as interrupted:
            for step, rows in enumerate(_batches(setup)):
                batch = _seen(setup, rows, step)
                loss, norm = stepper.compute(batch)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    stepper.discard()
                    raise _not_finite(setup, state, batch, step + 1, loss)
                rate = stepper.update(step)
                since.append(loss)
                state.step, state.tokens = step + 1, state.tokens + batch.tokens
                if state.step % _FORGET == 0:
                    setup.train.forget()
                pace, left = clock.tick(len(batch), step + 1)
                epoch = (step + 1) / setup.steps_per_epoch
                yield Step(step + 1, setup.steps, epoch, loss, rate, norm, len(batch), pace, left)
                # an interrupted run is scored too if it never was: what is kept has a metric
                stop = interrupted.is_set()
                if step + 1 in evaluate_at if not stop else not state.history:
                    stepper.parameters.write_back()
                    yield from _evaluate(model, setup, state, epoch, float(np.mean(since)), keep)
                    since.clear()
                    clock.skip()
                if stop or interrupted.is_set():
                    state.reason = "interrupted"
                    break
                if _patience_over(setup.config, state):
                    state.reason = "early stopping"
                    break
    finally:
        state.seconds = clock.busy
        stepper.release()
    yield from _diagnose(state)


_FORGET = 20  # steps after which the pages of large data are given back


def _batches(setup: Setup) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the rows of every step of the run."""
    epoch, left = 0, setup.steps
    while left > 0:
        order = setup.order(epoch)[:left]
        yield from order
        epoch, left = epoch + 1, left - len(order)


def _places(batch: Batch, parts: list[Batch]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield, for each sequence of each part, where it is in the whole batch."""
    where = np.arange(len(batch.lengths)) if batch.places is None else batch.places
    start = 0
    for part in parts:
        here = where[start : start + len(part.lengths)]
        start += len(part.lengths)
        if part.places is not None:  # example by example -> sorted by length, as the part is
            here = here[np.argsort(part.places)]
        yield here


def _forward(model: Any, setup: Setup, parameters: Parameters, dropout: Dropout) -> Callable[[Batch], Any]:
    """Return batch -> outputs: the packed forward, or transformers' own under autocast."""
    device, output = parameters.master.device, setup.task.output
    torch.manual_seed(setup.config.seed)  # dropout inside transformers' modules draws from the global generator
    if setup.architecture is not None:
        packed = setup.architecture.forward(model, parameters, output)
        return lambda batch: packed(pack(batch, device, output), dropout)

    def plain(batch: Batch) -> torch.Tensor | Projected:
        model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=setup.dtype == torch.bfloat16):
            return transformers_outputs(model, batch, setup.pad_id, output)

    return plain


def _seen(setup: Setup, rows: np.ndarray[Any, Any], step: int) -> Batch:
    """Return the rows as this step sees them: noised by the task, with tokens dropped and swapped if asked for.

    The noise is from a generator of the step's own.
    """
    batch = gather(setup.train, rows)
    rate = setup.config.augment
    rng = np.random.default_rng((setup.config.seed, 1 + step))
    if rate > 0.0:
        whole = encoded(batch)
        spans = itertools.pairwise(whole.offsets)
        kept = [a + augmented_order(whole.ids[a:b], rate, setup.special_ids, rng) for a, b in spans]
        places = np.concatenate(kept)
        shorter = replace(
            whole,
            ids=whole.ids[places],
            types=None if whole.types is None else whole.types[places],
            offsets=np.concatenate([[0], np.cumsum([len(k) for k in kept], dtype=np.int64)]),
        )
        batch = replace(part := gather(shorter, np.arange(len(batch))), rows=batch.rows[part.rows])
    return setup.task.noised(batch, rng)


def evaluation_steps(setup: Setup) -> set[int]:
    """Return the steps after which the validation data is scored: evenly in each epoch, and the last."""
    if setup.evaluation is None:
        return set()
    per = setup.steps_per_epoch / setup.config.evaluations
    count = math.ceil(setup.steps / per)
    return {min(setup.steps, max(1, round(per * (i + 1)))) for i in range(count)} | {setup.steps}


def _evaluate(
    model: Any, setup: Setup, state: Progressed, epoch: float, train_loss: float, keep: Callable[[], None]
) -> Iterator[Event]:
    assert setup.evaluation is not None
    yield Phase("evaluate", len(setup.evaluation))
    try:
        loss, scorer = evaluate(setup.engine(model), setup.task, setup.evaluation, setup.evaluation_rows)
    except TrainingError as error:
        state.broken = True
        error.message += f", after step {state.step}"
        raise
    yield Progress(len(setup.evaluation))
    metrics = scorer.values()
    value = metrics[setup.metric] * (-1 if setup.metric in LOWER_IS_BETTER else 1)
    # a tie goes to the lower loss: the same answers, given with better probabilities
    earlier = [event.loss for event in state.history if event.step == state.best_step]
    best = value > state.best or (value == state.best and bool(earlier) and loss < earlier[0])
    event = Evaluated(state.step, epoch, loss, metrics, setup.metric, best)
    state.history.append(event)
    state.losses.append(train_loss)
    if best:
        state.best, state.best_step, state.best_scorer = value, state.step, scorer
        if state.step < setup.steps:
            keep()
    yield event
    yield Phase("train")


def _patience_over(config: FinetuneConfig, state: Progressed) -> bool:
    if config.patience is None:
        return False
    worse = sum(1 for event in state.history if event.step > state.best_step)
    return worse >= config.patience


def _diagnose(state: Progressed) -> Iterator[Event]:
    advice = overfitting(state.history, state.losses)
    if advice is None and state.best_scorer is not None:
        advice = not_learning(state.history, state.best_scorer.baseline())
    if advice:
        yield Note(advice, "warning")


def _not_finite(setup: Setup, state: Progressed, batch: Batch, step: int, loss: float) -> TrainingError:
    rows = [setup.describe(int(row)) for row in batch.rows[:3]]
    what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
    kept = "the weights from before this step are kept" if state.step else "nothing had been learned yet"
    return TrainingError(
        f"{what} at step {step}; its rows: {', '.join(rows)}" + (", ..." if len(batch) > 3 else "") + f". {kept}",
        hint="a lower learning_rate, precision=float32, or a look at these rows",
    )


class _Clock:
    """Pace and time left, over the last steps, with evaluations counted apart."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.busy = 0.0
        self._last = time.perf_counter()
        self._recent: deque[tuple[float, int]] = deque(maxlen=50)

    def tick(self, rows: int, step: int) -> tuple[float, float]:
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        self.busy += spent
        self._recent.append((spent, rows))
        seconds = sum(s for s, _ in self._recent)
        each = seconds / len(self._recent)
        return sum(r for _, r in self._recent) / max(seconds, 1e-9), each * (self.steps - step)

    def skip(self) -> None:
        """Leave out the time since the last tick."""
        self._last = time.perf_counter()


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a request to stop after the step; a second one stops at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(_number: int, _frame: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    signal.signal(signal.SIGINT, ask)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
