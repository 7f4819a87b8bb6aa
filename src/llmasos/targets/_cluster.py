"""A namespace of a Kubernetes cluster, asked with the ``kubernetes`` package and its own chain of credentials.

What is put there from here says so in a label, and nothing else is ever changed or removed. It is put there by
server-side apply: a field that somebody else has set since is a conflict, which is told, not overwritten.

https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import LLMasOSError, MissingExtraError, RemoteError, UsageError, did_you_mean
from ._kubernetes import secret
from .base import Deployment, await_done

MANAGER = "llmasos"
OURS, INSTANCE = "app.kubernetes.io/managed-by", "app.kubernetes.io/instance"
"""Labels of what was put there from here: that it was, and the deployment that it belongs to."""
VERSION, FILES = "llmasos/version", "llmasos/files"
"""The label of a version's pods, and the annotation with the files that something was made of."""
BROKEN = ("ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "CrashLoopBackOff", "CreateContainerConfigError",
          "CreateContainerError", "RunContainerError")  # fmt: skip
"""Why a container that waits will not start by itself."""
TIMEOUT = (10.0, 120.0)
"""Seconds that a connection may take, and an answer."""
HOUR, LIMIT, LOOK, TRIES = 3600, 600.0, 1.0, 3
"""Seconds of a log; those that a removal may take, and between two looks; how often a broken connection is made."""
LINES = 1000
"""Of a container's log, which is read whole."""
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where a pod finds the namespace that it is in."""


class Kind(NamedTuple):
    """A kind of object, as manifests name it."""

    version: str
    name: str


class Cluster:
    """A namespace.

    Args:
        where: it, as ``where`` returns it.
    """

    def __init__(self, where: str | None) -> None:
        self.namespace, _, context = (where or "").partition("@")
        api = _api(context)
        from kubernetes.dynamic import DynamicClient

        # it would keep what it has discovered in a folder that all may write to
        self._dynamic = DynamicClient(api, cache_file=os.path.join(os.devnull, "none"))

    def found(self, kind: Kind, name: str) -> dict[str, Any] | None:
        """Return an object; None where it is not there, or no such kind is."""
        from kubernetes.dynamic.exceptions import NotFoundError, ResourceNotFoundError

        try:
            return dict(self._kind(kind).get(name=name, namespace=self.namespace).to_dict())
        except (NotFoundError, ResourceNotFoundError):
            return None

    def listed(self, kind: Kind, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the objects that have these labels."""
        from kubernetes.dynamic.exceptions import ResourceNotFoundError

        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        try:
            found = self._kind(kind).get(namespace=self.namespace, label_selector=selector)
        except ResourceNotFoundError:
            return []
        return list(found.to_dict()["items"])

    def has(self, kind: Kind, name: str) -> bool:
        """Say whether an object is there; what it holds is not asked for."""
        from kubernetes.dynamic.exceptions import NotFoundError

        try:
            self._kind(kind).get(name=name, namespace=self.namespace, header_params={"Accept": METADATA})
        except NotFoundError:
            return False
        return True

    def pods(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the pods that have these labels and are not on their way out."""
        found = self.listed(Kind("v1", "Pod"), labels)
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    def put(self, body: Mapping[str, Any]) -> None:
        """Make an object, or change it to what it shall be.

        Raises:
            UsageError: there is no such kind, or somebody else has changed it since.
        """
        from kubernetes.dynamic.exceptions import ResourceNotFoundError

        try:
            kind = self._kind(kind_of(body))
        except ResourceNotFoundError as error:
            raise UsageError(f"this cluster has no {body['kind']} of {body['apiVersion']}",
                             hint="is what it comes with installed there?") from error  # fmt: skip
        kind.server_side_apply(body=dict(body), namespace=self.namespace, field_manager=MANAGER)

    def drop(self, kind: Kind, name: str) -> bool:
        """Remove an object with all that hangs on it, and wait until it is gone; say whether it was there."""
        from kubernetes.dynamic.exceptions import NotFoundError, ResourceNotFoundError

        foreground = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
        try:
            self._kind(kind).delete(name=name, namespace=self.namespace, body=foreground)
        except (NotFoundError, ResourceNotFoundError):
            return False
        await_done(lambda: not self.found(kind, name), f"{kind.name} {name} is still being removed", limit=LIMIT,
                   look=LOOK, hint="try again in some minutes")  # fmt: skip
        return True

    def ask(self, pod: str, port: int, path: str, body: Any = None, key: str | None = None) -> str:
        """Ask a port of a pod by way of the cluster; return what it answers.

        The cluster takes the header of authorization for itself, so a key goes in another one.
        """
        method, to = "get" if body is None else "post", f"{self._pod(pod)}:{port}/proxy{path}"
        headers = {"Accept": "*/*", **({"X-Api-Key": key} if key else {})}
        return self._text(method, to, body=body, header_params=headers, content_type="application/json")

    def log(self, pod: str, container: str, *, previous: bool) -> str:
        """Return the end of what a container has written, or of what the one has that was there before it."""
        query = [("container", container), ("sinceSeconds", HOUR), ("tailLines", LINES),
                 ("previous", str(previous).lower())]  # fmt: skip
        return self._text("get", f"{self._pod(pod)}/log", query_params=query)

    def _kind(self, kind: Kind) -> Any:
        prefix = "apis" if "/" in kind.version else "api"  # or every group with a v1 is asked for its kinds
        return self._dynamic.resources.get(prefix=prefix, api_version=kind.version, kind=kind.name)

    def _pod(self, name: str) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{name}"

    def _text(self, method: str, path: str, **how: Any) -> str:
        reply = self._dynamic.request(method, path, serialize=False, **how)
        return bytes(reply.data).decode("utf-8", "replace")


def where(d: Deployment) -> str:
    """Return the namespace and the context that a deployment goes to, NAMESPACE@CONTEXT.

    They are those that kubectl is in where none is given; in a pod of the cluster there is no context.

    Raises:
        UsageError: there is no such context, or no cluster is known here.
    """
    with reaching("find the cluster"):
        from kubernetes import config

        try:
            contexts, active = config.list_kube_config_contexts()
        except config.ConfigException:
            if not NAMESPACE.is_file() or d.own.context:
                raise
            return f"{d.own.namespace or NAMESPACE.read_text().strip()}@"
        known = {one["name"]: one["context"] for one in contexts}
        if (context := d.own.context or active["name"]) not in known:
            raise UsageError(f"there is no context {context!r}",
                             hint=f"{did_you_mean(context, known)}known: {', '.join(known)}")  # fmt: skip
        return f"{d.own.namespace or known[context].get('namespace') or 'default'}@{context}"


def bodies(files: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the objects of rendered files, each with the label of what is put there from here, by its file."""
    import yaml

    found: dict[str, dict[str, Any]] = {
        name.removesuffix(".yaml"): yaml.safe_load(text) for name, text in files.items()
    }
    for one in found.values():
        one["metadata"]["labels"] = {**one["metadata"]["labels"], OURS: MANAGER}
    return found


def kind_of(body: Mapping[str, Any]) -> Kind:
    """Return the kind of an object."""
    return Kind(body["apiVersion"], body["kind"])


def is_ours(one: Mapping[str, Any], name: str) -> bool:
    """Say whether an object was put there from here, for a deployment."""
    labels = one["metadata"].get("labels") or {}
    return labels.get(OURS) == MANAGER and labels.get(INSTANCE) == name


def own(cluster: Cluster, kind: Kind, name: str, called: str = "") -> dict[str, Any] | None:
    """Return an object of a deployment that was put there from here, under its name if not another; None for none."""
    found = cluster.found(kind, called or name)
    return found if found and is_ours(found, name) else None


def files_of(found: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the files that something remembers; none where there is none."""
    kept = ((found or {}).get("metadata", {}).get("annotations") or {}).get(FILES, "{}")
    return dict(json.loads(kept))


def version_of(*texts: str) -> str:
    """Return what tells the pods of one version from another's."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def refuse_others(cluster: Cluster, name: str, kind: Kind, called: str) -> None:
    """Refuse a name that something has which was not put there from here."""
    if (found := cluster.found(kind, called)) and not is_ours(found, name):
        raise UsageError(f"there is {kind.name} {called} already, and it was not made by --apply",
                         hint="another name: --name")  # fmt: skip


def refuse_without_keys(cluster: Cluster, d: Deployment) -> None:
    """Refuse to put servers where the secret is missing that they would wait for."""
    from kubernetes.dynamic.exceptions import ForbiddenError

    try:
        there = cluster.has(Kind("v1", "Secret"), d.keys_secret)
    except ForbiddenError:
        return  # who may not look may still put something there
    if not there:
        raise UsageError(f"there is no secret {d.keys_secret} in the namespace {cluster.namespace}", hint=secret(d))


def written(cluster: Cluster, labels: Mapping[str, str], skip: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the end of what the containers of pods have written in the last hour; of one that died, of what it had."""
    from kubernetes.dynamic.exceptions import BadRequestError, NotFoundError

    pods = cluster.pods(labels)
    for pod in pods:
        for one in containers(pod):
            if one["name"] in skip:
                continue
            name, waits = pod["metadata"]["name"], "waiting" in (one.get("state") or {})
            try:
                text = cluster.log(name, one["name"], previous=waits and bool(one.get("restartCount")))
            except (BadRequestError, NotFoundError):  # it has not begun
                continue
            yield from (f"{name}: {line}" if len(pods) > 1 else line for line in text.splitlines())


def containers(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the states of a pod's containers, in the order in which they start."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Say whether a pod answers."""
    return any(one["type"] == "Ready" and one["status"] == "True" for one in _conditions(pod))


def trouble(pods: list[dict[str, Any]]) -> tuple[bool, str]:
    """Return whether one of these pods will never start, and what Kubernetes says of those that have not."""
    for pod in pods:
        for one in containers(pod):
            waiting = (one.get("state") or {}).get("waiting") or {}
            if (reason := waiting.get("reason")) in BROKEN:
                ended = (one.get("lastState") or {}).get("terminated") or {}
                code = f", exit code {ended['exitCode']}" if "exitCode" in ended else ""
                more = f": {waiting['message']}" if waiting.get("message") else ""
                return True, f"{reason}, container {one['name']} of {pod['metadata']['name']}{code}{more}"
    for pod in pods:
        for one in _conditions(pod):
            if one["type"] == "PodScheduled" and one["status"] == "False":
                return False, str(one.get("message") or one.get("reason") or "")
    return False, ""


def _conditions(one: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list((one.get("status") or {}).get("conditions") or ())


def conditions(one: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the conditions of an object, by their type."""
    return {condition["type"]: condition for condition in _conditions(one)}


# -- credentials and errors ---------------------------------------------------------------------------


def _api(context: str) -> Any:
    """Return a client of a context; of the cluster that this machine is a pod of, where there is no kubeconfig."""
    from kubernetes import client, config

    settled = client.Configuration()
    try:
        config.load_kube_config(context=context or None, client_configuration=settled)
    except config.ConfigException:
        if context:
            raise
        config.load_incluster_config(client_configuration=settled)
    settled.retries = False  # the library's own would be told one by one
    api = client.ApiClient(settled)
    api.request = partial(_patient, api.request)
    return api


def _patient(request: Any, method: str, *args: Any, **how: Any) -> Any:
    """Ask; what only reads is asked again where the connection breaks."""
    from urllib3.exceptions import HTTPError

    how["_request_timeout"] = how.get("_request_timeout") or TIMEOUT
    left = TRIES if method == "GET" else 1
    while True:
        left -= 1
        try:
            return request(method, *args, **how)
        except HTTPError:
            if not left:
                raise
            time.sleep(LOOK)


@contextmanager
def reaching(what: str) -> Iterator[None]:
    """Turn what the package raises into errors of this project.

    Raises:
        MissingExtraError: it is not installed.
        UsageError: no cluster or no credentials, no such namespace, or somebody else has changed something.
        RemoteError: the cluster cannot be reached, or refuses.
    """
    try:
        import kubernetes  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("putting something into a cluster", install="'llmasos[kubernetes]'") from error
    from kubernetes.client.rest import ApiException
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except LLMasOSError:
        raise
    except ConfigException as error:
        raise UsageError(f"no cluster is known here: {error}",
                         hint="kubectl config get-contexts tells them; --set context=NAME") from error  # fmt: skip
    except ApiException as error:
        raise _refusal(what, error.status, _said(error)) from error
    except (HTTPError, OSError) as error:
        raise RemoteError(f"the cluster cannot be reached: {' '.join(str(error).split())[:300]}",
                          hint="kubectl get pods asks the same one") from error  # fmt: skip


def _refusal(what: str, status: int, said: str) -> LLMasOSError:
    if status == 401:
        return UsageError("the cluster does not know these credentials", hint="log in to it again")
    if status == 404 and said.startswith("namespaces "):
        return UsageError(f"there is no such namespace: {said}",
                          hint="kubectl create namespace NAME, or --set namespace=NAME")  # fmt: skip
    if status == 409:
        return UsageError(f"somebody else has changed it there: {said}",
                          hint="undo that there, or llmasos deploy rm it first")  # fmt: skip
    if "exceeded quota" in said:
        return RemoteError(f"the cluster refuses to {what}: {said}",
                           hint="a larger quota, or less: --memory, --cpus, --replicas")  # fmt: skip
    hint = "try again in some minutes" if status >= 429 else "--render DIR, and kubectl apply --dry-run=server -f DIR"
    may = "kubectl auth can-i --list tells what these credentials may do"
    return RemoteError(f"the cluster refuses to {what}: {status}, {said}", hint=may if status == 403 else hint)


def _said(error: Any) -> str:
    """Return what the cluster says with an error."""
    try:
        said = str(json.loads(error.body)["message"])
    except (ValueError, TypeError, KeyError):
        said = str(error.body or error.reason or "")
    return " ".join(said.split())[:500]
