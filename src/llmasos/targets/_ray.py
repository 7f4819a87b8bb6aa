"""What a Ray cluster is asked by: the REST of Ray Serve at its dashboard. Put there, looked at, removed.

That REST is told all applications of a cluster at once, and deletes what it is not told of. So what others have there
is read and told again as it is, which changes nothing for it; only nobody else may change something in that moment.

https://docs.ray.io/en/latest/serve/api/index.html#serve-rest-api
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from ..core.environment import ray_token, server_is_named, server_url
from ..core.errors import RemoteError, UsageError
from ..core.events import Event, Note
from .base import Deployment, State, await_done

if TYPE_CHECKING:
    import httpx2

APPLICATIONS, LOGS = "/api/serve/applications/", "/api/v0/logs/file"
MADE = "llmasos.replicas:application_of"
"""By which an application is known to have been made from here."""
NEXT = "-next"
"""What the name of another version ends with."""
KEPT = ("proxy_location", "http_options", "grpc_options", "target_capacity")
"""What Ray Serve is told again as it is there, besides applications."""
ORDER = ("DEPLOY_FAILED", "DELETING", "NOT_STARTED", "DEPLOYING", "UNHEALTHY", "RUNNING")
"""Ray's words for an application; two versions are as the worse one is."""
LIMIT, LOOK, LINES = 600.0, 0.5, 200
"""Seconds that Ray may take to change something, and between two looks; lines of a copy's log that are shown."""

Now = Mapping[str, Any]
"""What Ray Serve tells of itself and its applications."""


def put(d: Deployment, files: Mapping[str, str]) -> Iterator[Event]:
    """Tell Ray Serve of the application; one that is there and was made from here is updated, copy by copy."""
    with reaching(d.region) as http:
        now, asked = told(http), asked_of(files)
        there = versions(now, d.name)
        if len(there) > 1:
            raise UsageError(f"a release of {d.name} is under way", hint=f"llmasos deploy promote|back {d.name}")
        (application,) = asked["applications"]
        application["name"] = there[0]["name"] if there else d.name
        refuse_others(now, d.name, application)
        tell(http, now, d.name, [application], asked)
        if (port := port_of(told(http))) != d.port:
            yield Note(f"Ray Serve listens on port {port} there already, so port={d.port} does nothing", "warning")
        yield Note(f"told Ray Serve of application {application['name']}")


def there(name: str, region: str | None) -> dict[str, str]:
    """Return what an application that answers is made of, as ``put`` takes it; nothing where none does."""
    with reaching(region) as http:
        now = told(http)
        made = versions(now, name)
    if len(made) != 1 or now["applications"][made[0]["name"]]["status"] != "RUNNING":
        return {}
    return {"serve.yaml": yaml.safe_dump({"applications": made})}


def state(name: str, region: str | None) -> State | None:
    """Return how an application is, both versions of it during a release."""
    with reaching(region) as http:
        now = told(http)
        made = versions(now, name)
        if not made:
            return State("DELETING") if _ended(now, name) else None
        there = [now["applications"][one["name"]] for one in made]
        worst = min(there, key=lambda one: ORDER.index(one["status"]))
        word, parts = worst["status"], (worst, *worst["deployments"].values())
        why = "; ".join(dict.fromkeys(one["message"].strip() for one in parts if one["message"]))
        route = release_of(made[0]).get("route", made[0]["route_prefix"])
        address = f"{entrance(http, now)}{route}".rstrip("/")
        return State(word, word == "RUNNING", word == "DEPLOY_FAILED", why, address)


def logs(name: str, region: str | None) -> Iterator[str]:
    """Yield the end of what each copy has written, of those too that died lately."""
    with reaching(region) as http:
        now = told(http)
        for one in versions(now, name):
            for deployment in now["applications"][one["name"]]["deployments"].values():
                for copy in (*deployment.get("recent_dead_replicas", ()), *deployment["replicas"]):
                    yield from _written(http, copy)


def remove(name: str, region: str | None) -> Iterator[str]:
    """Remove the application, and wait until its last requests have ended."""
    with reaching(region) as http:
        now = told(http)
        there = versions(now, name)
        gone = [one["name"] for one in there]
        if len(there) > 1:
            tell(http, now, name, [end_release(there[0], there[0]), there[1]])
            wait_changed(http, gone[0])
        if there:
            tell(http, told(http), name, [])
        wait_gone(http, [*gone, *_ended(now, name)])
        yield from (f"application {one}" for one in gone)


# -- a cluster ----------------------------------------------------------------------------------------


@contextmanager
def reaching(address: str | None) -> Iterator[httpx2.Client]:
    """Give a client of a cluster's dashboard.

    Raises:
        UsageError: the address is none, or the cluster wants a token.
        RemoteError: it cannot be reached, or refuses.
    """
    import httpx2

    url = urlsplit(address or "")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(f"address={address!r} is not that of a Ray dashboard", hint="such as http://head:8265")
    token = ray_token()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx2.Client(base_url=str(address), headers=headers, timeout=120.0) as http:
            yield http
    except httpx2.TransportError as error:
        raise RemoteError(f"Ray's dashboard at {address} cannot be reached: {error or type(error).__name__}",
                          hint="--set address=http://HEAD:8265, or RAY_API_SERVER_ADDRESS") from error  # fmt: skip


def told(http: httpx2.Client) -> Now:
    """Return what Ray Serve tells of itself."""
    now: Now = _checked(http, http.get(APPLICATIONS)).json()
    return now


