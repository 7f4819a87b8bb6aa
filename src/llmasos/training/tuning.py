"""Search for the options of a fine-tuning: each trial is the one training, judged by its validation metric.

While the search goes on, everything is in ``NAME.tuning``: ``search.json`` says what is searched, ``study.jsonl`` is
Optuna's journal (one JSON object a line), and the model of the best trial so far lies beside them. The journal knows a
trial as finished only after its model is whole on disk, so a search that was killed goes on with the trials that it
has and repeats the one that was under way. What a trial tries is drawn from the seed and the trials before it alone:
a search that was killed and went on ends with the trials of one that was not.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core import atomic, bundle
from ..core.config import FinetuneConfig, TuneConfig, home, parse_duration
from ..core.errors import MissingExtraError, TrainingError, UsageError
from ..core.events import Evaluated, Event, Finished, Note, Saved, Step, Trial
from ..data.dataset import read
from ..loading import load_config
from ..metrics.base import LOWER_IS_BETTER
from .request import Request
from .run import default_learning_rate, finetune
from .space import Dimension, default_space, parse_space

if TYPE_CHECKING:
    import optuna

    from ..sources.base import Located

STARTUP = 5
"""Trials before the sampler draws by what it learned and the pruner compares."""

CONCLUDED = ("complete", "pruned", "diverged")
"""How a trial that counts may have ended; others are repeated."""


@dataclass
class Search:
    """What a search found.

    ``path`` is the folder of the best model, ``best`` the trial that made it, ``trials`` all that were begun in their
    order; ``reason`` says why it ended: "done", "out of time" or "interrupted".
    """

    path: Path
    reason: str
    metric: str
    best: Trial
    trials: list[Trial]
    space: dict[str, str]
    seconds: float
    command: str

    def as_dict(self) -> dict[str, Any]:
        """Return the search as JSON types."""
        return {
            "path": str(self.path),
            "reason": self.reason,
            "metric": self.metric,
            "lower_is_better": self.metric in LOWER_IS_BETTER,
            "best": asdict(self.best),
            "trials": [asdict(trial) for trial in self.trials],
            "space": self.space,
            "seconds": round(self.seconds, 3),
            "command": self.command,
        }


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the best model so far has been saved: ``search`` is what was found."""

    def __init__(self, search: Search) -> None:
        super().__init__(f"the best model so far is in {search.path}; the same command goes on with the search")
        self.search = search


@dataclass(frozen=True)
class _Job:
    """What all trials have in common. ``fixed`` are the options that were given for all of them."""

    request: Request
    fixed: Mapping[str, Any]
    space: tuple[Dimension, ...]
    options: TuneConfig
    folder: Path
    deadline: float

    @property
    def seed(self) -> int:
        return FinetuneConfig.of(self.fixed).seed


def tune(
    request: Request,
    *,
    output: str | Path | None,
    overwrite: bool,
    fixed: Mapping[str, Any],
    space: Mapping[str, Any] | Sequence[str] | None,
    options: TuneConfig,
) -> Generator[Event, None, Search]:
    """Search, and keep the model of the best trial.

    Args:
        request: as for ``run.finetune``.
        output: folder for the best model; in ``LLMASOS_HOME`` if not given.
        overwrite: replace an existing output, and begin anew where a search is unfinished.
        fixed: options of ``FinetuneConfig`` that are the same in all trials.
        space: what is searched, see ``space.parse_space``; None for the default.
        options: how the search is done.

    Yields:
        The events of all trainings, and a ``Trial`` before and after each.

    Raises:
        UsageError: the space makes no sense, or the folder holds another search.
        MissingExtraError: Optuna is not installed.
        TrainingError: no trial was finished.
        Interrupted: Ctrl-C, after the best model was saved.
    """
    _check_optuna()
    started = time.monotonic()
    config = FinetuneConfig.of(fixed)
    if space is None:
        space = default_space(_default_rate(request.located, config), fixed)
    dimensions = parse_space(space, fixed)
    if request.eval_data is None and not config.eval_split:
        raise UsageError("a search needs validation rows", hint="give eval_data, or an eval_split above 0")
    target = _output(output)
    folder = target.with_name(target.name + ".tuning")
    content = _identity(request, config, dimensions, options)
    mine = _open_folder(folder, target, content, overwrite=overwrite)
    deadline = started + (parse_duration("within", options.within) if options.within else math.inf)
    job = _Job(request, fixed, dimensions, options, folder, deadline)
    with atomic.hold(folder), atomic.full_disk(folder), _quiet():
        study = _open_study(folder)
        for trial in study.get_trials(deepcopy=False):
            if not trial.state.is_finished():  # its process was killed
                study.tell(trial.number, state=_state("FAIL"))
        reason = "done"
        try:
            while len(_concluded(_trials(study, options.trials))) < options.trials:
                if time.monotonic() >= deadline:
                    reason = "out of time"
                    break
                yield from _try(job, study)
        except KeyboardInterrupt:
            reason = "interrupted"
        search = _finish(job, study, target, reason, time.monotonic() - started, overwrite=overwrite or mine)
    if reason != "interrupted":
        shutil.rmtree(folder, ignore_errors=True)
    yield Saved(search.path)
    if reason == "interrupted":
        raise Interrupted(search)
    return search


