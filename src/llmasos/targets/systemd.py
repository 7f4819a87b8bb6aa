"""systemd: the server as a service of one machine, shut off from all that it does not need."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ..core.config import Config, option
from ._server import DRAIN, ENVIRONMENT, KEYS, SLACK, mebibytes, number, of_container, words
from .base import SERVER, Contract, Deployment, Target, Validated


@dataclass(frozen=True)
class Settings(Config):
    """Options of systemd."""

    program: str = option("/opt/llmasos/bin/llmasos", "the program on that machine")
    model: str | None = option(None, "the model's folder on that machine; /srv/models/NAME if not given")
    host: str = option("127.0.0.1", "address to listen on; beyond the machine only with keys")
    keys_file: str = option(KEYS, "file of the server's keys on that machine")


class Systemd(Target):
    """A unit."""

    name = "systemd"
    about = "a hardened service of one machine"
    takes: ClassVar[tuple[str, ...]] = (*SERVER, "name", "memory", "gpu", "port")
    settings = Settings

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return the unit."""
        d = deployment
        devices = ["PrivateDevices=yes"]
        if d.gpu:
            devices = ["DevicePolicy=closed", *(f"DeviceAllow=char-{kind} rw" for kind in ("nvidia", "nvidia-uvm"))]
        variables = {**ENVIRONMENT, "LLMASOS_HOME": f"%S/{_home(d)}", "LLMASOS_KEYS": "%d/keys.json"}
        told = [f"Environment={name}={value}" for name, value in variables.items()]
        text = _UNIT.format(
            name=d.name, words=" ".join(words(d, _folder(d), host=d.own.host)), program=d.own.program,
            told="\n".join(told), keys=d.own.keys_file, home=_home(d), stop=DRAIN + SLACK,
            memory=mebibytes(d.memory).removesuffix("i"), cpus=number(d.cpus * 100), devices="\n".join(devices),
        )  # fmt: skip
        return {f"{d.name}.service": text}

    def steps(self, deployment: Deployment, folder: str) -> list[str]:
        """Bring keys and the model, install, start."""
        d = deployment
        unit = f"/etc/systemd/system/{d.name}.service"
        return [
            f"sudo install -D --mode=600 ~/.cache/llmasos/keys.json {d.own.keys_file}",
            f"sudo mkdir -p {_folder(d)} && sudo cp -R {shlex.quote(d.model)}/. {_folder(d)}",
            f"sudo cp {shlex.quote(folder)}/{d.name}.service {unit} && sudo systemctl daemon-reload",
            f"sudo systemctl enable --now {d.name}",
        ]

    def contract(self, deployment: Deployment) -> Contract:
        """Return what systemd does with the server."""
        d = deployment
        told = tuple(words(d, _folder(d), host=d.own.host))
        found, home = of_container(d), f"/var/lib/{_home(d)}"
        return replace(found, words=told, model=_folder(d), writable=(home, "/tmp"),
                       environment={**found.environment, "LLMASOS_HOME": home})  # fmt: skip

    def validate(self, files: Mapping[str, str]) -> Validated:
        """Let systemd say how exposed the unit is, from 0 to 10; above 3 is refused."""
        program = shutil.which("systemd-analyze")
        if program is None:
            return Validated("systemd-analyze", missing="a machine with systemd 250 or newer")
        ((name, text),) = files.items()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_text(text)
            asked = [program, "security", "--offline=yes", "--no-pager", str(path)]
            done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
        said = f"{done.stdout}\n{done.stderr}".strip()
        found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
        if found is None:
            last = said.splitlines()[-1] if said else f"exit code {done.returncode}"
            return Validated("systemd-analyze", missing=f"one that works here: {last}")
        problems = [f"{name} is exposed to {found[1]} of 10"] if float(found[1]) > 3.0 else []
        problems += [line for line in done.stderr.splitlines() if "Unknown" in line]
        return Validated(f"systemd-analyze: exposed to {found[1]} of 10", tuple(problems))


def _home(d: Deployment) -> str:
    return f"llmasos-{d.name}"


def _folder(d: Deployment) -> str:
    return str(d.own.model or f"/srv/models/{d.name}")


_UNIT = """\
# Rendered by llmasos deploy.
[Unit]
Description={name}, served by LLMasOS
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
ExecStart={program} {words}
{told}
LoadCredential=keys.json:{keys}
StateDirectory={home}
DynamicUser=yes
Restart=on-failure
RestartSec=2
KillSignal=SIGTERM
TimeoutStopSec={stop}
MemoryMax={memory}
CPUQuota={cpus}%

# What it does not need.
{devices}
CapabilityBoundingSet=
LockPersonality=yes
NoNewPrivileges=yes
PrivateTmp=yes
PrivateUsers=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
"""

PLUGIN = Systemd()
