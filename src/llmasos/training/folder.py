"""The folder of a run in progress: records, checkpoints, the best model so far.

It is called ``NAME.unfinished`` and takes its name in one step when it is complete. Whoever finds it later, by
the records of the same training, goes on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from .. import runs
from ..core import atomic, bundle
from ..core.config import FinetuneConfig
from ..core.environment import home
from ..core.errors import UsageError
from ..core.events import Evaluated, Event, Step
from ..core.storage import is_url
from .checkpoint import Checkpoint, Checkpoints, steps_in
from .storage import Stored

FREE = ("within", "checkpoint_steps", "checkpoint_minutes", "keep_checkpoints", "on_non_finite", "threads")
"""Options that may differ where a run goes on."""
RECORD = "run.json"
_COMPARED = ("task", "config", "base", "data", "max_length", "forward")


class RunFolder:
    """The folder of a run in progress.

    Args:
        output: the folder that the run will end in; None for a folder in ``LLMASOS_HOME``.
        overwrite: replace a model that is there, and throw an unfinished run away.
        resume: True goes on with an unfinished run and needs one; None goes on where there is one of the same
            training; False starts anew only where there is none.

    Raises:
        UsageError: the output exists already and may not be replaced, there is nothing to go on with, or another
            process is at work in the folder.
    """

    def __init__(
        self, output: str | Path | None, config: FinetuneConfig, *, overwrite: bool = False, resume: bool | None = None
    ) -> None:
        self.stored = Stored(output) if isinstance(output, str) and is_url(output) else None
        output = self.stored.local if self.stored else output
        self.output = None if output is None else Path(output).expanduser()
        self.config, self.overwrite, self.resuming = config, overwrite, False
        self.id = runs.new_id()
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        if self.output is None:
            if resume:
                raise UsageError("resume without an output", hint="name the output of the run that was interrupted")
            (home() / "runs").mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=f"{stamp}-", dir=home() / "runs"))
        else:
            bundle.recover(self.output)
            self._check(self.output)
            self.path = self.output.with_name(self.output.name + ".unfinished")
            if self.stored:
                self._fetch(self.stored, self.output, resume)
            self._settle(resume)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(atomic.hold(self.path))
        self.records = self.path / bundle.RUN
        self.records.mkdir(exist_ok=True)
        self.scratch = self.path / "scratch"
        self.prepared = self.scratch / "records" if self.resuming else self.records
        """Where the ledgers go until it is known that the rows are the same."""
        self.prepared.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(self.path / "checkpoints", config, self._checkpointed)
        self._best, self._referred = 0, self.checkpoints.referred()
        self._metrics = self._opened()

    def _check(self, output: Path) -> None:
        if output.exists() and not self.overwrite:
            raise UsageError(f"{output} exists already", hint="another output, or overwrite (--overwrite)")
        if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not bundle.is_bundle(output))):
            raise UsageError(f"{output} is not a model folder and is not replaced", hint="name another output")

    def _fetch(self, stored: Stored, output: Path, resume: bool | None) -> None:
        """Let the folders of this machine be as those behind the URL, which count."""
        stored.check_free(overwrite=self.overwrite)
        shutil.rmtree(output, ignore_errors=True)
        if self.overwrite and not resume:
            stored.forget()
        elif stored.step() > max(steps_in(self.path / "checkpoints"), default=0):
            self.path.mkdir(parents=True, exist_ok=True)
            with atomic.hold(self.path):
                shutil.rmtree(self.path)
            stored.bring(self.path)

    def _settle(self, resume: bool | None) -> None:
        """Decide what becomes of an unfinished run in the folder."""
        begun = (self.path / bundle.RUN / RECORD).exists()
        if resume and not begun:
            raise UsageError(
                f"there is no unfinished run in {self.path}", hint="leave resume out: the training starts from its data"
            )
        self.resuming = begun and (bool(resume) or (resume is None and not self.overwrite))
        if self.resuming:
            self.id = json.loads((self.path / bundle.RUN / RECORD).read_text()).get("id", self.id)
        if self.resuming or not self.path.exists():
            return
        if begun and not self.overwrite:
            raise UsageError(
                f"{self.path} holds an unfinished run",
                hint="resume (--resume) goes on with it; overwrite (--overwrite) starts anew",
            )
        if any(self.path.iterdir()) and not (self.path / bundle.RUN).is_dir():
            raise UsageError(f"{self.path} is not the folder of a run and is not replaced", hint="another output")
        with atomic.hold(self.path):
            shutil.rmtree(self.path)

    def agree(self, record: Mapping[str, Any]) -> tuple[Checkpoint | None, list[str]]:
        """Compare this run with the one that is gone on with; return its last whole checkpoint, and notes.

        Raises:
            UsageError: it is another training: which options or data differ. The folder stays as it is.
        """
        if not self.resuming:
            return None, []
        before = json.loads((self.records / RECORD).read_text())
        wrong = [text for name in _COMPARED for text in _differences(name, before.get(name), record[name])]
        if wrong:
            raise UsageError(
                f"{self.path} holds an unfinished run of another training: {'; '.join(wrong[:5])}",
                hint="the same options and data go on with it; overwrite (--overwrite) starts anew, or another output",
            )
        notes = [
            f"{name} is now {record[name]}, it was {before.get(name)}: the result may differ in its last digits"
            for name in ("versions", "machine", "world", "threads")
            if before.get(name) != record[name]
        ]
        for file in self.prepared.iterdir():
            file.replace(self.records / file.name)
        self.prepared = self.records
        found, damaged = self.checkpoints.latest()
        notes += [f"{text}: {'the one before is taken' if found else 'the run starts anew'}" for text in damaged]
        if found is not None and self.stored and self.stored.step() < found.step:
            self.stored.keep(self.path, self._referred)
        self._rewind(0 if found is None else found.step)
        self._best = 0 if found is None else int(found.content["best_step"])
        return found, notes

    def _opened(self) -> IO[str]:
        """Open the events, a line at a time: a process that is killed loses none that a checkpoint counts on."""
        return (self.records / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)

    def settled(self, *names: str) -> dict[str, Any]:
        """Return options of the unfinished run as they were settled."""
        config = json.loads((self.records / RECORD).read_text())["config"]
        return {name: config[name] for name in names}

    def _rewind(self, step: int) -> None:
        """Forget the events after a step: they will come again."""
        self._metrics.close()
        file = self.records / "metrics.jsonl"
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except ValueError:  # the last line, cut off as the process was killed
                continue
        atomic.write_text(file, "".join(kept))
        self._metrics = self._opened()

    def record(self, event: Event) -> None:
        """Append steps and evaluations to metrics.jsonl."""
        if isinstance(event, Step | Evaluated):
            self._metrics.write(json.dumps(event.as_dict()) + "\n")

    def best(self, step: int) -> Path:
        """Return where the best model is, as it was after a step."""
        return self.path / f"best-{step}"

    def keep(self, step: int, fill: Callable[[Path], None]) -> None:
        """Store the best model so far; those to which a checkpoint refers stay too."""
        self.checkpoints.wait()
        bundle.write_folder(self.best(step), fill, overwrite=True)
        self._best = step
        self._prune(self._referred)

    def checkpoint(self, step: int) -> Checkpoint:
        """Open the checkpoint of a step."""
        return self.checkpoints.at(step)

    def publish(self, name: str) -> None:
        """Let processes that share no disk have a folder of the run, where the output is behind a URL."""
        if self.stored:
            self.stored.put(name, self.path)

    def received(self, name: str) -> Path:
        """Return a folder of the run that the main process has published."""
        return self.path / name

    def _checkpointed(self, referred: set[int]) -> None:
        """Follow a new checkpoint, in the thread that wrote it."""
        self._prune(referred)
        if self.stored:
            self.stored.keep(self.path, referred)

    def _prune(self, referred: set[int]) -> None:
        self._referred = referred
        for folder in self.path.glob("best-*"):
            if folder.name[5:].isdigit() and int(folder.name[5:]) not in {self._best, *referred}:
                shutil.rmtree(folder, ignore_errors=True)

    def finish(self, fill: Callable[[Path], None]) -> Path:
        """Complete the run: ``fill`` writes the model beside the records, and both take the output's name at once.

        Without an output only the records stay.
        """
        if self.output is None:
            self.close()
            self.checkpoints.remove()
            for folder in (self.scratch, *self.path.glob("best-*")):
                shutil.rmtree(folder, ignore_errors=True)
            return self.path

        def complete(fresh: Path) -> None:
            shutil.copytree(self.records, fresh / bundle.RUN, copy_function=_link)
            fill(fresh)

        bundle.write_folder(self.output, complete, overwrite=self.overwrite)
        if self.stored:
            self.stored.finish(self.output)
        self.discard()
        return self.output

    def discard(self) -> None:
        """Remove the folder: nothing was learned yet."""
        self.checkpoints.wait()
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let go of the folder, leaving it as it is."""
        self.checkpoints.wait()
        self._metrics.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self._lock.close()


