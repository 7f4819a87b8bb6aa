"""Plain manifests in a cluster: put there, looked at, removed.

Their Deployment remembers the files that it was made of. While a next version does not get ready, Kubernetes lets the
pods of the one before it stand, and those files bring it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..core.events import Event, Note
from ._cluster import (
    FILES,
    INSTANCE,
    MANAGER,
    OURS,
    VERSION,
    Cluster,
    Kind,
    bodies,
    conditions,
    files_of,
    kind_of,
    own,
    reaching,
    refuse_others,
    refuse_without_keys,
    trouble,
    version_of,
    written,
)
from .base import Deployment, State

DEPLOYMENT = Kind("apps/v1", "Deployment")
KINDS = (
    DEPLOYMENT,
    Kind("v1", "Service"),
    Kind("autoscaling/v2", "HorizontalPodAutoscaler"),
    Kind("policy/v1", "PodDisruptionBudget"),
    Kind("networking.k8s.io/v1", "NetworkPolicy"),
)
"""Of what is rendered, in the order in which it is removed."""


def put(d: Deployment, files: Mapping[str, str]) -> Iterator[Event]:
    """Make the objects, the one that starts servers last, and remove those of an earlier time that are none of them."""
    with reaching("put it there"):
        cluster, wanted = Cluster(d.region), bodies(files)
        for kind in KINDS:
            refuse_others(cluster, d.name, kind, d.name)
        refuse_without_keys(cluster, d)
        servers = wanted.pop("deployment")
        servers["metadata"]["annotations"] = {FILES: json.dumps(dict(files))}
        servers["spec"]["template"]["metadata"]["labels"][VERSION] = version_of(files["deployment.yaml"])
        if "hpa" in wanted:  # its number stays: a field that is left out would begin at 1 again
            live = own(cluster, DEPLOYMENT, d.name)
            servers["spec"]["replicas"] = (live or wanted["hpa"])["spec"]["replicas" if live else "minReplicas"]
        for one in (*wanted.values(), servers):
            cluster.put(one)
            yield Note(f"put {one['kind']} {d.name} into {cluster.namespace}")
        kept = {kind_of(one) for one in (*wanted.values(), servers)}
        for kind in KINDS:
            if kind not in kept and own(cluster, kind, d.name) and cluster.drop(kind, d.name):
                yield Note(f"removed {kind.name} {d.name}")


def there(name: str, region: str | None) -> dict[str, str]:
    """Return the files of what is there; none where nothing is, or nothing of it answers."""
    with reaching("look at it"):
        found = own(Cluster(region), DEPLOYMENT, name)
    return files_of(found) if found and (found.get("status") or {}).get("availableReplicas") else {}


def state(name: str, region: str | None) -> State | None:
    """Return how the Deployment is; it is ready when all pods are of its newest version and answer."""
    with reaching("look at it"):
        cluster = Cluster(region)
        if (found := own(cluster, DEPLOYMENT, name)) is None:
            return None
        pods = cluster.pods({**_labels(name), **_version(found)})
    status, wanted = found.get("status") or {}, found["spec"].get("replicas", 1)
    ready, every = status.get("availableReplicas") or 0, status.get("replicas") or 0
    seen = status.get("observedGeneration", 0) >= found["metadata"].get("generation", 0)
    done = seen and wanted == every == ready == (status.get("updatedReplicas") or 0)
    failed, why = (False, "") if done else _why(found, pods) if seen else trouble(pods)
    word = f"{ready} of {wanted} ready" + (f"; {every} pods" if every > wanted else "")
    address = f"http://{name}.{found['metadata']['namespace']}.svc"
    return State(f"{word}; {why}" if why and not failed else word, done, failed, why, address)


def logs(name: str, region: str | None) -> Iterator[str]:
    """Yield what the pods have written."""
    with reaching("read its logs"):
        yield from written(Cluster(region), _labels(name))


def remove(name: str, region: str | None) -> Iterator[str]:
    """Remove all objects that were put there from here; yield what was."""
    with reaching("remove it"):
        cluster = Cluster(region)
        for kind in KINDS:
            for one in cluster.listed(kind, {OURS: MANAGER, INSTANCE: name}):
                if cluster.drop(kind, called := one["metadata"]["name"]):
                    yield f"{kind.name} {called}"


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "llmasos", INSTANCE: name}


def _version(found: Mapping[str, Any]) -> dict[str, str]:
    labels = found["spec"]["template"]["metadata"]["labels"]
    return {VERSION: labels[VERSION]} if VERSION in labels else {}


def _why(found: Mapping[str, Any], pods: list[dict[str, Any]]) -> tuple[bool, str]:
    """Return whether a Deployment will never get ready, and why."""
    told = conditions(found)
    if (refused := told.get("ReplicaFailure", {})).get("status") == "True":
        return True, str(refused.get("message", "no pod may be made"))
    failed, why = trouble(pods)
    if not failed and (late := told.get("Progressing", {})).get("status") == "False":
        return True, why or str(late.get("message", "it makes no progress"))
    return failed, why
