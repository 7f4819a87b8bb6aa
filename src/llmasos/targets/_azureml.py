"""What Azure Machine Learning is asked by: a model put into the workspace, its endpoint made, looked at, removed.

A model and an image are versions in the workspace, called by the hash of what they are, so the same one is sent once.
What no deployment needs any more is removed when the next one is ready.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Generator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..core import bundle
from ..core.errors import RemoteError, UsageError
from ..core.events import Event, Note
from . import _azure
from ._azure import TAGS, Azure, is_ours, reaching, told
from .base import Deployment, State

RELEASE = "llmasos-release"
"""Tag of an endpoint with two versions: the new one's name, its percents of the requests, and when it began."""
ALL = 100
"""Percents of the requests; of a new version that takes the old one's place as soon as it is ready."""
NAMES = ("green", "blue")
"""What a deployment is called beside one that has the name that was asked for."""
LINES = 1000
"""Of a container's log."""
LIMIT = 1800.0
"""Seconds that Azure may take to be done with a change."""
IDLE = ("Succeeded", "Failed", "Canceled")
"""What Azure calls something that it does not work on."""
KEPT = ("authMode", "traffic", "publicNetworkAccess", "description")
"""Properties of an endpoint that are told again when it is changed: Azure takes each other one's default."""
begun: dict[str, Any] = {}
"""What looks at a deployment that this process has begun to make: it alone is told why that fails."""


def applied(d: Deployment, files: Mapping[str, str]) -> Iterator[Event]:
    """Put a deployment there that takes all requests as soon as it is ready; see ``Target.apply``."""
    with reaching("put it there"):
        yield from put(d, files)


def answering(name: str, region: str | None) -> str | None:
    """Return the deployment that answers; None where none does."""
    with reaching("look at it"):
        azure = Azure(str(region))
        if (endpoint := endpoint_of(azure, name)) is None:
            return None
        now = released(endpoint)
        ready = [one["name"] for one in deployments(azure, name) if _answers(one)]
        return next((one for one in ready if not (now and one == now.new)), None)


def put(d: Deployment, files: Mapping[str, str], percent: int = ALL) -> Iterator[Event]:
    """Send the model, and make the endpoint if there is none, and a deployment: beside the one that answers already."""
    azure = Azure(str(d.region))
    endpoint, where = endpoint_of(azure, d.name), azure.location
    if percent < ALL and endpoint is None:
        raise UsageError(f"there is no {d.name} for a new version to stand beside", hint="--apply without --canary")
    old: list[str] = []
    if endpoint is not None:
        if (now := released(endpoint)) and now.percent < ALL:
            raise UsageError(f"a release of {d.name} is under way", hint=f"llmasos deploy promote|back {d.name}")
        there = deployments(azure, d.name)
        old = [one["name"] for one in there if _answers(one) and not (now and one["name"] == now.new)]
        if len(old) > 1 or (percent < ALL and not old):
            raise UsageError(f"{d.name} has {len(old)} deployments that answer",
                             hint="a new version stands beside one; remove others by Azure's tools")  # fmt: skip
        for one in there:
            if one["name"] not in old:  # what an earlier try has left
                drop(azure, d.name, one["name"])
    called = next(name for name in (d.own.deployment, *NAMES) if name not in old)
    body = deployment_body(where, yaml.safe_load(files["deployment.yml"]), (yield from sent(azure, d, files)))
    tags = {**TAGS, RELEASE: f"{called} {percent} {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"} if old else TAGS
    if endpoint is None or _state(endpoint) == "Failed":
        made = {"location": where, "identity": {"type": "SystemAssigned"}, "tags": tags}
        azure.done("PUT", f"onlineEndpoints/{d.name}", {**made, "properties": {"authMode": "Key"}})
        yield Note(f"made endpoint {d.name}")
    else:
        change(azure, d.name, tags=tags)
    path = _path(d.name, called)
    begun[azure.id(path).lower()] = azure.begin("PUT", path, body)
    yield Note(f"made deployment {called} of {d.name}")


def state(name: str, region: str | None) -> State | None:
    """Return how an endpoint and what is behind it are."""
    with reaching("look at it"):
        azure = Azure(str(region))
        endpoint = azure.found(f"onlineEndpoints/{name}")
        parts = deployments(azure, name) if endpoint else []
    if endpoint is None:
        return None
    told = [(one, _state(one)) for one in (endpoint, *parts)]
    words = [word for _, word in told if word != "Succeeded"]
    word = words[0] if words else "Succeeded" if parts else "no deployment"
    failed = [one["id"].lower() for one, word in told if word in IDLE[1:]]
    why = next(filter(None, map(_why, failed)), "")
    return State(word, word == "Succeeded", bool(failed), why, str(endpoint["properties"].get("scoringUri") or ""))


