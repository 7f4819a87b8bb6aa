"""The training loop. There is one, and it reads from top to bottom.

One optimiser step: a batch of rows (cut into micro-batches where memory asks for it), forward, the
task's summed loss divided by the weight of the whole batch, backward, clip, AdamW. The loop yields
events; it prints nothing and opens no file of its own.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from ..core.config import FinetuneConfig
from ..core.errors import TrainingError, UsageError
from ..core.events import Evaluated, Event, Note, Phase, Progress, Step
from ..data.batching import Batch
from ..evaluation import evaluate
from ..frameworks.supported import FRAMEWORKS
from ..metrics.base import LOWER_IS_BETTER, Scorer
from .checkpoint import Checkpoint, Checkpoints
from .diagnosis import not_learning, overfitting
from .keras import KerasStepper
from .setup import Setup
from .sharded import Sharded
from .stepper import Stepper, seen


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
    since: list[float] = field(default_factory=list)
    """Losses of the steps since the last evaluation."""
    skipped: int = 0
    """Steps in a row whose loss or gradient was not finite."""

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON types (-inf and NaN among them)."""
        kept = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _NOT_KEPT}
        return kept | {"history": [asdict(event) for event in self.history]}

    def restore(self, content: Mapping[str, Any]) -> None:
        """Take over what ``to_dict`` returned."""
        for name, value in content.items():
            setattr(self, name, value)
        self.history = [Evaluated(**event) for event in content["history"]]


_NOT_KEPT = ("best_scorer", "reason", "broken")  # the best model is scored again where it is needed


def train(
    model: Any,
    setup: Setup,
    keep: Callable[[dict[str, Any]], None],
    state: Progressed,
    checkpoints: Checkpoints | None = None,
    resumed: Checkpoint | None = None,
) -> Iterator[Event]:
    """Train a model in place.

    Args:
        model: a transformers model in float32 on its device, as it is before its training; changed in place.
        setup: all that was decided.
        keep: called with copies of the weights when the model is the best so far and the run goes on.
        state: filled as the run goes; afterwards the model holds the weights of its last step.
        checkpoints: where checkpoints go; without it none are written.
        resumed: the checkpoint from which the run goes on.

    Yields:
        Step, Evaluated, Note.

    Raises:
        TrainingError: the loss or the gradient is not finite. The model keeps the weights from before
            that step.
        UsageError: the checkpoint belongs to another model.
    """
    stepper = stepper_of(model, setup)
    start = stepper.parameters.checksum() if checkpoints else ""
    if resumed is not None:
        _restore(stepper, state, resumed, start)
    evaluate_at = evaluation_steps(setup)
    clock = _Clock(setup.steps, state.seconds)
    try:
        yield from stepper.rehearse()
        clock.skip()
        with stopping() as asked, _reachable(asked):
            for step, rows in enumerate(_batches(setup, state.step), state.step):
                batch = seen(setup, rows, step)
                loss, norm = stepper.compute(batch, step)
                yield from stepper.notes()
                if math.isfinite(loss) and math.isfinite(norm):
                    rate = stepper.update(step)
                    state.since.append(loss)
                    state.skipped = 0
                else:
                    stepper.discard()
                    rate = 0.0
                    yield _skipped(setup, state, batch, step + 1, loss)
                state.step, state.tokens = step + 1, state.tokens + batch.tokens
                if state.step % _FORGET == 0:
                    setup.train.forget()
                pace, left = clock.tick(len(batch), step + 1)
                state.seconds = clock.busy
                epoch = (step + 1) / setup.steps_per_epoch
                yield Step(step + 1, setup.steps, epoch, loss, rate, norm, len(batch), pace, left)
                stop, leave, due = setup.backend.any(
                    asked.stop, asked.leave, checkpoints is not None and checkpoints.is_due(state.step)
                )
                late = time.perf_counter() > setup.ends and state.step < setup.steps
                # an interrupted run is scored too if it never was: what is kept has a metric
                ends = setup.evaluation is not None and (late or (stop and not state.history))
                if ends or (step + 1 in evaluate_at and not stop):
                    stepper.write_back()
                    yield from _evaluate(stepper, state, epoch, keep)
                    state.since.clear()
                    clock.skip()
                if stop or (asked.stop and setup.backend.world == 1):  # several processes stop at the same step
                    state.reason = "interrupted"
                    break
                if late:
                    state.reason = "out of time"
                    break
                if _patience_over(setup.config, state):
                    state.reason = "early stopping"
                    break
                if checkpoints and (due or leave) and state.step < setup.steps:
                    _save(checkpoints, stepper, state, start)
                    yield from checkpoints.notes()
                if leave:
                    state.reason = "terminated" if checkpoints else "interrupted"
                    break
    finally:
        if checkpoints:
            checkpoints.wait()
        try:
            stepper.release()
        finally:
            state.broken = state.broken or stepper.lost
    if checkpoints:
        yield from checkpoints.notes()
    yield from _diagnose(state)


def stepper_of(model: Any, setup: Setup) -> Stepper | KerasStepper:
    """Return what computes the steps: torch here, or another framework in a process of its own."""
    return KerasStepper(model, setup) if setup.config.framework in FRAMEWORKS else Stepper(model, setup)


_FORGET = 20  # steps after which the pages of large data are given back


