"""SkyPilot: a service on whichever cloud has room, on spot machines if wanted, replaced when they are taken away."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from ..core.config import Config, option
from ..core.elsewhere import Elsewhere
from ..core.errors import MissingExtraError
from ._server import ENVIRONMENT, KEYS, OPENING, as_yaml, folder_of, number, of_container, words
from .base import SERVER, Contract, Deployment, Target, Training, Validated

MAKERS = Elsewhere("sky", "LLMASOS_SKYPILOT", "skypilot", "SkyPilot's own reading of its files")
"""SkyPilot, here or in an environment of its own."""


@dataclass(frozen=True)
class Settings(Config):
    """Options of SkyPilot."""

    cloud: str | None = option(None, "aws, azure, gcp, kubernetes, ...; the cheapest that has room if not given")
    accelerator: str = option("L4", "kind of CUDA device, where --gpu asks for some")
    spot: str = option("off", "on takes machines that may be taken away, at a lower price", choices=("off", "on"))
    requests: float = option(20.0, "requests a second and copy, above which copies are added", least=0.01)
    keys_file: str = option("~/.cache/llmasos/keys.json", "file of the server's keys, as llmasos keys add writes it")


@dataclass(frozen=True)
class Machine(Config):
    """Options of a machine that SkyPilot trains on."""

    cloud: str | None = option(None, "aws, azure, gcp, kubernetes, ...; the cheapest that has room if not given")
    region: str | None = option(None, "region of the cloud")
    instance: str | None = option(None, "the cloud's type of machine, such as g5.xlarge")
    accelerator: str | None = option(None, "CUDA devices, such as L4 or A100:2; none if not given")
    cpus: float = option(4.0, "processor cores, at least", least=1)
    memory: int = option(16, "memory in GB, at least", least=1)
    disk: int = option(100, "disk in GB", least=50)
    spot: str = option("on", "on takes a machine that may be taken away, at a lower price; the training goes on on "
                       "another one", choices=("off", "on"))  # fmt: skip
    restarts: int = option(2, "times that a training which fails by itself is started again", least=0)


class SkyPilot(Target):
    """A service, or a training."""

    name = "skypilot"
    about = "a service on AWS, Azure, GCP or Kubernetes, by SkyPilot"
    takes: ClassVar[tuple[str, ...]] = (*SERVER, "name", "replicas", "max_replicas", "memory", "gpu", "port", "region",
                                        "instance")  # fmt: skip
    settings = Settings
    trains = Machine

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return the service, as ``sky serve up`` reads it."""
        return {"service.yaml": as_yaml(_service(deployment))}

    def steps(self, deployment: Deployment, folder: str) -> list[str]:
        """Start."""
        return [f"sky serve up --service-name {deployment.name} {shlex.quote(folder)}/service.yaml"]

    def training(self, training: Training) -> dict[str, str]:
        """Return the task, as ``sky jobs launch`` reads it."""
        return {"task.yaml": as_yaml(_task(training))}

    variable = MAKERS.variable

    def launch(self, training: Training, folder: str) -> list[str]:
        """Start, as a job that is moved to another machine when its own is taken away."""
        return ["sky", "jobs", "launch", "--name", training.name, f"{folder}/task.yaml"]

    def validate(self, files: Mapping[str, str]) -> Validated:
        """Let SkyPilot read the task or the service; nothing is asked of a cloud."""
        with TemporaryDirectory() as folder:
            paths = [Path(folder, name) for name in files if name.endswith(".yaml")]
            for path in paths:
                path.write_text(files[path.name], encoding="utf-8")
            try:
                problems = MAKERS.run(Path(__file__).with_name("_skypilot_reading.py"), [folder, *map(str, paths)])
            except MissingExtraError as error:
                return Validated("skypilot", missing=error.hint or str(error))
        return Validated("skypilot", tuple(problems[-3:]))

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


def _task(t: Training) -> dict[str, Any]:
    own = t.own
    resources: dict[str, Any] = {
        "cpus": f"{number(own.cpus)}+", "memory": f"{own.memory}+", "disk_size": own.disk,
        "use_spot": own.spot == "on",
        "job_recovery": {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": own.restarts},
    }  # fmt: skip
    named = {"cloud": own.cloud, "region": own.region, "instance_type": own.instance, "accelerators": own.accelerator}
    resources |= {key: value for key, value in named.items() if value}
    extras = f"[{','.join(t.extras)}]" if t.extras else ""
    package = f"llmasos{extras}=={t.version}"
    install = ["python3 -m venv ~/llmasos", f'~/llmasos/bin/pip install "{package}"']
    mounts = {"file_mounts": dict(t.mounts)} if t.mounts else {}
    # The same command goes on from the checkpoint behind its output's URL, wherever it is started again.
    return {
        "name": t.name, "resources": resources, **mounts, "setup": "\n".join(install),
        "run": f"exec ~/llmasos/bin/llmasos {shlex.join(t.words)}",
    }  # fmt: skip


PLUGIN = SkyPilot()
