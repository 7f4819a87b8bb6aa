"""What of a run lies behind a URL, where its output is one: enough to go on on another machine.

The run works in a folder of this machine. Under ``URL.unfinished`` lies a folder for each of its checkpoints
(``step-N``, with the records up to there) and for each best model that one refers to (``best-N``); at the end the model
takes their place under ``URL``. Processes on machines that share no disk find each other's tokens and best model there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from ..core import bundle
from ..core.storage import Storage, place_of
from .checkpoint import steps_in

_STATE, _RECORDS = "state", "records"


class Stored:
    """A run's output behind a URL; ``local`` is the folder of this machine that stands for it."""

    def __init__(self, url: str) -> None:
        self._model, self._unfinished = Storage(url), Storage(url.rstrip("/") + ".unfinished")
        self.url = self._model.url
        self.local = place_of("outputs", self.url)

    def check_free(self, *, overwrite: bool) -> None:
        """Check that the model may be put there; see ``Storage``."""
        self._model.check_free(overwrite=overwrite)

    def step(self) -> int:
        """Return the newest step of which a whole checkpoint is there, 0 for none."""
        whole = (step for step in reversed(self._steps("step-")) if self._unfinished.manifest(f"step-{step}"))
        return next(whole, 0)

    def bring(self, folder: Path) -> None:
        """Make a run's folder from its newest whole checkpoint.

        Raises:
            BundleError: it is not as it was written.
        """
        step = self.step()
        arrived = folder.with_name(f"{folder.name}.arriving")
        self._unfinished.get(f"step-{step}", arrived)
        folder.joinpath("checkpoints").mkdir(parents=True)
        (arrived / _STATE).rename(folder / "checkpoints" / f"step-{step}")
        (arrived / _RECORDS).rename(folder / bundle.RUN)
        arrived.rmdir()
        for best in self._steps("best-"):
            if self._unfinished.manifest(f"best-{best}"):
                self.get(f"best-{best}", folder)

    def keep(self, folder: Path, bests: Iterable[int]) -> None:
        """Put the newest checkpoint of a run's folder there, with best models that are referred to; remove others."""
        there = set(self._unfinished.names())
        wanted = [f"best-{best}" for best in bests if (folder / f"best-{best}").is_dir()]
        for name in wanted:
            if name not in there or not self._unfinished.manifest(name):
                self.put(name, folder)
        for step in steps_in(folder / "checkpoints")[-1:]:
            records = folder / "records-so-far"  # the run goes on writing into its own
            shutil.copytree(folder / bundle.RUN, records, dirs_exist_ok=True)
            checkpoint = folder / "checkpoints" / f"step-{step}"
            self._unfinished.put(f"step-{step}", {_STATE: checkpoint, _RECORDS: records})
            wanted.append(f"step-{step}")
        for name in there - set(wanted):
            if name.startswith(("step-", "best-")):
                self._unfinished.remove(name)

    def put(self, name: str, folder: Path) -> None:
        """Put a folder of the run there, under its own name."""
        self._unfinished.put(name, {"": folder / name})

    def get(self, name: str, folder: Path) -> None:
        """Bring a folder of the run to this machine, under its own name."""
        self._unfinished.get(name, folder / name)

    def checkpoint(self, step: int, folder: Path) -> None:
        """Bring a checkpoint to this machine, into a run's folder."""
        arrived = folder / f"arriving-{step}"
        self._unfinished.get(f"step-{step}", arrived)
        target = folder / "checkpoints" / f"step-{step}"
        target.parent.mkdir(parents=True, exist_ok=True)
        (arrived / _STATE).replace(target)

    def finish(self, model: Path) -> None:
        """Put the finished model there, and remove what the run left on the way."""
        self._model.deliver(model)
        self.forget()

    def forget(self) -> None:
        """Remove the unfinished run."""
        self._unfinished.remove()

    def _steps(self, prefix: str) -> list[int]:
        names = (name.removeprefix(prefix) for name in self._unfinished.names() if name.startswith(prefix))
        return sorted(int(name) for name in names if name.isdigit())
