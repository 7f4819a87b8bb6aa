"""The objects of Kubernetes that run the server: one function each, from a deployment to plain data."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.config import Config, option
from ..core.errors import UsageError
from ._server import (
    DRAIN,
    ENVIRONMENT,
    HOME,
    KEYS,
    OPENING,
    PAUSE,
    SLACK,
    USER,
    folder_of,
    mebibytes,
    number,
    of_container,
    words,
)
from .base import Contract, Deployment, Validated

TAKES = ("name", "image", "replicas", "max_replicas", "cpus", "memory", "gpu", "port", "engine", "quantize",
         "precision", "keys_secret", "weights")  # fmt: skip
VERSION = "1.30"
"""Of Kubernetes: the oldest that the objects are for."""


@dataclass(frozen=True)
class Settings(Config):
    """Options of Kubernetes."""

    model: str | None = option(None, "where pods find the model: pvc:CLAIM, or a reference that llmasos push wrote; "
                               "pvc:NAME-model if not given")  # fmt: skip
    registry_secret: str | None = option(None, "name of the secret with docker's config.json, for that reference")
    namespace: str | None = option(None, "namespace; the one that kubectl is in if not given")
    context: str | None = option(None, "context of the kubeconfig; the one that kubectl is in if not given")
    callers: str | None = option(None, "namespaces that may ask, with commas; its own alone if not given")


def contract(d: Deployment) -> Contract:
    """Return what the kubelet does with a pod of these objects."""
    return of_container(d, pause=PAUSE, rolls=True)


def objects(d: Deployment) -> dict[str, dict[str, Any]]:
    """Return all objects, by the name of their file."""
    out = {"deployment": _deployment(d), "service": _service(d), "networkpolicy": _policy(d)}
    if d.max_replicas > d.replicas:
        out["hpa"] = _scaler(d)
    if d.max_replicas > 1:
        out["pdb"] = _budget(d)
    return out


def validated(files: Mapping[str, str]) -> Validated:
    """Hold objects against the published schemas of Kubernetes."""
    import yaml

    try:
        import kubernetes_validate as tool
    except ImportError:
        return Validated("kubernetes-validate", missing="pip install 'llmasos[kubernetes]'")
    problems = []
    for name, text in files.items():
        for one in yaml.safe_load_all(text):
            try:
                tool.validate(one, VERSION, strict=True)
            except tool.ValidationError as error:
                where = ".".join(map(str, error.path))
                problems.append(f"{name}, {where}: {error.message}")
    return Validated(f"kubernetes-validate {tool.__version__}, for Kubernetes {VERSION}", tuple(problems))


def within(d: Deployment, context: str = "--context") -> str:
    """Return the options of a command for the context and the namespace."""
    given = ((context, d.own.context), ("--namespace", d.own.namespace))
    return "".join(f" {flag} {shlex.quote(value)}" for flag, value in given if value)


def secret(d: Deployment) -> str:
    """Return the command that makes the secret of this machine's keys."""
    file = "--from-file=keys.json=$HOME/.cache/llmasos/keys.json"
    return f"kubectl create secret generic{within(d)} {d.keys_secret} {file}"


def metadata(d: Deployment, name: str = "") -> dict[str, Any]:
    """Return an object's name and labels."""
    out: dict[str, Any] = {"name": name or d.name, "labels": {**selector(d), "app.kubernetes.io/version": d.version}}
    return {"namespace": d.own.namespace} | out if d.own.namespace else out


def selector(d: Deployment) -> dict[str, str]:
    """Return the labels by which pods are found."""
    return {"app.kubernetes.io/name": "llmasos", "app.kubernetes.io/instance": d.name}


def resources(d: Deployment) -> dict[str, Any]:
    """Return what a container gets; no limit on cores, which would stop the server in the midst of a batch."""
    cards = {"nvidia.com/gpu": str(d.gpu)} if d.gpu else {}
    memory = {"memory": mebibytes(d.memory)}
    return {"requests": {"cpu": number(d.cpus), **memory, **cards}, "limits": {**memory, **cards}}


