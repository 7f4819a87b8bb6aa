"""A release on KServe, in its Knative mode: a share of the requests for the newest revision, and counts of both.

The service is changed once, to the new version with ``canaryTrafficPercent``; KServe keeps the revision that had all
requests before. The servers themselves are asked, by way of the cluster's proxy of pods: the new ones for their golden
rows, all for what they have counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..core.environment import api_key
from ..core.errors import DeploymentError, UsageError
from ..core.events import Event, Note
from ._cluster import VERSION, Cluster, Kind, is_ready, own, reaching, version_of
from ._kserve import POD, RUNTIME, SERVICE, checked, files_at, make, other, place_of, share_of, version_at
from .base import Counted, Deployment, Health, await_done, percents

REVISION, REVISED = Kind("serving.knative.dev/v1", "Revision"), "serving.knative.dev/revision"
LIMIT, LOOK = 1800.0, 5.0
"""Seconds that KServe may take to move requests, and between two looks."""
PORT, FAULT = 8080, 500
PROBES = ("/metrics", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
"""Routes that are no requests of clients."""


def begin(d: Deployment, files: Mapping[str, str], share: float) -> Iterator[Event]:
    """Put a new version beside the one that is there."""
    if d.own.mode != "knative":
        raise UsageError("KServe gives a version a share of the requests in its Knative mode alone",
                         hint="--set mode=knative, also for the version that it stands beside")  # fmt: skip
    percent = percents(share, "KServe")
    with reaching("put a new version beside the old one"):
        cluster = Cluster(d.region)
        if (live := checked(cluster, d, files)) is None:
            raise UsageError(f"there is no {d.name} for a new version to stand beside", hint="--apply without --canary")
        if share_of(live) is not None:
            raise UsageError(f"a release of {d.name} is under way", hint=f"llmasos deploy promote|back {d.name}")
        if not _predictor(live).get("latestRolledoutRevision"):
            raise UsageError(f"{d.name} itself has not been ready yet", hint=f"llmasos deploy status {d.name}")
        if files_at(cluster, d.name, place := place_of(live)) == dict(files):
            raise UsageError(f"the version of {d.name} that is there is the same",
                             hint="another place for the new model, --set model=..., or another --image")  # fmt: skip
        _TALLIES.pop((d.name, d.region), None)
        _try(cluster, d.name)
        yield from make(cluster, d.name, files, other(d.name, place), percent)


def ask(name: str, region: str | None, path: str, body: Any) -> Any:
    """Ask a pod of the new version; see ``Target.ask``."""
    with reaching("ask the new version"):
        cluster = Cluster(region)
        new = version_at(_under_way(cluster, name))
        for version, pod in _ready(cluster, name):
            if version == new:
                return json.loads(_asked(cluster, pod, path, body))
        raise DeploymentError("no pod of the new version answers", hint=f"llmasos deploy logs {name}")


def watch(name: str, region: str | None) -> Health:
    """Return what the servers of both versions have counted since the first look."""
    with reaching("count its requests"):
        cluster = Cluster(region)
        new = version_at(_under_way(cluster, name))
        tally = _TALLIES.setdefault((name, region), _Tally())
        counts = {pod: (version, _counts(cluster, pod)) for version, pod in _ready(cluster, name)}
        tally.look({pod: (version, now) for pod, (version, now) in counts.items() if now})
        return Health(tally.sum(lambda version: version != new), tally.sum(lambda version: version == new))


def promote(name: str, region: str | None) -> Iterator[Event]:
    """Give all requests to the new version; KServe then ends the pods of the old one."""
    with reaching("promote it"):
        cluster = Cluster(region)
        place = place_of(_under_way(cluster, name))
        yield from make(cluster, name, files_at(cluster, name, place), place)
        _settle(cluster, name, _has_all)
        yield Note(f"all requests go to ServingRuntime {place}")
        yield from _removed(cluster, name, other(name, place))


def back(name: str, region: str | None) -> Iterator[Event]:
    """Give all requests to the old version, then remove the new one.

    KServe always calls the newest revision the latest one. So the old version is made anew, while its first revision
    still has all requests, and takes them over when it answers.
    """
    with reaching("put the old version back"):
        cluster = Cluster(region)
        live = own(cluster, SERVICE, name)
        if live is None:
            raise UsageError(f"there is no {name}", hint="llmasos deploy status")
        place = place_of(live)
        if (share := share_of(live)) is None:  # it was broken off before the service was changed
            gone = list(_removed(cluster, name, other(name, place)))
            if not gone:
                raise UsageError(f"no release of {name} is under way", hint=f"llmasos deploy status {name}")
            yield from gone
            return
        old = place if share == 0 else other(name, place)
        files = files_at(cluster, name, old)
        if not files:
            raise DeploymentError(f"nobody knows what the old version of {name} was: there is no ServingRuntime {old}",
                                  hint=f"llmasos deploy promote {name}, or --apply another version then")  # fmt: skip
        if share:
            yield from make(cluster, name, files, old, 0)
        version = version_of(*files.values())
        _settle(cluster, name, lambda told: _answers(cluster, name, told, version))
        yield from make(cluster, name, files, old)
        _settle(cluster, name, _has_all)
        yield Note(f"all requests go to ServingRuntime {old}")
        yield from _removed(cluster, name, other(name, old))


# -- inside -------------------------------------------------------------------------------------------


class _Tally:
    """What servers have counted since the first look at them, also of those that were started again, or are gone."""

    def __init__(self) -> None:
        self._seen: dict[str, Counted] = {}
        self._sums: dict[str, tuple[str, Counted]] = {}
        self._fresh = True

    def look(self, counts: Mapping[str, tuple[str, Counted]]) -> None:
        """Take in counts of servers, each with its version."""
        for pod, (version, now) in counts.items():
            before = self._seen.get(pod, now if self._fresh else Counted(0, 0))
            if now.requests < before.requests:
                before = Counted(0, 0)
            _, (requests, errors) = self._sums.get(pod, (version, Counted(0, 0)))
            more = Counted(requests + now.requests - before.requests, errors + now.errors - before.errors)
            self._seen[pod], self._sums[pod] = now, (version, more)
        self._fresh = False

    def sum(self, takes: Callable[[str], bool]) -> Counted:
        """Return the sum over some versions."""
        chosen = [counted for version, counted in self._sums.values() if takes(version)]
        return Counted(sum(one.requests for one in chosen), sum(one.errors for one in chosen))


_TALLIES: dict[tuple[str, str | None], _Tally] = {}


def _predictor(live: Mapping[str, Any]) -> dict[str, Any]:
    return dict(((live.get("status") or {}).get("components") or {}).get("predictor") or {})


def _under_way(cluster: Cluster, name: str) -> dict[str, Any]:
    """Return the service of a release that is under way.

    Raises:
        UsageError: there is none.
    """
    live = own(cluster, SERVICE, name)
    if live is None or share_of(live) is None:
        raise UsageError(f"no release of {name} is under way", hint=f"llmasos deploy status {name}")
    if share_of(live) == 0:
        raise UsageError(f"the old version of {name} is being put back", hint=f"llmasos deploy back {name} ends that")
    return live


def _ready(cluster: Cluster, name: str) -> list[tuple[str, str]]:
    """Return version and name of the pods that answer."""
    found = [pod["metadata"] for pod in cluster.pods({POD: name}) if is_ready(pod)]
    return [(one["labels"].get(VERSION, ""), one["name"]) for one in found]


def _try(cluster: Cluster, name: str) -> None:
    """Ask a server that is there, so that nothing is put beside it that could not be asked.

    Raises:
        UsageError: it wants another key, or cannot be reached.
    """
    for _, pod in _ready(cluster, name)[:1]:
        try:
            _asked(cluster, pod, "/v1/models")
        except DeploymentError as error:
            raise UsageError(f"a release asks the servers by way of the cluster, which fails: {error.message}",
                             hint="may the cluster's API reach its pods?") from error  # fmt: skip


def _asked(cluster: Cluster, pod: str, path: str, body: Any = None) -> str:
    """Return what a pod's server answers.

    Raises:
        UsageError: it wants another key.
        DeploymentError: it fails, or is gone.
    """
    from kubernetes.client.rest import ApiException

    try:
        return cluster.ask(pod, PORT, path, body, api_key())
    except ApiException as error:
        said, whose = " ".join(str(error.body).split())[:300], '"kind":"Status"' in str(error.body).replace(" ", "")
        if whose and error.status in (401, 403):
            raise  # the cluster itself refuses
        if error.status in (401, 403):
            raise UsageError("the servers of this deployment want a key to be asked for what they answer and count",
                             hint="one of its secret, in LLMASOS_API_KEY") from error  # fmt: skip
        raise DeploymentError(f"{pod} fails: {error.status}, {said}", hint="llmasos deploy logs") from error


def _counts(cluster: Cluster, pod: str) -> Counted | None:
    """Return the requests of clients that a pod's server has answered, and its errors; None where it is gone."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        page = _asked(cluster, pod, "/metrics")
    except DeploymentError:
        return None
    requests = errors = 0
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "llmasos_requests_total" and sample.labels["route"] not in PROBES:
                requests += int(sample.value)
                errors += int(sample.value) if int(sample.labels["status"]) >= FAULT else 0
    return Counted(requests, errors)


