"""The models of an app: those of a server that ``LLMASOS_URL`` names, else of one that starts and ends with the app."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..client import Client
from ..core import environment
from ..core.errors import RemoteError, TrainingError
from ..core.leash import leashed, let_go
from ..serving.keys import KeyFile


@dataclass(frozen=True)
class Tuned:
    """A model that is tuned at the first start, with its progress on standard error, and kept.

    It lies in ``LLMASOS_HOME/apps``, in another folder when base, rows, task or epochs change.

    Args:
        base: the model that is tuned.
        data: a file of rows.
        task: what it learns.
        epochs: passes over the rows.
    """

    base: str
    data: str | Path
    task: str = "text-classification"
    epochs: int = 10

    def folder(self, name: str) -> Path:
        """Return where it lies; make it if it is not there.

        Raises:
            TrainingError: that failed.
        """
        facts = f"{self.base}\0{self.task}\0{self.epochs}\0".encode() + Path(self.data).read_bytes()
        place = environment.home() / "apps" / f"{name}-{hashlib.sha256(facts).hexdigest()[:12]}"
        if not place.is_dir():
            self._make(name, place)
        return place

    def _make(self, name: str, place: Path) -> None:
        words = ["finetune", self.base, "--task", self.task, "--data", str(self.data), "--epochs", str(self.epochs)]
        process = leashed(
            _llmasos([*words, "--output", str(place)]), stdout=subprocess.DEVNULL, stderr=None, environment={}
        )
        try:
            code = process.wait()
        finally:
            let_go(process)
        if code:
            raise TrainingError(f"{name} was not tuned (exit code {code})", hint="what is said above tells why")


@contextmanager
def models(**wanted: str | Path | Tuned) -> Iterator[Client]:
    """Yield a client of a server of models, which ends with the block, and with this process however that ends.

    Nobody else can ask it: it listens on this machine, and only the client has its key. Where ``LLMASOS_URL`` is set,
    that server is asked instead, and nothing is started.

    Args:
        wanted: models by the names that the app calls them: a folder, ``pkg:NAME``, ``starter-chat``, a name of the
            Hub, or ``Tuned`` for one that is tuned first.

    Raises:
        RemoteError: the server did not start.
        TrainingError: a model could not be tuned.
    """
    if environment.server_is_named():
        with Client() as client:
            yield client
        return
    found = {name: ref.folder(name) if isinstance(ref, Tuned) else ref for name, ref in wanted.items()}
    words = ["serve", *(f"{name}={ref}" for name, ref in found.items()), "--port", "0"]
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as own:
        key = KeyFile(Path(own, "keys.json")).add("app")  # so that nobody else on this machine can ask
        told = {"LLMASOS_HOME": own, "LLMASOS_BEHIND": ""}
        process = leashed(_llmasos(words), stdout=subprocess.PIPE, stderr=log, environment=told)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().decode().strip()
            if not url:
                raise RemoteError(f"the models could not be opened: {_last(log)}", hint=f"llmasos {' '.join(words)}")
            with Client(url, key=key) as client:
                yield client
        finally:
            let_go(process)
            process.stdout.close()  # type: ignore[union-attr]


def kept(project: Path) -> Path:
    """Return the folder where the app of a project's folder keeps what it knows: in ``LLMASOS_HOME/apps``."""
    project = project.resolve()
    digest = hashlib.sha256(str(project).encode()).hexdigest()[:12]
    folder = environment.home() / "apps" / f"{project.name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _llmasos(words: list[str]) -> list[str]:
    return [sys.executable, "-P", "-m", __name__.partition(".")[0], *words]


def _last(log: IO[bytes]) -> str:
    """Return what a program said last: the error, where it is one."""
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it says nothing"])[-1][:400]
