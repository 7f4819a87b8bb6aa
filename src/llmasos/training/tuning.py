"""Search for the options of a fine-tuning: each trial is the one training, judged by its validation metric.

While the search goes on, everything is in ``NAME.tuning``: ``search.json`` says what is searched, ``study.jsonl`` is
Optuna's journal (one JSON object a line), and the model of the best trial so far lies beside them. The journal knows a
trial as finished only after its model is whole on disk, so a search that was killed goes on with the trials that it
has and repeats the one that was under way. What a trial tries is drawn from the seed and the trials before it alone:
a search that was killed and went on ends with the trials of one that was not.

On a cluster some trials run at once (``pool.py``). So that the same search still gives the same trials, whichever of
them ends first, trial n knows those up to n minus the places, and begins when all of these are over. Where that is
fewer than the sampler and the pruner wait for, it knows none, and begins at once.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core import atomic, bundle
from ..core.config import FinetuneConfig, TuneConfig, parse_duration
from ..core.environment import home
from ..core.errors import MissingExtraError, TrainingError, UsageError
from ..core.events import Event, Note, Saved, Trial
from ..core.storage import Storage, is_url, place_of
from ..data.dataset import read
from ..data.shards import absolute
from ..loading import load_config
from ..metrics.base import LOWER_IS_BETTER
from .request import Request
from .run import default_learning_rate, finetune
from .space import Dimension, default_space, parse_space
from .study import (
    CONCLUDED,
    Watched,
    best_of,
    concluded,
    draw,
    is_plain_note,
    next_number,
    open_study,
    quiet,
    tell,
    trials_of,
)

if TYPE_CHECKING:
    import optuna

    from ..sources.base import Located
    from .pool import Pool, Training


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
        output: folder for the best model, or a URL, where it is put when the search is over, which stays on this
            machine until then; in ``LLMASOS_HOME`` if not given.
        overwrite: replace an existing output, and begin anew where a search is unfinished.
        fixed: options of ``FinetuneConfig`` that are the same in all trials.
        space: what is searched, see ``space.parse_space``; None for the default.
        options: how the search is done.

    Yields:
        The events of all trainings, and a ``Trial`` before and after each.

    Raises:
        UsageError: the space makes no sense, the output is taken, or the folder holds another search.
        MissingExtraError: Optuna is not installed.
        RemoteError: the model could not be put at its URL; the same call puts it there.
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
    storage = _behind(output, options, overwrite=overwrite)
    target = _output(output) if storage is None else place_of("outputs", storage.url)
    folder = target.with_name(target.name + ".tuning")
    if storage is not None and not folder.exists():  # only a search that is not over has put anything here that counts
        shutil.rmtree(target, ignore_errors=True)
    content = _identity(request, config, dimensions, options)
    mine = _open_folder(folder, target, content, overwrite=overwrite)
    deadline = started + (parse_duration("within", options.within) if options.within else math.inf)
    job = _Job(request, fixed, dimensions, options, folder, deadline)
    with atomic.hold(folder), atomic.full_disk(folder), quiet():
        study = open_study(folder)
        try:
            reason = yield from _tried(job, study)
        except KeyboardInterrupt:
            reason = "interrupted"
        search = _finish(job, study, target, reason, time.monotonic() - started, overwrite=overwrite or mine)
    if reason != "interrupted":
        if storage is not None:
            storage.deliver(target)
        shutil.rmtree(folder, ignore_errors=True)
    yield Saved(search.path)
    if reason == "interrupted":
        raise Interrupted(search)
    return search


# -- one trial ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Begun:
    """A trial that is under way."""

    number: int
    config: FinetuneConfig
    output: Path
    watched: Watched
    started: float


def _tried(job: _Job, study: optuna.Study) -> Generator[Event, None, str]:
    """Try until enough trials have ended; return why the search is over."""
    if job.options.cluster is not None:
        from .pool import pooled

        config = FinetuneConfig.of(job.fixed)
        with pooled(job.options.cluster, job.options.trials, job.options.parallel, config.threads) as pool:
            return (yield from _try_there(job, study, pool))
    while (number := next_number(study, job.options.trials)) is not None:
        if time.monotonic() >= job.deadline:
            return "out of time"
        yield from _try(job, study, number)
    return "done"


def _try(job: _Job, study: optuna.Study, number: int) -> Generator[Event, None, None]:
    """Train once with options that the sampler draws, and tell the study what came of it."""
    begun = _begin(job, study, number)
    watched = begun.watched
    _clear(begun.output)
    try:
        yield _as_trial(job, begun)
        events = _training(job, begun.config, begun.output, resume=False)
        yield from watched.follow(events, notes=number == 1)
        if watched.status == "interrupted":  # a run that Ctrl-C ended returns what it has learned
            raise KeyboardInterrupt
    except TrainingError as error:
        watched.status = "diverged"
        yield Note(error.message, "warning")
    finally:
        ended = _end(job, study, begun)
    yield ended


def _begin(job: _Job, study: optuna.Study, number: int, places: int = 1) -> _Begun:
    trial, known = draw(study, number, job.space, seed=job.seed, places=places)
    config = FinetuneConfig.of({**job.fixed, **trial.params})
    watched = Watched(trial, known, job.deadline)
    return _Begun(number, config, job.folder / f"trial-{number}", watched, time.monotonic())


def _training(job: _Job, config: FinetuneConfig, output: Path, resume: bool | None) -> Generator[Event, None, Any]:
    return finetune(job.request, config, output=output, overwrite=False, resume=resume)


def _end(job: _Job, study: optuna.Study, begun: _Begun) -> Trial:
    """Tell the study what came of a trial, and remove all models but that of the best."""
    record = tell(study, begun.watched, time.monotonic() - begun.started)
    trials = trials_of(study, job.options.trials)
    best = best_of(trials)
    for number in {begun.number, *(trial.number for trial in concluded(trials))}:
        if best is None or number != best.number:
            _clear(job.folder / f"trial-{number}")
    return _as_trial(job, begun, **record)


def _clear(output: Path) -> None:
    for leftover in (output, output.with_name(output.name + ".unfinished")):
        shutil.rmtree(leftover, ignore_errors=True)


def _as_trial(job: _Job, begun: _Begun, *, status: str = "begun", **record: Any) -> Trial:
    return Trial(begun.number, job.options.trials, dict(begun.watched.trial.params), status, **record)


# -- trials at once -----------------------------------------------------------------------------------


def _try_there(job: _Job, study: optuna.Study, pool: Pool) -> Generator[Event, None, str]:
    """Try on a cluster, as many at once as it has places; return why the search is over."""
    yield Note(f"trials at once on the Ray cluster: {pool.places}, each with {pool.cores} processors")
    at_work: dict[int, _Begun] = {}
    losses: Counter[int] = Counter()
    try:
        while time.monotonic() < job.deadline:
            while (
                len(at_work) < pool.places
                and (number := next_number(study, job.options.trials, at_work, pool.places)) is not None
            ):
                at_work[number] = begun = _begin(job, study, number, pool.places)
                yield _as_trial(job, begun)
                pool.start(number, _elsewhere(job, begun))
            if not at_work:
                return "done"
            events, ended = pool.wait()
            for number, event in events:
                watched = at_work[number].watched if number in at_work else None
                if watched and watched.status == "interrupted":  # what comes after its end does not count
                    if isinstance(event, Note) and (number == 1 or not is_plain_note(event)):
                        yield Note(f"trial {number}: {event.text}", event.level)
                    if watched.is_over(event):
                        pool.end(number)
            for number, error in ended.items():
                begun = at_work[number]
                yield from _concluding(begun, error, losses)
                if begun.watched.status == "interrupted" and error is not None:
                    pool.start(number, _elsewhere(job, begun), again=True)
                    continue
                del at_work[number]
                yield _end(job, study, begun)
        while at_work:
            _, begun = at_work.popitem()
            if begun.watched.status == "interrupted":
                begun.watched.status = "out of time"
            yield _end(job, study, begun)
        return "out of time"
    finally:
        for begun in at_work.values():
            _end(job, study, begun)


def _concluding(begun: _Begun, error: Exception | None, losses: Counter[int]) -> Iterator[Event]:
    """Settle how a trial whose process has ended ended, unless it is started again; raise what ends the search."""
    from .cluster import RETRIES
    from .pool import Lost

    watched, name = begun.watched, f"trial {begun.number}"
    if error is None or watched.status != "interrupted":
        return
    if isinstance(error, TrainingError):
        watched.status = "diverged"
        yield Note(f"{name}: {error.message}", "warning")
    elif not isinstance(error, Lost):
        raise error
    else:
        losses[begun.number] += 1
        count = losses[begun.number]
        if count > RETRIES:
            watched.status = "lost"
        what = f"lost {count} times: it counts as lost" if count > RETRIES else "lost: it is started again"
        yield Note(f"{name}: its process was {what} ({error})", "warning")


def _elsewhere(job: _Job, begun: _Begun) -> Training:
    """Return a trial as another machine can train it, which knows paths by their full names only."""
    request, ref = job.request, job.request.located.ref
    data, eval_data = (
        absolute(rows) if isinstance(rows, str | Path) else rows for rows in (request.data, request.eval_data)
    )
    model = absolute(ref) if Path(ref).expanduser().exists() else ref
    moved = replace(request, tokenizer=None, data=data, eval_data=eval_data)
    return partial(_train_there, replace(job, request=moved), model, begun.config, begun.output.absolute())


def _train_there(
    job: _Job, model: str, config: FinetuneConfig, output: Path, again: bool
) -> Generator[Event, None, Any]:
    """Train in a process of a cluster; ``again`` goes on from the last checkpoint of the process that was lost."""
    from ..loading import load_tokenizer
    from ..sources.base import locate
    from .cluster import wait_for

    asked = job.request.located
    found = locate(model, revision=asked.revision)
    located = found._replace(ref=asked.ref, base=asked.base)
    job = replace(job, request=replace(job.request, located=located, tokenizer=load_tokenizer(found.path)))
    wait_for(output.with_name(output.name + ".unfinished"))
    if not again or output.exists():
        _clear(output)
    return _training(job, config, output, resume=None if again else False)


# -- the folder ---------------------------------------------------------------------------------------


def _behind(output: str | Path | None, options: TuneConfig, *, overwrite: bool) -> Storage | None:
    """Return what is behind the output's URL, if it has one and may be put there."""
    if not (isinstance(output, str) and is_url(output)):
        return None
    if options.cluster is not None:
        raise UsageError(f"a search on a cluster with the output {output}",
                         hint="a folder that all its machines see; llmasos push sends the model")  # fmt: skip
    storage = Storage(output, shown=True)
    storage.check_free(overwrite=overwrite)
    return storage


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

    trials = trials_of(study, job.options.trials)
    best = best_of(trials)
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