# -- one trial ----------------------------------------------------------------------------------------


def _try(job: _Job, study: optuna.Study) -> Generator[Event, None, None]:
    """Train once with options that the sampler draws, and tell the study what came of it."""
    from optuna.samplers import TPESampler

    done = _concluded(_trials(study, job.options.trials))
    number = len(done) + 1
    # A sampler of its own for each trial: then nothing is drawn twice, or otherwise, by a search that went on.
    study.sampler = TPESampler(seed=_seed(job.seed, number), n_startup_trials=STARTUP)
    trial = study.ask({dimension.name: dimension.distribution() for dimension in job.space})
    config = FinetuneConfig.of({**job.fixed, **trial.params})
    output = job.folder / f"trial-{number}"
    for leftover in (output, output.with_name(output.name + ".unfinished")):
        shutil.rmtree(leftover, ignore_errors=True)
    watched, started = _Watched(trial, job.deadline), time.monotonic()
    try:
        yield Trial(number, job.options.trials, dict(trial.params), "begun")
        events = finetune(job.request, config, output=output, overwrite=False, resume=False)
        yield from watched.follow(events, notes=number == 1)
        if watched.status == "interrupted":  # a run that Ctrl-C ended returns what it has learned
            raise KeyboardInterrupt
    except TrainingError as error:
        watched.status = "diverged"
        yield Note(error.message, "warning")
    finally:
        _tell(study, trial, watched, time.monotonic() - started)
        _tidy(job.folder, study, job.options.trials)
    yield _trials(study, job.options.trials)[-1]


class _Watched:
    """Follow one training: report its evaluations, and close it where it is hopeless or out of time."""

    def __init__(self, trial: optuna.Trial, deadline: float) -> None:
        self.trial, self.deadline = trial, deadline
        self.status = "interrupted"
        self.metric: str | None = None
        self.value: float | None = None
        self.loss: float | None = None
        self.evaluations: list[float] = []
        self._steps = 0

    def follow(self, events: Generator[Event, None, Any], *, notes: bool) -> Iterator[Event]:
        """Pass on what is worth showing; ``notes`` says whether that holds of the run's notes."""
        try:
            for event in events:
                if isinstance(event, Finished):
                    self.value = event.metrics.get(self.metric or "")
                    self.status = "complete" if event.reason in ("done", "early stopping") else "interrupted"
                elif not isinstance(event, Saved) and (notes or not isinstance(event, Note) or event.level != "info"):
                    yield event
                if self._is_over(event):
                    return
        finally:
            events.close()

    def _is_over(self, event: Event) -> bool:
        if isinstance(event, Step):
            self._steps = event.steps
        if isinstance(event, Evaluated):
            self.metric, self.value = event.metric, event.metrics[event.metric]
            self.evaluations.append(self.value)
            if event.best:
                self.loss = event.loss
            self.trial.report(_signed(self.metric, self.value), len(self.evaluations))
            if event.step < self._steps and self.trial.should_prune():
                self.status = "pruned"
                return True
        if self.status != "complete" and time.monotonic() >= self.deadline:
            self.status = "out of time"
            return True
        return False


