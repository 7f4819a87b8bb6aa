"""KServe, asked by way of the cluster that it is in: put there, looked at, removed.

A version is a serving runtime and the inference service that names it. A runtime remembers the files of its version,
and there are two places for one, NAME and NAME-next: the new version takes the one that is free, and the service goes
from one to the other in a single change. So what the cluster has says alone what a version has replaced.

https://kserve.github.io/website/docs/model-serving/predictive-inference/rollout-strategies/canary
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..core.errors import UsageError
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
    is_ready,
    own,
    reaching,
    refuse_others,
    refuse_without_keys,
    trouble,
    version_of,
    written,
)
from .base import Deployment, State

SERVICE = Kind("serving.kserve.io/v1beta1", "InferenceService")
RUNTIME = Kind("serving.kserve.io/v1alpha1", "ServingRuntime")
POD, MODE = "serving.kserve.io/inferenceservice", "serving.kserve.io/deploymentMode"
BESIDE = ("queue-proxy", "istio-proxy", "istio-init")
"""Containers that others put into a pod."""


def put(d: Deployment, files: Mapping[str, str]) -> Iterator[Event]:
    """Make a version; one that is there goes when this one answers."""
    with reaching("put it there"):
        cluster = Cluster(d.region)
        live = checked(cluster, d, files)
        if live and share_of(live) is not None:
            raise UsageError(f"a release of {d.name} is under way", hint=f"llmasos deploy promote|back {d.name}")
        now = place_of(live) if live else d.name
        place = now if live is None or files_at(cluster, d.name, now) == dict(files) else other(d.name, now)
        returns = place != now and files_at(cluster, d.name, place) == dict(files)
        yield from make(cluster, d.name, files, place)
        if returns and cluster.drop(RUNTIME, now):
            yield Note(f"removed ServingRuntime {now}")


def there(name: str, region: str | None) -> dict[str, str]:
    """Return the files of what is there, of two versions the older; none where nothing is, or it does not answer."""
    with reaching("look at it"):
        cluster = Cluster(region)
        if (live := own(cluster, SERVICE, name)) is None:
            return {}
        ready = conditions(live).get("Ready", {}).get("status") == "True"
        older = files_at(cluster, name, other(name, place_of(live)))
        return older or (files_at(cluster, name, place_of(live)) if ready else {})


def finish(name: str, region: str | None) -> Iterator[Event]:
    """Remove the version that another one has replaced."""
    with reaching("put it there"):
        cluster = Cluster(region)
        live = own(cluster, SERVICE, name)
        if live is None or share_of(live) is not None:
            return
        gone = other(name, place_of(live))
        if own(cluster, RUNTIME, name, gone) and cluster.drop(RUNTIME, gone):
            yield Note(f"removed ServingRuntime {gone}")


def state(name: str, region: str | None) -> State | None:
    """Return how the service is; it is ready when KServe says so, and pods of its newest version answer."""
    with reaching("look at it"):
        cluster = Cluster(region)
        if (live := own(cluster, SERVICE, name)) is None:
            return None
        pods = cluster.pods({POD: name, VERSION: version_at(live)})
    told, status = conditions(live).get("Ready", {}), live.get("status") or {}
    up, wanted = sum(map(is_ready, pods)), live["spec"]["predictor"]["minReplicas"]
    ready = told.get("status") == "True" and up >= wanted
    failed, why = (False, "") if ready else trouble(pods)
    model = status.get("modelStatus") or {}
    if not ready and not failed and pods and model.get("transitionStatus") == "BlockedByFailedLoad":
        failed, why = True, str((model.get("lastFailureInfo") or {}).get("message") or "the model cannot be loaded")
    share = share_of(live)
    word = f"{up} of {wanted} ready" + ("" if share is None else f", with {share} % of the requests")
    why = why or ("" if ready else str(told.get("message") or told.get("reason") or ""))
    return State(word, ready, failed, why, str(status.get("url") or ""))


def logs(name: str, region: str | None) -> Iterator[str]:
    """Yield what the pods have written."""
    with reaching("read its logs"):
        yield from written(Cluster(region), {POD: name}, BESIDE)


def remove(name: str, region: str | None) -> Iterator[str]:
    """Remove the service and its runtimes; yield what was removed."""
    with reaching("remove it"):
        cluster = Cluster(region)
        for kind in (SERVICE, RUNTIME):
            for one in cluster.listed(kind, {OURS: MANAGER, INSTANCE: name}):
                if cluster.drop(kind, called := one["metadata"]["name"]):
                    yield f"{kind.name} {called}"


# -- versions -----------------------------------------------------------------------------------------


def checked(cluster: Cluster, d: Deployment, files: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the service that is there, where a version may take its place.

    Raises:
        UsageError: others have a name, keys are missing, or the service is of KServe's other mode.
    """
    refuse_others(cluster, d.name, SERVICE, d.name)
    for place in (d.name, other(d.name, d.name)):
        refuse_others(cluster, d.name, RUNTIME, place)
    refuse_without_keys(cluster, d)
    live, wanted = own(cluster, SERVICE, d.name), bodies(files)["service"]
    if live and (mode := live["metadata"]["annotations"][MODE]) != wanted["metadata"]["annotations"][MODE]:
        raise UsageError(f"{d.name} is there in mode {mode.lower()}, which cannot be changed",
                         hint=f"--set mode={mode.lower()}, or llmasos deploy rm {d.name} first")  # fmt: skip
    return live


def make(
    cluster: Cluster, name: str, files: Mapping[str, str], place: str, share: int | None = None
) -> Iterator[Event]:
    """Make a version in a place, and let the service be of it; with a share, in percent, beside the one before it."""
    wanted = bodies(files)
    runtime, service = wanted["runtime"], wanted["service"]
    runtime["metadata"] |= {"name": place, "annotations": {FILES: json.dumps(dict(files))}}
    predictor = service["spec"]["predictor"]
    predictor["labels"], predictor["model"]["runtime"] = {VERSION: version_of(*files.values())}, place
    if share is not None:
        predictor["canaryTrafficPercent"] = share
    cluster.put(runtime)
    yield Note(f"put ServingRuntime {place} into {cluster.namespace}")
    cluster.put(service)
    yield Note(f"put InferenceService {name} into {cluster.namespace}"
               + ("" if share is None else f", with {share} % of the requests"))  # fmt: skip


def other(name: str, place: str) -> str:
    """Return the other place for a version."""
    return f"{name}-next" if place == name else name


def place_of(live: Mapping[str, Any]) -> str:
    """Return the place of the version that a service is of."""
    return str(live["spec"]["predictor"]["model"]["runtime"])


def version_at(live: Mapping[str, Any]) -> str:
    """Return the label of the pods of that version."""
    return str(live["spec"]["predictor"]["labels"][VERSION])


def share_of(live: Mapping[str, Any]) -> int | None:
    """Return the share of a new version; None where no release is under way."""
    found: int | None = live["spec"]["predictor"].get("canaryTrafficPercent")
    return found


def files_at(cluster: Cluster, name: str, place: str) -> dict[str, str]:
    """Return the files of the version in a place; none where there is none."""
    return files_of(own(cluster, RUNTIME, name, place))
