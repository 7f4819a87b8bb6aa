"""The export gate: an artifact takes its name only when its own runtime has shown that it is the same model.

What an exporter wrote is opened by the engine of its format, in a process of its own, and must make of the golden rows
and of labelled rows what the model made of them: the same tokens, outputs within the tolerance of its precision, and a
score that loses no more than allowed. Otherwise nothing is left behind. What was found is written into the artifact as
``certificate.json``; ``verify`` finds it again from the files alone.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Generator as Events
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__, golden
from .certificate import CERTIFICATE, TOLERANCES, Certificate, Score, golden_faults
from .core import bundle, hardware, plugins
from .core.config import WriteConfig
from .core.errors import ParityError, UsageError
from .core.events import Event, Note, Phase, Progress, Saved
from .data.dataset import Dataset, read
from .data.encoding import Encoded, encode
from .engines._apart import Apart
from .engines.base import Engine
from .engines.torch import TorchEngine
from .evaluation import evaluate, referenced
from .exporters._sensitivity import ranked
from .exporters.base import Exporter, Source, kind_of
from .generation.generator import Generator, ends_in, of_artifact
from .loading import load_tokenizer
from .metrics.base import LOWER_IS_BETTER, Interval
from .prediction import predict, written
from .saving import tokenizer_contract, tokenizer_of
from .tasks.base import Task

WRITTEN = 100
"""Labelled rows that a model is scored on which writes its answers."""
CALIBRATED = 300
"""Rows that the ranges of activations are found on, at most."""
LONGEST = 64
"""Most tokens of such an answer."""
_TIMED = 30  # runs of one row, for its latency


@dataclass(frozen=True)
class Job:
    """What is exported, how, and on what it is judged.

    Args:
        source: the model.
        folder, manifest: where it is, and what ``llmasos.json`` says of it.
        target, precision: the format.
        data: labelled rows for the score; those of the training's evaluation, if unchanged, where not given.
        calibration: rows for ranges of activations; likewise those of the training, else ``data``.
        columns: task field -> column.
        accept_drop: how much of the score may be lost, in percent; by precision if not given.
        batch_size: rows computed at once.
        untrained: opens what runs the model as it was before its training, for a task that compares with it.
        command: what repeats the export.
    """

    source: Source
    folder: Path
    manifest: Mapping[str, Any]
    target: str
    untrained: Callable[[], Engine]
    precision: str | None = None
    data: Any = None
    calibration: Any = None
    columns: Mapping[str, str] | None = None
    accept_drop: float | None = None
    batch_size: int = 32
    command: Sequence[str] = ()


def export(job: Job, output: str | Path, *, overwrite: bool = False) -> Events[Event, None, Certificate]:
    """Write an artifact, judge it, and give it its name.

    Yields:
        What is being done. The certificate is the generator's return value.

    Raises:
        UsageError: the format holds no such model, or rows are needed.
        ParityError: the artifact is not the same model; nothing is left behind.
    """
    exporter: Exporter = plugins.load("exporters", job.target)
    source = job.source
    precision = exporter.check(source.task, source.model.config, job.precision)
    output = Path(output)
    _check_free(output, overwrite=overwrite)
    yield Phase("read")
    data = _recorded(job, "evaluation") if job.data is None else job.data
    if data is None and TOLERANCES[precision].drop > TOLERANCES["bfloat16"].drop:
        raise UsageError(
            f"{precision} changes what the model answers, so its score must be compared",
            hint="give labelled rows: data=..., --data dev.jsonl",
        )
    rows = calibration = None if data is None else Rows(job, data, WRITTEN if source.task.writes() else None)
    if precision in exporter.calibrated and not source.task.writes():
        if (others := _recorded(job, "train") if job.calibration is None else job.calibration) is not None:
            calibration = Rows(job, others, CALIBRATED)
        else:
            yield Note("calibrated on the rows that it is scored on; other rows, as those of the training, are fairer")
    original = _original(job, rows)
    if rows is not None:
        yield Phase("score the model", len(rows.encoded))
        original.score()
        yield Progress(len(rows.encoded))
    kept = golden.make(source.model, source.task, source.tokenizer, source.max_length)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        source, order = replace(source, calibration=None if calibration is None else calibration.encoded), None
        while True:
            work = Path(scratch) / f"kept-{len(source.kept)}"
            work.mkdir()
            yield Phase(f"export to {job.target}, {precision}")
            content = _written(job, exporter, source, work, precision, kept)
            yield Phase("run it", None if rows is None else len(rows.encoded))
            certificate, faults = _judged(job, original, rows, work, content)
            if not faults:
                break
            order = order or _order(exporter, source, precision)
            if len(source.kept) * 2 >= len(order):
                raise _refused(job, precision, certificate, faults, source.kept)
            source = replace(source, kept=tuple(order[: max(1, 2 * len(source.kept))]))
            yield Note(f"{faults[0]}; once more, with {', '.join(source.kept)} in float32", "warning")
            shutil.rmtree(work)
        bundle.write_json(work / CERTIFICATE, certificate.as_dict())
        bundle.write_manifest(work, content)
        yield Phase("save")
        path = bundle.write_folder(output, lambda folder: _move(work, folder), overwrite=overwrite)
    yield Saved(path)
    return replace(certificate, path=path)


def _recorded(job: Job, name: str) -> Dataset | None:
    """Return the rows that the model was trained (``train``) or scored on (``evaluation``), if they are unchanged."""
    try:
        record = json.loads((job.folder / bundle.RUN / "run.json").read_text(encoding="utf-8"))["asked"]
        path, wanted = record[{"train": "data", "evaluation": "eval_data"}[name]], job.manifest["data"][name]
        if not isinstance(path, str) or not Path(path).is_file():
            return None
        rows = read(path, job.source.task.fields, columns=job.columns or record["columns"])
        return rows if rows.fingerprint() == wanted["fingerprint"] else None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # a record of another version; rows that are no more what they were
        return None


# -- what is written ----------------------------------------------------------------------------------


def _written(
    job: Job, exporter: Exporter, source: Source, work: Path, precision: str, kept: golden.Golden
) -> dict[str, Any]:
    """Write the artifact; return what its manifest says."""
    found = exporter.write(source, work, precision)
    source.tokenizer.save_pretrained(work)
    source.model.config.save_pretrained(work)
    if source.task.writes():
        source.model.generation_config.save_pretrained(work)
    kept.write(work)
    artifact = {"target": exporter.target, "engine": exporter.engine, "precision": precision, "files": found.files,
                "kept": list(source.kept), "notes": found.notes, **found.more}  # fmt: skip
    same = {name: job.manifest[name] for name in ("base", "data", "metrics", "report", "max_length")
            if name in job.manifest}  # fmt: skip
    return {
        "made_by": f"llmasos {__version__}",
        "task": source.task.to_dict(),
        "tokenizer": tokenizer_of(work, source.tokenizer, source.task),
        "artifact": artifact,
        **same,
    }


def _move(work: Path, folder: Path) -> None:
    for item in sorted(work.iterdir()):
        os.replace(item, folder / item.name)


def _check_free(output: Path, *, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists already", hint="another output, or overwrite=True (--overwrite)")
    if output.exists() and not bundle.is_bundle(output):
        raise UsageError(f"{output} is no model folder, so it is not replaced", hint="another output")


def _order(exporter: Exporter, source: Source, precision: str) -> list[str]:
    """Return the parts that may stay in float32, the most sensitive first; none where the format cannot mix."""
    if not exporter.mixes(kind_of(source.task, source.model.config), precision):
        return []
    samples = list(source.samples(16)) if source.calibration else []
    return ranked(source.model, samples or [source.example()])


# -- how it is judged ---------------------------------------------------------------------------------


class Rows:
    """Labelled rows, read and encoded once: all of them, or the first ones."""

    def __init__(self, job: Job, data: Any, most: int | None) -> None:
        task, tokenizer = job.source.task, job.source.tokenizer
        self.rows = data if isinstance(data, Dataset) else read(data, task.fields, columns=job.columns)
        if most is not None and len(self.rows) > most:
            self.rows = self.rows.select(range(most))
        self.encoded: Encoded = encode(self.rows, task, tokenizer, job.source.max_length, allow_truncated=1.0)
        if task.needs_reference:
            self.encoded = referenced(job.untrained(), task, self.encoded)

    @property
    def used(self) -> list[dict[str, Any]]:
        """The rows that gave examples."""
        return self.rows.rows(np.unique(self.encoded.rows))


class Judged:
    """What an engine makes of the labelled rows: its report, its outputs, its answers.

    Args:
        job, rows: what it is judged on.
        engine: computes outputs.
        generator: writes answers, where the task scores them.
    """

    def __init__(self, job: Job, rows: Rows | None, engine: Engine, generator: Callable[[], Generator]) -> None:
        self._job, self._rows, self.engine, self._generator = job, rows, engine, generator
        self.outputs: list[Any] = []
        self.report: Any = None
        self.answers: list[Any] = []
        self.fingerprint = rows.rows.fingerprint() if rows is not None else ""

    def score(self) -> None:
        """Compute everything."""
        assert self._rows is not None
        task, rows, size = self._job.source.task, self._rows, self._job.batch_size
        _, scorer = evaluate(
            self.engine, task, rows.encoded, rows.rows, batch_size=size, on_outputs=self.outputs.extend
        )
        if task.scores_answers:
            found = answered(self._generator(), task, rows.used)
            task.score_answers(scorer, found, rows.used)
            self.answers = list(map(_answer, found))
        elif not task.writes():
            self.answers = list(map(_answer, predict(
                self.engine, task, self._job.source.tokenizer, rows.used, max_length=self._job.source.max_length,
                batch_size=size,
            )))  # fmt: skip
        self.report = scorer.report()


def answered(generator: Generator, task: Task, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the answers that are written to labelled rows, for their score."""
    settled = task.generation(generator.tokenizer)
    more: dict[str, Any] = {name: settled.pop(name) for name in ("first_token", "start_token") if name in settled}
    config = WriteConfig.of({"max_new_tokens": LONGEST, "allow_truncated": 1.0, **settled})
    return list(written(generator, task, rows, config, more))


