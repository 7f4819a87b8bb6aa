"""What targets share: the server's command line and image, and how files are written as text."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from .base import Contract, Deployment, Probe, infer, predicted

HOME, KEYS, USER = "/var/lib/llmasos", "/etc/llmasos/keys.json", 10001
"""Where the server writes, where its keys are, and as whom it runs."""
DRAIN, PAUSE, SLACK = 45, 5, 10
"""Seconds for requests to end, before that for all to learn that no more shall come, and after it for the process."""
OPENING = 300
"""Seconds that a model may take to open."""
TRAINING = (
    "setuptools", "datasets", "pyarrow", "pandas", "dill", "multiprocess", "xxhash", "scikit-learn", "scipy", "joblib",
    "threadpoolctl", "sacrebleu", "lxml", "portalocker", "tabulate", "colorama", "rouge-score", "nltk", "absl-py",
    "matplotlib", "fonttools", "pillow", "kiwisolver", "contourpy", "cycler", "pyparsing",
)  # fmt: skip
"""Packages that training, scoring and drawing need, and no server: half a gigabyte. Engines of others may need some."""
ENVIRONMENT = {"LLMASOS_HOME": HOME, "LLMASOS_KEYS": KEYS, "HF_HUB_OFFLINE": "1"}


def folder_of(deployment: Deployment) -> str:
    """Return where the model lies in a container."""
    return f"/models/{deployment.name}"


def words(deployment: Deployment, folder: str | None = None, *, host: str = "0.0.0.0", port: int = 0) -> list[str]:
    """Return the server's command line, after ``llmasos``."""
    d = deployment
    out = ["serve", f"{d.name}={folder or folder_of(d)}", "--host", host, "--port", str(port or d.port)]
    return [*out, "--drain", str(DRAIN), *computing(d)]


def computing(deployment: Deployment) -> list[str]:
    """Return the part of the server's command line that says how it computes."""
    d = deployment
    out = ["--threads", str(max(1, int(d.cpus)))]
    if d.light:
        return out
    out += ["--engine", d.engine] if d.engine else []
    out += ["--quantize", d.quantize] if d.quantize else []
    return out + (["--precision", d.precision] if d.precision != "auto" else [])


def program_module(deployment: Deployment) -> str:
    """Return the module that is run with the server's command line."""
    return "llmasos.cli._edge" if deployment.light else "llmasos"


def of_container(deployment: Deployment, *, pause: float = 0.0, port: int = 0, live: str = "/health/live",
                 ready: str = "/health/ready", probe: float = 2.0, rolls: bool = False) -> Contract:  # fmt: skip
    """Return the contract of places that start a container with the server's command line, and let it write little."""
    return Contract(
        words=tuple(words(deployment, port=port)), model=folder_of(deployment), port=port or deployment.port,
        ready=Probe(ready, probe, OPENING), live=Probe(live, 5.0, OPENING),
        ask=predicted(60.0) if deployment.light else infer(deployment.name, 60.0),
        grace=DRAIN + SLACK, pause=pause, environment=ENVIRONMENT, keys=KEYS, writable=(HOME, "/tmp"),
        rolls=rolls, module=program_module(deployment),
    )  # fmt: skip


def dockerfile(deployment: Deployment, cmd: Sequence[str], *, probe: bool = True,
               environment: Mapping[str, str] = ENVIRONMENT) -> str:  # fmt: skip
    """Return what builds the image of the server."""
    d = deployment
    if d.light:
        return light_dockerfile(d, cmd)
    told = " \\\n    ".join(f"{name}={value}" for name, value in {**_QUIET, **environment}.items())
    stage = "\nFROM build AS weights\nCOPY --from=model . /model\nRUN rm -rf /model/run\n" if d.inside else ""
    inside = f"COPY --from=weights /model {folder_of(d)}\n" if d.inside else ""
    check = (
        f'HEALTHCHECK --interval=10s --timeout=5s --start-period={OPENING}s \\\n    CMD ["python", "-c", "{_CHECK}"]\n'
    )
    return _DOCKERFILE.format(
        package=d.package, variant="cuda" if d.gpu else "cpu", user=USER, home=HOME, told=told, stage=stage,
        inside=inside, unused=" \\\n    ".join(textwrap.wrap(" ".join(["pip", *([] if d.extra else TRAINING)]), 110)),
        check=check.replace("PORT", str(d.port)) if probe else "", cmd=json.dumps(list(cmd)),
    )  # fmt: skip


