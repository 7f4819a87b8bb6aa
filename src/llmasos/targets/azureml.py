"""Azure Machine Learning: a managed online endpoint of one's own container.

https://learn.microsoft.com/azure/machine-learning/how-to-deploy-custom-container
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from shlex import quote
from typing import Any, ClassVar

from ..core.config import Config, option
from ..core.errors import UsageError
from ..core.events import Event
from ._azure import TAGS, workspace
from ._server import OPENING, as_yaml, build, computing, dockerfile
from .base import SERVER, Contract, Deployment, Probe, Target, Validated, listed

MODEL = "/var/azureml-app/azureml-models"
"""Where Azure puts models, each in a folder of its name and version."""
PERIOD, PATIENCE, ANSWER, GRACE = 10, 2, 60, 30
"""Seconds between two probes, and for one; for an answer; and for the end."""
BEFORE, LONGEST = "before", 32
"""The file that names the deployment which goes on; letters of an endpoint's name."""


@dataclass(frozen=True)
class Settings(Config):
    """Options of Azure Machine Learning."""

    deployment: str = option("blue", "name of the deployment behind the endpoint")
    at_once: int = option(64, "requests that a copy is sent at once", least=1)
    workspace: str | None = option(None, "workspace; the one that az is set to if not given")
    group: str | None = option(None, "resource group; the one that az is set to if not given")
    subscription: str | None = option(None, "subscription; the one that az is set to if not given")


class AzureML(Target):
    """An endpoint, and a deployment behind it."""

    hands, releases = "_azureml", "_azureml_release"
    requires = ("azure.mgmt.core", "azure.identity", "azure.storage.blob")
    extra = "azureml"

    name = "azureml"
    about = "a managed online endpoint of Azure Machine Learning"
    takes: ClassVar[tuple[str, ...]] = (*SERVER, "name", "image", "replicas", "gpu", "port", "instance")
    settings = Settings

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return what builds the image, and the two definitions as az reads them."""
        d = deployment
        endpoint = {"name": d.name, "auth_mode": "key", "tags": TAGS}
        return {
            "Dockerfile": dockerfile(d, _words(d), probe=False, environment=_environment()),
            ".dockerignore": "*\n!Dockerfile\n!*.whl\n",
            "endpoint.yml": as_yaml(endpoint),
            "deployment.yml": as_yaml(_deployment(d)),
        }

    def steps(self, deployment: Deployment, folder: str) -> list[str]:
        """Build and push, create."""
        d = deployment
        where = f" --resource-group {quote(d.own.group)}" if d.own.group else ""
        where += f" --workspace-name {quote(d.own.workspace)}" if d.own.workspace else ""
        where += f" --subscription {quote(d.own.subscription)}" if d.own.subscription else ""
        return [
            build(d, folder), f"docker push {quote(d.image)}",
            f"az ml online-endpoint create{where} --file {quote(folder)}/endpoint.yml",
            f"az ml online-deployment create{where} --file {quote(folder)}/deployment.yml --all-traffic",
        ]  # fmt: skip

    def validate(self, files: Mapping[str, str]) -> Validated:
        """Let azure-ai-ml read both definitions, as az does."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                from azure.ai.ml import load_online_deployment, load_online_endpoint
                from azure.ai.ml._version import VERSION
            except ImportError:  # also where marshmallow is too new for it
                return Validated("azure-ai-ml", missing="pip install azure-ai-ml 'marshmallow<4'")
            problems = []
            for name, load in (("endpoint.yml", load_online_endpoint), ("deployment.yml", load_online_deployment)):
                try:
                    load(StringIO(files[name]))
                except Exception as error:
                    problems.append(f"{name}: {' '.join(str(error).split())[:300]}")
        return Validated(f"azure-ai-ml {VERSION}", tuple(problems))

    def where(self, deployment: Deployment) -> str:
        """Return the workspace; see ``Target.where``."""
        return workspace(deployment)

    def there(self, name: str, region: str | None) -> Mapping[str, str]:
        """Return the name of the deployment that goes on until the next is ready; see ``Target.there``."""
        from ._azureml import answering

        return {BEFORE: called} if (called := answering(name, region)) else {}

    def apply(self, deployment: Deployment, files: Mapping[str, str]) -> Iterator[Event]:
        """Send the model, and make endpoint and deployment; see ``Target.apply``."""
        from ._azureml import applied
        from ._azureml_release import back

        if BEFORE in files:
            yield from back(deployment.name, deployment.region)
            return
        if not 3 <= len(deployment.name) <= LONGEST:
            raise UsageError(f"name={deployment.name!r}", hint=f"a name of 3 to {LONGEST} letters: --name")
        if "/" not in deployment.image:
            raise UsageError(f"image={deployment.image!r} is in no registry that Azure reaches",
                             hint="build and push it, as --render tells, and name it with --image")  # fmt: skip
        yield from applied(deployment, files)

    def finish(self, deployment: Deployment, files: Mapping[str, str]) -> Iterator[Event]:
        """Send requests to what is ready now, and takes all."""
        from ._azureml_release import opened

        del files
        yield from opened(deployment)

    def contract(self, deployment: Deployment) -> Contract:
        """Return what Azure does with a container."""
        d, folder = deployment, f"{MODEL}/{deployment.name}/1"
        probe = Probe("/", PATIENCE, OPENING)
        return Contract(
            words=tuple(_words(d)), model=folder, port=d.port, ready=probe, live=probe,
            ask=listed("/score", ANSWER, "input_data"), grace=GRACE,
            environment={**_environment(), "AZUREML_MODEL_DIR": folder}, closed=("/v1/models", "/docs", "/metrics"),
        )  # fmt: skip


def _words(d: Deployment) -> list[str]:
    return ["serve", "--port", str(d.port), *computing(d)]


def _environment() -> Mapping[str, str]:
    return {"LLMASOS_BEHIND": "azureml", "LLMASOS_HOME": "/tmp/llmasos", "HF_HUB_OFFLINE": "1"}


def _deployment(d: Deployment) -> dict[str, Any]:
    probe = {"initial_delay": PERIOD, "period": PERIOD, "timeout": PATIENCE, "success_threshold": 1,
             "failure_threshold": OPENING // PERIOD}  # fmt: skip
    routes = {"liveness_route": "/", "readiness_route": "/", "scoring_route": "/score"}
    return {
        "name": d.own.deployment, "endpoint_name": d.name, "model": {"name": d.name, "version": 1, "path": d.model},
        "environment": {
            "image": d.image,
            "inference_config": {name: {"path": path, "port": d.port} for name, path in routes.items()},
        },
        "environment_variables": _environment(),
        "instance_type": d.instance or ("Standard_NC4as_T4_v3" if d.gpu else "Standard_DS3_v2"),
        "instance_count": d.replicas, "liveness_probe": probe, "readiness_probe": probe,
        "request_settings": {"request_timeout_ms": ANSWER * 1000,
                             "max_concurrent_requests_per_instance": d.own.at_once},
    }  # fmt: skip


PLUGIN = AzureML()
