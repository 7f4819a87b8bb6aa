"""The study of a search: Optuna's journal of its trials, what a trial tries, and when one is given up.

The journal is a file of one JSON object a line. A trial is drawn and judged among those that it may know alone, in a
study in memory; so neither a search that went on nor trials that run side by side change what it tries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Container, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.events import Evaluated, Event, Finished, Note, Saved, Step, Trial
from ..metrics.base import LOWER_IS_BETTER
from .space import Dimension

if TYPE_CHECKING:
    import optuna

STARTUP = 5
"""Trials before the sampler draws by what it learned and the pruner compares."""

CONCLUDED = ("complete", "pruned", "diverged", "lost")
"""How a trial that counts may have ended; others are repeated."""


# -- the journal --------------------------------------------------------------------------------------


def open_study(folder: Path) -> optuna.Study:
    """Open the journal, or begin it; what a killed process left half written is cut off, its trials have failed."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    journal = folder / "study.jsonl"
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)  # ours alone, since the folder is held
    if journal.exists():
        text = journal.read_bytes()
        if not text.endswith(b"\n"):
            with journal.open("r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)
    content = json.loads((folder / "search.json").read_text(encoding="utf-8"))
    pruner = (
        optuna.pruners.MedianPruner(n_startup_trials=STARTUP)
        if content["prune"] == "median"
        else optuna.pruners.NopPruner()
    )
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(
        storage=storage, study_name="search", direction="maximize", pruner=pruner, load_if_exists=True
    )
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():  # its process was killed
            study.tell(trial.number, state=_state("FAIL"))
    return study


def _over(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return what the study knows of trials that are over."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and "number" in trial.user_attrs
    ]


def trials_of(study: optuna.Study, most: int) -> list[Trial]:
    """Return all trials that are over by their number, which one that was repeated has twice."""
    out: list[Trial] = []
    for trial in _over(study):
        record = {"status": "interrupted", **trial.user_attrs}
        out.append(Trial(trials=most, values=dict(trial.params), **record))
    return sorted(out, key=lambda trial: trial.number)


def concluded(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that count."""
    return [trial for trial in trials if trial.status in CONCLUDED]


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the completed trial with the best metric; of several, as in a run, the one with the lowest loss."""

    def rank(trial: Trial) -> tuple[float, float]:
        return _signed(trial.metric or "", trial.value or 0.0), -(trial.loss or 0.0)

    return max((trial for trial in trials if trial.status == "complete"), key=rank, default=None)


def _state(name: str) -> optuna.trial.TrialState:
    from optuna.trial import TrialState

    return TrialState[name]


# -- one trial ----------------------------------------------------------------------------------------


def next_number(study: optuna.Study, most: int, running: Container[int] = (), places: int = 1) -> int | None:
    """Return the number of the next trial; None where none is left, or those that it follows are still running."""
    done = {trial.number for trial in concluded(trials_of(study, most))}
    left = (number for number in range(1, most + 1) if number not in done and number not in running)
    number = next(left, None)
    return None if number is None or not set(_before(number, places)) <= done else number


def _before(number: int, places: int) -> range:
    """Return the trials that a trial knows, where so many run at once."""
    last = number - places
    return range(1, last + 1 if places == 1 or last >= STARTUP else 1)


def draw(
    study: optuna.Study, number: int, space: Sequence[Dimension], *, seed: int, places: int = 1
) -> tuple[optuna.Trial, optuna.Trial]:
    """Begin a trial in the study.

    Args:
        study: the journal.
        number: the trial's number, from 1.
        space: what is drawn.
        seed: the search's seed.
        places: how many trials run at once.

    Returns:
        The trial, and the same among those that it knows.
    """
    import optuna

    done = {trial.user_attrs["number"]: trial for trial in _over(study) if trial.user_attrs.get("status") in CONCLUDED}
    # A sampler of its own for each trial: then nothing is drawn twice, or otherwise, by a search that went on.
    sampler = optuna.samplers.TPESampler(seed=_seed(seed, number), n_startup_trials=STARTUP)
    among = optuna.create_study(direction="maximize", sampler=sampler, pruner=study.pruner)
    among.add_trials([done[earlier] for earlier in _before(number, places)])
    distributions = {dimension.name: dimension.distribution() for dimension in space}
    known = among.ask(distributions)
    study.sampler = _given(known.params)
    trial = study.ask(distributions)
    trial.set_user_attr("number", number)
    return trial, known


def _given(params: Mapping[str, Any]) -> optuna.samplers.BaseSampler:
    """Return a sampler that gives what was drawn already."""
    from optuna.samplers import BaseSampler

    class Given(BaseSampler):  # type: ignore[misc]
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            del study, trial
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            del study, trial, search_space
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            del study, trial, param_distribution
            return params[param_name]

    return Given()


class Watched:
    """Follow one training: report its evaluations, and say where it is hopeless or out of time.

    ``known`` is the same trial among those that it is compared with.
    """

    def __init__(self, trial: optuna.Trial, known: optuna.Trial, deadline: float) -> None:
        self.trial, self.known, self.deadline = trial, known, deadline
        self.status = "interrupted"
        self.metric: str | None = None
        self.value: float | None = None
        self.loss: float | None = None
        self.evaluations: list[float] = []
        self._steps = self._at = 0

    def follow(self, events: Generator[Event, None, Any], *, notes: bool) -> Iterator[Event]:
        """Pass on what is worth showing, until it is over; ``notes`` says whether that holds of the run's notes."""
        try:
            for event in events:
                if not isinstance(event, Finished | Saved) and (notes or not is_plain_note(event)):
                    yield event
                if self.is_over(event):
                    return
        finally:
            events.close()

    def is_over(self, event: Event) -> bool:
        """Learn from an event; say whether the training shall end."""
        if isinstance(event, Step):
            self._steps = event.steps
        if isinstance(event, Finished):
            self.value = event.metrics.get(self.metric or "")
            self.status = "complete" if event.reason in ("done", "early stopping") else "interrupted"
        if isinstance(event, Evaluated) and event.step > self._at:  # it comes again where a training was gone on with
            self._at = event.step
            self.metric, self.value = event.metric, event.metrics[event.metric]
            self.evaluations.append(self.value)
            if event.best:
                self.loss = event.loss
            for trial in (self.trial, self.known):
                trial.report(_signed(self.metric, self.value), len(self.evaluations))
            if event.step < self._steps and self.known.should_prune():
                self.status = "pruned"
                return True
        if self.status != "complete" and time.monotonic() >= self.deadline:
            self.status = "out of time"
            return True
        return False

    def record(self) -> dict[str, Any]:
        """Return what is kept of the trial, as ``Trial`` has it."""
        names = ("status", "metric", "value", "loss", "evaluations")
        return {name: getattr(self, name) for name in names}


def is_plain_note(event: Event) -> bool:
    """Say whether an event is a note that is no warning."""
    return isinstance(event, Note) and event.level == "info"


def tell(study: optuna.Study, watched: Watched, seconds: float) -> dict[str, Any]:
    """Tell the study how a trial ended; return what it keeps of that."""
    record = watched.record() | {"seconds": round(seconds, 3)}
    for name, value in record.items():
        watched.trial.set_user_attr(name, value)
    if watched.status == "complete":
        assert watched.metric is not None
        assert watched.value is not None
        study.tell(watched.trial, _signed(watched.metric, watched.value))
    else:
        # The sampler shall learn from a trial that diverged as from one that was pruned: nothing good is there.
        study.tell(watched.trial, state=_state("PRUNED" if watched.status in CONCLUDED else "FAIL"))
    return record


def _seed(seed: int, number: int) -> int:
    import numpy as np

    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def _signed(metric: str, value: float) -> float:
    """Return the metric so that more is better, as the training has it."""
    return -value if metric in LOWER_IS_BETTER else value


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's own talk off the terminal: trials are told as events."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
