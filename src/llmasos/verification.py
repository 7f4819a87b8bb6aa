"""Check a model or an artifact from its files alone: the same files, tokens, outputs and score as where it was made."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import certificate, golden
from .certificate import TOLERANCES, Tolerance, check_golden
from .core import bundle
from .core.errors import BundleError, ParityError
from .core.events import Event, Note, Phase, Progress
from .data.dataset import read
from .data.encoding import encode
from .engines.base import Author, Engine
from .engines.torch import TorchEngine
from .evaluation import evaluate, referenced
from .export import WRITTEN, answered, check_ends, check_tokenizer, lost, opened
from .generation.generator import Generator as Writer
from .generation.generator import of_artifact
from .metrics.base import Interval
from .tasks.base import Task


@dataclass(frozen=True)
class Verified:
    """What was found equal.

    ``certified`` is the score in the certificate and ``score`` that on the rows given, both None where there is none;
    ``same_rows`` says whether they are of the same rows.
    """

    path: Path
    target: str | None
    precision: str
    runtime: str
    files: int
    golden: golden.Difference
    metric: str | None = None
    certified: float | None = None
    score: Interval | None = None
    same_rows: bool = False
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self) | {
            "path": str(self.path), "score": None if self.score is None else self.score._asdict(),
        }  # fmt: skip


def verify(
    folder: Path,
    task: Task,
    tokenizer: Any,
    model: Callable[[], Any],
    max_length: int,
    untrained: Callable[[], Engine],
    *,
    data: Any = None,
    columns: Mapping[str, str] | None = None,
    batch_size: int = 32,
) -> Generator[Event, None, Verified]:
    """Check a folder against what it says of itself.

    Args:
        folder: a model or an artifact.
        task, tokenizer: its own.
        model: opens the transformers model, where it is one.
        max_length: the longest text in tokens.
        untrained: opens what runs the model as it was before its training, for a task that compares with it.
        data: labelled rows; the score must then be that of the certificate, if the rows are the same.
        columns: task field -> column.
        batch_size: rows computed at once.

    Raises:
        BundleError: files are missing or were changed, or it has no golden rows.
        ParityError: tokens, outputs or the score are not those of the model.
    """
    yield Phase("files")
    manifest = bundle.read_manifest(folder)
    if manifest is None:
        raise BundleError(f"{folder} has no golden rows to compare with", hint="save or export it with this version")
    bundle.verify(folder)
    check_tokenizer(folder, tokenizer, manifest["tokenizer"])
    yield Phase("golden rows")
    job = _Job(task, tokenizer, max_length, untrained, data, columns, batch_size)
    artifact, files = bundle.artifact_of(manifest), len(manifest["files"])
    if artifact is None:
        precision = "float32"
        engine = TorchEngine(model(), tokenizer.pad_token_id or 0, output=task.output, likeliest=task.likeliest)
        kept = golden.read(folder)
        written_to = kept is not None and kept.answers is not None
        asked: Engine | Author = golden.author_of(model()) if written_to else engine
        found = check_golden(folder, asked, task, tokenizer, precision)
        scored = yield from _scored(engine, job, None, TOLERANCES[precision])
        return Verified(folder, None, precision, engine.how, files, found, **scored)
    precision, written = artifact["precision"], certificate.read(folder)
    limit = Tolerance(**written["tolerance"])
    if (kept := golden.read(folder)) is not None:
        check_ends(folder, tokenizer, kept)
    with opened(folder, artifact, task, tokenizer) as runtime:
        notes: tuple[str, ...] = ()
        if runtime.how != written["runtime"]:
            notes = (f"certified with {written['runtime']}, this is {runtime.how}",)
            yield Note(notes[0])
        found = check_golden(folder, runtime, task, tokenizer, precision, limit)
        scored = yield from _scored(
            runtime, job, written, limit, lambda: of_artifact(folder, runtime, tokenizer, max_length)
        )
    return Verified(folder, artifact["target"], precision, runtime.how, files, found, notes=notes, **scored)


class _Job(NamedTuple):
    """What is scored; see ``verify``."""

    task: Task
    tokenizer: Any
    max_length: int
    untrained: Callable[[], Engine]
    data: Any
    columns: Mapping[str, str] | None
    batch_size: int


def _scored(
    engine: Engine,
    job: _Job,
    written: Mapping[str, Any] | None,
    limit: Tolerance,
    generator: Callable[[], Writer] | None = None,
) -> Generator[Event, None, dict[str, Any]]:
    """Score labelled rows where there are some; what ``Verified`` says of them."""
    certified = written["score"] if written else None
    said: dict[str, Any] = {}
    if certified:
        said = {"metric": certified["metric"], "certified": certified["artifact"]["value"]}
    if job.data is None:
        return said
    task = job.task
    rows = read(job.data, task.fields, columns=job.columns)
    if certified and task.writes() and len(rows) > WRITTEN:  # as it was certified
        rows = rows.select(range(WRITTEN))
    yield Phase("score", len(rows))
    encoded = encode(rows, task, job.tokenizer, job.max_length, allow_truncated=1.0)
    if task.needs_reference:
        encoded = referenced(job.untrained(), task, encoded)
    _, scorer = evaluate(engine, task, encoded, rows, batch_size=job.batch_size)
    name = certified["metric"] if certified else task.default_metric
    if generator is not None and name in task.answer_metrics:
        used = rows.rows(np.unique(encoded.rows))
        task.score_answers(scorer, answered(generator(), task, used), used)
    yield Progress(len(rows))
    value = scorer.report().metrics[name]
    same = certified is not None and certified["fingerprint"] == rows.fingerprint()
    if certified and same:
        before = certified["model"]["value"]
        if not (less := lost(name, before, value.value)) <= limit.drop + 1e-9:
            raise ParityError(
                f"on this machine {name} is {value.value:.4f}, {less:.2f} % below the model's {before:.4f}; "
                f"{limit.drop:g} % is allowed",
                hint="export the model again on this machine",
            )
    return {**said, "metric": name, "score": value, "same_rows": same}
