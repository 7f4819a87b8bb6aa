"""A training sent to another place: its command line and its data as that place's files, started by its own program.

The output is a URL, for the machine that trains goes away. Checkpoints lie there too: what is started again goes on.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .core import atomic, plugins
from .core.environment import environment_named
from .core.errors import DataError, MissingExtraError, RemoteError, UsageError, did_you_mean
from .core.storage import is_url
from .targets.base import Target, Training, Validated

INPUTS = "/llmasos/inputs"
"""Where files of this machine lie there."""
EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure"}
"""Extras of this package, by what begins a URL."""


@dataclass(frozen=True)
class Sent:
    """A training as files of a place.

    Args:
        target: the place.
        training: what is trained.
        files: texts by their names.
        validated: what the makers' own reading says.
    """

    target: Target
    training: Training
    files: dict[str, str]
    validated: Validated | None


def places() -> tuple[str, ...]:
    """Return the places where something is trained."""
    return tuple(name for name in plugins.names("targets") if plugins.load("targets", name).trains is not None)


def sent(place: str, words: Mapping[str, Any], settings: Mapping[str, str]) -> Sent:
    """Return a training as files of a place.

    Args:
        place: its name.
        words: of the command line: ``model``, ``task``, ``data``, ``eval_data``, ``output``, ``revision``, ``columns``,
            and under ``options`` all others that were given.
        settings: the place's own options of the machine.

    Raises:
        UsageError: nothing is trained there, the output is no URL, or something of it does not exist there.
        DataError: a file is not there.
    """
    if place not in (known := places()):
        raise UsageError(f"nothing is trained on {place!r}",
                         hint=f"{did_you_mean(place, known)}known: {', '.join(known)}")  # fmt: skip
    target: Target = plugins.load("targets", place)
    assert target.trains is not None
    own = target.trains.of(settings)
    if not is_url(words["output"]) or words["output"].startswith("file:"):
        raise UsageError(f"output={words['output']!r} is on a machine that goes away", hint="--output s3://bucket/name")
    mounts: dict[str, str] = {}
    line = ["finetune", _model(words["model"], mounts), "--task", words["task"]]
    for key in ("data", "eval_data"):
        if words.get(key):
            line += [f"--{key.replace('_', '-')}", _data(words[key], mounts)]
    line += ["--output", words["output"]]
    line += ["--revision", words["revision"]] if words.get("revision") else []
    for field, column in (words.get("columns") or {}).items():
        line += ["--columns", f"{field}={column}"]
    for name, value in words["options"].items():
        line += ["--set", f"{name}={_text(name, value)}"]
    urls = [word for word in line if is_url(word)]
    extras = dict.fromkeys(EXTRAS[kind] for url in urls if (kind := url.partition("://")[0]) in EXTRAS)
    name = re.sub(r"[^a-z0-9]+", "-", words["output"].rstrip("/").rsplit("/", 1)[-1].lower()).strip("-")
    name = name if name[:1].isalpha() else f"model-{name}".rstrip("-")
    training = Training(name[:40].rstrip("-"), tuple(line), mounts, __version__, tuple(extras), own)
    files = target.training(training)
    found = target.validate(files)
    if found is not None and found.problems:
        raise UsageError(
            "\n".join([f"{found.tool} refuses what would be sent:", *found.problems]), hint="other options"
        )
    return Sent(target, training, files, found)


def launch(job: Sent) -> None:
    """Start it by the place's own program, which asks and tells on this terminal.

    Raises:
        MissingExtraError: the program is not here.
        RemoteError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="llmasos-training-") as folder:
        for name, text in job.files.items():
            atomic.write_text(Path(folder, name), text)
        program, *words = job.target.launch(job.training, folder)
        there = environment_named(job.target.variable) if job.target.variable else None
        found = shutil.which(program, path=f"{there / 'bin'}{os.pathsep}{os.defpath}" if there else None)
        if found is None:
            raise MissingExtraError(
                f"a training on {job.target.name}", install=f"{job.target.name}, which has {program}"
            )
        code = subprocess.run([found, *words], check=False).returncode
    if code:
        raise RemoteError(f"{shlex.join([program, *words[:2]])} ended with exit code {code}",
                          hint="what it wrote says why")  # fmt: skip


def _model(model: str, mounts: dict[str, str]) -> str:
    if Path(model).expanduser().exists():
        return _mounted(Path(model), mounts)
    if model.startswith("pkg:"):
        raise UsageError(f"{model} is a package of this machine", hint="a folder, a URL or a name on the Hub")
    return model


def _data(data: str, mounts: dict[str, str]) -> str:
    if is_url(data):
        return data
    if not Path(data).expanduser().exists():
        raise DataError(f"{data} is not there", hint="a file, a folder or a URL; a glob cannot be sent")
    return _mounted(Path(data), mounts)


def _mounted(path: Path, mounts: dict[str, str]) -> str:
    here = str(path.expanduser().resolve())
    known = {there: found for found, there in mounts.items()}
    if here in known:
        return known[here]
    name = Path(here).name
    there = f"{INPUTS}/{name}" if f"{INPUTS}/{name}" not in mounts else f"{INPUTS}/{len(mounts)}/{name}"
    mounts[there] = here
    return there


def _text(name: str, value: Any) -> str:
    """Return a value as ``--set`` reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        if any("," in str(one) for one in value):
            raise UsageError(f"{name} has values with commas", hint="other names")
        return ",".join(map(str, value))
    if isinstance(value, Mapping):
        import json

        return json.dumps(dict(value))
    return str(value)
