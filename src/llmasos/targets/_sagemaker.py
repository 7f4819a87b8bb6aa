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
from .base import Deployment, State, await_done

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
NEXT, BOTH = "-next", "-canary"
"""What the names of another version end with, and that of the configuration of two versions."""
VARIANTS = ("all", "next")
"""Names of a version behind an endpoint; a new one has that which the old one has not."""
TAG = {"Key": "made-by", "Value": "llmasos"}
"""By which what is removed is known to have been made from here."""


def put(d: Deployment, archive: str, asked: Mapping[str, Mapping[str, Any]]) -> Iterator[Event]:
    """Upload the model, and make what the requests ask for; what is there already and is ours is made anew."""
    with reaching("put it there"):
        sagemaker, s3 = client("sagemaker", d.region), client("s3", d.region)
        for kind, name in parts(d.name):
            refuse_others(sagemaker, kind, name)
        yield upload(s3, d, archive)
        for kind, name in parts(d.name):  # what an earlier try has left
            if name == f"{d.name}{NEXT}" and kind == "Model":
                list(drop_model(sagemaker, s3, name))
            else:
                drop(sagemaker, kind, name)
        for kind, verb in reversed(KINDS.items()):
            getattr(sagemaker, f"create_{verb}")(**asked[verb.replace("_", "-")], Tags=[TAG])
            yield Note(f"made {kind} {d.name}")


def parts(name: str) -> list[tuple[str, str]]:
    """Return the kind and name of all that can belong to an endpoint; each stands on those behind it."""
    both = [name, f"{name}{NEXT}"]
    configs = [("EndpointConfig", one) for one in (f"{name}{BOTH}", *both)]
    return [("Endpoint", name), *configs, *(("Model", one) for one in both)]


def refuse_others(sagemaker: Any, kind: str, name: str) -> None:
    """Refuse a name that something has which was not made from here."""
    if _is_theirs(sagemaker, kind, name):
        raise UsageError(f"there is {kind} {name} already, and it was not made from here",
                         hint="another name: --name")  # fmt: skip


def upload(s3: Any, d: Deployment, archive: str) -> Note:
    """Pack the model, and send it to where it is fetched from."""
    bucket, _, key = archive.removeprefix("s3://").partition("/")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tar.gz")
        bundle.archive(Path(d.model), path)
        s3.upload_file(str(path), bucket, key)
        return Note(f"uploaded {archive}, {path.stat().st_size / 1e6:.1f} MB")


def drop(sagemaker: Any, kind: str, name: str) -> bool:
    """Remove something and wait until it is gone; say whether it was there."""
    there = _drop(lambda: getattr(sagemaker, f"delete_{KINDS[kind]}")(**{f"{kind}Name": name}))
    if there:
        _wait_gone(sagemaker, kind, name)
    return there


def drop_model(sagemaker: Any, s3: Any, name: str) -> Iterator[str]:
    """Remove a model and the archive that it is fetched from; yield what was removed."""
    url = (found_of(sagemaker, "Model", name).get("PrimaryContainer") or {}).get("ModelDataUrl")
    if drop(sagemaker, "Model", name):
        yield f"Model {name}"
    if url:
        bucket, _, key = str(url).removeprefix("s3://").partition("/")
        if _drop(lambda: s3.delete_object(Bucket=bucket, Key=key)):
            yield str(url)