def _original(job: Job, rows: Rows | None) -> Judged:
    """Return what judges the model itself, by transformers' own forward in float32."""
    model, task, tokenizer = job.source.model, job.source.task, job.source.tokenizer
    engine = TorchEngine(
        model, tokenizer.pad_token_id or 0, output=task.output, likeliest=task.likeliest, speed="plain"
    )
    return Judged(job, rows, engine, lambda: Generator(model, tokenizer, job.source.max_length, speed="plain"))


def _answer(prediction: Any) -> Any:
    """Return what an answer says, without how sure it is."""
    return _said(prediction.as_dict() if hasattr(prediction, "as_dict") else prediction)


def _said(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _said(value) for key, value in content.items() if not isinstance(value, float)}
    if isinstance(content, list | tuple):
        return [_said(value) for value in content if not isinstance(value, float)]
    return content if isinstance(content, str | int | bool | None) else None


def _judged(
    job: Job, original: Judged, rows: Rows | None, work: Path, content: Mapping[str, Any]
) -> tuple[Certificate, list[str]]:
    """Run the artifact in its own runtime; return what was found, and what is wrong with it."""
    artifact, task, tokenizer = content["artifact"], job.source.task, load_tokenizer(work)
    limit = TOLERANCES[artifact["precision"]]
    limit = limit if job.accept_drop is None else replace(limit, drop=job.accept_drop)
    kept = golden.read(work)
    assert kept is not None
    check_tokenizer(work, tokenizer, content["tokenizer"])
    check_ends(work, tokenizer, kept)
    with opened(work, artifact, task, tokenizer) as engine:
        apart = golden.compare(kept, engine, task, tokenizer)
        faults = golden_faults(apart, artifact["precision"], limit)
        latency, score, speed = _latency(engine, kept, task, tokenizer), None, None
        if rows is not None:
            found = Judged(job, rows, engine, lambda: of_artifact(work, engine, tokenizer, job.source.max_length))
            before = engine.seconds
            found.score()
            if not task.writes():
                speed = 2 * len(rows.encoded) / (engine.seconds - before)  # scored, and answered
            score = _compared(task, original, found)
            if not score.lost <= limit.drop + 1e-9:
                faults.append(
                    f"{score.metric} falls from {score.model.value:.4f} to {score.artifact.value:.4f} on {score.rows} "
                    f"rows, {score.lost:.2f} % lost where {limit.drop:g} % is allowed"
                )
            if not score.relative <= limit.outputs:
                faults.append(
                    f"an output of the labelled rows differs by {score.difference:.3g}, {score.relative:.1%} of the "
                    f"largest; {artifact['precision']} allows {limit.outputs:.1%}"
                )
            faults += _worst(task, original, found, rows) if faults else []
        certificate = Certificate(
            target=artifact["target"], precision=artifact["precision"], runtime=engine.how, tolerance=limit,
            golden=apart, score=score,
            size_bytes=sum((work / name).stat().st_size for name in artifact["files"]),
            load_seconds=engine.load_seconds, open_seconds=engine.open_seconds, latency_ms=latency,
            rows_per_second=speed, peak_bytes=engine.peak_bytes(), model_bytes=engine.model_bytes(),
            kept=tuple(artifact["kept"]), notes=tuple(artifact["notes"]),
            files={name: bundle.digest(work / name) for name in artifact["files"]},
            versions=versions(artifact["target"]), machine=hardware.machine(), command=list(job.command),
        )  # fmt: skip
    return certificate, faults


