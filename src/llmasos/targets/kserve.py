"""KServe: a serving runtime of this server, and an inference service that runs a model in it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..core.config import Config, option
from ._kubernetes import CLOSED, PERSON, TAKES, environment, metadata, probes, resources, secret, volumes, within
from ._server import DRAIN, PAUSE, SLACK, as_yaml, of_container, words
from .base import Contract, Deployment, Target, Validated

PLACE, PORT = "/mnt/models", 8080
"""Where KServe puts a model, and where it looks for the server."""
READY, LIVE = "/v2/health/ready", "/v2/health/live"


@dataclass(frozen=True)
class Settings(Config):
    """Options of KServe."""

    model: str | None = option(None, "where KServe fetches the model: s3://..., gs://..., pvc://CLAIM/FOLDER, ...; "
                               "pvc://NAME-model if not given")  # fmt: skip
    namespace: str | None = option(None, "namespace; the one that kubectl is in if not given")
    utilization: int = option(70, "percent of its cores at which a copy is added", least=1, most=100)


class KServe(Target):
    """Two objects, as ``kubectl apply`` takes them where KServe is installed."""

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
    return {
        "apiVersion": "serving.kserve.io/v1alpha1", "kind": "ServingRuntime", "metadata": metadata(d),
        "spec": {
            "supportedModelFormats": [{"name": "llmasos", "version": "1", "autoSelect": False}],
            "protocolVersions": ["v2"], "multiModel": False, "containers": [container], "volumes": own,
        },
    }  # fmt: skip


def _service(d: Deployment) -> dict[str, Any]:
    model = {
        "modelFormat": {"name": "llmasos", "version": "1"}, "runtime": d.name, "protocolVersion": "v2",
        "storageUri": d.own.model or f"pvc://{d.name}-model",
    }  # fmt: skip
    return {
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {**metadata(d), "annotations": {"serving.kserve.io/deploymentMode": "Standard"}},
        "spec": {"predictor": {
            "minReplicas": d.replicas, "maxReplicas": d.max_replicas, "scaleMetric": "cpu",
            "scaleTarget": d.own.utilization, "terminationGracePeriodSeconds": PAUSE + DRAIN + SLACK,
            "automountServiceAccountToken": False, "enableServiceLinks": False, "securityContext": PERSON,
            "model": model,
        }},
    }  # fmt: skip


PLUGIN = KServe()
