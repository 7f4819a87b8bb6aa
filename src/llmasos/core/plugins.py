"""Find plug-ins by file name: a file in ``tasks/`` is a task, and so on for every plural folder.

Adding one is adding a file with a ``PLUGIN`` at its end. Other packages plug in on the same path
through an entry point in the group ``llmasos.<kind>``. Nothing keeps a second list.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import UsageError, did_you_mean

_PACKAGE = __name__.rsplit(".", 2)[0]
_ROOT = Path(__file__).resolve().parent.parent


@cache
def names(kind: str) -> tuple[str, ...]:
    """Return the names of all plug-ins of a kind ("tasks", "sources", ...), built-in first."""
    own = sorted(
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules([str(_ROOT / kind)])
        if module.name != "base" and not module.name.startswith("_")
    )
    others = sorted(point.name for point in metadata.entry_points(group=f"{_PACKAGE}.{kind}"))
    return (*own, *(name for name in others if name not in own))


def load(kind: str, name: str) -> Any:
    """Import one plug-in and return its ``PLUGIN``.

    Raises:
        UsageError: no plug-in of that kind has this name; the nearest name is suggested.
    """
    if name not in names(kind):
        known = ", ".join(names(kind))
        raise UsageError(f"there is no {name!r} in {kind}", hint=f"{did_you_mean(name, names(kind))}known: {known}")
    file = name.replace("-", "_")
    if (_ROOT / kind / f"{file}.py").exists() or (_ROOT / kind / file).is_dir():
        return importlib.import_module(f"{_PACKAGE}.{kind}.{file}").PLUGIN
    (point,) = metadata.entry_points(group=f"{_PACKAGE}.{kind}", name=name)
    return point.load()