def opened(folder: Path, artifact: Mapping[str, Any], task: Task, tokenizer: Any) -> Apart:
    """Open an artifact by the engine of its format, in a process of its own."""
    return Apart(folder, artifact, pad_id=tokenizer.pad_token_id or 0, output=task.output, likeliest=task.likeliest)


def check_tokenizer(folder: Path, tokenizer: Any, wanted: Mapping[str, Any]) -> None:
    """Raise where the tokenizer of a folder reads, ends or renders differently from how it did."""
    found = tokenizer_contract(folder, tokenizer)
    words = {"special_ids": "special tokens", "golden": "tokens of the golden texts", "chat_template": "chat template"}
    if wrong := [what for name, what in words.items() if name in wanted and wanted[name] != found[name]]:
        raise ParityError(
            f"its tokenizer files are not those of the model: other {', '.join(wrong)}",
            hint="take the tokenizer files of the model itself",
        )


def check_ends(folder: Path, tokenizer: Any, kept: golden.Golden) -> None:
    """Raise where an artifact's answers end after other tokens than the model's."""
    if kept.answers is not None and (ends := ends_in(folder, tokenizer)) != frozenset(kept.ends):
        raise ParityError(
            f"its answers end with the tokens {sorted(ends)}, and those of the model with {list(kept.ends)}",
            hint="take generation_config.json and the tokenizer files of the model itself",
        )


