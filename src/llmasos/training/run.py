"""One training from start to end: prepare, load, train, keep the best model, report, take the name.

While it runs, everything is in ``NAME.unfinished``; the folder takes its name in one step when it is
complete, so NAME is never half of a model (``folder.py``). Inside are a Hugging Face folder, ``llmasos.json`` and
``run/``: run.json, metrics.jsonl, the ledgers and curves.png.
"""

from __future__ import annotations

import platform
import signal
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import __version__
from ..backends.base import Backend, chosen
from ..core import atomic, hardware
from ..core.config import FinetuneConfig
from ..core.errors import TrainingError, UsageError
from ..core.events import Event, Finished, Note, Phase, Progress, Saved, Started, result_of
from ..core.storage import is_url
from ..frameworks.supported import FRAMEWORKS, distributions, settled
from ..loading import load_config
from ..metrics.base import Report, Scorer
from ..saving import read_weights, save, write_weights
from ..tasks.base import Task
from .folder import RECORD, Onlooker, RunFolder

if TYPE_CHECKING:
    from ..sources.base import Located
    from .checkpoint import Checkpoint
    from .prepare import Prepared
    from .request import Request
    from .setup import Setup
    from .trainer import Progressed


@dataclass
class Run:
    """One finished training.

    ``path`` is the folder with its records (and the model, where an output was named); ``metrics`` are
    those of the model that was kept; ``report`` has their intervals; ``reason`` says why it ended.
    """

    path: Path
    reason: str
    steps: int
    seconds: float
    metrics: dict[str, float]
    report: Report | None
    ledger: dict[str, Any]
    best_step: int
    output: Path | None = None
    notes: list[str] = field(default_factory=list)
    lineage: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the run as JSON types."""
        return {
            "path": str(self.path),
            "output": None if self.output is None else str(self.output),
            "reason": self.reason,
            "steps": self.steps,
            "best_step": self.best_step,
            "seconds": round(self.seconds, 3),
            "metrics": self.metrics,
            "report": None if self.report is None else self.report.as_dict(),
            "ledger": self.ledger,
            "notes": self.notes,
        }


def default_learning_rate(model: Any) -> float:
    """Return a peak rate for AdamW by the model's width: 4e-5 x (768 / width)^2, at most 2e-4.

    4e-5 is within what BERT's authors searched for width 768 (2e-5 to 5e-5; Devlin et al. 2019, A.3). The
    square is measured: at width 384, 1.6e-4 gave 86.6 % on BANKING77 where 8e-5 gave 78.7 %, and cost
    SST-2 and TREC less than a point (seed 0, 2 to 3 epochs); 3e-4 lost more than a point on both.
    """
    width = getattr(model.config, "hidden_size", None) or getattr(model.config, "dim", None) or 768
    return float(min(2e-4, 4e-5 * (768 / width) ** 2))


def finetune(
    request: Request,
    config: FinetuneConfig,
    *,
    output: str | Path | None,
    overwrite: bool,
    resume: bool | None,
    model: Any = None,
) -> Generator[Event, None, tuple[Any, Task, Run]]:
    """Run one training.

    Args:
        request: the model, the task and the data.
        config, output, overwrite, resume: as for ``LLM.finetune``.
        model: a model in memory to go on with; None opens the folder.

    Yields:
        Events.

    Returns:
        The trained transformers model, the settled task, and the run.
    """
    from ..reporters.base import opened
    from .watching import watched

    reporters = opened(config.reporters)  # before anything is computed: a package may be missing
    request = request.suited()
    config = settled(config, request.task, load_config(request.located.path))
    backend = chosen(config.backend)
    if backend.world > 1 and config.framework in FRAMEWORKS:
        raise UsageError(f"framework={config.framework} trains in one process", hint="framework=torch for several")
    if backend.world > 1 and config.within:
        raise UsageError("within does not work with several processes", hint="max_steps, or one process")
    if backend.world > 1 and config.speed == "measure":
        raise UsageError("speed=measure does not work with several processes",
                         hint="llmasos plan prints the fastest for one; name it (--speed packed,bf16)")  # fmt: skip
    if backend.world > 1 and output is None:
        raise UsageError("several processes, and no output", hint="output (--output DIR): they meet in that folder")
    if backend.needs_own_modules and isinstance(output, str) and is_url(output):
        raise UsageError(f"this backend writes checkpoints from all processes, and the output is {output}",
                         hint="backend=ddp, or an output on a disk that all machines share")  # fmt: skip
    if not backend.is_main:
        return (yield from _finetune(request, config, Onlooker(output, config), backend, model))
    folder = RunFolder(output, config, overwrite=overwrite, resume=resume)
    return (
        yield from watched(
            _finetune(request, config, folder, backend, model), folder.id, model=request.located.ref,
            task=request.task.tag, folder=folder.output or folder.path, has_output=folder.output is not None,
            reporters=reporters,
        )
    )  # fmt: skip


def _finetune(
    request: Request, config: FinetuneConfig, folder: RunFolder, backend: Backend, model: Any
) -> Generator[Event, None, tuple[Any, Task, Run]]:
    from .activations import with_cache
    from .candidates import fastest
    from .candidates import words as measured_words
    from .deadline import in_time

    started = time.perf_counter()
    notes: list[str] = []
    try:
        hardware.set_threads(config.threads or backend.threads(hardware.physical_cores()))
        if config.within and folder.resuming:  # what was settled when the run began
            config = replace(config, **folder.settled("max_steps", "trainable", "max_length", "allow_truncated"))
        if config.speed == "measure" and folder.resuming:
            config = replace(config, **folder.settled("speed", "precision", "micro_batch_size"))
        prepared: Prepared = yield from _noting(_prepared(request, config, folder, backend), notes)
        yield Phase("load")
        given = model is not None
        model, setup, said = ready(request, prepared, config, model, backend)
        for note in said:
            notes.append(note)
            yield Note(note)
        setup = yield from referenced(model, setup)
        if config.speed == "measure":
            yield Phase("measure")
            setup, tried = yield from fastest(model, setup, prepared, folder.scratch)
            note = measured_words(tried)
            notes.append(note)
            yield Note(note)
        if config.within and not folder.resuming:
            yield Phase("measure")
            again = None if given else partial(_ready_again, request)
            shorter = partial(_shorter, request, setup, folder) if _may_be_cut(setup) else None
            model, setup, fitting, note = in_time(model, setup, prepared, started, again, shorter)
            if fitting is not prepared:  # the ledgers of the rows as they are trained on
                prepared = fitting
                for file in (folder.scratch / _SHORTER).glob("ledger*"):
                    file.replace(folder.prepared / file.name)
            notes.append(note)
            yield Note(note)
        setup, cache = with_cache(model, setup, folder.scratch)
        if cache:
            notes.append(cache)
            yield Note(cache)
        record = _record(folder, request, setup, prepared)
        checkpoint, said = _agreed(folder, record, backend)
        for note in said:
            notes.append(note)
            yield Note(note)
        if backend.is_main:
            atomic.write_json(folder.records / RECORD, {**record, "notes": notes, "result": {}})
        yield Started(folder.id, folder.output or folder.path, request.located.ref, setup.task.tag, record["config"])
    except BaseException:
        folder.close() if folder.resuming else folder.discard()
        backend.close()
        raise
    job = _Job(folder, request, model, setup, prepared, notes, started, record, checkpoint)
    try:
        with atomic.full_disk(folder.output or folder.path):
            return (yield from _train(job))
    finally:
        backend.close()


def _ready_again(request: Request, config: FinetuneConfig, prepared: Prepared) -> tuple[Any, Setup, list[str]]:
    return ready(request, prepared, config)


def _may_be_cut(setup: Setup) -> bool:
    """Say whether long texts may be cut to save time: no length was asked for, and no rows were compared yet."""
    return setup.config.max_length is None and not setup.task.needs_reference


def _shorter(request: Request, setup: Setup, folder: RunFolder, max_length: int) -> Prepared:
    """Prepare the rows anew, cut to a length, with ledgers of their own."""
    from .prepare import prepare

    config = replace(setup.config, max_length=max_length, allow_truncated=1.0)
    scratch = folder.scratch / _SHORTER
    scratch.mkdir(parents=True, exist_ok=True)
    return result_of(prepare(request, config, folder=scratch, scratch=scratch))


_SHORTER = "shorter"


def _prepared(
    request: Request, config: FinetuneConfig, folder: RunFolder, backend: Backend
) -> Generator[Event, None, Prepared]:
    """Prepare the data in the main process, before the processes join; the others open what it has prepared."""
    from .prepare import prepare, prepared_by_another

    device = hardware.pick_device(config.device)
    prepared: Prepared | None = None
    if backend.is_main:
        prepared = yield from prepare(request, config, folder=folder.prepared, scratch=folder.scratch)
        if backend.world > 1:
            folder.publish("scratch")
    backend.open(device)
    return prepared or prepared_by_another(request, config, folder.received("scratch"))


def _agreed(folder: RunFolder, record: dict[str, Any], backend: Backend) -> tuple[Checkpoint | None, list[str]]:
    """Return the checkpoint that all processes go on from, and notes."""
    checkpoint, said = folder.agree(record) if backend.is_main else (None, [])
    step = int(backend.gather(torch.tensor([checkpoint.step if checkpoint else 0]))[0])
    if folder.resuming:
        where = f"step {step}" if step else "its beginning: it was stopped before a checkpoint"
        said = [f"goes on with the unfinished run in {folder.path} from {where}", *said]
    if step and not backend.is_main:
        checkpoint = folder.checkpoint(step)
    return checkpoint, said


@dataclass(frozen=True)
class _Job:
    """What a training stands on once everything is ready."""

    folder: RunFolder
    request: Request
    model: Any
    setup: Setup
    prepared: Prepared
    notes: list[str]
    started: float
    record: dict[str, Any]
    checkpoint: Checkpoint | None


def _noting(events: Generator[Event, None, Any], notes: list[str]) -> Generator[Event, None, Any]:
    """Pass events on, keeping the text of the notes."""
    try:
        while True:
            event = next(events)
            if isinstance(event, Note):
                notes.append(event.text)
            yield event
    except StopIteration as stop:
        return stop.value


def ready(
    request: Request, prepared: Prepared, config: FinetuneConfig, model: Any = None, backend: Backend | None = None
) -> tuple[Any, Setup, list[str]]:
    """Open the model on its device and decide how it is trained. Returns notes as the third part."""
    from ..architectures import _proof
    from ..architectures.base import find
    from ..data.batching import gather
    from ..engines.base import few
    from ..loading import load_model, set_dropout
    from . import adapters
    from .freezing import freeze
    from .setup import Setup

    backend, located, tokenizer, known = backend or Backend(), request.located, request.tokenizer, request.known
    device = backend.device(hardware.pick_device(config.device))
    precision, _ = hardware.pick_precision(asked_precision(config), device)
    notes: list[str] = []
    if model is not None and known is not None and known.head_config() != prepared.task.head_config():
        model = None  # other labels, as the data shows: they begin from the folder again, with a new head
    adapters.refuse_unsaved(model, config)
    fresh: tuple[str, ...] = ()
    if model is None:
        options = adapters.loading_options(config, device)
        model, notes, fresh = load_model(
            located.path, prepared.task, seed=config.seed, known=known, base=located.base, **options
        )
    notes += adapters.fit(model, located, tokenizer, prepared.task, config, fresh)
    notes += freeze(model, prepared.task, config, fresh)
    model.to(device)
    if config.dropout is not None:
        set_dropout(model, config.dropout)
    pad_id = tokenizer.pad_token_id or 0
    asked = f"KerasHub's, on {config.framework}" if config.framework in FRAMEWORKS else "as asked"
    output = prepared.task.output
    ways = config.ways
    architecture, forward = find(model, output) if ways is None or "packed" in ways else (None, asked)
    if backend.needs_own_modules:
        backend.check(model, joint=prepared.task.joint, adapter=config.adapter)
        architecture, forward = None, backend.needs_own_modules
    if architecture is None and ways is None:
        notes.append(f"transformers' own forward is used, since no packed one serves this model: {forward}")
    if architecture is not None:
        rows = np.argsort(prepared.train.lengths, kind="stable")
        spread = np.unique(np.linspace(0, 0.9 * (len(rows) - 1), min(4, len(rows))).astype(int))
        batch = prepared.task.noised(gather(prepared.train, rows[spread]), np.random.default_rng(config.seed))
        proof = _proof.prove(model, architecture, few(batch), pad_id, output, gradients=True)
        if not proof.holds:
            notes.append(proof.why_not)
            architecture, forward = None, proof.why_not
    if ways is not None and "packed" in ways and architecture is None:
        raise UsageError(f"speed={config.speed}, but {forward}", hint="speed=auto takes what can be had")
    if ways is not None and "compile" in ways and (reason := no_compiling(prepared.task, config, backend)):
        raise UsageError(f"speed={config.speed}, but {reason}", hint="leave compile out")
    setup = Setup(
        task=prepared.task,
        train=prepared.train,
        evaluation=prepared.evaluation,
        evaluation_rows=prepared.evaluation_rows,
        config=config,
        learning_rate=default_learning_rate(model) * (1.0 if config.adapter == "none" else adapters.RATE)
        if config.learning_rate is None
        else config.learning_rate,
        metric=_metric(prepared, config),
        precision=precision,
        architecture=architecture,
        forward=forward,
        special_ids=frozenset(tokenizer.all_special_ids),
        pad_id=pad_id,
        describe=prepared.describe,
        backend=backend,
        buckets=architecture is None if ways is None else "buckets" in ways,
        compiled=ways is not None and "compile" in ways,
    )
    return model, setup, notes


def asked_precision(config: FinetuneConfig) -> str:
    """Return the number format that is asked for; "auto" where it is left open."""
    if config.ways is None or config.speed == "plain" or config.precision != "auto":
        return config.precision
    return "bfloat16" if "bf16" in config.ways else "float32"


def no_compiling(task: Task, config: FinetuneConfig, backend: Backend) -> str:
    """Return why transformers' forward cannot be compiled here; "" if it can."""
    if backend.needs_own_modules or config.framework in FRAMEWORKS:
        return f"{config.backend if backend.needs_own_modules else config.framework} runs the model in its own way"
    return "what reads a vocabulary stops the forward in its midst" if task.output == "vocabulary" else ""


