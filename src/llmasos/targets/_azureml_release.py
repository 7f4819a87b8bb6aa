"""A release on Azure Machine Learning: a second deployment behind the endpoint, and what Azure Monitor counts of both.

A tag of the endpoint names the new deployment, its share and when it began. So what Azure has says alone how far a
release came, and one that was broken off is ended from any machine. What ``--apply`` puts in the place of something is
a release as well: the new one takes all requests as soon as it is ready.

https://learn.microsoft.com/azure/machine-learning/how-to-safely-rollout-online-endpoints
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from ..core.errors import DeploymentError, RemoteError, UsageError
from ..core.events import Event, Note
from ._azure import Azure, reaching
from ._azureml import ALL, RELEASE, Released, change, deployments, drop, own_endpoint, put, released, swept
from .base import Counted, Deployment, Health, percents

METRICS = {
    "api-version": "2023-10-01", "metricnames": "RequestsPerMinute", "interval": "PT1M", "aggregation": "Average",
    "$filter": "deployment eq '*' and statusCode eq '*' and modelStatusCode eq '*'", "top": "1000",
}  # fmt: skip
"""What Azure Monitor is asked: the average of a minute is its sum, for it has one value."""


def begin(d: Deployment, files: Mapping[str, str], share: float) -> Iterator[Event]:
    """Put a second deployment behind the endpoint; see ``Target.begin``."""
    percent = percents(share, "Azure")
    with reaching("put a new version beside the old one"):
        yield from put(d, files, percent)


def opened(d: Deployment) -> Iterator[Event]:
    """Send all requests to what is ready; a new version gets its share later, see ``send``."""
    with reaching("send requests to it"):
        azure = Azure(str(d.region))
        now = released(own_endpoint(azure, d.name))
        if now and now.percent == ALL:
            yield from _alone(azure, d.name, now.new)
        elif not now:
            names = [one["name"] for one in deployments(azure, d.name)]
            change(azure, d.name, traffic=dict.fromkeys(names, ALL))
            yield Note(f"requests go to {', '.join(names)}")
            yield from _swept(azure, d.name)


def send(name: str, region: str | None, share: float) -> None:
    """Send the new deployment its share of the requests, which the endpoint's tag has; it can be asked without."""
    del share
    with reaching("send requests to it"):
        azure = Azure(str(region))
        now = _under_way(own_endpoint(azure, name))
        names = [one["name"] for one in deployments(azure, name)]
        change(azure, name, traffic={one: now.percent if one == now.new else ALL - now.percent for one in names})


def ask(name: str, region: str | None, path: str, body: Any) -> Any:
    """Ask the new deployment; see ``Target.ask``. The endpoint has one path."""
    del path
    import httpx2

    with reaching("ask the new version"):
        azure = Azure(str(region))
        endpoint = own_endpoint(azure, name)
        now = _under_way(endpoint)
        key = azure.send("POST", f"onlineEndpoints/{name}/listKeys")["primaryKey"]
        headers = {"Authorization": f"Bearer {key}", "azureml-model-deployment": now.new}
        try:
            reply = httpx2.post(endpoint["properties"]["scoringUri"], json=body, headers=headers, timeout=90)
        except httpx2.TransportError as error:
            raise RemoteError(f"{name} cannot be reached: {error}", hint="is a network there?") from error
    if reply.status_code != 200:
        said = " ".join(reply.text.split())[:300]
        raise DeploymentError(f"the new version fails: {reply.status_code} {said}", hint=f"llmasos deploy logs {name}")
    try:
        return reply.json()
    except ValueError as error:
        raise DeploymentError("the new version answers with no JSON", hint=f"llmasos deploy logs {name}") from error


def watch(name: str, region: str | None) -> Health:
    """Return what Azure Monitor has counted of both deployments; it is some minutes behind."""
    with reaching("count its requests"):
        azure = Azure(str(region))
        now = _under_way(own_endpoint(azure, name))
        until = f"{datetime.now(UTC) + timedelta(minutes=1):%Y-%m-%dT%H:%M:%SZ}"
        path = f"onlineEndpoints/{name}/providers/Microsoft.Insights/metrics"
        told = azure.send("GET", path, query={**METRICS, "timespan": f"{now.since}/{until}"})
    counts = dict.fromkeys([(new, failed) for new in (False, True) for failed in (False, True)], 0.0)
    for series in (series for metric in told["value"] for series in metric["timeseries"]):
        of = {one["name"]["value"].lower(): one["value"] for one in series["metadatavalues"]}
        place = of["deployment"].lower() == now.new.lower(), _is_failure(of["statuscode"], of["modelstatuscode"])
        counts[place] += sum(point.get("average") or 0 for point in series["data"])
    old, new = (Counted(round(counts[one, False] + counts[one, True]), round(counts[one, True]))
                for one in (False, True))  # fmt: skip
    return Health(old, new)


def promote(name: str, region: str | None) -> Iterator[Event]:
    """Give all requests to the new deployment, then remove the old one."""
    with reaching("promote it"):
        azure = Azure(str(region))
        yield from _alone(azure, name, _under_way(own_endpoint(azure, name)).new)


def back(name: str, region: str | None) -> Iterator[Event]:
    """Give all requests to the old deployment, then remove what there is of the new one."""
    with reaching("put the old version back"):
        azure = Azure(str(region))
        now = _under_way(own_endpoint(azure, name))
        old = [one["name"] for one in deployments(azure, name) if one["name"] != now.new]
        if not old:
            raise UsageError(f"the old version of {name} is gone", hint=f"llmasos deploy promote {name}")
        yield from _alone(azure, name, old[0])


# -- inside -------------------------------------------------------------------------------------------


def _under_way(endpoint: Mapping[str, Any]) -> Released:
    """Return the release that is under way.

    Raises:
        UsageError: none is.
    """
    if (now := released(endpoint)) is None:
        raise UsageError(f"no release of {endpoint['name']} is under way",
                         hint=f"llmasos deploy status {endpoint['name']}")  # fmt: skip
    return now


def _is_failure(status: str, model: str) -> bool:
    """Say whether a version failed to answer; Azure says 424 for all that is not 200, also where a client was wrong."""
    return status[:1] == "5" or status == "408" or (status == "424" and model[:1] != "4")


def _alone(azure: Azure, name: str, stays: str) -> Iterator[Event]:
    """Give all requests to one deployment, remove the others, and forget the release: in this order."""
    there = [one["name"] for one in deployments(azure, name)]
    if stays not in there:
        raise UsageError(f"the new version of {name} is not there", hint=f"llmasos deploy back {name}")
    if own_endpoint(azure, name)["properties"].get("traffic") != {stays: ALL}:
        change(azure, name, traffic={stays: ALL})
    yield Note(f"all requests go to {stays}")
    for one in there:
        if one != stays:
            drop(azure, name, one)
            yield Note(f"removed deployment {one}")
    tags = own_endpoint(azure, name)["tags"]
    change(azure, name, tags={key: value for key, value in tags.items() if key != RELEASE})
    yield from _swept(azure, name)


def _swept(azure: Azure, name: str) -> Iterator[Event]:
    if gone := list(swept(azure, name)):
        yield Note(f"removed {', '.join(gone)}")
