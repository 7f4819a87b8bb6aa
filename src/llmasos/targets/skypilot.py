"""SkyPilot: a service on whichever cloud has room, on spot machines if wanted, replaced when they are taken away."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.config import Config, option
from ._server import ENVIRONMENT, KEYS, OPENING, as_yaml, folder_of, number, of_container, words
from .base import SERVER, Contract, Deployment, Target


@dataclass(frozen=True)
class Settings(Config):
    """Options of SkyPilot."""

    cloud: str | None = option(None, "aws, azure, gcp, kubernetes, ...; the cheapest that has room if not given")
    accelerator: str = option("L4", "kind of CUDA device, where --gpu asks for some")
    spot: str = option("off", "on takes machines that may be taken away, at a lower price", choices=("off", "on"))
    requests: float = option(20.0, "requests a second and copy, above which copies are added", least=0.01)
    keys_file: str = option("~/.cache/llmasos/keys.json", "file of the server's keys, as llmasos keys add writes it")


class SkyPilot(Target):
    """A service."""

    name = "skypilot"
    about = "a service on AWS, Azure, GCP or Kubernetes, by SkyPilot"
    takes: ClassVar[tuple[str, ...]] = (*SERVER, "name", "replicas", "max_replicas", "memory", "gpu", "port", "region",
                                        "instance")  # fmt: skip
    settings = Settings

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return the service, as ``sky serve up`` reads it."""
        return {"service.yaml": as_yaml(_service(deployment))}

    def steps(self, deployment: Deployment, folder: str) -> list[str]:
        """Start."""
        return [f"sky serve up --service-name {deployment.name} {shlex.quote(folder)}/service.yaml"]

    def contract(self, deployment: Deployment) -> Contract:
        """Return what SkyPilot does with the server on a machine."""
        return of_container(deployment, probe=5.0)


def _service(d: Deployment) -> dict[str, Any]:
    resources: dict[str, Any] = {
        "cpus": f"{number(d.cpus)}+", "memory": f"{-(-d.memory // (1 << 30))}+", "ports": d.port,
        "use_spot": d.own.spot == "on",
    }  # fmt: skip
    resources |= {"cloud": d.own.cloud} if d.own.cloud else {}
    resources |= {"region": d.region} if d.region else {}
    resources |= {"instance_type": d.instance} if d.instance else {}
    resources |= {"accelerators": f"{d.own.accelerator}:{d.gpu}"} if d.gpu else {}
    policy: dict[str, Any] = {"min_replicas": d.replicas}
    if d.max_replicas > d.replicas:
        policy |= {"max_replicas": d.max_replicas, "target_qps_per_replica": d.own.requests}
    if d.own.spot == "on":
        policy["dynamic_ondemand_fallback"] = True
    probe = {"path": "/health/ready", "initial_delay_seconds": 2 * OPENING, "timeout_seconds": 5}
    install = ["python3 -m venv ~/llmasos", f'~/llmasos/bin/pip install "{d.package}"']
    place = ["sudo mkdir -p /var/lib/llmasos", 'sudo chown "$USER" /var/lib/llmasos']
    return {
        "service": {"readiness_probe": probe, "replica_policy": policy}, "resources": resources,
        "file_mounts": {folder_of(d): d.model, KEYS: d.own.keys_file}, "envs": ENVIRONMENT,
        "setup": "\n".join([*install, *place]), "run": f"exec ~/llmasos/bin/llmasos {shlex.join(words(d))}",
    }  # fmt: skip


PLUGIN = SkyPilot()