def referenced(model: Any, setup: Setup) -> Generator[Event, None, Setup]:
    """Let the untrained model answer once for every example, where the task compares with it."""
    from ..evaluation import referenced

    if not setup.task.needs_reference:
        return setup
    engine = setup.engine(model)
    yield Phase("reference", len(setup.train) + len(setup.evaluation or ()))
    train = referenced(engine, setup.task, setup.train)
    yield Progress(len(train))
    evaluation = None if setup.evaluation is None else referenced(engine, setup.task, setup.evaluation)
    yield Progress(len(train) + len(evaluation or ()))
    return replace(setup, train=train, evaluation=evaluation)


def _metric(prepared: Prepared, config: FinetuneConfig) -> str:
    from ..core.errors import did_you_mean

    name = config.metric or prepared.task.default_metric
    names = prepared.task.metric_names
    if name not in names:
        raise UsageError(
            f"metric={name!r} cannot pick the best model", hint=f"{did_you_mean(name, names)}one of {', '.join(names)}"
        )
    return name


def _train(job: _Job) -> Generator[Event, None, tuple[Any, Task, Run]]:
    from .trainer import Progressed, stopping, train

    folder, model, setup, notes = job.folder, job.model, job.setup, job.notes
    state = Progressed()

    def keep(weights: dict[str, Any]) -> None:
        folder.keep(state.step, lambda path: write_weights(model, path, weights))

    error: BaseException | None = None
    checkpoints = folder.checkpoints if folder.output is not None else None
    try:
        yield Phase("train", setup.steps)
        for event in train(model, setup, keep, state, checkpoints, job.checkpoint):
            folder.record(event)
            if isinstance(event, Note):
                notes.append(event.text)
            yield event
        if state.reason == "terminated":
            folder.close()
            yield Note(f"stopped by SIGTERM after step {state.step}: the same command goes on from there", "warning")
            raise Terminated
        yield Phase("save")
    except (TrainingError, KeyboardInterrupt) as stopped:
        error = stopped
        state.reason = "interrupted" if isinstance(stopped, KeyboardInterrupt) else "stopped"
    except BaseException:
        folder.close() if state.step or folder.resuming else folder.discard()
        raise
    if not state.step or (state.broken and not state.best_step):
        folder.discard()
        raise error or TrainingError("no step was made", hint="epochs or max_steps is 0")
    with stopping() as asked:  # half a model helps nobody: Ctrl-C waits for the whole
        run = _complete(job, state)
    if folder.output is not None:
        yield Saved(run.path)
    if isinstance(error, TrainingError):
        where = f" in {run.path}" if folder.output else ""
        error.message += f" (step {run.best_step}{where})"
        error.kept = (model, setup.task, run)
        raise error
    yield Finished(state.reason, state.step, run.seconds, run.metrics)
    if error or asked.stop:
        raise Interrupted(model, setup.task, run) from error
    return model, setup.task, run


