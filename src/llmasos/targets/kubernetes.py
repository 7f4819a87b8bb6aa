"""Kubernetes: plain manifests for any cluster."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import ClassVar

from ..core.events import Event
from ._kubernetes import TAKES, Settings, contract, objects, secret, validated, within
from ._server import as_yaml
from .base import Contract, Deployment, State, Target, Validated


class Kubernetes(Target):
    """Manifests, as ``kubectl apply`` takes them."""

    applies = True
    requires = ("kubernetes",)
    extra = "kubernetes"

    name = "kubernetes"
    about = "manifests for any cluster"
    takes: ClassVar[tuple[str, ...]] = TAKES
    settings = Settings

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return a manifest a file."""
        return {f"{name}.yaml": as_yaml(one) for name, one in objects(deployment).items()}

    def steps(self, deployment: Deployment, folder: str) -> list[str]:
        """Bring keys, and apply."""
        return [secret(deployment), f"kubectl apply{within(deployment)} -f {shlex.quote(folder)}"]

    def where(self, deployment: Deployment) -> str:
        """Return namespace and context; see ``Target.where``."""
        from ._cluster import where

        return where(deployment)

    def there(self, name: str, region: str | None) -> Mapping[str, str]:
        """Return the files that the Deployment there was made of; see ``Target.there``."""
        from ._manifests import there

        return there(name, region)

    def apply(self, deployment: Deployment, files: Mapping[str, str]) -> Iterator[Event]:
        """Put the objects there; see ``Target.apply``."""
        from ._manifests import put

        yield from put(deployment, files)

    def state(self, name: str, region: str | None) -> State | None:
        """Return how the Deployment is; see ``Target.state``."""
        from ._manifests import state

        return state(name, region)

    def logs(self, name: str, region: str | None) -> Iterator[str]:
        """Yield what the pods have written; see ``Target.logs``."""
        from ._manifests import read

        yield from read(name, region)

    def remove(self, name: str, region: str | None) -> Iterator[str]:
        """Remove all objects; see ``Target.remove``."""
        from ._manifests import remove

        yield from remove(name, region)

    def contract(self, deployment: Deployment) -> Contract:
        """Return what the kubelet does with a pod."""
        return contract(deployment)

    def validate(self, files: Mapping[str, str]) -> Validated:
        """Hold the manifests against the schemas of Kubernetes."""
        return validated(files)


PLUGIN = Kubernetes()
