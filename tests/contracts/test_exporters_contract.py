"""What every export format promises: the same model, or nothing.

A new format is covered by its file alone: the tasks that it holds, each tuned for a moment on its own sample, are
exported, run by the format's own runtime and compared; a model that was changed on the way is refused.
"""

from __future__ import annotations

import copy
import functools
import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmasos import LLM, errors
from llmasos.certificate import Certificate
from llmasos.core import bundle, plugins
from llmasos.exporters.base import kind_of
from llmasos.loading import load_config
from tiny import save_tiny

FORMATS = plugins.names("exporters")
QUICK = ("text-classification", "translation")
USUAL = {"encoder": "text-classification", "decoder": "text-generation", "encoder-decoder": "translation"}
"""Kind of model -> a task of it."""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return, for a task, a tiny model that has learned a little of its sample, and the sample."""

    @functools.cache
    def tune(name: str) -> tuple[Path, list[dict[str, Any]]]:
        kind = plugins.load("tasks", name)
        task, rows = kind.sample()
        folder = tmp_path_factory.mktemp(name)
        llm = LLM.from_pretrained(save_tiny(folder / "base", kind.auto_class, max_length=160))
        llm.finetune(
            task, rows, epochs=4, batch_size=8, learning_rate=2e-3, output=folder / "model", progress=False,
            allow_truncated=1.0, allow_unknown=1.0,
        )  # fmt: skip
        return folder / "model", rows

    return tune


@pytest.fixture(scope="module")
def exported(tuned: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return an artifact of a task's model, with its certificate; not to be changed."""

    @functools.cache
    def export(name: str, tag: str) -> tuple[Path, Certificate]:
        folder, rows = tuned(tag)
        path = tmp_path_factory.mktemp(name) / "out"
        llm = LLM.from_pretrained(folder)
        kind = kind_of(llm.task, load_config(folder))
        return path, llm.export(path, name, data=rows, quantize=exact(plugins.load("exporters", name), kind))

    return export


def exact(exporter: Any, kind: str) -> str:
    """Return the precision in which answers can be compared digit by digit."""
    known = exporter.precisions[kind]
    return "float32" if "float32" in known else str(known[0])


def slow(exporter: Any) -> bool:
    """Say whether a format takes long: ExecuTorch lowers even a tiny model in some 20 seconds."""
    return bool(exporter.programs) or exporter.engine == "executorch"


def _quick(name: str, tag: str) -> bool:
    """Say whether a pair is tried each time; two parts of an encoder-decoder take OpenVINO as long as all else."""
    return tag in QUICK and not slow(plugins.load("exporters", name)) and (name, tag) != ("openvino", "translation")


def _pairs() -> list[Any]:
    return [pytest.param(name, tag, marks=[pytest.mark.slow] * (not _quick(name, tag)))
            for name in FORMATS for tag in plugins.names("tasks")
            if plugins.load("exporters", name).holds(plugins.load("tasks", tag))]  # fmt: skip


def _kinds() -> list[Any]:
    """Name every format with a task of each kind of model that it holds."""
    held = [(name, tag, plugins.load("exporters", name)) for name in FORMATS for tag in USUAL.values()]
    return [pytest.param(name, tag, marks=[pytest.mark.slow] * (tag != QUICK[0] or not _quick(name, tag)))
            for name, tag, exporter in held if exporter.holds(plugins.load("tasks", tag))]  # fmt: skip


def _precisions() -> list[Any]:
    """Name every precision of every kind of model, but those that all tasks are exported in."""
    formats = {name: plugins.load("exporters", name) for name in FORMATS}
    return [(name, USUAL[kind], precision) for name, exporter in formats.items()
            for kind, known in exporter.precisions.items() for precision in known
            if precision != exact(exporter, kind)]  # fmt: skip


every_pair = pytest.mark.parametrize(("name", "tag"), _pairs())
every_kind = pytest.mark.parametrize(("name", "tag"), _kinds())
every_precision = pytest.mark.parametrize(("name", "tag", "precision"), _precisions())
every_format = pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] * slow(plugins.load("exporters", name))) for name in FORMATS
])  # fmt: skip


@pytest.fixture
def usable(tuned: Any) -> Any:
    """Return a function that gives a format's exporter, and skips where a package or a program is missing."""

    def exporter_of(name: str) -> Any:
        exporter = plugins.load("exporters", name)
        if missing := [program for program in exporter.programs if shutil.which(program) is None]:
            pytest.skip(f"{name} needs {', '.join(missing)}")
        folder, _ = tuned(one_task(exporter))
        try:
            exporter.check(LLM.from_pretrained(folder).task, load_config(folder), None)
        except errors.MissingExtraError as error:
            pytest.skip(str(error))
        return exporter

    return exporter_of


def one_task(exporter: Any) -> str:
    """Return a task that the format holds, a quick one if there is one."""
    held = [pair.values[1] for pair in _pairs() if pair.values[0] == exporter.target]
    return next((tag for tag in QUICK if tag in held), held[0])