class Terminated(SystemExit):
    """SIGTERM, after a checkpoint was written: the process ends with the code that a shell gives for it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after what was learned has been kept: ``kept`` is what a finished run returns."""

    def __init__(self, *kept: Any) -> None:
        super().__init__("interrupted")
        self.kept = kept


def _complete(job: _Job, state: Progressed) -> Run:
    """Take the best weights back, write the records and save the model."""
    folder, model, prepared = job.folder, job.model, job.prepared
    if state.best_step and state.best_step < state.step:
        if job.setup.backend.world > 1:
            job.setup.backend.agreed(lambda: folder.publish(f"best-{state.best_step}"))
        read_weights(model, folder.best(state.best_step))
    scorer = state.best_scorer or (_scored(job) if state.best_step else None)
    report = scorer.report() if scorer else None
    metrics = next((e.metrics for e in state.history if e.step == state.best_step), {})
    run = Run(
        path=folder.output or folder.path,
        reason=state.reason,
        steps=state.step,
        seconds=time.perf_counter() - job.started,
        metrics=metrics,
        report=report,
        ledger=prepared.ledgers["train"],
        best_step=state.best_step or state.step,
        output=folder.output,
        notes=job.notes,
        lineage=lineage(job.request.located, prepared),
    )

    def write() -> None:
        result = run.as_dict() | {"training_seconds": state.seconds}
        atomic.write_json(folder.records / RECORD, {**job.record, "notes": job.notes, "result": result})
        _draw(folder)
        folder.finish(
            lambda path: save(path, model, job.request.tokenizer, job.setup.task, run.lineage, report, metrics)
        )

    job.setup.backend.agreed(lambda: None)  # all have read the best weights
    job.setup.backend.agreed(write)
    return run