def _has_all(told: Mapping[str, Any]) -> bool:
    """Say whether the newest revision has all requests."""
    return bool(told.get("latestRolledoutRevision") == told.get("latestReadyRevision"))


def _answers(cluster: Cluster, name: str, told: Mapping[str, Any], version: str) -> bool:
    """Say whether the newest revision is of a version, and a pod of it answers."""
    newest = told.get("latestReadyRevision")
    if not newest or newest != told.get("latestCreatedRevision"):
        return False
    return any(map(is_ready, cluster.pods({POD: name, REVISED: newest, VERSION: version})))


def _settle(cluster: Cluster, name: str, done: Callable[[Mapping[str, Any]], bool]) -> None:
    """Wait until KServe has done what the service says."""

    def is_done() -> bool:
        live = own(cluster, SERVICE, name)
        return live is not None and done(_predictor(live))

    await_done(is_done, f"{name} is still being changed", limit=LIMIT, look=LOOK)


def _removed(cluster: Cluster, name: str, place: str) -> Iterator[Event]:
    """Remove a version that has no requests any more: its runtime, and its revisions where that is allowed."""
    from kubernetes.dynamic.exceptions import ForbiddenError

    files = files_at(cluster, name, place)
    if own(cluster, RUNTIME, name, place) and cluster.drop(RUNTIME, place):
        yield Note(f"removed ServingRuntime {place}")
    for one in cluster.listed(REVISION, {VERSION: version_of(*files.values())}) if files else ():
        try:
            if cluster.drop(REVISION, called := one["metadata"]["name"]):
                yield Note(f"removed Revision {called}")
        except ForbiddenError:  # Knative itself removes it in time; it has no pods
            return