def _latency(engine: Apart, rows: golden.Golden, task: Task, tokenizer: Any) -> float:
    """Return the median milliseconds of the first golden row alone, or of a token of its answer."""
    if rows.answers is None:
        batch = golden.batches(rows, task, tokenizer)[0]
        return _median(lambda: engine.outputs(batch))
    prompt, answer = rows.ids[0][0], rows.answers[0]
    return _median(lambda: engine.forced([prompt], [answer])) / max(1, len(answer))


def _median(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(_TIMED):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _compared(task: Task, original: Judged, found: Judged) -> Score:
    answered = task.answer_metrics if task.scores_answers else ()
    name = next((one for one in answered if one in original.report.metrics), task.default_metric)
    before, after = (one.report.metrics[name] for one in (original, found))
    apart = max(golden.difference(task, a, b) for a, b in zip(found.outputs, original.outputs, strict=True))
    largest = max(float(np.abs(one).max(initial=0.0)) for one in original.outputs)
    alike = sum(a == b for a, b in zip(found.answers, original.answers, strict=True))
    return Score(
        metric=name, rows=original.report.rows, fingerprint=original.fingerprint, model=Interval(*before),
        artifact=Interval(*after), lost=lost(name, before.value, after.value),
        agreement=alike / len(found.answers) if found.answers else None,
        difference=apart, relative=apart / max(largest, 1e-30),
    )  # fmt: skip


def lost(metric: str, before: float, after: float) -> float:
    """Return how much of a score is lost, in percent of what it was; negative where it is better."""
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    return 100.0 * sign * (after - before) / max(abs(before), 1e-12)


def _worst(task: Task, original: Judged, found: Judged, rows: Rows, most: int = 3) -> list[str]:
    """Say which rows differ most."""
    apart = [golden.difference(task, a, b) for a, b in zip(found.outputs, original.outputs, strict=True)]
    worst = sorted(range(len(apart)), key=lambda i: -apart[i])[:most]
    numbers = [int(rows.encoded.rows[i // rows.encoded.group]) for i in worst]
    return [f"row {number + 1} differs by {apart[i]:.3g}" for i, number in zip(worst, numbers, strict=True)]


def _refused(
    job: Job, precision: str, certificate: Certificate, faults: Sequence[str], kept: Sequence[str]
) -> ParityError:
    mixed = f", also with {', '.join(kept)} in float32" if kept else ""
    lines = "".join(f"\n  {fault}" for fault in faults)
    hint = "another precision or format"
    score, limit = certificate.score, certificate.tolerance
    alone = score is not None and max(score.relative, certificate.golden.relative) <= limit.outputs
    if score is not None and alone and score.lost > limit.drop:
        hint += f", or a budget: accept_drop={max(0.1, np.ceil(10 * score.lost) / 10):g} (--accept-drop)"
    return ParityError(f"the {job.target} model in {precision} is not the same model{mixed}:{lines}", hint=hint)


def versions(target: str) -> dict[str, str]:
    """Return the versions of what made an artifact and runs it, by the names of their distributions."""
    from importlib import metadata

    exporter: Exporter = plugins.load("exporters", target)
    out = {"llmasos": __version__}
    for name in (*exporter.requires, "torch", "transformers", "tokenizers", "numpy"):
        try:
            out[name.replace("_", "-")] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out | exporter.elsewhere()