def _tell(study: optuna.Study, trial: optuna.Trial, watched: _Watched, seconds: float) -> None:
    record = {"status": watched.status, "metric": watched.metric, "value": watched.value, "loss": watched.loss,
              "evaluations": watched.evaluations, "seconds": round(seconds, 3)}  # fmt: skip
    for name, value in record.items():
        trial.set_user_attr(name, value)
    if watched.status == "complete":
        assert watched.metric is not None
        assert watched.value is not None
        study.tell(trial, _signed(watched.metric, watched.value))
    else:
        # The sampler shall learn from a trial that diverged as from one that was pruned: nothing good is there.
        study.tell(trial, state=_state("PRUNED" if watched.status in CONCLUDED else "FAIL"))


def _tidy(folder: Path, study: optuna.Study, trials: int) -> None:
    """Remove all models but that of the best trial."""
    best = _best(_trials(study, trials))
    for path in folder.glob("trial-*"):
        if best is None or path.name != f"trial-{best.number}":
            shutil.rmtree(path, ignore_errors=True)


def _seed(seed: int, number: int) -> int:
    import numpy as np

    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def _signed(metric: str, value: float) -> float:
    """Return the metric so that more is better, as the training has it."""
    return -value if metric in LOWER_IS_BETTER else value


# -- the study ----------------------------------------------------------------------------------------


def _open_study(folder: Path) -> optuna.Study:
    """Open the journal, or begin it; what a killed process left half written is cut off."""
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
    return optuna.create_study(
        storage=storage, study_name="search", direction="maximize", pruner=pruner, load_if_exists=True
    )


def _trials(study: optuna.Study, most: int) -> list[Trial]:
    """Return all trials in their order; one that was repeated has its number twice."""
    out: list[Trial] = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished():
            record = {"status": "interrupted", **trial.user_attrs}
            out.append(Trial(len(_concluded(out)) + 1, most, dict(trial.params), **record))
    return out


def _concluded(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.status in CONCLUDED]


def _best(trials: Sequence[Trial]) -> Trial | None:
    """Return the completed trial with the best metric; of several, as in a run, the one with the lowest loss."""

    def rank(trial: Trial) -> tuple[float, float]:
        return _signed(trial.metric or "", trial.value or 0.0), -(trial.loss or 0.0)

    return max((trial for trial in trials if trial.status == "complete"), key=rank, default=None)


def _state(name: str) -> optuna.trial.TrialState:
    from optuna.trial import TrialState

    return TrialState[name]


# -- the folder ---------------------------------------------------------------------------------------


def _output(output: str | Path | None) -> Path:
    if output is not None:
        return Path(output).expanduser()
    (home() / "runs").mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path(tempfile.mkdtemp(prefix=f"{stamp}-", dir=home() / "runs")) / "model"


def _identity(
    request: Request, config: FinetuneConfig, space: Sequence[Dimension], options: TuneConfig
) -> dict[str, Any]:
    """Return what a search that goes on must have in common with the one that it goes on with."""
    prints = {
        name: None if rows is None else read(rows, request.task.fields, columns=request.columns).fingerprint()
        for name, rows in (("training data", request.data), ("validation data", request.eval_data))
    }
    elsewhere = ("device", "threads", "micro_batch_size")  # which say where and how, not what is learned
    content = {
        "model": [request.located.ref, request.located.revision],
        "task": request.task.to_dict(),
        **prints,
        "options": {name: value for name, value in config.to_dict().items() if name not in elsewhere},
        "space": {dimension.name: str(dimension) for dimension in space},
        "prune": options.prune,
    }
    return json.loads(json.dumps(content))  # type: ignore[no-any-return]


