"""Azure's resource manager, asked through azure-core's own pipeline: what waits, tries again and signs is Azure's.

azure-ai-ml would be the SDK for it, but it writes to stdout while it waits, removes no model that it has registered,
and its current versions need another OpenTelemetry than ours; azure-mgmt-machinelearningservices knows no online
endpoints. What az is set to says where all is, and ``DefaultAzureCredential`` who asks.

https://learn.microsoft.com/rest/api/azureml
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from ..core import environment
from ..core.errors import LLMasOSError, MissingExtraError, RemoteError, UsageError
from .base import Deployment

PROVIDER = "Microsoft.MachineLearningServices"
VERSION = "2024-10-01"
"""Of the interface that is asked."""
LOOK = 5.0
"""Seconds between two looks at what Azure works on, where it does not say itself."""
RETRIES = 4
"""How often a request is tried again that did not come through."""
CLOUDS = {"AzureCloud": "AZURE_PUBLIC_CLOUD", "AzureChinaCloud": "AZURE_CHINA_CLOUD",
          "AzureUSGovernment": "AZURE_US_GOVERNMENT"}  # fmt: skip
"""What Azure's clouds are called by az, and by its libraries."""
TAGS = {"made-by": "llmasos"}
"""By which what is replaced or removed is known to have been made from here."""


def workspace(d: Deployment) -> str:
    """Return the workspace that a deployment goes to, as Azure's resource manager calls it.

    Raises:
        UsageError: it is neither given, nor has az one.
    """
    subscription = d.own.subscription or environment.azure_subscription()
    if not subscription:
        raise UsageError("no subscription of Azure is given",
                         hint="az login, AZURE_SUBSCRIPTION_ID, or --set subscription=ID")  # fmt: skip
    group = d.needs("group", d.own.group or environment.azure("defaults", "group"), "my-group")
    name = d.needs("workspace", d.own.workspace or environment.azure("defaults", "workspace"), "my-workspace")
    return f"/subscriptions/{subscription}/resourceGroups/{group}/providers/{PROVIDER}/workspaces/{name}"


class Cloud(NamedTuple):
    """One of Azure's clouds: where its resource manager is, for whom a token is, and who gives it."""

    manager: str
    scope: str
    authority: str | None = None


class Azure:
    """Azure's resource manager; paths are those below a workspace."""

    def __init__(self, workspace: str) -> None:
        try:
            import azure.identity
            import azure.mgmt.core
            import azure.storage.blob  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("deploying to Azure Machine Learning", install="'llmasos[azureml]'") from error
        self.workspace = workspace
        self.credential, self._client = _opened(_cloud())

    @cached_property
    def location(self) -> str:
        """The region of the workspace.

        Raises:
            UsageError: there is no such workspace.
        """
        if (told := self.found("")) is None:
            *_, group, _, _, _, name = self.workspace.split("/")
            raise UsageError(f"there is no workspace {name} in the resource group {group}",
                             hint="--set workspace=NAME and --set group=NAME, or az configure --defaults")  # fmt: skip
        return str(told["location"])

    def id(self, path: str) -> str:
        """Return how Azure calls what is at a path."""
        return f"{self.workspace}/{path}"

    def found(self, path: str) -> dict[str, Any] | None:
        """Return what is at a path; None where nothing is."""
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return dict(self.send("GET", path))
        except ResourceNotFoundError:
            return None

    def every(self, path: str) -> list[dict[str, Any]]:
        """Return all of a list, which comes in pages; none where it is not there."""
        page, found = self.found(path), list[dict[str, Any]]()
        while page is not None:
            found += page["value"]
            page = self.found(page["nextLink"]) if page.get("nextLink") else None
        return found

    def send(self, verb: str, path: str, body: Any = None, query: Mapping[str, str] | None = None) -> Any:
        """Ask, and return the answer."""
        response = self._sent(verb, path, body, query or {}).http_response
        return response.json() if response.content else {}

    def begin(self, verb: str, path: str, body: Any = None) -> Any:
        """Ask for what takes Azure longer; return what looks at it until it is done."""
        from azure.core.polling import LROPoller
        from azure.mgmt.core.polling.arm_polling import ARMPolling

        return LROPoller(self._client, self._sent(verb, path, body, {}), lambda _: None, ARMPolling(LOOK))

    def done(self, verb: str, path: str, body: Any = None) -> None:
        """Ask for what takes Azure longer, and wait for it."""
        self.begin(verb, path, body).result()

    def _sent(self, verb: str, path: str, body: Any, query: Mapping[str, str]) -> Any:
        from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
        from azure.core.rest import HttpRequest

        whole = "://" in path  # a page that Azure itself has named
        url = path if whole else self._client.format_url(self.id(path).rstrip("/"))
        request = HttpRequest(verb, url, params={} if whole else {"api-version": VERSION, **query}, json=body)
        answer = self._client.send_request(request, _return_pipeline_response=True)
        if (status := answer.http_response.status_code) >= 400:
            kinds = {401: ClientAuthenticationError, 404: ResourceNotFoundError}
            raise kinds.get(status, HttpResponseError)(response=answer.http_response)
        return answer