def logs(name: str, region: str | None) -> Iterator[str]:
    """Yield the end of what the containers of each deployment have written, last that of one that does not answer."""
    from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

    with reaching("show its log"):
        azure = Azure(str(region))
        for one in sorted(deployments(azure, name), key=lambda one: not _answers(one)):
            for container in ("StorageInitializer", "InferenceServer"):
                try:
                    asked = {"containerType": container, "tail": LINES}
                    text = azure.send("POST", f"{_path(name, one['name'])}/getLogs", asked)["content"]
                except ResourceNotFoundError:
                    continue
                except HttpResponseError as error:  # of a container that is not there yet
                    text = told(error)
                yield from (f"{one['name']}: {line}" for line in str(text or "").splitlines())


def remove(name: str, region: str | None) -> Iterator[str]:
    """Remove the endpoint with its deployments, the models and environments in the workspace, and the files of them."""
    with reaching("remove it"):
        azure = Azure(str(region))
        if endpoint_of(azure, name) is not None:
            done(azure, name, "DELETE", f"onlineEndpoints/{name}")
            yield f"endpoint {name}"
        yield from swept(azure, name)


# -- what releases share ------------------------------------------------------------------------------


def endpoint_of(azure: Azure, name: str) -> dict[str, Any] | None:
    """Return an endpoint; None where there is none.

    Raises:
        UsageError: it was not made from here.
    """
    found = azure.found(f"onlineEndpoints/{name}")
    if found is not None and not is_ours(found.get("tags")):
        raise UsageError(f"there is an endpoint {name} already, and it was not made from here",
                         hint="another name: --name")  # fmt: skip
    return found


def own_endpoint(azure: Azure, name: str) -> dict[str, Any]:
    """Return an endpoint that was made from here.

    Raises:
        UsageError: there is none.
    """
    if (found := endpoint_of(azure, name)) is None:
        raise UsageError(f"there is no {name}", hint=f"llmasos deploy status {name}")
    return found


class Released(NamedTuple):
    """A new version beside the old one: its name, its percents of the requests, and since when."""

    new: str
    percent: int
    since: str


def released(endpoint: Mapping[str, Any]) -> Released | None:
    """Return the new version that stands beside the old one, as the endpoint's tag says."""
    found = re.fullmatch(r"(\S+) (\d+) (\S+)", endpoint["tags"].get(RELEASE) or "")
    return Released(found[1], int(found[2]), found[3]) if found else None


def deployments(azure: Azure, name: str) -> list[dict[str, Any]]:
    """Return what is behind an endpoint."""
    return azure.every(f"onlineEndpoints/{name}/deployments")


def change(azure: Azure, name: str, *, traffic: Mapping[str, int] | None = None,
           tags: Mapping[str, str] | None = None) -> None:  # fmt: skip
    """Give an endpoint other shares of the requests, or other tags; wait until it has them."""
    endpoint = own_endpoint(azure, name)
    properties = {key: value for key in KEPT if (value := endpoint["properties"].get(key))}
    done(azure, name, "PUT", f"onlineEndpoints/{name}", {
        "location": endpoint["location"], "identity": {"type": "SystemAssigned"},
        "tags": endpoint["tags"] if tags is None else tags,
        "properties": {**properties, **({} if traffic is None else {"traffic": traffic})},
    })  # fmt: skip


def drop(azure: Azure, name: str, called: str) -> None:
    """Remove a deployment; Azure removes none that still gets requests."""
    traffic = own_endpoint(azure, name)["properties"].get("traffic") or {}
    if traffic.get(called):
        change(azure, name, traffic={one: ALL for one in traffic if one != called})
    done(azure, name, "DELETE", _path(name, called))


def done(azure: Azure, name: str, verb: str, path: str, body: Any = None) -> None:
    """Have something of an endpoint changed, and wait for it; where Azure is at another change, for that one first."""
    from azure.core.exceptions import HttpResponseError

    until, idle = time.monotonic() + LIMIT, False
    while True:
        try:
            azure.done(verb, path, body)
            return
        except HttpResponseError as error:
            if error.status_code != 409 or idle:
                raise
        if time.monotonic() > until:
            raise RemoteError(f"{name} is still being changed", hint="llmasos deploy status tells when it is done")
        idle = all(_state(one) in IDLE for one in (own_endpoint(azure, name), *deployments(azure, name)))
        time.sleep(0 if idle else _azure.LOOK)


def sent(azure: Azure, d: Deployment, files: Mapping[str, str]) -> Generator[Event, None, dict[str, str]]:
    """Bring model and image into the workspace, where they are not yet; return how Azure calls them."""
    folder = Path(d.model)
    names = [name for name in (*bundle.files_of(folder), bundle.MANIFEST) if (folder / name).is_file()]
    digests = {name: bundle.digest(folder / name) for name in sorted(names)}
    model = f"models/{d.name}/versions/{_hash(digests)}"
    if azure.found(model) is None:
        store, below = _store(azure), f"llmasos/{d.name}/{model.rpartition('/')[2]}/model"
        container, size = _container(azure, store), 0
        for name in names:
            with (folder / name).open("rb") as stream:
                container.upload_blob(f"{below}/{name}", stream, overwrite=True)
            size += (folder / name).stat().st_size
        lab = azure.workspace.replace(_BETWEEN, "/").replace("/resourceGroups/", "/resourcegroups/")
        uri = f"azureml:/{lab}/datastores/{store['name']}/paths/{below}"
        azure.send("PUT", model, {"properties": {"modelType": "custom_model", "modelUri": uri, "tags": TAGS}})
        yield Note(f"uploaded model {d.name}, {size / 1e6:.1f} MB")
    asked = yaml.safe_load(files["deployment.yml"])["environment"]
    routes = {_camel(name): route for name, route in asked["inference_config"].items()}
    content = {"image": asked["image"], "osType": "Linux", "inferenceConfig": routes}
    image = f"environments/{d.name}/versions/{_hash(content)}"
    if azure.found(image) is None:
        azure.send("PUT", image, {"properties": {**content, "tags": TAGS}})
    return {"model": azure.id(model), "environmentId": azure.id(image)}