def scaled(name: str, variant: str) -> dict[str, str]:
    """Return how a variant is called where copies are added."""
    return {"ServiceNamespace": "sagemaker", "ResourceId": f"endpoint/{name}/variant/{variant}",
            "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}  # fmt: skip


def unscale(name: str, variant: str, region: str | None) -> bool:
    """Remove the scaling of a variant; say whether there was some."""
    scaling = client("application-autoscaling", region)
    return _drop(lambda: scaling.deregister_scalable_target(**scaled(name, variant)))


def variants(sagemaker: Any, name: str) -> list[dict[str, Any]]:
    """Return the variants of an endpoint, the old one first; none where there is no endpoint."""
    endpoint = found_of(sagemaker, "Endpoint", name)
    config = found_of(sagemaker, "EndpointConfig", endpoint["EndpointConfigName"]) if endpoint else {}
    return list(config.get("ProductionVariants", []))


def scale(d: Deployment, asked: Mapping[str, Mapping[str, Any]]) -> bool:
    """Make the scaling of an endpoint that is in service, where some is asked for; say whether there is."""
    if "scaling-target" not in asked:
        return False
    with reaching("scale it"):
        scaling = client("application-autoscaling", d.region)
        newest = variants(client("sagemaker", d.region), d.name)[-1]["VariantName"]
        scaling.register_scalable_target(**{**asked["scaling-target"], **scaled(d.name, newest)})
        scaling.put_scaling_policy(**{**asked["scaling-policy"], **scaled(d.name, newest)})
    return True


def state(name: str, region: str | None) -> State | None:
    """Return how an endpoint is."""
    with reaching("look at it"):
        sagemaker = client("sagemaker", region)
        found = found_of(sagemaker, "Endpoint", name)
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
    """Remove what of an endpoint is there and was made from here; yield what was."""
    with reaching("remove it"):
        sagemaker, s3 = client("sagemaker", region), client("s3", region)
        ours = [(kind, one) for kind, one in parts(name) if not _is_theirs(sagemaker, kind, one)]
        named = [one["VariantName"] for one in variants(sagemaker, name)]
        if ("Endpoint", name) in ours and any([unscale(name, one, region) for one in (*VARIANTS, *named)]):
            yield f"scaling of {name}"
        for kind, one in ours:
            if kind == "Model":
                yield from drop_model(sagemaker, s3, one)
            elif drop(sagemaker, kind, one):
                yield f"{kind} {one}"


# -- inside -------------------------------------------------------------------------------------------


def region_of(d: Deployment) -> str | None:
    """Return the region that a deployment goes to; None where nothing tells it."""
    with reaching("find the region"):
        return d.region or _session(None).region_name


def client(service: str, region: str | None) -> Any:
    """Return a client of a service."""
    return _session(region).client(service)


def _session(region: str | None) -> Any:
    try:
        import boto3
    except ImportError as error:
        raise MissingExtraError("deploying to SageMaker", install="'llmasos[sagemaker]'") from error
    return boto3.session.Session(region_name=region)


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
            if "nstanceType" in text or "nstance type" in text:
                raise UsageError(f"AWS has no such machine there: {text}",
                                 hint="another --instance or --region") from error  # fmt: skip
            if "LimitExceeded" in text:
                raise RemoteError(f"AWS refuses to {what}: {text}",
                                  hint="a larger quota, or another --instance or --region") from error  # fmt: skip
            raise RemoteError(f"AWS refuses to {what}: {text}", hint="may these credentials do it there?") from error
        if kind.endswith(("ConnectionError", "TimeoutError")):
            raise RemoteError(
                f"AWS cannot be reached: {text}", hint="is the region right, and a network there?"
            ) from error
        raise


def found_of(sagemaker: Any, kind: str, name: str) -> dict[str, Any]:
    """Return what is told of something; nothing where it is not there."""
    with _unless_gone():
        return dict(getattr(sagemaker, f"describe_{KINDS[kind]}")(**{f"{kind}Name": name}))
    return {}


def _is_theirs(sagemaker: Any, kind: str, name: str) -> bool:
    """Say whether something is there that was not made from here."""
    found = found_of(sagemaker, kind, name)
    return bool(found) and TAG not in _tags(sagemaker, found[f"{kind}Arn"])


def _tags(sagemaker: Any, arn: str) -> list[dict[str, str]]:
    return list(sagemaker.list_tags(ResourceArn=arn)["Tags"])


def _wait_gone(sagemaker: Any, kind: str, name: str) -> None:
    await_done(lambda: not found_of(sagemaker, kind, name), f"{kind} {name} is still being removed", limit=600, look=1,
               hint="try again in some minutes")  # fmt: skip


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
