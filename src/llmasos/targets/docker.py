"""Docker: an image of the server, small and without root, and the command that runs it."""

from __future__ import annotations

import os
import shlex
from typing import ClassVar

from ._server import DRAIN, HOME, KEYS, SLACK, build, dockerfile, folder_of, keys, number, of_container, words
from .base import SERVER, Contract, Deployment, Target


class Docker(Target):
    """One container on one machine."""

    name = "docker"
    about = "an image, and a container on one machine"
    takes: ClassVar[tuple[str, ...]] = (*SERVER, "name", "image", "memory", "gpu", "port", "weights")

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
        return of_container(deployment)


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
