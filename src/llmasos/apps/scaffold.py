"""New projects from the example apps: the same files, in a folder of your own.

``examples/apps`` is the only copy of them. A checkout reads it where it is; in an installed package it is
``llmasos/scaffolds``.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ..core import atomic
from ..core.errors import BundleError, UsageError, did_you_mean

_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE / "scaffolds", _PACKAGE.parents[1] / "examples" / "apps")
_NOT_COPIED = shutil.ignore_patterns("__pycache__", ".*_cache")


def templates() -> list[str]:
    """Return the names of the apps that a project can begin as."""
    place = next((place for place in _PLACES if place.is_dir()), None)
    if place is None:
        raise BundleError("this installation lacks the example apps", hint="pip install --force-reinstall llmasos")
    return sorted(path.parent.name for path in place.glob("*/app.py"))


def new_app(name: str, template: str, *, parent: str | Path = ".") -> Path:
    """Write a project that begins as one of the example apps; return its folder.

    Args:
        name: of the project and of its folder.
        template: one of ``templates()``.
        parent: where the folder is made.

    Raises:
        UsageError: there is no such template, the name is none, or something of this name is there.
    """
    known = templates()
    if template not in known:
        raise UsageError(f"there is no template {template!r}",
                         hint=f"{did_you_mean(template, known)}known: {', '.join(known)}")  # fmt: skip
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UsageError(f"{name!r} is no name for a project",
                         hint="letters, digits, '-', '_' and '.', such as my-shop: it names a folder")  # fmt: skip
    target = Path(parent, name)
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists", hint="choose another name")
    source = next(place for place in _PLACES if place.is_dir()) / template

    def fill(folder: Path) -> None:
        shutil.copytree(source, folder, ignore=_NOT_COPIED, dirs_exist_ok=True)
        for path in folder.rglob("*"):
            if path.suffix in (".md", ".py"):  # what names its place in the checkout
                text = path.read_text(encoding="utf-8")
                path.write_text(text.replace(f"examples/apps/{template}/", ""), encoding="utf-8", newline="\n")

    return atomic.write_folder(target, fill)
