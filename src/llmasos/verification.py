"""Check a model or an artifact from its files alone: the same files, tokens, outputs and score as where it was made."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import certificate, golden
from .certificate import TOLERANCES, Tolerance
from .core import bundle
from .core.errors import BundleError, ParityError
from .core.events import Event, Note, Phase, Progress
from .data.dataset import read
from .data.encoding import encode
from .engines._writing import Scoring
from .engines.base import Author, Engine
from .engines.torch import TorchEngine
from .evaluation import evaluate, referenced
from .export import WRITTEN, answered, lost, opened, versions
from .generation.generator import Generator as Writer
from .generation.generator import of_artifact
from .loading import load_config
from .metrics.base import Interval
from .saving import tokenizer_contract
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
    kept = golden.read(folder)
    if manifest is None or kept is None:
        raise BundleError(f"{folder} has no golden rows to compare with", hint="save or export it with this version")
    bundle.verify(folder)
    _check_tokenizer(folder, tokenizer, manifest)
    artifact, written, notes = bundle.artifact_of(manifest), None, []
    limit = TOLERANCES["float32"]
    if artifact is not None:
        written = certificate.read(folder)
        wrong = [name for name, value in written["files"].items() if manifest["files"].get(name) != value]
        if wrong:
            raise BundleError(f"the certificate in {folder} is of other files: {', '.join(wrong)}",
                              hint="export the model again")  # fmt: skip
        limit = Tolerance(**written["tolerance"])
        here = versions(artifact["engine"])
        notes = [f"certified with {name} {old}, this is {here[name]}" for name, old in written["versions"].items()
                 if name == artifact["engine"] and here.get(name, old) != old]  # fmt: skip
        yield from map(Note, notes)
    yield Phase("golden rows", len(kept.rows))
    job = _Job(task, tokenizer, max_length, untrained, data, columns, batch_size)
    engine: Engine
    if artifact is not None:
        with opened(folder, artifact, task, tokenizer) as runtime:
            found = yield from _checked(runtime, kept, task, tokenizer, limit, artifact["precision"])
            engine = runtime
            if task.generates:
                engine = Scoring(runtime, runtime.how, encodes=load_config(folder).is_encoder_decoder)
            scored = yield from _scored(
                engine, job, written, limit, lambda: of_artifact(folder, runtime, tokenizer, max_length)
            )
    else:
        engine = TorchEngine(model(), tokenizer.pad_token_id or 0, output=task.output, likeliest=task.likeliest)
        compared = golden.author_of(model()) if task.generates else engine
        found = yield from _checked(compared, kept, task, tokenizer, limit, "float32")
        scored = yield from _scored(engine, job, written, limit)
    return Verified(
        folder, artifact["target"] if artifact else None, artifact["precision"] if artifact else "float32", engine.how,
        len(manifest["files"]), found, notes=tuple(notes), **scored,
    )  # fmt: skip


def _check_tokenizer(folder: Path, tokenizer: Any, manifest: Mapping[str, Any]) -> None:
    """Raise where the tokenizer reads, ends or renders differently from how it did."""
    wanted, found = manifest["tokenizer"], tokenizer_contract(folder, tokenizer)
    words = {"special_ids": "special tokens", "golden": "tokens of the golden texts", "chat_template": "chat template"}
    if wrong := [what for name, what in words.items() if name in wanted and wanted[name] != found[name]]:
        raise ParityError(
            f"the tokenizer in {folder} is not that of the model: other {', '.join(wrong)}",
            hint="take the tokenizer files of the model itself",
        )


def _checked(
    engine: Engine | Author, kept: golden.Golden, task: Task, tokenizer: Any, limit: Tolerance, precision: str
) -> Generator[Event, None, golden.Difference]:
    found = golden.compare(kept, engine, task, tokenizer)
    yield Progress(len(kept.rows))
    if not found.relative <= limit.outputs:
        raise ParityError(
            f"on this machine an output of golden row {found.example + 1} differs by {found.largest:.3g}, "
            f"{found.relative:.1%} of the largest; {precision} allows {limit.outputs:.1%}",
            hint="another version of the runtime, or export the model again on this machine",
        )
    return found


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
    if certified and task.generates and len(rows) > WRITTEN:  # as it was certified
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
