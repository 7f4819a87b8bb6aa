"""Helm: a chart of the same objects as ``kubernetes.py``'s, with the numbers that change in ``values.yaml``."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ._kubernetes import TAKES, Settings, contract, objects, secret, validated, within
from ._server import as_yaml
from .base import Contract, Deployment, Target, Validated

_POD = ("deployment", "spec", "template", "spec")
_CONTAINER = (*_POD, "containers", 0)
Place = tuple[Any, ...]
VALUES: Mapping[str, tuple[Place, ...]] = {
    "image": ((*_CONTAINER, "image"), (*_POD, "initContainers", 0, "image")),
    "replicas": (("deployment", "spec", "replicas"), ("hpa", "spec", "minReplicas")),
    "maxReplicas": (("hpa", "spec", "maxReplicas"),),
    "cpus": ((*_CONTAINER, "resources", "requests", "cpu"),),
    "memory": ((*_CONTAINER, "resources", "requests", "memory"), (*_CONTAINER, "resources", "limits", "memory")),
    "keysSecret": ((*_POD, "volumes", 2, "secret", "secretName"),),
    "callers": (("networkpolicy", "spec", "ingress", 0, "from"),),
}
"""What can be changed when the chart is installed: names of values, and the places where they stand."""


class Helm(Target):
    """A chart."""

    name = "helm"
    about = "a chart of the same objects"
    takes: ClassVar[tuple[str, ...]] = TAKES
    settings = Settings

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return the chart."""
        found, values = objects(deployment), dict[str, Any]()
        for name, paths in VALUES.items():
            for path in paths:
                _out(found, path, name, values)
        chart = {
            "apiVersion": "v2", "name": deployment.name, "description": "A model, served by LLMasOS",
            "type": "application", "version": deployment.version, "appVersion": deployment.version,
        }  # fmt: skip
        templates = {f"templates/{name}.yaml": _template(as_yaml(one)) for name, one in found.items()}
        return {"Chart.yaml": as_yaml(chart), "values.yaml": as_yaml(values), **templates}

    def steps(self, deployment: Deployment, folder: str) -> list[str]:
        """Bring keys, and install."""
        return [
            secret(deployment),
            f"helm upgrade --install{within(deployment, '--kube-context')} {deployment.name} {shlex.quote(folder)}",
        ]

    def contract(self, deployment: Deployment) -> Contract:
        """Return what the kubelet does with a pod."""
        return contract(deployment)

    def validate(self, files: Mapping[str, str]) -> Validated:
        """Let Helm itself check the chart and fill it; hold what it makes against the schemas of Kubernetes.

        Where Helm is not here, the chart is filled as Helm does it.
        """
        program = shutil.which("helm")
        if program is None:
            found = validated(filled(files))
            return replace(found, tool=f"{found.tool}, without helm")
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            linted = _told(program, "lint", "--strict", folder)
            made = _told(program, "template", "mine", folder)
            version = _told(program, "version", "--short").stdout.strip().partition("+")[0]
        problems = [line.replace(f"{folder}/", "") for line in linted.stdout.splitlines()
                    if line.startswith(("[ERROR]", "[WARNING]"))]  # fmt: skip
        problems += made.stderr.strip().splitlines() if made.returncode else []
        if linted.returncode and not problems:
            problems = (linted.stdout + linted.stderr).strip().splitlines()[-1:]
        found = validated({"what helm makes": made.stdout})
        return Validated(f"helm {version}; {found.tool}", (*problems, *found.problems), found.missing)


def _told(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def filled(files: Mapping[str, str]) -> dict[str, str]:
    """Return the objects of a chart with its own values, as Helm makes them of what ``_template`` wrote."""
    import json

    import yaml

    values = yaml.safe_load(files["values.yaml"])
    templates = {name: text for name, text in files.items() if name.startswith("templates/")}
    return {
        name: re.sub(r"\{\{ \.Values\.(\w+) \| toJson \}\}", lambda found: json.dumps(values[found[1]]), text)
        for name, text in templates.items()
    }


def _out(found: dict[str, Any], path: Place, name: str, values: dict[str, Any]) -> None:
    """Move what stands at a place into the values, where there is such a place."""
    at: Any = found
    for part in path[:-1]:
        at = at.get(part) if isinstance(at, dict) else at[part]
        if at is None:
            return
    if isinstance(at, list) or path[-1] in at:
        values[name], at[path[-1]] = at[path[-1]], f"@@{name}@@"


def _template(text: str) -> str:
    return re.sub(r"'@@(\w+)@@'", r"{{ .Values.\1 | toJson }}", text)


PLUGIN = Helm()
