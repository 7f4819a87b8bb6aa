"""A small server that plays the API of a Kubernetes cluster for the real client: HTTP, objects, and what a test wants.

It knows discovery, server-side apply with the owners of fields, get, list by labels, removal in the foreground, logs
and the proxy of pods; a namespace, credentials, and refusals. What makes a cluster of that, its controllers, are
functions that a test gives: they see an object that was changed and make pods and states of it.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import yaml

from endpoint import listening

TOKEN, NAMESPACE, CONTEXT = "t0ken", "team", "test"
KINDS = {
    "v1": {"pods": "Pod", "services": "Service", "secrets": "Secret"},
    "apps/v1": {"deployments": "Deployment"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "serving.kserve.io/v1alpha1": {"servingruntimes": "ServingRuntime"},
    "serving.kserve.io/v1beta1": {"inferenceservices": "InferenceService"},
    "serving.knative.dev/v1": {"revisions": "Revision"},
}
"""Kinds by their version and the word of their paths."""

Place = tuple[str, ...]


@dataclass
class Cluster:
    """What is in the namespace, and what happens to it.

    Args:
        objects: by kind and name.
        controllers: are told of every object that was changed, and of those that are gone (None).
        refuses: a status and a text for requests, by method and kind.
        logs: of containers, by pod, container, and whether it is the one before.
        servers: addresses that pods answer at.
        asked: method and path of every request.
        lingers: how often an object is still found after its removal.
        missing: versions that this cluster does not know.
        breaks: how many connections are closed without an answer.
    """

    url: str = ""
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    controllers: list[Callable[[Cluster, str, str, dict[str, Any] | None], None]] = field(default_factory=list)
    refuses: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    logs: dict[tuple[str, str, bool], str] = field(default_factory=dict)
    servers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    lingers: int = 1
    missing: tuple[str, ...] = ()
    breaks: int = 0
    owners: dict[tuple[str, str], dict[str, set[Place]]] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.RLock)

    def kubeconfig(self, **changed: Any) -> str:
        """Return a kubeconfig that leads here."""
        context = {"cluster": "c", "user": "u", "namespace": NAMESPACE}
        return yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": CONTEXT,
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": CONTEXT, "context": context}, {"name": "other", "context": {**context, "user": "x"}}],
            **changed,
        })  # fmt: skip

    def names(self) -> list[str]:
        """Return what is there besides pods and secrets, as KIND NAME."""
        return sorted(f"{kind} {name}" for kind, name in self.objects if kind not in ("Pod", "Secret", "Revision"))

    def add(self, kind: str, name: str, **content: Any) -> dict[str, Any]:
        """Put an object there, past all rules; return it."""
        version = next(version for version, kinds in KINDS.items() if kind in kinds.values())
        made = {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}}
        merge(made, content)
        self.objects[kind, name] = made
        return made

    def changed(self, kind: str, name: str) -> None:
        """Tell the controllers."""
        for controller in self.controllers:
            controller(self, kind, name, self.objects.get((kind, name)))

    def apply(self, kind: str, name: str, body: dict[str, Any], manager: str) -> tuple[int, Any]:
        """Apply an object as a manager of its fields."""
        live = copy.deepcopy(self.objects.get((kind, name)))
        owners = self.owners.setdefault((kind, name), {})
        wanted = dict(leaves(body))
        if live is not None:
            has = dict(leaves(live))
            for other, paths in owners.items():
                both = [path for path in paths & wanted.keys() if has.get(path) != wanted[path]]
                if other != manager and both:
                    fields = ", ".join("." + ".".join(path) for path in sorted(both))
                    return 409, f'Apply failed with 1 conflict: conflict with "{other}": {fields}'
        made = live or {"metadata": {"namespace": NAMESPACE, "generation": 0}}
        taken = set().union(*(paths for other, paths in owners.items() if other != manager))
        for path in owners.get(manager, set()) - wanted.keys() - taken:
            cut(made, path)
        before = copy.deepcopy(made.get("spec"))
        merge(made, body)
        made["metadata"]["generation"] += made.get("spec") != before
        owners[manager] = set(wanted)
        self.objects[kind, name] = made
        self.changed(kind, name)
        return 200, made

    def edit(self, kind: str, name: str, path: Place, value: Any) -> None:
        """Change a field as somebody else."""
        at = self.objects[kind, name]
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = value
        for paths in self.owners[kind, name].values():
            paths.discard(path)
        self.owners[kind, name].setdefault("kubectl-edit", set()).add(path)

    def remove(self, kind: str, name: str) -> None:
        """Remove an object, past all rules."""
        self.objects.pop((kind, name))
        self.owners.pop((kind, name), None)
        self.changed(kind, name)


def leaves(content: Mapping[str, Any], at: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield the fields of an object; a list is one."""
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*at, name))
        elif (*at, name) not in (("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")):
            yield (*at, name), value


def merge(made: dict[str, Any], body: Mapping[str, Any]) -> None:
    """Put the fields of one object into another."""
    for name, value in body.items():
        if isinstance(value, dict) and isinstance(made.get(name), dict):
            merge(made[name], value)
        else:
            made[name] = copy.deepcopy(value)


def cut(made: dict[str, Any], path: Place) -> None:
    """Take a field out of an object."""
    for part in path[:-1]:
        made = made.get(part, {})
    made.pop(path[-1], None)