class Onlooker(RunFolder):
    """The folder as those processes see it that do not write: the main one does."""

    def __init__(self, output: str | Path | None, config: FinetuneConfig) -> None:
        if output is None:
            raise UsageError("several processes, and no output", hint="output (--output DIR): they meet in that folder")
        self.stored = Stored(output) if isinstance(output, str) and is_url(output) else None
        self.output = self.stored.local if self.stored else Path(output).expanduser()
        self.path = self.output.with_name(self.output.name + ".unfinished")
        if self.stored:  # a folder of its own: the main process may be on the same machine
            self.path = self.output.with_name(f"{self.output.name}.process-{os.getpid()}")
        self.scratch = self.path / "scratch"
        self.records = self.prepared = self.path / bundle.RUN
        self.checkpoints = Checkpoints(self.path / "checkpoints", config, writes=False)
        self.resuming, self.id = False, ""

    def checkpoint(self, step: int) -> Checkpoint:
        """Open the checkpoint of a step, which the main process has put where all find it."""
        if self.stored:
            self.stored.checkpoint(step, self.path)
        return self.checkpoints.at(step)

    def best(self, step: int) -> Path:
        """Return where the best model is, as it was after a step."""
        return self.received(f"best-{step}")

    def publish(self, name: str) -> None:
        """Do nothing: the main process does."""

    def received(self, name: str) -> Path:
        """Return a folder of the run that the main process has published."""
        if self.stored:
            self.stored.get(name, self.path)
        return self.path / name

    def record(self, event: Event) -> None:
        """Do nothing: the main process records."""

    def keep(self, step: int, fill: Callable[[Path], None]) -> None:
        """Do nothing: the main process keeps."""

    def finish(self, fill: Callable[[Path], None]) -> Path:
        """Return where the model will be."""
        del fill
        self.close()
        assert self.output is not None
        return self.output

    def discard(self) -> None:
        """Let go: the main process removes the folder."""
        self.close()

    def close(self) -> None:
        """Remove what was received; the rest is the main process's."""
        if self.stored:
            shutil.rmtree(self.path, ignore_errors=True)


def _differences(name: str, before: Any, now: Any) -> list[str]:
    """Word what differs between two records, key by key."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if not (name == "config" and key in FREE)]
        return [text for key in keys for text in _differences(f"{name}.{key}", before.get(key), now.get(key))]
    return [] if before == now else [f"{name.removeprefix('config.')} is {now!r}, there it is {before!r}"]


def _link(source: str, target: str) -> None:
    """Give a file a second name, since a ledger can be large; copy it where the disk knows no second names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