def _save(checkpoints: Checkpoints, stepper: Stepper | KerasStepper, state: Progressed, start: str) -> None:
    """Write a checkpoint: all processes their parts of it where the model is cut up, else the main one."""
    parts = isinstance(stepper.parameters, Sharded)
    if not (parts or checkpoints.writes):
        return
    tensors, numbers = stepper.parameters.state()
    content = {"start": start, "world": stepper.setup.backend.world, "parts": parts, "best_step": state.best_step,
               "numbers": numbers, "progress": state.to_dict()}  # fmt: skip
    if parts:
        checkpoints.save_parts(state.step, tensors, content, stepper.setup.backend)
    else:
        checkpoints.save(state.step, tensors, content)


def _restore(stepper: Stepper | KerasStepper, state: Progressed, resumed: Checkpoint, start: str) -> None:
    content = resumed.content
    if content["parts"] is not isinstance(stepper.parameters, Sharded):
        raise UsageError(
            "the checkpoint was written by another kind of backend: fsdp cuts the model up, the others do not",
            hint="go on with the backend that wrote it, or start anew (--overwrite)",
        )
    if content["start"] != start:
        raise UsageError(
            "the model that this training began from has changed since its checkpoint was written",
            hint="bring the model back, or start anew (--overwrite)",
        )
    stepper.parameters.restore(resumed.folder, content["numbers"])
    state.restore(content["progress"])


def _batches(setup: Setup, done: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the rows of every step of the run that is not done."""
    while done < setup.steps:
        epoch, at = divmod(done, setup.steps_per_epoch)
        order = setup.order(epoch)[at : at + setup.steps - done]
        yield from order
        done += len(order)


def evaluation_steps(setup: Setup) -> set[int]:
    """Return the steps after which the validation data is scored: evenly in each epoch, and the last."""
    if setup.evaluation is None:
        return set()
    per = setup.steps_per_epoch / setup.config.evaluations
    count = math.ceil(setup.steps / per)
    return {min(setup.steps, max(1, round(per * (i + 1)))) for i in range(count)} | {setup.steps}


def _evaluate(
    stepper: Stepper | KerasStepper, state: Progressed, epoch: float, keep: Callable[[dict[str, Any]], None]
) -> Iterator[Event]:
    setup = stepper.setup
    assert setup.evaluation is not None
    yield Phase("evaluate", len(setup.evaluation))
    try:
        loss, scorer = evaluate(setup.engine(stepper.model), setup.task, setup.evaluation, setup.evaluation_rows)
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
    state.losses.append(float(np.mean(state.since)) if state.since else math.nan)
    if best:
        state.best, state.best_step, state.best_scorer = value, state.step, scorer
        if state.step < setup.steps:
            keep(stepper.weights())
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


def _skipped(setup: Setup, state: Progressed, batch: Batch, step: int, loss: float) -> Note:
    """Return a note about a step whose loss or gradient is not finite; raise where the run shall stop."""
    rows = [setup.describe(int(row)) for row in batch.rows[:3]]
    what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
    text = f"{what} at step {step}; its rows: {', '.join(rows)}" + (", ..." if len(batch) > 3 else "")
    state.skipped += 1
    if setup.config.on_non_finite == "skip" and state.skipped < _MOST_SKIPPED:
        return Note(f"{text}. The step is skipped", "warning")
    kept = "the weights from before this step are kept" if state.step else "nothing had been learned yet"
    many = f" ({state.skipped} steps in a row)" if state.skipped > 1 else ""
    raise TrainingError(
        f"{text}{many}. {kept}",
        hint=f"a lower learning_rate, precision=float32, or a look at these rows: llmasos data show --step {step}",
    )


_MOST_SKIPPED = 10  # steps in a row without a finite loss: nothing is learned any more


class _Clock:
    """Pace and time left, over the last steps, with evaluations counted apart."""

    def __init__(self, steps: int, busy: float = 0.0) -> None:
        self.steps = steps
        self.busy = busy
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


class Asked:
    """What signals have asked for: ``stop`` (Ctrl-C) keeps the best model, ``leave`` (SIGTERM) a checkpoint."""

    def __init__(self) -> None:
        self.stop = self.leave = False

    def on_interrupt(self, _number: int, _frame: Any) -> None:
        """Stop after the step; a second Ctrl-C stops at once."""
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True

    def on_terminate(self, _number: int, _frame: Any) -> None:
        """Leave after the step."""
        self.leave = True


_TRAINING: list[Asked] = []


@contextmanager
def _reachable(asked: Asked) -> Iterator[None]:
    """Let ``ask_to_stop`` find the training inside the block, where signals do not arrive."""
    _TRAINING.append(asked)
    try:
        yield
    finally:
        _TRAINING.remove(asked)


def ask_to_stop() -> bool:
    """Let the training of this process keep its best model and end, as Ctrl-C does; return whether there is one."""
    for asked in _TRAINING:
        asked.stop = True
    return bool(_TRAINING)


@contextmanager
def stopping() -> Iterator[Asked]:
    """Turn Ctrl-C and SIGTERM into requests, in the main thread; elsewhere signals do not arrive."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    handlers = {signal.SIGINT: asked.on_interrupt, signal.SIGTERM: asked.on_terminate}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