@contextmanager
def reaching(what: str) -> Iterator[None]:
    """Turn what Azure's libraries raise into errors of this project.

    Raises:
        UsageError: no credentials, a name that is taken, or no such machine.
        RemoteError: Azure cannot be reached, or refuses.
    """
    try:
        yield
    except LLMasOSError:
        raise
    except Exception as error:
        kind, text, status = type(error).__name__, told(error), getattr(error, "status_code", None)
        if kind in ("CredentialUnavailableError", "ClientAuthenticationError") and status is None:
            raise UsageError(f"there are no credentials for Azure: {text}",
                             hint="az login, or the variables of a service principal") from error  # fmt: skip
        if status is not None:
            if "quota" in text.lower():
                raise RemoteError(f"Azure refuses to {what}: {text}",
                                  hint="a larger quota, or another --instance") from error  # fmt: skip
            if _MACHINE.search(text):
                raise UsageError(f"Azure has no such machine there: {text}",
                                 hint="another --instance, or a workspace elsewhere") from error  # fmt: skip
            if status < 500 and _TAKEN.search(text):
                raise UsageError(f"the name is taken: {text}", hint="another name: --name") from error
            raise RemoteError(f"Azure refuses to {what}: {text}",
                              hint="may these credentials do it there?") from error  # fmt: skip
        if kind.startswith(("ServiceRequest", "ServiceResponse")):
            raise RemoteError(f"Azure cannot be reached: {text}", hint="is a network there?") from error
        raise


_MACHINE = re.compile(r"sku|vm ?size|instance ?type", re.IGNORECASE)
_TAKEN = re.compile(r"already (?:taken|in use|exists|used)|is taken|not available", re.IGNORECASE)


def told(error: Exception) -> str:
    """Return what an error says, in a line, without the signature of an address."""
    text = " ".join(str(getattr(error, "message", "") or error).split())
    text = re.sub(r"(\((\S+)\) (.+?)) Code: \2 Message: \3", r"\1", text)  # says it twice
    return re.sub(r"\bsig=[^&\s'\")]+", "sig=...", text)[:300]


def is_ours(tags: Mapping[str, str] | None) -> bool:
    """Say whether something was made from here."""
    return TAGS.items() <= dict(tags or {}).items()


# -- inside -------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _opened(cloud: Cloud) -> tuple[Any, Any]:
    """Return who asks, and what asks; kept, for a token may come from a program that takes a second."""
    from azure.core import PipelineClient
    from azure.core.pipeline import policies
    from azure.identity import DefaultAzureCredential
    from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy

    logging.getLogger("azure.identity").setLevel(logging.ERROR)  # what it warns of is told as an error
    credential = DefaultAzureCredential(**({"authority": cloud.authority} if cloud.authority else {}))
    return credential, PipelineClient(cloud.manager, policies=[
        policies.RequestIdPolicy(), policies.HeadersPolicy(), policies.UserAgentPolicy("llmasos"),
        policies.RedirectPolicy(), policies.RetryPolicy(retry_total=RETRIES),
        ARMChallengeAuthenticationPolicy(credential, cloud.scope),
    ])  # fmt: skip


def _cloud() -> Cloud:
    """Return the cloud that az is set to.

    Raises:
        UsageError: az does not know it.
    """
    from azure.core import AzureClouds
    from azure.identity import AzureAuthorityHosts
    from azure.mgmt.core.tools import get_arm_endpoints

    name = environment.azure("cloud", "name") or "AzureCloud"
    if name in CLOUDS:
        found = get_arm_endpoints(AzureClouds[CLOUDS[name]])
        authority = getattr(AzureAuthorityHosts, _AUTHORITIES[name]) if name in _AUTHORITIES else None
        return Cloud(found["resource_manager"], found["credential_scopes"][0], authority)
    known = environment.azure_file("clouds.config")
    manager = known.get(name, "endpoint_resource_manager", fallback="")
    if not manager:
        raise UsageError(f"there is no cloud {name!r}", hint="az cloud list tells them, az cloud set sets one")
    audience = known.get(name, "endpoint_active_directory_resource_id", fallback=manager)
    authority = known.get(name, "endpoint_active_directory", fallback="") or None
    return Cloud(manager, f"{audience.rstrip('/')}/.default", authority)


_AUTHORITIES = {"AzureChinaCloud": "AZURE_CHINA", "AzureUSGovernment": "AZURE_GOVERNMENT"}