def deployment_body(location: str, asked: Mapping[str, Any], needs: Mapping[str, str]) -> dict[str, Any]:
    """Return what Azure is asked by for a deployment that is rendered for az."""

    def probe(told: Mapping[str, Any]) -> dict[str, Any]:
        return {_camel(key): value if key.endswith("threshold") else f"PT{value}S" for key, value in told.items()}

    request = asked["request_settings"]
    return {
        "location": location, "tags": TAGS, "sku": {"name": "Default", "capacity": asked["instance_count"]},
        "properties": {
            "endpointComputeType": "Managed", **needs, "environmentVariables": asked["environment_variables"],
            "instanceType": asked["instance_type"], "scaleSettings": {"scaleType": "Default"},
            "appInsightsEnabled": False, "livenessProbe": probe(asked["liveness_probe"]),
            "readinessProbe": probe(asked["readiness_probe"]),
            "requestSettings": {
                "requestTimeout": f"PT{request['request_timeout_ms'] // 1000}S",
                "maxConcurrentRequestsPerInstance": request["max_concurrent_requests_per_instance"],
            },
        },
    }  # fmt: skip


def swept(azure: Azure, name: str) -> Iterator[str]:
    """Remove the models and images of a name that no deployment needs; yield what was removed."""
    kept = {str(one["properties"].get(key)).lower() for one in deployments(azure, name)
            for key in ("model", "environmentId")}  # fmt: skip
    for kind in ("models", "environments"):
        for one in azure.every(f"{kind}/{name}/versions"):
            path = f"{kind}/{name}/versions/{one['name']}"
            if azure.id(path).lower() in kept or not is_ours(one["properties"].get("tags")):
                continue
            if kind == "models":
                _clear(azure, one["properties"]["modelUri"])
            azure.send("DELETE", path)
            yield f"{kind[:-1]} {name}:{one['name']}"


# -- inside -------------------------------------------------------------------------------------------

_BETWEEN = "/providers/Microsoft.MachineLearningServices/"


def _path(name: str, called: str) -> str:
    return f"onlineEndpoints/{name}/deployments/{called}"


def _state(one: Mapping[str, Any]) -> str:
    return str(one["properties"].get("provisioningState") or "Creating")


def _answers(one: Mapping[str, Any]) -> bool:
    return _state(one) in ("Succeeded", "Updating", "Scaling")


def _why(called: str) -> str:
    """Return what Azure said when it gave up a deployment that this process has begun."""
    from azure.core.exceptions import AzureError

    if called not in begun or not begun[called].done():
        return ""
    try:
        begun[called].result()
    except AzureError as error:
        return told(error)
    return ""


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.title() for word in others)


def _store(azure: Azure, name: str = "") -> dict[str, Any]:
    """Return where the workspace keeps files.

    Raises:
        UsageError: it keeps them in another way than in blobs.
    """
    if name:
        found = azure.found(f"datastores/{name}")
    else:
        found = next(iter(azure.send("GET", "datastores", query={"isDefault": "true"})["value"]), None)
    if found is None or found["properties"]["datastoreType"] != "AzureBlob":
        raise UsageError("the workspace keeps its files in no blobs", hint="make a blob store its default one")
    return found


def _container(azure: Azure, store: Mapping[str, Any]) -> Any:
    """Open a store's container, by a key that the workspace gives for a while; else as who asks."""
    from azure.core.exceptions import HttpResponseError
    from azure.storage.blob import ContainerClient

    told = store["properties"]
    url = f"{told.get('protocol') or 'https'}://{told['accountName']}.blob.{told.get('endpoint') or 'core.windows.net'}"
    try:
        secret = azure.send("POST", f"datastores/{store['name']}/listSecrets", {"expirableSecret": True})
    except HttpResponseError:
        secret = {}
    credential = secret.get("sasToken") or secret.get("key") or azure.credential
    return ContainerClient(url, told["containerName"], credential=credential)


def _clear(azure: Azure, uri: str) -> None:
    """Remove the files of a model."""
    found = re.fullmatch(r".*/datastores/([^/]+)/paths/(llmasos/.+)/model/?", uri)
    if found is None:
        raise RemoteError(f"a model lies elsewhere than where it was put: {uri}", hint="remove it by hand")
    container = _container(azure, _store(azure, found[1]))
    for name in list(container.list_blob_names(name_starts_with=f"{found[2]}/")):
        container.delete_blob(name)
