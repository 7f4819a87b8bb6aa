"""KServe: a serving runtime of this server, and an inference service that runs a model in it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..core.config import Config, option
from ..core.errors import UsageError
from ..core.events import Event
from ._kubernetes import (
    CLOSED,
    PERSON,
    TAKES,
    environment,
    metadata,
    probe,
    probes,
    resources,
    secret,
    volumes,
    within,
)
from ._server import DRAIN, OPENING, PAUSE, SLACK, as_yaml, of_container, words
from .base import Contract, Deployment, Target, Validated

PLACE, PORT = "/mnt/models", 8080
"""Where KServe puts a model, and where it looks for the server."""
READY, LIVE = "/v2/health/ready", "/v2/health/live"
MODE = "serving.kserve.io/deploymentMode"


STANDARD, KNATIVE = "standard", "knative"
"""KServe's two modes: a plain Deployment, or one of Knative, once called Serverless, which can split requests."""
CONCURRENCY, UTILIZATION = 16, 70
ALONE = ("runAsNonRoot", "runAsUser", "runAsGroup", "seccompProfile")
"""What of a pod's person Knative takes for a container alone."""


@dataclass(frozen=True)
class Settings(Config):
    """Options of KServe."""

    model: str | None = option(None, "where KServe fetches the model: s3://..., gs://..., pvc://CLAIM/FOLDER, ...; "
                               "pvc://NAME-model if not given")  # fmt: skip
    mode: str = option(STANDARD, "what KServe makes of it: a plain Deployment, or a service of Knative, which has "
                       "releases", choices=(STANDARD, KNATIVE))  # fmt: skip
    namespace: str | None = option(None, "namespace; the one that kubectl is in if not given")
    context: str | None = option(None, "context of the kubeconfig; the one that kubectl is in if not given")
    utilization: int | None = option(None, "percent of its cores at which a copy is added, in mode standard; 70 if not "
                                     "given", least=1, most=100)  # fmt: skip
    concurrency: int | None = option(None, "requests at once of a copy at which one is added, in mode knative; 16 if "
                                     "not given", least=1)  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        idle = "concurrency" if self.mode == STANDARD else "utilization"
        if getattr(self, idle) is not None:
            raise UsageError(f"{idle} does nothing in mode {self.mode}", hint=f"leave {idle} out, or another mode")


class KServe(Target):
    """Two objects, as ``kubectl apply`` takes them where KServe is installed."""

    hands, releases = "_kserve", "_kserve_release"
    requires = ("kubernetes",)
    extra = "kubernetes"

    name = "kserve"
    about = "an inference service of KServe, by the Open Inference Protocol"
    takes: ClassVar[tuple[str, ...]] = tuple(name for name in TAKES if name not in ("port", "weights"))
    settings = Settings

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return the runtime and the service."""
        return {"runtime.yaml": as_yaml(_runtime(deployment)), "service.yaml": as_yaml(_service(deployment))}

    def steps(self, deployment: Deployment, folder: str) -> list[str]:
        """Bring keys, and apply."""
        return [secret(deployment), f"kubectl apply{within(deployment)} -f {shlex.quote(folder)}"]

    def where(self, deployment: Deployment) -> str:
        """Return namespace and context; see ``Target.where``."""
        from ._cluster import where

        return where(deployment)

    def finish(self, deployment: Deployment, files: Mapping[str, str]) -> Iterator[Event]:
        """Remove the version that was replaced; see ``Target.finish``."""
        from ._kserve import finish

        del files
        yield from finish(deployment.name, deployment.region)

    def contract(self, deployment: Deployment) -> Contract:
        """Return what KServe does with a pod of it."""
        found = of_container(deployment, pause=PAUSE, port=PORT, ready=READY, live=LIVE, rolls=True)
        return replace(found, model=PLACE, words=tuple(words(deployment, PLACE, port=PORT)))

    def validate(self, files: Mapping[str, str]) -> Validated:
        """Hold the pod that the two make against the schemas of Kubernetes; none has KServe's own objects."""
        import yaml

        from ._kubernetes import validated

        runtime, service = (yaml.safe_load(files[f"{name}.yaml"])["spec"] for name in ("runtime", "service"))
        own = ("model", "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")
        pod = {name: value for name, value in service["predictor"].items() if name not in own}
        pod |= {name: runtime[name] for name in ("containers", "volumes")}
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": pod}
        return validated({"the pod": yaml.safe_dump(whole)})


def _runtime(d: Deployment) -> dict[str, Any]:
    own, mounts = volumes(d)
    args = [word if not word.startswith(f"{d.name}=") else "{{.Name}}=" + PLACE for word in words(d, PLACE, port=PORT)]
    container = {
        "name": "kserve-container", "image": d.image, "args": args, "env": environment(),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}], "resources": resources(d),
        **probes(READY, LIVE), "securityContext": CLOSED, "volumeMounts": mounts,
    }  # fmt: skip
    if d.own.mode == KNATIVE:
        container = _of_knative(container)
    return {
        "apiVersion": "serving.kserve.io/v1alpha1", "kind": "ServingRuntime", "metadata": metadata(d),
        "spec": {
            "supportedModelFormats": [{"name": "llmasos", "version": "1", "autoSelect": False}],
            "protocolVersions": ["v2"], "multiModel": False, "containers": [container], "volumes": own,
        },
    }  # fmt: skip


def _of_knative(container: dict[str, Any]) -> dict[str, Any]:
    """Return a container as Knative takes it: it ends pods itself, and a port's name says what is spoken there.

    https://github.com/knative/serving/blob/main/pkg/apis/serving/fieldmask.go
    """
    live, ready = (probe(path, every, patience, failures, PORT) for path, every, patience, failures in
                   ((LIVE, 10, 5, 6), (READY, 5, 2, 3)))  # fmt: skip
    changed = {
        "ports": [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}], "readinessProbe": ready,
        "livenessProbe": {"initialDelaySeconds": OPENING, **live},
        "securityContext": {**CLOSED, **{name: PERSON[name] for name in ALONE}},
    }  # fmt: skip
    gone = ("startupProbe", "lifecycle")
    return {name: changed.get(name, value) for name, value in container.items() if name not in gone}


def _service(d: Deployment) -> dict[str, Any]:
    model = {
        "modelFormat": {"name": "llmasos", "version": "1"}, "runtime": d.name, "protocolVersion": "v2",
        "storageUri": d.own.model or f"pvc://{d.name}-model",
    }  # fmt: skip
    closed = {"automountServiceAccountToken": False, "enableServiceLinks": False}
    if d.own.mode == KNATIVE:
        mode, scale = "Knative", {"scaleMetric": "concurrency", "scaleTarget": d.own.concurrency or CONCURRENCY}
        pod: dict[str, Any] = closed
    else:
        mode, scale = "Standard", {"scaleMetric": "cpu", "scaleTarget": d.own.utilization or UTILIZATION}
        pod = {"terminationGracePeriodSeconds": PAUSE + DRAIN + SLACK, **closed, "securityContext": PERSON}
    return {
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {**metadata(d), "annotations": {MODE: mode}},
        "spec": {"predictor": {
            "minReplicas": d.replicas, "maxReplicas": d.max_replicas, **scale, **pod, "model": model,
        }},
    }  # fmt: skip


PLUGIN = KServe()