def tell(http: httpx2.Client, now: Now, name: str, ours: Sequence[Mapping[str, Any]],
         asked: Mapping[str, Any] | None = None) -> None:  # fmt: skip
    """Tell Ray Serve which applications of a name there are to be, and all others as they are.

    ``asked``: how it is to listen where it does not yet.

    Raises:
        RemoteError: it refuses, or does not tell how the others are made.
    """
    others = []
    for one in now["applications"].values():
        if one["name"] in parts(name) or one["source"] != "declarative" or one["status"] == "DELETING":
            continue
        if not one["deployed_app_config"]:
            raise RemoteError(f"Ray does not tell how {one['name']} is made, which would be deleted", hint="try again")
        others.append(one["deployed_app_config"])
    kept = {one: now[one] for one in KEPT if now.get(one) is not None}
    _checked(http, http.put(APPLICATIONS, json={**(asked or {}), **kept, "applications": [*others, *ours]}))


def versions(now: Now, name: str) -> list[dict[str, Any]]:
    """Return how the versions of an application are made that were made from here, the old one first."""
    found = [_made(now, one) for one in parts(name)]
    there = [one for one in found if one.get("import_path") == MADE]
    return sorted(there, key=lambda one: "next" not in release_of(one))


def release_of(application: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the copies of an application were told of a release; see ``Replica.reconfigure``."""
    return dict(application["deployments"][0].get("user_config") or {})


def parts(name: str) -> tuple[str, str]:
    """Return the names that versions of an application have."""
    return name, f"{name}{NEXT}"


def refuse_others(now: Now, name: str, application: Mapping[str, Any]) -> None:
    """Refuse a name or a route that something has which was not made from here."""
    for one in now["applications"].values():
        ours = one["name"] in parts(name) and (_made(now, one["name"]).get("import_path") == MADE
                                               or one["status"] == "DELETING")  # fmt: skip
        if one["name"] == application["name"] and not ours:
            raise UsageError(f"there is application {one['name']} already, and it was not made from here",
                             hint="another name: --name")  # fmt: skip
        if one["route_prefix"] == application["route_prefix"] and not ours:
            raise UsageError(f"the route {one['route_prefix']} is that of application {one['name']} there",
                             hint="another route: --set route=/mine")  # fmt: skip


def asked_of(files: Mapping[str, str]) -> dict[str, Any]:
    """Return what was rendered."""
    return dict(yaml.safe_load(files["serve.yaml"]))


def entrance(http: httpx2.Client, now: Now) -> str:
    """Return where applications are asked: ``LLMASOS_URL``, else the port of Ray Serve at the dashboard's host."""
    if server_is_named():
        return server_url().rstrip("/")
    host = http.base_url.host
    return f"{http.base_url.scheme}://{f'[{host}]' if ':' in host else host}:{port_of(now)}"


def port_of(now: Now) -> int:
    """Return the port of Ray Serve."""
    return int((now.get("http_options") or {}).get("port", 8000))


def wait(http: httpx2.Client, until: Callable[[Now], bool], what: str) -> None:
    """Wait until Ray has done something.

    Raises:
        RemoteError: it takes too long.
    """
    still = f"{what} {LIMIT:g} s after it was asked for"
    await_done(lambda: until(told(http)), still, limit=LIMIT, look=LOOK, hint="serve status tells more")


def end_release(application: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Have the copies of an application, which alone is left, forget a release and what was counted in it."""
    application["deployments"][0]["user_config"] = {"ended": release_of(old).get("counts", "")}
    return application


def wait_changed(http: httpx2.Client, name: str) -> None:
    """Wait until all copies of an application know what they were told."""
    busy = ("NOT_STARTED", "DEPLOYING")
    wait(http, lambda now: now["applications"][name]["status"] not in busy, f"{name} is still being changed")


def wait_gone(http: httpx2.Client, names: Sequence[str]) -> None:
    """Wait until applications are gone, which they are when their last requests have ended."""
    wait(http, lambda now: not set(names) & set(now["applications"]), f"{', '.join(names)} is still being removed")


# -- inside -------------------------------------------------------------------------------------------


def _made(now: Now, name: str) -> dict[str, Any]:
    return dict((now["applications"].get(name) or {}).get("deployed_app_config") or {})


def _ended(now: Now, name: str) -> list[str]:
    """Return the names under which something is ending; how it was made is not told any more."""
    there = now["applications"]
    return [one for one in parts(name) if one in there and there[one]["status"] == "DELETING"]


def _checked(http: httpx2.Client, reply: httpx2.Response) -> httpx2.Response:
    """Return a reply.

    Raises:
        UsageError: the cluster wants a token.
        RemoteError: Ray refuses.
    """
    if reply.status_code == 200:
        return reply
    if reply.status_code in (401, 403):
        raise UsageError(f"the cluster at {http.base_url} wants another token",
                         hint="RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, as for Ray's own commands")  # fmt: skip
    text = " ".join(reply.text.split())[-300:]
    raise RemoteError(f"Ray at {http.base_url} answers {reply.status_code}: {text}",
                      hint="is it the dashboard of a cluster with ray[serve]?")  # fmt: skip


def _written(http: httpx2.Client, copy: Mapping[str, Any]) -> Iterator[str]:
    """Yield the end of what a copy has written; nothing where its machine is gone."""
    if not copy.get("actor_id"):
        return
    reply = http.get(LOGS, params={"actor_id": copy["actor_id"], "suffix": "err", "lines": LINES})
    if reply.status_code == 200:
        yield from (line for line in reply.text.splitlines() if not line.startswith((":job_id:", ":actor_name:")))
