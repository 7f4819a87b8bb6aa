"""Ray Serve: copies of the server on the machines of a Ray cluster, more under load, through ``replicas.py``."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from ..core.config import Config, option
from ..core.environment import ray_dashboard
from ..core.errors import UsageError
from ._server import DRAIN, ENVIRONMENT, KEYS, OPENING, PAUSE, SLACK, as_yaml
from .base import SERVER, Contract, Copies, Deployment, Probe, Target, infer

AGAIN = 30.0
"""Seconds in which a copy that died is replaced, or those of a machine."""


@dataclass(frozen=True)
class Settings(Config):
    """Options of Ray Serve."""

    model: str | None = option(None, "the model's folder or reference on every machine; its folder here if not given")
    keys_file: str = option(KEYS, "file of the server's keys on every machine")
    requests: float = option(8.0, "requests at once and copy, above which copies are added", least=0.1)
    route: str = option("/", "path below which it is asked there")
    address: str | None = option(
        None, "the cluster's dashboard; RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265 if not given"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"/|(/[\w.~-]+)+", self.route, re.ASCII):
            raise UsageError(f"route={self.route!r}", hint="such as /mine")


class Ray(Target):
    """An application."""

    hands, releases = "_ray", "_ray_release"

    name = "ray"
    about = "copies on the machines of a Ray cluster, by Ray Serve"
    takes: ClassVar[tuple[str, ...]] = (*SERVER, "name", "replicas", "max_replicas", "memory", "gpu", "port")
    settings = Settings

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return the application's configuration, as ``serve deploy`` reads it."""
        return {"serve.yaml": as_yaml(_configuration(deployment))}

    def steps(self, deployment: Deployment, folder: str) -> list[str]:
        """Deploy."""
        at = f" --address {shlex.quote(deployment.own.address)}" if deployment.own.address else ""
        return [f"serve deploy {shlex.quote(folder)}/serve.yaml{at}"]

    def where(self, deployment: Deployment) -> str | None:
        """Return the cluster's dashboard, which is remembered and shown.

        Raises:
            UsageError: its address holds a password.
        """
        address = str(deployment.own.address or ray_dashboard())
        if "@" in urlsplit(address).netloc:
            raise UsageError("the address of Ray's dashboard holds a password",
                             hint="leave it out; RAY_AUTH_MODE=token and RAY_AUTH_TOKEN say who asks")  # fmt: skip
        return address

    def contract(self, deployment: Deployment) -> Contract:
        """Return what Ray does with copies of the server, on two machines that are this one."""
        d, model = deployment, deployment.own.model or deployment.model
        return Contract(
            words=("/serve.yaml", "--model", model, "--host", "0.0.0.0", "--port", str(d.port)), model=model,
            port=d.port, ready=Probe("/health/ready", 5.0, OPENING), live=Probe("/health/live", 5.0, OPENING),
            ask=infer(d.name, 60.0), grace=DRAIN + SLACK, pause=PAUSE, keys=d.own.keys_file,
            environment={**ENVIRONMENT, "LLMASOS_KEYS": d.own.keys_file}, module="llmasos.replicas",
            files={"/serve.yaml": as_yaml(_configuration(d))},
            copies=Copies(d.replicas, f"ray::ServeReplica:{d.name}:server", AGAIN, "raylet"),
        )  # fmt: skip


def _configuration(d: Deployment) -> dict[str, Any]:
    options: dict[str, Any] = {"threads": max(1, int(d.cpus))}
    options |= {name: value for name in ("engine", "quantize") if (value := getattr(d, name))}
    options |= {"precision": d.precision} if d.precision != "auto" else {}
    copies: dict[str, Any] = {"num_replicas": d.replicas}
    if d.max_replicas > d.replicas:
        copies = {"autoscaling_config": {
            "min_replicas": d.replicas, "max_replicas": d.max_replicas, "target_ongoing_requests": d.own.requests,
        }}  # fmt: skip
    server = {
        "name": "server", **copies, "max_ongoing_requests": 1024, "graceful_shutdown_timeout_s": DRAIN,
        "health_check_period_s": 10, "health_check_timeout_s": 30,
        "ray_actor_options": {"num_cpus": d.cpus, "num_gpus": d.gpu, "memory": d.memory},
    }  # fmt: skip
    application = {
        "name": d.name, "route_prefix": d.own.route, "import_path": "llmasos.replicas:application_of",
        "runtime_env": {"env_vars": {**ENVIRONMENT, "LLMASOS_KEYS": d.own.keys_file}},
        "args": {"models": {d.name: d.own.model or d.model}, "options": options}, "deployments": [server],
    }  # fmt: skip
    return {"http_options": {"host": "0.0.0.0", "port": d.port}, "applications": [application]}


PLUGIN = Ray()
