"""A release on Ray: a second application beside the old one, whose copies hand a share of their requests on to it.

An application has two names for a version, NAME and NAME-next; the new version takes the one that is free, and a route
of its own, so that it can be asked alone. The old one's copies are told what to hand on while they run
(``Replica.reconfigure``). To promote is to exchange the two routes: no copy is started anew, and no request waits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..core.environment import api_key
from ..core.errors import DeploymentError, RemoteError, UsageError
from ..core.events import Event, Note
from ._ray import (
    Now,
    asked_of,
    end_release,
    entrance,
    parts,
    reaching,
    refuse_others,
    release_of,
    tell,
    told,
    versions,
    wait_changed,
    wait_gone,
)
from .base import Counted, Deployment, Health

if TYPE_CHECKING:
    import httpx2

COUNTS = "/v1/release"
"""Where copies tell what they have counted."""
SECONDS, TRIES = 60.0, 3
"""Seconds that an answer may take, and how often what counts is asked."""
SETTLED = 3.0
"""Seconds in which every proxy has learned of a route."""


def begin(d: Deployment, files: Mapping[str, str], share: float) -> Iterator[Event]:
    """Put the new version there, with a route of its own, and without requests: ``send`` gives it its share."""
    del share
    with reaching(d.region) as http:
        now, asked = told(http), asked_of(files)
        there = versions(now, d.name)
        if not there:
            raise UsageError(f"there is no {d.name} for a new version to stand beside", hint="--apply without --canary")
        if len(there) > 1:
            raise UsageError(f"a release of {d.name} is under way", hint=f"llmasos deploy promote|back {d.name}")
        ((old,), (new,)) = there, asked["applications"]
        new["name"] = next(name for name in parts(d.name) if name != old["name"])
        new["route_prefix"] = f"/{new['name']}"
        refuse_others(now, d.name, new)
        _reached(http, now, old)
        _set(old, next=new["name"], route=old["route_prefix"])
        tell(http, now, d.name, [old, new])
        yield Note(f"told Ray Serve of application {new['name']}, asked alone below {new['route_prefix']}")


def send(name: str, region: str | None, share: float) -> None:
    """Have the old version hand on a share of its requests."""
    with reaching(region) as http:
        now = told(http)
        old, new = _both(now, name)
        counts = f"{new['name']}-{int(time.time())}"
        tell(http, now, name, [_set(old, share=share, counts=counts), new])
        wait_changed(http, old["name"])


def ask(name: str, region: str | None, path: str, body: Any) -> Any:
    """Ask the new version; see ``Target.ask``."""
    with reaching(region) as http:
        now = told(http)
        _, new = _both(now, name)
        reply = _asked(http, now, "POST", f"{new['route_prefix']}{path}", body)
        if reply.status_code != 200:
            raise DeploymentError(f"the new version answers {reply.status_code}: {reply.text[:300]}",
                                  hint=f"llmasos deploy logs {name}")  # fmt: skip
        return reply.json()


def watch(name: str, region: str | None) -> Health:
    """Return what the copies have counted."""
    with reaching(region) as http:
        now = told(http)
        old, _ = _both(now, name)
        path, why = f"{old['route_prefix'].rstrip('/')}{COUNTS}", ""
        for _ in range(TRIES):  # a copy that ends meanwhile is no reason to end a release
            try:
                reply = _asked(http, now, "GET", path)
            except DeploymentError as error:
                why = error.message
            else:
                if reply.status_code == 200 and (found := reply.json()):
                    return Health(Counted(*found["old"]), Counted(*found["new"]))
                why = f"{reply.status_code} {reply.text[:300]}"
            time.sleep(1.0)
        raise RemoteError(f"the counts of {name} cannot be read: {why}", hint=f"is {entrance(http, now)} reached?")


def promote(name: str, region: str | None) -> Iterator[Event]:
    """Give all requests to the new version, and remove the old one."""
    with reaching(region) as http:
        now = told(http)
        old, new = _both(now, name)
        if now["applications"][new["name"]]["status"] != "RUNNING":
            raise UsageError(f"the new version of {name} does not run", hint=f"llmasos deploy back {name}")
        yield from _alone(http, now, name, old, new, 1.0)


def back(name: str, region: str | None) -> Iterator[Event]:
    """Give all requests to the old version, and remove the new one."""
    with reaching(region) as http:
        now = told(http)
        old, new = _both(now, name)
        yield from _alone(http, now, name, old, new, 0.0)


# -- inside -------------------------------------------------------------------------------------------


def _alone(http: httpx2.Client, now: Now, name: str, old: dict[str, Any], new: dict[str, Any],
           share: float) -> Iterator[Event]:  # fmt: skip
    """Move all requests to one version, then take the other one away, which ends when its last requests have."""
    stays, goes = (new, old) if share else (old, new)
    stays["route_prefix"], goes["route_prefix"] = release_of(old)["route"], f"/{goes['name']}"
    _set(old, share=share)
    tell(http, now, name, [old, new])
    wait_changed(http, stays["name"])
    time.sleep(SETTLED)
    yield Note(f"all requests go to application {stays['name']}")
    tell(http, told(http), name, [end_release(stays, old)])
    wait_changed(http, stays["name"])
    wait_gone(http, [goes["name"]])
    yield Note(f"removed application {goes['name']}")


def _both(now: Now, name: str) -> list[dict[str, Any]]:
    """Return how the old and the new version are made.

    Raises:
        UsageError: no release is under way.
    """
    if len(there := versions(now, name)) == 2 and "next" in release_of(there[0]):
        return there
    raise UsageError(f"no release of {name} is under way", hint=f"llmasos deploy status {name}")


def _set(application: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """Change what the copies of an application are told of a release."""
    application["deployments"][0]["user_config"] = {**release_of(application), **changed}
    return application


def _reached(http: httpx2.Client, now: Now, old: Mapping[str, Any]) -> None:
    """Ask the old version, by which the new one will be asked too.

    Raises:
        UsageError: it wants a key.
        RemoteError: it cannot be reached from here.
    """
    path, hint = f"{old['route_prefix'].rstrip('/')}/v1/models", "LLMASOS_URL names where it is asked from here"
    try:
        reply = _asked(http, now, "GET", path)
    except DeploymentError as error:
        raise RemoteError(f"the old version cannot be asked: {error.message}", hint=hint) from error
    if reply.status_code == 401:
        raise UsageError("the new version is asked with a key of the server", hint="LLMASOS_API_KEY=lm-...")
    if reply.status_code != 200:
        raise RemoteError(f"the old version at {reply.url} answers {reply.status_code}", hint=hint)


def _asked(http: httpx2.Client, now: Now, method: str, path: str, body: Any = None) -> httpx2.Response:
    """Ask the server, by Ray's entrance.

    Raises:
        DeploymentError: there is no answer.
    """
    import httpx2

    key = api_key()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"{entrance(http, now)}{path}"
    try:
        return httpx2.request(method, url, json=body, headers=headers, timeout=SECONDS)
    except httpx2.TransportError as error:
        raise DeploymentError(f"{url} does not answer: {error or type(error).__name__}",
                              hint="llmasos deploy logs") from error  # fmt: skip
