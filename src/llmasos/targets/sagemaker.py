"""Amazon SageMaker: a real-time endpoint of one's own container, as the requests that make it.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from shlex import quote
from typing import Any, ClassVar

from ..core.config import Config, option
from ..core.errors import UsageError
from ..core.events import Event, Note
from ._server import as_json, build, dockerfile
from .base import Contract, Deployment, Probe, Target, listed

ROOT, PORT = "/opt/ml", 8080
"""Where SageMaker puts things, and where it looks for the server."""
PING, HEALTHY, ACCEPT, ANSWER, GRACE = 2.0, 240, 0.25, 60.0, 30.0
"""Seconds that SageMaker gives an answer of ``/ping``, the start, a connection, an answer, and the end."""
PLAIN = " --provenance=false --output type=docker"
"""How an image is built that has no OCI manifest, which SageMaker refuses."""
ENVIRONMENT = {"LLMASOS_BEHIND": "sagemaker", "LLMASOS_HOME": "/tmp/llmasos", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Settings(Config):
    """Options of SageMaker."""

    role: str | None = option(None, "ARN of the role as which the container runs; needed")
    bucket: str | None = option(None, "where model.tar.gz lies, such as s3://my-bucket/models; needed")
    invocations: int = option(600, "invocations a minute and copy, above which copies are added", least=1)


class SageMaker(Target):
    """An endpoint."""

    hands, releases = "_sagemaker", "_sagemaker_release"
    requires = ("boto3",)
    extra = "sagemaker"

    name = "sagemaker"
    about = "a real-time endpoint of Amazon SageMaker"
    takes: ClassVar[tuple[str, ...]] = ("name", "image", "replicas", "max_replicas", "gpu", "region", "instance")
    settings = Settings

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return what builds the image, and the requests by the file of each."""
        requests = {f"{name}.json": as_json(one) for name, one in _requests(deployment).items()}
        image = dockerfile(deployment, ["serve"], probe=False, environment=ENVIRONMENT)
        return {"Dockerfile": image, ".dockerignore": "*\n!Dockerfile\n!*.whl\n", **requests}

    def steps(self, deployment: Deployment, folder: str) -> list[str]:
        """Build and push, upload, create."""
        d, url = deployment, _archive(deployment)
        aws = f"aws --region {quote(d.region)}" if d.region else "aws"
        out = [
            build(d, folder, PLAIN), f"docker push {quote(d.image)}",
            f"tar --create --gzip --exclude=./run --directory {quote(d.model)} . | {aws} s3 cp - {quote(url)}",
            *(f"{aws} sagemaker create-{name} --cli-input-json file://{quote(folder)}/{name}.json"
              for name in ("model", "endpoint-config", "endpoint")),
        ]  # fmt: skip
        if d.max_replicas > d.replicas:
            scale = f"{aws} application-autoscaling"
            asked = {"register-scalable-target": "scaling-target", "put-scaling-policy": "scaling-policy"}
            out += [
                f"{scale} {verb} --cli-input-json file://{quote(folder)}/{name}.json" for verb, name in asked.items()
            ]
        return out

    def where(self, deployment: Deployment) -> str | None:
        """Return the region, that of AWS's own tools where none is given; see ``Target.where``."""
        from ._sagemaker import region_of

        return region_of(deployment)

    def apply(self, deployment: Deployment, files: Mapping[str, str]) -> Iterator[Event]:
        """Upload the model, and make model, configuration, endpoint and scaling; see ``Target.apply``."""
        from ._sagemaker import put

        if "/" not in deployment.image:
            raise UsageError(f"image={deployment.image!r} is in no registry that SageMaker reaches",
                             hint="build and push it, as --render tells, and name it with --image")  # fmt: skip
        yield from put(deployment, _archive(deployment), _asked(files))

    def finish(self, deployment: Deployment, files: Mapping[str, str]) -> Iterator[Event]:
        """Make the scaling, where some is asked for."""
        from ._sagemaker import scale

        if scale(deployment, _asked(files)):
            yield Note(f"from {deployment.replicas} to {deployment.max_replicas} instances")

    def begin(self, deployment: Deployment, files: Mapping[str, str], share: float) -> Iterator[Event]:
        """Put a second variant behind the endpoint; see ``Target.begin``."""
        from ._sagemaker_release import begin

        yield from begin(deployment, _archive, _asked(files), share)

    def contract(self, deployment: Deployment) -> Contract:
        """Return what SageMaker does with a container."""
        del deployment
        ping = Probe("/ping", PING, HEALTHY)
        return Contract(
            words=("serve",), model=f"{ROOT}/model", port=PORT, ready=ping, live=ping,
            ask=listed("/invocations", ANSWER, "inputs"), grace=GRACE, accepts=ACCEPT, environment=ENVIRONMENT,
            here={"SAGEMAKER_BASE_DIR": ROOT, "SAGEMAKER_BIND_TO_PORT": str(PORT)}, archive="model.tar.gz",
            closed=("/v1/models", "/docs", "/metrics"),
        )  # fmt: skip


def _asked(files: Mapping[str, str]) -> dict[str, Any]:
    return {name.removesuffix(".json"): json.loads(text) for name, text in files.items() if name.endswith(".json")}


def _archive(d: Deployment, name: str = "") -> str:
    bucket = d.needs("bucket", d.own.bucket, "s3://my-bucket/models")
    return f"{bucket.rstrip('/')}/{name or d.name}/model.tar.gz"


def _requests(d: Deployment) -> dict[str, dict[str, Any]]:
    role = d.needs("role", d.own.role, "arn:aws:iam::123456789012:role/sagemaker")
    container = {"Image": d.image, "ModelDataUrl": _archive(d), "Environment": ENVIRONMENT}
    variant = {
        "VariantName": "all", "ModelName": d.name, "InitialInstanceCount": d.replicas,
        "InstanceType": d.instance or ("ml.g5.xlarge" if d.gpu else "ml.c5.large"),
        "ContainerStartupHealthCheckTimeoutInSeconds": HEALTHY,
    }  # fmt: skip
    out: dict[str, dict[str, Any]] = {
        "model": {"ModelName": d.name, "ExecutionRoleArn": role, "PrimaryContainer": container,
                  "EnableNetworkIsolation": True},
        "endpoint-config": {"EndpointConfigName": d.name, "ProductionVariants": [variant]},
        "endpoint": {"EndpointName": d.name, "EndpointConfigName": d.name},
    }  # fmt: skip
    if d.max_replicas > d.replicas:
        what = {
            "ServiceNamespace": "sagemaker", "ResourceId": f"endpoint/{d.name}/variant/all",
            "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
        }  # fmt: skip
        metric = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
        out["scaling-target"] = {**what, "MinCapacity": d.replicas, "MaxCapacity": d.max_replicas}
        out["scaling-policy"] = {
            "PolicyName": d.name, **what, "PolicyType": "TargetTrackingScaling",
            "TargetTrackingScalingPolicyConfiguration": {
                "TargetValue": float(d.own.invocations), "PredefinedMetricSpecification": metric,
                "ScaleInCooldown": 300, "ScaleOutCooldown": 60,
            },
        }  # fmt: skip
    return out


PLUGIN = SageMaker()
