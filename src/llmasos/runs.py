"""The run store: one small JSON for each run in ``LLMASOS_HOME/runs``, and where its full records are.

A run enters when it starts and is completed when it ends. Until then it holds a lock that dies with its process, so
that a killed run is told from one that goes on. The records (options, curves, ledgers) stay in the run's own folder,
which may be moved or deleted; the run's id in them says whether a folder is still this run's.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from .core import atomic, bundle
from .core.environment import home
from .core.errors import UsageError

RUNNING, LOST, DAMAGED = "running", "lost", "damaged"


@dataclass(frozen=True)
class Entry:
    """One run as the store keeps it.

    Args:
        id: eight hexadecimal digits.
        when: its start, in UTC, as ISO 8601.
        model, task: what was tuned, as the user wrote it, and for what.
        folder: where its records (and its model, if ``has_output``) are when it is finished.
        has_output: whether the user named that folder; otherwise it is the store's.
        status: running, done, interrupted (Ctrl-C), stopped (it could not go on, what was learned is kept), failed
            (nothing is kept); as read from the store also lost (its process is gone) or damaged (the entry).
        reason: why it ended, where it ended: early stopping, or what went wrong.
        metric: name, value and the ends of the 95 % interval of the metric that picked the model.
        seconds: from its start to its end.
        energy: joules of the whole machine in that time; None where nothing tells them.
    """

    id: str
    when: str = ""
    model: str = ""
    task: str = ""
    folder: str = ""
    has_output: bool = True
    status: str = RUNNING
    reason: str = ""
    metric: dict[str, Any] | None = None
    steps: int | None = None
    seconds: float | None = None
    energy: float | None = None


class Place(NamedTuple):
    """Where the records of a run are now: None and why, where they are not to be found."""

    records: Path | None
    note: str


def new_id() -> str:
    """Return an id that no run has."""
    return secrets.token_hex(4)


class Registered:
    """A run that is in the store and goes on; ``finish`` completes it.

    Raises:
        OSError, HardwareError: the store cannot be written.
    """

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        _store().mkdir(parents=True, exist_ok=True)
        lock, file = _file(entry.id, ".lock"), _file(entry.id)
        self._before = file.read_text(encoding="utf-8") if file.exists() else None
        lock.touch()
        self._lock = contextlib.ExitStack()
        self._lock.callback(lambda: lock.unlink(missing_ok=True))
        try:
            self._lock.enter_context(atomic.held(lock))
            atomic.write_json(_file(entry.id), asdict(entry))
        except BaseException:
            self._lock.close()
            raise

    @classmethod
    def begin(cls, id: str, *, model: str, task: str, folder: Path, has_output: bool) -> Self:
        """Enter a run that starts now."""
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        return cls(Entry(id, when, model, task, str(folder.absolute()), has_output))

    def forget(self) -> None:
        """Leave the store as it was: the run was refused before it began."""
        with self._lock:
            if self._before is None:
                _file(self.entry.id).unlink(missing_ok=True)
            else:
                atomic.write_text(_file(self.entry.id), self._before)

    def finish(self, **changes: Any) -> None:
        """Complete the entry with what is known at the end, and let go of it."""
        with self._lock:
            if _file(self.entry.id).exists():  # else somebody removed it in the meantime
                atomic.write_json(_file(self.entry.id), asdict(replace(self.entry, **changes)))


def entries() -> list[Entry]:
    """Return all runs, the newest first."""
    found = [_read(path) for path in _store().glob("*.json")]
    return sorted(found, key=lambda entry: (entry.when, entry.id), reverse=True)


def find(prefix: str) -> Entry:
    """Return the run whose id begins so.

    Raises:
        UsageError: there is none, or more than one.
    """
    found = [entry for entry in entries() if entry.id.startswith(prefix.lower())]
    if len(found) == 1 and prefix:
        return found[0]
    if not found:
        raise UsageError(f"there is no run {prefix!r} in {_store()}", hint="llmasos runs list shows all")
    shown = ", ".join(entry.id for entry in found[:5]) + (", ..." if len(found) > 5 else "")
    raise UsageError(f"{prefix!r} is the beginning of {len(found)} runs: {shown}", hint="one more character")


def place(entry: Entry) -> Place:
    """Find the records of a run: in its folder, or in that folder's ``.unfinished`` while it is on the way."""
    if not entry.folder:
        return Place(None, "its entry is damaged")
    folder = Path(entry.folder)
    found = [path for path in (folder, _unfinished(folder)) if (path / bundle.RUN).is_dir()]
    for path in found:
        if _id_in(path) == entry.id:
            return Place(path / bundle.RUN, "" if path == folder else f"unfinished, in {path}")
    if entry.status == RUNNING:
        return Place(None, "it is being prepared")
    if any(_id_in(path) for path in found):
        return Place(None, f"{folder} now holds another run")
    if not entry.steps:
        return Place(None, "it ended before it had any")
    return Place(None, f"{folder} was moved or deleted")


def record(entry: Entry) -> dict[str, Any] | None:
    """Return a run's ``run.json``, or None where it is not to be found."""
    records = place(entry).records
    return None if records is None else json.loads((records / "run.json").read_text(encoding="utf-8"))


def remove(entry: Entry, *, model_too: bool = False) -> Path | None:
    """Take a run out of the store, with its records where the store holds them; return the folder removed.

    Args:
        entry: the run.
        model_too: remove the folder that the user named too, with the model in it.

    Raises:
        UsageError: the run goes on.
    """
    if entry.status == RUNNING:
        raise UsageError(f"run {entry.id} goes on", hint="stop it first")
    records, folder = place(entry).records, Path(entry.folder)
    doomed = records.parent if records is not None and model_too else None
    if not entry.has_output and folder.parent == _store().absolute() and folder.is_dir():
        doomed = folder  # also where the run was killed before it had records
    if doomed is not None:
        shutil.rmtree(doomed)
    for suffix in (".json", ".lock"):
        _file(entry.id, suffix).unlink(missing_ok=True)
    return doomed


def _store() -> Path:
    return home() / "runs"


def _file(id: str, suffix: str = ".json") -> Path:
    return _store() / f"{id}{suffix}"


def _read(path: Path) -> Entry:
    try:
        entry = Entry(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return Entry(path.stem, status=DAMAGED)
    if entry.status == RUNNING and not atomic.is_held(_file(entry.id, ".lock")):
        return replace(entry, status=LOST)
    return entry


def _unfinished(folder: Path) -> Path:
    return folder.with_name(folder.name + ".unfinished")


def _id_in(folder: Path) -> str | None:
    try:
        content = json.loads((folder / bundle.RUN / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("id") if isinstance(content, dict) else None
