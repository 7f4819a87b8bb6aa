"""systemd: the server as a service of one machine, shut off from all that it does not need."""

from __future__ import annotations

import ipaddress
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
from ..core.errors import UsageError
from ._server import DRAIN, ENVIRONMENT, KEYS, SLACK, mebibytes, number, of_container, words
from .base import SERVER, Contract, Deployment, Target, Validated


@dataclass(frozen=True)
class Settings(Config):
    """Options of systemd."""

    program: str | None = option(None, "the program on that machine; /opt/llmasos/bin/llmasos, or llmasos-edge there "
                                 "for an edge artifact, if not given")  # fmt: skip
    model: str | None = option(None, "the model's folder on that machine; /srv/models/NAME if not given")
    host: str = option("127.0.0.1", "address to listen on; beyond the machine only with keys")
    keys_file: str = option(KEYS, "file of the server's keys on that machine")

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            ipaddress.ip_address(self.host)
        except ValueError as error:
            raise UsageError(f"host={self.host!r} is no address", hint="127.0.0.1, ::1, 0.0.0.0 or ::") from error


class Systemd(Target):
    """A service, and the socket that it is asked by: systemd's own, which stays where the server is replaced."""

    name = "systemd"
    about = "a hardened service of one machine"
    takes: ClassVar[tuple[str, ...]] = (*SERVER, "name", "memory", "gpu", "port")
    settings = Settings
    light = True

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return the two units."""
        d = deployment
        devices = ["PrivateDevices=yes"]
        if d.gpu:
            devices = ["DevicePolicy=closed", *(f"DeviceAllow=char-{kind} rw" for kind in ("nvidia", "nvidia-uvm"))]
        variables = {**ENVIRONMENT, "LLMASOS_HOME": f"%S/{_home(d)}", "LLMASOS_KEYS": "%d/keys.json"}
        told = [f"Environment={name}={value}" for name, value in variables.items()]
        text = _UNIT.format(
            name=d.name, words=" ".join(words(d, _folder(d), host=d.own.host)), program=_program(d),
            told="\n".join(told), keys=d.own.keys_file, home=_home(d), stop=DRAIN + SLACK,
            memory=mebibytes(d.memory).removesuffix("i"), cpus=number(d.cpus * 100), devices="\n".join(devices),
        )  # fmt: skip
        host = f"[{d.own.host}]" if ":" in d.own.host else d.own.host
        return {f"{d.name}.service": text, f"{d.name}.socket": _SOCKET.format(name=d.name, where=f"{host}:{d.port}")}

    def steps(self, deployment: Deployment, folder: str) -> list[str]:
        """Bring keys and the model, install, start."""
        d = deployment
        units = " ".join(f"{shlex.quote(folder)}/{d.name}.{kind}" for kind in ("service", "socket"))
        return [
            f"sudo install -D --mode=600 ~/.cache/llmasos/keys.json {d.own.keys_file}",
            f"sudo mkdir -p {_folder(d)} && sudo cp -R {shlex.quote(d.model)}/. {_folder(d)}",
            f"sudo cp {units} /etc/systemd/system && sudo systemctl daemon-reload",
            f"sudo systemctl enable --now {d.name}.socket {d.name}.service",
        ]

    def contract(self, deployment: Deployment) -> Contract:
        """Return what systemd does with the server."""
        d = deployment
        told = tuple(words(d, _folder(d), host=d.own.host))
        found, home = of_container(d, rolls=True), f"/var/lib/{_home(d)}"
        return replace(found, words=told, model=_folder(d), writable=(home, "/tmp"), handed=True,
                       environment={**found.environment, "LLMASOS_HOME": home})  # fmt: skip

    def validate(self, files: Mapping[str, str]) -> Validated:
        """Let systemd read the units, and say how exposed the service is, from 0 to 10; above 3 is refused."""
        program = shutil.which("systemd-analyze")
        if program is None:
            return Validated("systemd-analyze", missing="a machine with systemd 250 or newer")
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                Path(folder, name).write_text(text)
            (name,) = (name for name in files if name.endswith(".service"))
            read = _told(program, "verify", *(str(Path(folder, one)) for one in files))
            done = _told(program, "security", "--offline=yes", "--no-pager", str(Path(folder, name)))
        said = f"{done.stdout}\n{done.stderr}".strip()
        found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
        if found is None:
            last = said.splitlines()[-1] if said else f"exit code {done.returncode}"
            return Validated("systemd-analyze", missing=f"one that works here: {last}")
        problems = [f"{name} is exposed to {found[1]} of 10"] if float(found[1]) > 3.0 else []
        lines = read.stderr.splitlines()  # of other units too; and the program need not be on this machine
        problems += [line.removeprefix(f"{folder}/") for line in lines if any(one in line for one in files)
                     and "is not executable" not in line]  # fmt: skip
        return Validated(f"systemd-analyze: exposed to {found[1]} of 10", tuple(problems))


def _told(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def _program(d: Deployment) -> str:
    return str(d.own.program or f"/opt/llmasos/bin/{'llmasos-edge' if d.light else 'llmasos'}")


def _home(d: Deployment) -> str:
    return f"llmasos-{d.name}"


def _folder(d: Deployment) -> str:
    return str(d.own.model or f"/srv/models/{d.name}")


_UNIT = """\
# Rendered by llmasos deploy.
[Unit]
Description={name}, served by LLMasOS
Requires={name}.socket
After=network-online.target {name}.socket
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
Also={name}.socket
"""
_SOCKET = """\
# Rendered by llmasos deploy. It stays while the server is replaced: who asks then waits, and nobody is refused.
[Unit]
Description={name}, the socket by which it is asked

[Socket]
ListenStream={where}

[Install]
WantedBy=sockets.target
"""

PLUGIN = Systemd()