_QUIET = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "PATH": "/opt/llmasos/bin:$PATH"}
_CHECK = "import urllib.request as r; r.urlopen('http://127.0.0.1:PORT/health/ready', timeout=4)"
_DOCKERFILE = """\
# Rendered by llmasos deploy. Where packages come from is pip's own configuration, mounted as the secret "pip", or the
# arguments below; wheels that lie beside this file are taken first.
ARG BUILD=python:3.12
ARG BASE=python:3.12-slim
ARG VARIANT={variant}

FROM ${{BUILD}} AS build
ARG PACKAGE="{package}"
ARG TORCH="torch"
# The index of torch's builds for this variant; without it the one that pip finds.
ARG TORCH_INDEX=""
COPY Dockerfile *.whl /wheels/
RUN python -m venv /opt/llmasos
ENV PIP_CONFIG_FILE=/run/secrets/pip PIP_NO_CACHE_DIR=1 PIP_FIND_LINKS=/wheels PIP_DISABLE_PIP_VERSION_CHECK=1
RUN --mount=type=secret,id=pip \\
    /opt/llmasos/bin/pip install ${{TORCH_INDEX:+--index-url "$TORCH_INDEX"}} "$TORCH" \\
    && /opt/llmasos/bin/pip install "$PACKAGE" \\
    && /opt/llmasos/bin/pip uninstall --yes \\
    {unused}
# What no program reads: tests, headers and the names of what is inside of libraries.
RUN set -- /opt/llmasos/lib/python3*/site-packages \\
    && rm -rf "$1/torch/include" "$1/torch/test" && find "$1/torch/bin" -type f ! -name torch_shm_manager -delete \\
    && find "$1" -type d -name tests -prune -exec rm -rf {{}} + && find "$1" -name "*.pyi" -delete \\
    && if command -v strip; then find "$1/torch/lib" -name "libtorch*.so" -exec strip --strip-unneeded {{}} +; fi
{stage}
FROM ${{BASE}} AS cpu
FROM ${{BASE}} AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM ${{VARIANT}}
RUN groupadd --gid {user} llmasos \\
    && useradd --uid {user} --gid {user} --no-create-home --home-dir {home} llmasos \\
    && install --directory --owner={user} --group={user} {home}
COPY --from=build /opt/llmasos /opt/llmasos
{inside}ENV {told}
USER {user}:{user}
WORKDIR {home}
STOPSIGNAL SIGTERM
{check}ENTRYPOINT ["llmasos"]
CMD {cmd}
"""


def of_image(deployment: Deployment, root: str) -> dict[str, Any]:
    """Return what an image's own server, in the folder ``root``, is in a contract; variables as ``dockerfile`` has."""
    own = _HOMES if deployment.light else ENVIRONMENT
    found = {**_QUIET, **own, "PATH": "/opt/llmasos/bin:/usr/local/bin:/usr/bin:/bin"}
    program = "llmasos-edge" if deployment.light else "llmasos"
    return {"root": os.path.abspath(root), "environment": found, "module": program}


def light_dockerfile(deployment: Deployment, cmd: Sequence[str]) -> str:
    """Return what builds the image of ``llmasos-edge``: Python, the artifact's own pins, and nothing else."""
    d = deployment
    told = " \\\n    ".join(f"{name}={value}" for name, value in {**_QUIET, **_HOMES}.items())
    copy = f"COPY --from=model . {folder_of(d)}\n" if d.inside else ""
    check = _CHECK.replace("PORT", str(d.port))
    return _LIGHT.format(user=USER, home=HOME, told=told, copy=copy, opening=OPENING, check=check,
                         cmd=json.dumps(list(cmd)))  # fmt: skip


_HOMES = {"LLMASOS_HOME": HOME, "LLMASOS_KEYS": KEYS}
_LIGHT = """\
# Rendered by llmasos deploy. Where packages come from is pip's own configuration, mounted as the secret "pip"; wheels
# that lie beside this file are taken first. The versions are those that the artifact was certified with.
ARG BUILD=python:3.12-slim
ARG BASE=python:3.12-slim

FROM ${{BUILD}} AS build
COPY Dockerfile *.whl /wheels/
COPY --from=model requirements.txt /requirements.txt
RUN python -m venv /opt/llmasos
ENV PIP_CONFIG_FILE=/run/secrets/pip PIP_NO_CACHE_DIR=1 PIP_FIND_LINKS=/wheels PIP_DISABLE_PIP_VERSION_CHECK=1
RUN --mount=type=secret,id=pip \\
    /opt/llmasos/bin/pip install --no-deps -r /requirements.txt \\
    && /opt/llmasos/bin/pip uninstall --yes pip

FROM ${{BASE}}
RUN groupadd --gid {user} llmasos \\
    && useradd --uid {user} --gid {user} --no-create-home --home-dir {home} llmasos \\
    && install --directory --owner={user} --group={user} {home}
COPY --from=build /opt/llmasos /opt/llmasos
{copy}ENV {told}
USER {user}:{user}
WORKDIR {home}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period={opening}s \\
    CMD ["python", "-c", "{check}"]
ENTRYPOINT ["llmasos-edge"]
CMD {cmd}
"""


def build(deployment: Deployment, folder: str, how: str = "") -> str:
    """Return the command that builds the image; ``how`` are more words for it."""
    d, quote = deployment, shlex.quote
    context = f" --build-context model={quote(d.model)}" if d.inside or d.light else ""
    return f"docker build{how} --tag {quote(d.image)}{context} {quote(folder)}"


def keys(folder: str) -> str:
    """Return the command that copies this machine's keys, which hold no secret, to where a container may read them."""
    return f"install -D --mode=644 ~/.cache/llmasos/keys.json {shlex.quote(folder)}/keys/keys.json"


def installed(name: str) -> str | None:
    """Return the path of a program, which may have come with a package of this environment."""
    return shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))


def as_yaml(content: Any) -> str:
    """Return YAML."""
    text = yaml.dump(content, Dumper=_Plain, sort_keys=False, width=1000, allow_unicode=True)
    return f"# Rendered by llmasos deploy.\n{text}"


class _Plain(yaml.SafeDumper):
    """Writes YAML as people do: everything where it is, and texts of several lines as lines."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True

    def represent_str(self, data: str) -> Any:
        style = "|" if "\n" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Plain.add_representer(str, _Plain.represent_str)


def as_json(content: Any) -> str:
    """Return JSON."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def mebibytes(size: int) -> str:
    """Return an amount of memory as Kubernetes and Compose write it, rounded up."""
    return f"{-(-size // (1 << 20))}Mi"


def number(value: float) -> str:
    """Return a number without needless zeros: ``2``, ``0.5``."""
    return f"{value:g}"
