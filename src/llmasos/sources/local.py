"""Models in a folder on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from ..core.bundle import check_folder, recover
from ..core.errors import UsageError, did_you_mean
from .base import Located, refuse_revision

UNFINISHED = ".unfinished"
"""Ending of the folder of a run that is going on or was broken off; its best model is in ``best``."""


class Local:
    """A folder: whatever exists, and whatever is written like a path."""

    order = 20

    def matches(self, ref: str) -> bool:
        """Say whether the reference exists as a path or looks like one; ``org/name`` looks like a Hub id."""
        looks = ref.startswith((".", "~", os.sep)) or ref.endswith(("/", os.sep)) or ref.count("/") > 1
        return bool(ref) and "://" not in ref and (looks or "\\" in ref or _exists(ref) or _exists(ref + UNFINISHED))

    def fetch(self, ref: str, *, revision: str | None, cache_dir: Path | None, weights: bool = True) -> Located:
        """Check the folder and return it; see ``Source.fetch``."""
        del cache_dir  # nothing is copied
        refuse_revision(ref, revision)
        path = Path(os.path.abspath(os.path.expanduser(ref)))
        recover(path)
        if not path.exists():
            raise UsageError(f"there is no folder {path}", hint=_advice(path))
        if not path.is_dir():
            raise UsageError(f"{path} is a file, not a model folder", hint=f"give its folder: {path.parent}")
        check_folder(path, weights=weights)
        return Located(path, ref, None, "local")


def _exists(ref: str) -> bool:
    return os.path.exists(os.path.expanduser(ref))  # unlike Path.exists, not an error for very long texts


def _advice(path: Path) -> str:
    best = max(path.with_name(path.name + UNFINISHED).glob("best-*"), key=lambda one: one.stat().st_mtime, default=None)
    if best is not None:
        return f"its training has not finished (the same command goes on with it); the best model so far is in {best}"
    folders = [item.name for item in path.parent.iterdir() if item.is_dir()] if path.parent.is_dir() else []
    return f"{did_you_mean(path.name, folders)}give a folder that holds config.json and safetensors weights"


PLUGIN = Local()
