"""Small models that ship with LLMasOS: ``starter-chat``, for trying out without a network.

Each is a folder in ``starters`` beside this package, with its model card; ``recipes/`` in the project's repository
says how it was trained.
"""

from __future__ import annotations

from pathlib import Path

from ..core.bundle import check_folder
from .base import Located, refuse_revision

FOLDER = Path(__file__).parents[1] / "starters"


class Starter:
    """``starter-NAME`` for each folder of that name; a folder of the user's own is written ``./starter-NAME``."""

    order = 12

    def matches(self, ref: str) -> bool:
        """Say whether a model of this name ships with LLMasOS."""
        return any(path.name == ref for path in FOLDER.glob("starter-*"))

    def fetch(self, ref: str, *, revision: str | None, cache_dir: Path | None, weights: bool = True) -> Located:
        """Check the model's folder and return it; see ``Source.fetch``."""
        del cache_dir  # nothing is copied
        refuse_revision(ref, revision)
        check_folder(FOLDER / ref, weights=weights)
        return Located(FOLDER / ref, ref, None, "starter")


PLUGIN = Starter()
