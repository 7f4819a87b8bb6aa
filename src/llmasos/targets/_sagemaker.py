"""What SageMaker is asked by, with boto3 and its own chain of credentials: put there, looked at, removed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core import bundle
from ..core.errors import LLMasOSError, MissingExtraError, RemoteError, UsageError
from ..core.events import Event, Note
from .base import Deployment, State

GONE = (
    "Could not find",
    "does not exist",
    "NoSuchKey",
    "NoSuchBucket",
    "ObjectNotFoundException",
    "ResourceNotFound",
    "No scalable target",
)
"""What the services say of something that is not there."""
HOUR = 3600
KINDS = {"Endpoint": "endpoint", "EndpointConfig": "endpoint_config", "Model": "model"}
"""What makes an endpoint, and how boto3 calls each; each stands on those behind it."""
TAG = {"Key": "made-by", "Value": "llmasos"}
"""By which what is removed is known to have been made from here."""


def put(d: Deployment, archive: str, asked: Mapping[str, Mapping[str, Any]]) -> Iterator[Event]:
    """Upload the model, and make what the requests ask for; what is there already and is ours is made anew."""
    with reaching("put it there"):
        sagemaker, s3 = client("sagemaker", d.region), client("s3", d.region)
        for kind in KINDS:
            if (found := _found(sagemaker, kind, d.name)) and TAG not in _tags(sagemaker, found[f"{kind}Arn"]):
                raise UsageError(f"there is {kind} {d.name} already, and it was not made from here",
                                 hint="another name: --name")  # fmt: skip
        bucket, _, key = archive.removeprefix("s3://").partition("/")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.tar.gz")
            bundle.archive(Path(d.model), path)
            s3.upload_file(str(path), bucket, key)
            yield Note(f"uploaded {archive}, {path.stat().st_size / 1e6:.1f} MB")
        for kind in KINDS:  # what an earlier try has left
            if _drop(lambda: getattr(sagemaker, f"delete_{KINDS[kind]}")(**{f"{kind}Name": d.name})):  # noqa: B023
                _wait_gone(sagemaker, kind, d.name)
        for kind, verb in reversed(KINDS.items()):
            getattr(sagemaker, f"create_{verb}")(**asked[verb.replace("_", "-")], Tags=[TAG])
            yield Note(f"made {kind} {d.name}")


def scale(d: Deployment, asked: Mapping[str, Mapping[str, Any]]) -> bool:
    """Make the scaling of an endpoint that is in service, where some is asked for; say whether there is."""
    if "scaling-target" not in asked:
        return False
    with reaching("scale it"):
        scaling = client("application-autoscaling", d.region)
        scaling.register_scalable_target(**asked["scaling-target"])
        scaling.put_scaling_policy(**asked["scaling-policy"])
    return True


def state(name: str, region: str | None) -> State | None:
    """Return how an endpoint is."""
    with reaching("look at it"):
        sagemaker = client("sagemaker", region)
        found = _found(sagemaker, "Endpoint", name)
    if not found:
        return None
    word = str(found["EndpointStatus"])
    address = f"{sagemaker.meta.endpoint_url}/endpoints/{name}/invocations".replace("//api.", "//runtime.")
    return State(word, word == "InService", word == "Failed", str(found.get("FailureReason", "")), address)


def logs(name: str, region: str | None) -> Iterator[str]:
    """Yield what the containers of an endpoint have written in the last hour."""
    with reaching("read its logs"):
        pages = client("logs", region).get_paginator("filter_log_events")
        since = int((time.time() - HOUR) * 1000)
        with _unless_gone():
            for page in pages.paginate(logGroupName=f"/aws/sagemaker/Endpoints/{name}", startTime=since):
                yield from (str(event["message"]).rstrip("\n") for event in page["events"])


def remove(name: str, region: str | None) -> Iterator[str]:
    """Remove what of an endpoint is there; yield what was."""
    with reaching("remove it"):
        sagemaker = client("sagemaker", region)
        archive = None
        with _unless_gone():
            archive = sagemaker.describe_model(ModelName=name)["PrimaryContainer"].get("ModelDataUrl")
        scaling = client("application-autoscaling", region)
        what = {"ServiceNamespace": "sagemaker", "ResourceId": f"endpoint/{name}/variant/all",
                "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}  # fmt: skip
        if _drop(lambda: scaling.deregister_scalable_target(**what)):
            yield f"scaling of {name}"
        for kind, verb in KINDS.items():
            if _drop(lambda: getattr(sagemaker, f"delete_{verb}")(**{f"{kind}Name": name})):  # noqa: B023
                yield f"{kind} {name}"
        if archive:
            bucket, _, key = str(archive).removeprefix("s3://").partition("/")
            if _drop(lambda: client("s3", region).delete_object(Bucket=bucket, Key=key)):
                yield str(archive)


# -- inside -------------------------------------------------------------------------------------------


def client(service: str, region: str | None) -> Any:
    """Return a client of a service."""
    try:
        import boto3
    except ImportError as error:
        raise MissingExtraError("deploying to SageMaker", install="'llmasos[sagemaker]'") from error
    return boto3.session.Session(region_name=region).client(service)


@contextmanager
def reaching(what: str) -> Iterator[None]:
    """Turn what boto3 raises into errors of this project.

    Raises:
        UsageError: no credentials, no region, or a quota.
        RemoteError: AWS cannot be reached, or refuses.
    """
    try:
        yield
    except LLMasOSError:
        raise
    except Exception as error:
        kind, text = type(error).__name__, " ".join(str(error).split())[:300]
        if kind in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError"):
            raise UsageError("there are no credentials for AWS", hint="aws configure, or aws sso login") from error
        if kind == "NoRegionError":
            raise UsageError("no region of AWS is given", hint="--region eu-central-1, or aws configure") from error
        if kind in ("ClientError", "ResourceLimitExceeded", "S3UploadFailedError") or hasattr(error, "response"):
            if "LimitExceeded" in text:
                raise RemoteError(f"AWS refuses to {what}: {text}",
                                  hint="a larger quota, or another --instance or --region") from error  # fmt: skip
            raise RemoteError(f"AWS refuses to {what}: {text}", hint="may these credentials do it there?") from error
        if kind.endswith(("ConnectionError", "TimeoutError")):
            raise RemoteError(
                f"AWS cannot be reached: {text}", hint="is the region right, and a network there?"
            ) from error
        raise


def _found(sagemaker: Any, kind: str, name: str) -> dict[str, Any]:
    """Return what is told of something; nothing where it is not there."""
    with _unless_gone():
        return dict(getattr(sagemaker, f"describe_{KINDS[kind]}")(**{f"{kind}Name": name}))
    return {}


def _tags(sagemaker: Any, arn: str) -> list[dict[str, str]]:
    return list(sagemaker.list_tags(ResourceArn=arn)["Tags"])


def _wait_gone(sagemaker: Any, kind: str, name: str) -> None:
    until = time.monotonic() + 600
    while _found(sagemaker, kind, name):
        if time.monotonic() > until:
            raise RemoteError(f"{kind} {name} is still being removed", hint="try again in some minutes")
        time.sleep(1)


def _drop(drop: Any) -> bool:
    """Remove something; say whether it was there."""
    with _unless_gone():
        drop()
        return True
    return False


@contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not any(word in str(error) or word in type(error).__name__ for word in GONE):
            raise