CLOSED: dict[str, Any] = {
    "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
}  # fmt: skip
PERSON: dict[str, Any] = {
    "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip


def environment(more: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """Return variables as a container has them."""
    return [{"name": name, "value": value} for name, value in {**ENVIRONMENT, **(more or {})}.items()]


def volumes(d: Deployment) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the volumes of every server, and where its container has them."""
    own: list[dict[str, Any]] = [
        {"name": "home", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}},
        {"name": "keys", "secret": {"secretName": d.keys_secret}},
    ]  # fmt: skip
    mounts: list[dict[str, Any]] = [
        {"name": "home", "mountPath": HOME}, {"name": "tmp", "mountPath": "/tmp"},
        {"name": "keys", "mountPath": os.path.dirname(KEYS), "readOnly": True},
    ]  # fmt: skip
    return own, mounts


def probe(path: str, every: int, patience: int, failures: int, port: str | int = "http") -> dict[str, Any]:
    """Return a probe."""
    get = {"path": path, "port": port}
    return {"httpGet": get, "periodSeconds": every, "timeoutSeconds": patience, "failureThreshold": failures}


def probes(ready: str = "/health/ready", live: str = "/health/live", patience: int = 2) -> dict[str, Any]:
    """Return the three probes, and what is done before the end."""
    return {
        "startupProbe": probe(ready, 2, patience, OPENING // 2), "readinessProbe": probe(ready, 5, patience, 3),
        "livenessProbe": probe(live, 10, 5, 6),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PAUSE)]}}},
    }  # fmt: skip


def _deployment(d: Deployment) -> dict[str, Any]:
    own, mounts = volumes(d)
    container = {
        "name": "llmasos", "image": d.image, "args": words(d), "env": environment(),
        "ports": [{"name": "http", "containerPort": d.port}], "resources": resources(d), **probes(),
        "securityContext": CLOSED, "volumeMounts": mounts,
    }  # fmt: skip
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False, "enableServiceLinks": False, "securityContext": PERSON,
        "terminationGracePeriodSeconds": PAUSE + DRAIN + SLACK, "containers": [container], "volumes": own,
    }  # fmt: skip
    if d.max_replicas > 1:
        pod["topologySpreadConstraints"] = [{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(d)},
        }]  # fmt: skip
    if not d.inside:
        _with_model(d, pod, container)
    spec: dict[str, Any] = {} if d.max_replicas > d.replicas else {"replicas": d.replicas}
    spec |= {
        "selector": {"matchLabels": selector(d)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {"metadata": {"labels": selector(d)}, "spec": pod},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(d), "spec": spec}


def _with_model(d: Deployment, pod: dict[str, Any], container: dict[str, Any]) -> None:
    """Bring the model: a claim, or what a container before the server has pulled."""
    folder, source = folder_of(d), d.own.model or f"pvc:{d.name}-model"
    place, _, rest = source.partition(":")
    container["volumeMounts"] = [*container["volumeMounts"], {"name": "model", "mountPath": folder, "readOnly": True}]
    if place == "pvc":
        if not rest:
            raise UsageError(f"model={source!r} names no claim", hint=f"--set model=pvc:{d.name}-model")
        claim = {"claimName": rest, "readOnly": True}
        pod["volumes"] = [*pod["volumes"], {"name": "model", "persistentVolumeClaim": claim}]
        return
    login = d.own.registry_secret
    pull = {
        "name": "model", "image": d.image, "args": ["pull", source, "--output", f"{folder}/model"],
        "env": environment({"DOCKER_CONFIG": "/etc/docker"} if login else None), "resources": resources(d),
        "securityContext": CLOSED,
        "volumeMounts": [{"name": "model", "mountPath": folder}, {"name": "home", "mountPath": HOME},
                         {"name": "tmp", "mountPath": "/tmp"},
                         *([{"name": "login", "mountPath": "/etc/docker", "readOnly": True}] if login else [])],
    }  # fmt: skip
    pod["initContainers"] = [pull]
    pod["volumes"] = [*pod["volumes"], {"name": "model", "emptyDir": {"sizeLimit": mebibytes(2 * d.size + (64 << 20))}}]
    if login:
        items = [{"key": ".dockerconfigjson", "path": "config.json"}]
        pod["volumes"].append({"name": "login", "secret": {"secretName": login, "items": items}})
    container["args"] = [word.replace(f"={folder}", f"={folder}/model") for word in container["args"]]


def _service(d: Deployment) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata(d),
            "spec": {"selector": selector(d), "ports": ports}}  # fmt: skip


def _scaler(d: Deployment) -> dict[str, Any]:
    target = {
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
    }
    return {
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata(d),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": d.name},
            "minReplicas": d.replicas, "maxReplicas": d.max_replicas, "metrics": [target],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
        },
    }  # fmt: skip


def _budget(d: Deployment) -> dict[str, Any]:
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata(d),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(d)}}}  # fmt: skip


def _policy(d: Deployment) -> dict[str, Any]:
    """Let the namespace in, and those that are named; let nothing out but to where the model is pulled from."""
    others = [name.strip() for name in (d.own.callers or "").split(",") if name.strip()]
    callers: list[dict[str, Any]] = [{"podSelector": {}}]
    callers += [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}} for name in others]
    source = d.own.model or "pvc:"
    pulls = not d.inside and not source.startswith("pvc:")
    ports = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}, {"protocol": "TCP", "port": 443}]
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata(d),
        "spec": {
            "podSelector": {"matchLabels": selector(d)}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": callers, "ports": [{"protocol": "TCP", "port": "http"}]}],
            "egress": [{"ports": ports}] if pulls else [],
        },
    }  # fmt: skip