def _scored(job: _Job) -> Scorer:
    """Score the best model again: it was found before the run was stopped and gone on with."""
    from ..evaluation import evaluate

    setup = job.setup
    assert setup.evaluation is not None
    return evaluate(setup.engine(job.model), setup.task, setup.evaluation, setup.evaluation_rows)[1]


def _draw(folder: RunFolder) -> None:
    from .curves import plot_curves

    plot_curves(folder.records / "metrics.jsonl", folder.records / "curves.png")


def lineage(located: Located, prepared: Prepared) -> dict[str, Any]:
    """Return where a model comes from: its base, and the data by fingerprint."""
    return {
        "base": {"ref": located.ref, "revision": located.revision, "source": located.source},
        "data": {
            name: {"fingerprint": print_, "rows": prepared.ledgers[name]["rows"]}
            for name, print_ in prepared.fingerprints.items()
        },
        "max_length": prepared.max_length,
    }


def _asked(request: Request) -> dict[str, Any]:
    """Return what a run was asked to learn from; None for data that lives in memory."""
    from ..data.shards import absolute

    located, data, eval_data, columns = request.located, request.data, request.eval_data, request.columns
    files = {name: absolute(value) if isinstance(value, str | Path) else None
             for name, value in (("data", data), ("eval_data", eval_data))}  # fmt: skip
    held = "memory" if eval_data is not None and files["eval_data"] is None else files["eval_data"]
    model = str(located.path.absolute()) if Path(located.ref).expanduser().exists() else located.ref
    return {"model": model, **files, "eval_data": held, "columns": dict(columns or {})}


def _record(folder: RunFolder, request: Request, setup: Setup, prepared: Prepared) -> dict[str, Any]:
    """Return all that is needed to repeat the run."""
    packages = ["torch", "transformers", "tokenizers", "datasets", "numpy"]
    packages += distributions(setup.config.framework)
    packages += ["peft"] if setup.config.adapter != "none" else []
    return {
        "id": folder.id,
        "llmasos": __version__,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "asked": _asked(request),
        "config": setup.config.to_dict()
        | {
            "learning_rate": setup.learning_rate,
            "max_length": prepared.max_length,
            "precision": setup.precision,
            "metric": setup.metric,
            "speed": setup.speed,
        },
        "forward": setup.forward,
        "seed": setup.config.seed,
        "task": setup.task.to_dict(),
        "versions": {name: metadata.version(name) for name in packages} | {"python": platform.python_version()},
        "machine": {"system": platform.platform(), "cores": hardware.physical_cores()},
        "threads": torch.get_num_threads(),
        "world": setup.backend.world,
        **lineage(request.located, prepared),
        "ledgers": prepared.ledgers,
    }
