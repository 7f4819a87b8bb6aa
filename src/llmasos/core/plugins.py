"""Find plug-ins by file name: a file in ``tasks/`` is a task, and so on for every plural folder.

Adding one is adding a file with a ``PLUGIN`` at its end. Other packages plug in on the same path
through an entry point in the group ``llmasos.<kind>``. Nothing keeps a second list.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from .errors import UsageError, did_you_mean

_PACKAGE = __name__.rsplit(".", 2)[0]
_ROOT = Path(__file__).resolve().parent.parent


@cache
def names(kind: str) -> tuple[str, ...]:
    """Return the names of all plug-ins of a kind ("tasks", "sources", ...), built-in first."""
    from importlib import metadata

    own = _own(kind)
    others = sorted(point.name for point in metadata.entry_points(group=f"{_PACKAGE}.{kind}"))
    return (*own, *(name for name in others if name not in own))


def load(kind: str, name: str) -> Any:
    """Import one plug-in and return its ``PLUGIN``.

    Raises:
        UsageError: no plug-in of that kind has this name; the nearest name is suggested.
    """
    if name in _own(kind):  # without a look at other packages, which takes longer than many a plug-in
        return importlib.import_module(f"{_PACKAGE}.{kind}.{name.replace('-', '_')}").PLUGIN
    if name not in names(kind):
        known = ", ".join(names(kind))
        raise UsageError(f"there is no {name!r} in {kind}", hint=f"{did_you_mean(name, names(kind))}known: {known}")
    from importlib import metadata

    (point,) = metadata.entry_points(group=f"{_PACKAGE}.{kind}", name=name)
    return point.load()


@cache
def _own(kind: str) -> tuple[str, ...]:
    found = (module.name for module in pkgutil.iter_modules([str(_ROOT / kind)]))
    return tuple(sorted(name.replace("_", "-") for name in found if name != "base" and not name.startswith("_")))