def pod(name: str, labels: Mapping[str, str], container: str, **state: Any) -> dict[str, Any]:
    """Return a pod; it is ready unless a state of its container is given."""
    own = {"name": container, **(state or {"state": {"running": {}}})}
    ready = "False" if state else "True"
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": dict(labels)},
        "status": {"conditions": [{"type": "Ready", "status": ready}], "containerStatuses": [own]},
    }  # fmt: skip


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Run a cluster's API until the block ends."""
    state = Cluster()

    class Handler(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

        def log_message(self, *_: Any) -> None:
            pass

        def answered(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            state.asked.append((self.command, self.path))
            if state.breaks:
                state.breaks -= 1
                self.close_connection = True
                return None
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.refuse(401, "Unauthorized")
            with state.lock:
                found = route(state, self, body)
            if found is None:
                return None
            status, content = found
            return self.refuse(status, content) if status >= 400 else self.answer(status, json.dumps(content))

        do_GET = do_PATCH = do_DELETE = do_POST = answered

        def refuse(self, status: int, text: str) -> None:
            told = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": text, "code": status}
            self.answer(status, json.dumps(told))

        def answer(self, status: int, text: str, kind: str = "application/json") -> None:
            whole = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole)

    with listening(Handler) as state.url:
        yield state


def route(state: Cluster, request: Any, body: bytes) -> tuple[int, Any] | None:
    """Answer a request; None where it was answered."""
    parts, query = urlsplit(request.path).path.strip("/").split("/"), parse_qs(urlsplit(request.path).query)
    if parts == ["version"]:
        return 200, {"major": "1", "minor": "30", "gitVersion": "v1.30.0"}
    known = {version: kinds for version, kinds in KINDS.items() if version not in state.missing}
    if parts == ["apis"]:
        return 200, {"kind": "APIGroupList", "groups": groups(known)}
    version, rest = ("v1", parts[2:]) if parts[0] == "api" else ("/".join(parts[1:3]), parts[3:])
    if version not in known:
        return 404, "the server could not find the requested resource"
    if not rest:
        verbs = ["get", "list", "patch", "delete", "create"]
        listed = [{"name": plural, "kind": kind, "namespaced": True, "singularName": kind.lower(), "verbs": verbs}
                  for plural, kind in known[version].items()]  # fmt: skip
        return 200, {"kind": "APIResourceList", "groupVersion": version, "resources": listed}
    _, namespace, plural, *named = rest
    kind = known[version][plural]
    if (request.command, kind) in state.refuses:
        return state.refuses[request.command, kind]
    if namespace != NAMESPACE and request.command == "PATCH":
        return 404, f'namespaces "{namespace}" not found'
    if namespace != NAMESPACE:
        return (404, f'{plural} "{named[0]}" not found') if named else (200, selected(Cluster(), version, kind, ""))
    if not named:
        return 200, selected(state, version, kind, query.get("labelSelector", [""])[0])
    if len(named) > 1:
        return of_pod(state, request, named, query, body)
    return of_object(state, request, kind, named[0], query, body)


def of_object(state: Cluster, request: Any, kind: str, name: str, query: Any, body: bytes) -> tuple[int, Any]:
    """Get, apply or remove an object."""
    if request.command == "PATCH":
        assert request.headers["Content-Type"] == "application/apply-patch+yaml"
        assert "force" not in query
        return state.apply(kind, name, json.loads(body), query["fieldManager"][0])
    found = state.objects.get((kind, name))
    if found is None:
        return 404, f'{kind.lower()} "{name}" not found'
    if request.command == "DELETE":
        assert json.loads(body)["propagationPolicy"] == "Foreground"
        found["metadata"]["deletionTimestamp"] = state.lingers
        return 200, {"kind": "Status", "status": "Success"}
    if (left := found["metadata"].get("deletionTimestamp")) is not None:
        if not left:
            state.remove(kind, name)
            return 404, f'{kind.lower()} "{name}" not found'
        found["metadata"]["deletionTimestamp"] -= 1
    if "PartialObjectMetadata" in request.headers["Accept"]:
        return 200, {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": found["metadata"]}
    assert kind != "Secret", "what a secret holds need not be known"
    return 200, found


def of_pod(state: Cluster, request: Any, named: list[str], query: Any, body: bytes) -> tuple[int, Any] | None:
    """Answer with a log, or with what a pod's own server says; it does not see who asked the cluster."""
    name, _, port = named[0].partition(":")
    if ("Pod", name) not in state.objects:
        return 404, f'pods "{name}" not found'
    if named[1] == "log":
        text = state.logs.get((name, query["container"][0], query["previous"][0] == "true"))
        if text is None:
            return 400, "container is waiting to start"
        last = text.splitlines(keepends=True)[-int(query["tailLines"][0]) :]
        request.answer(200, "".join(last), "text/plain")
        return None
    assert port.isdigit()
    headers = {key: value for key, value in request.headers.items() if key.lower() in ("x-api-key", "content-type")}
    url = f"{state.servers[name]}/{'/'.join(named[2:])}"
    try:
        reply = httpx2.request(request.command, url, headers=headers, content=body or None, timeout=60)
    except httpx2.TransportError as error:
        return 503, f"error trying to reach service: {error}"
    request.answer(reply.status_code, reply.text, reply.headers.get("content-type", "text/plain"))
    return None


def selected(state: Cluster, version: str, kind: str, selector: str) -> dict[str, Any]:
    """Return the objects of a kind that have labels."""
    wanted = dict(part.split("=") for part in selector.split(",") if part)
    items = [one for (known, _), one in state.objects.items()
             if known == kind and wanted.items() <= (one["metadata"].get("labels") or {}).items()]  # fmt: skip
    return {"apiVersion": version, "kind": f"{kind}List", "metadata": {}, "items": items}


def groups(known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of versions, as discovery tells them."""
    found: dict[str, list[dict[str, str]]] = {}
    for version in known:
        if "/" in version:
            group, short = version.split("/")
            found.setdefault(group, []).append({"groupVersion": version, "version": short})
    return [{"name": name, "versions": versions, "preferredVersion": versions[0]} for name, versions in found.items()]