@every_pair
def test_the_artifact_is_the_same_model(name: str, tag: str, usable: Any, tuned: Any, exported: Any) -> None:
    usable(name)
    folder, rows = tuned(tag)
    path, certificate = exported(name, tag)
    assert certificate.golden.relative <= certificate.tolerance.outputs
    assert certificate.score is not None
    assert certificate.score.lost <= certificate.tolerance.drop
    artifact, llm = LLM.from_pretrained(path), LLM.from_pretrained(folder)
    asked = rows[:5]
    short = {"max_new_tokens": 20} if plugins.load("tasks", tag).generates else {}
    answers, wanted = artifact.predict(asked, **short), llm.predict(asked, precision="float32", **short)
    assert [said(one) for one in answers] == [said(one) for one in wanted]
    assert [said(artifact.predict(row, **short)) for row in asked] == [
        said(one) for one in answers
    ]  # alone, in a batch
    metric = llm.task.default_metric  # type: ignore[union-attr]
    writing = short if llm.task.scores_answers else {}  # type: ignore[union-attr]
    writing |= {"allow_truncated": 1.0}
    reports = artifact.evaluate(rows, **writing), llm.evaluate(rows, precision="float32", **writing)
    assert reports[0].metrics[metric].value == pytest.approx(reports[1].metrics[metric].value, rel=1e-3)
    found = artifact.verify(rows)
    assert found.same_rows
    assert found.score is not None
    assert found.certified == pytest.approx(found.score.value, abs=1e-9)
    manifest = bundle.read_manifest(path)
    assert manifest is not None
    assert manifest["artifact"]["target"] == name
    assert json.loads((path / "certificate.json").read_text())["precision"] == certificate.precision


def said(prediction: Any) -> Any:
    """Return an answer with its numbers rounded."""
    if isinstance(prediction, np.ndarray):
        return prediction.round(3).tolist()
    content = prediction.as_dict() if hasattr(prediction, "as_dict") else prediction
    return json.loads(json.dumps(content), parse_float=lambda text: round(float(text), 3))


@pytest.mark.slow
@every_precision
def test_every_precision_is_judged_and_runs_from_its_files(
    name: str, tag: str, precision: str, usable: Any, tuned: Any, tmp_path: Path
) -> None:
    usable(name)
    folder, rows = tuned(tag)
    # models that have learned so little lose more of their score than others; the outputs decide
    found = LLM.from_pretrained(folder).export(tmp_path / "out", name, data=rows, quantize=precision, accept_drop=50.0)
    assert found.precision == precision
    assert 1e-5 < found.golden.relative <= found.tolerance.outputs  # rounded, and the same model
    assert found.score is not None
    artifact = LLM.from_pretrained(tmp_path / "out")
    again = artifact.verify(rows)
    assert again.same_rows
    assert again.precision == precision
    assert again.score is not None
    assert again.score.value == pytest.approx(found.score.artifact.value, abs=1e-9)
    short = {"max_new_tokens": 8} if plugins.load("tasks", tag).generates else {}
    assert len(artifact.predict(rows[:3], **short)) == 3


@every_kind
def test_a_model_that_was_changed_on_the_way_is_refused(
    name: str, tag: str, usable: Any, tuned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = usable(name)
    folder, rows = tuned(tag)

    class Broken(type(exporter)):  # type: ignore[misc]
        def write(self, source: Any, folder: Path, precision: str) -> Any:
            model = copy.deepcopy(source.model)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.5)
            return super().write(replace(source, model=model), folder, precision)

    monkeypatch.setattr(importlib.import_module(f"llmasos.exporters.{name.replace('-', '_')}"), "PLUGIN", Broken())
    with pytest.raises(errors.ParityError, match="is not the same model"):
        LLM.from_pretrained(folder).export(tmp_path / "out", name, data=rows)
    assert list(tmp_path.iterdir()) == []


@every_format
def test_a_damaged_artifact_is_refused(name: str, usable: Any, tuned: Any, exported: Any, tmp_path: Path) -> None:
    exporter = usable(name)
    _, rows = tuned(one_task(exporter))
    shutil.copytree(exported(name, one_task(exporter))[0], tmp_path / "out")
    artifact = json.loads((tmp_path / "out" / "llmasos.json").read_text())["artifact"]
    file = max((tmp_path / "out" / one for one in artifact["files"]), key=lambda path: path.stat().st_size)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(errors.BundleError, match="is not as it was saved"):
        LLM.from_pretrained(tmp_path / "out").verify()
    with pytest.raises(errors.BundleError):
        LLM.from_pretrained(tmp_path / "out").predict(rows[:1])
    file.unlink()
    with pytest.raises(errors.BundleError, match="lacks"):
        LLM.from_pretrained(tmp_path / "out")


@every_format
def test_what_a_format_cannot_hold_is_refused_by_name(name: str, usable: Any, tuned: Any) -> None:
    exporter = usable(name)
    for tag in ("text-classification", "translation", "text-generation"):
        folder, _ = tuned(tag)
        llm = LLM.from_pretrained(folder)
        assert llm.task is not None
        if kind_of(llm.task, load_config(folder)) not in exporter.precisions:
            with pytest.raises(errors.UsageError, match=f"{name} holds no {tag}"):
                llm.export(folder.parent / "out", name)
        else:
            with pytest.raises(errors.UsageError, match="has no 'int3'"):
                llm.export(folder.parent / "out", name, quantize="int3")
        assert not (folder.parent / "out").exists()