def _open_folder(folder: Path, target: Path, content: dict[str, Any], *, overwrite: bool) -> bool:
    """Make the folder of the search, or take up the one that is there.

    Returns:
        Whether the model in ``target`` is what the same search found before, so that it may be replaced.

    Raises:
        UsageError: the target is taken, or the folder holds another search.
    """
    before = None if overwrite else _earlier(folder)
    if before:
        for name, value in content.items():
            if before.get(name) != value:
                raise UsageError(
                    f"{folder} holds a search with another {name}: {_difference(before.get(name), value)}",
                    hint="give what was given then to go on, name another output, or overwrite (--overwrite) "
                    "to begin anew",
                )
    bundle.recover(target)
    ours = bool(before) and (target / bundle.RUN / "tuning.json").is_file()
    if target.exists() and not (overwrite or ours):
        raise UsageError(f"{target} exists already", hint="another output, or overwrite (--overwrite)")
    if not before:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        atomic.write_json(folder / "search.json", {"llmasos": __version__, **content})
    return ours


def _earlier(folder: Path) -> dict[str, Any] | None:
    """Return what the search in a folder is about, if it has come to anything."""
    try:
        content = json.loads((folder / "search.json").read_text(encoding="utf-8"))
        begun = (folder / "study.jsonl").read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return None
    return content if any(f'"status":"{status}"' in begun for status in CONCLUDED) else None


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        name = next(name for name in {**before, **now} if before.get(name) != now.get(name))
        return f"{name} was {before.get(name)}, now {now.get(name)}"
    return f"was {before}, now {now}"


def _finish(job: _Job, study: optuna.Study, target: Path, reason: str, seconds: float, *, overwrite: bool) -> Search:
    """Give the best model its name, with the records of the search."""
    from .trainer import stopping
    from .tuning_plot import plot_tuning

    trials = _trials(study, job.options.trials)
    best = _best(trials)
    if best is None:
        if reason == "interrupted":
            raise KeyboardInterrupt("no trial was finished; the same command goes on with the search")
        raise TrainingError("no trial was finished", hint="a longer within, more trials, or lower learning rates")
    assert best.metric is not None
    recipe = target / bundle.RUN / "recipe.yaml"
    search = Search(
        target, reason, best.metric, best, trials, {d.name: str(d) for d in job.space}, seconds,
        command=f"llmasos finetune --config {recipe} --output {target.with_name(target.name + '-again')}",
    )  # fmt: skip

    def fill(fresh: Path) -> None:
        shutil.copytree(job.folder / f"trial-{best.number}", fresh, dirs_exist_ok=True)
        _write_recipe(job, best, fresh / bundle.RUN / recipe.name)
        records = {"llmasos": __version__, "optuna": metadata.version("optuna"), **search.as_dict()}
        atomic.write_json(fresh / bundle.RUN / "tuning.json", records)
        plot_tuning(search.metric, trials, best, job.space, fresh / bundle.RUN / "tuning.png")

    with stopping():
        bundle.write_folder(target, fill, overwrite=overwrite)
    return search


def _write_recipe(job: _Job, best: Trial, path: Path) -> None:
    """Write the best trial as a recipe for ``llmasos finetune``, as far as files say what the data is."""
    import yaml

    located, task, columns = job.request.located, job.request.task, job.request.columns
    content: dict[str, Any] = {"model": located.ref, "revision": located.revision, "task": task.tag}
    content |= {
        name: str(rows) for name, rows in (("data", job.request.data), ("eval_data", job.request.eval_data))
        if isinstance(rows, str | Path)
    }  # fmt: skip
    content["columns"] = None if columns is None else dict(columns)
    given = task.to_dict()
    content |= {
        item.name: given[item.name] for item in fields(task)  # type: ignore[arg-type]
        if not item.metadata.get("settled") and getattr(task, item.name) != item.default
    }  # fmt: skip
    content |= FinetuneConfig.of({**job.fixed, **best.values}).to_dict()
    kept = {name: value for name, value in content.items() if value is not None}
    atomic.write_text(path, yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))


# -- the surroundings ---------------------------------------------------------------------------------


def _default_rate(located: Located, config: FinetuneConfig) -> float:
    from .adapters import RATE

    rate = default_learning_rate(SimpleNamespace(config=load_config(located.path)))
    return rate * (1.0 if config.adapter == "none" else RATE)


def _check_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("the search", install='"llmasos[tune]"') from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's own talk off the terminal: trials are told as events."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
