"""Kubernetes: plain manifests for any cluster."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import ClassVar

from ._kubernetes import TAKES, Settings, contract, objects, secret, validated, within
from ._server import as_yaml
from .base import Contract, Deployment, Target, Validated


class Kubernetes(Target):
    """Manifests, as ``kubectl apply`` takes them."""

    hands = "_manifests"
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

    def contract(self, deployment: Deployment) -> Contract:
        """Return what the kubelet does with a pod."""
        return contract(deployment)

    def validate(self, files: Mapping[str, str]) -> Validated:
        """Hold the manifests against the schemas of Kubernetes."""
        return validated(files)


PLUGIN = Kubernetes()
