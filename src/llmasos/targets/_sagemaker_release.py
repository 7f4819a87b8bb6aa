"""A release on SageMaker: a second production variant behind the endpoint, and what CloudWatch counts of both.

An endpoint has two places for a version, NAME and NAME-next, each with a model and a configuration; the new version
takes the one that is free, and NAME-canary is the configuration of both. So what AWS has says alone how far a release
came, and one that was broken off is ended from any machine.

https://docs.aws.amazon.com/sagemaker/latest/dg/model-ab-testing.html
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from ..core.errors import DeploymentError, UsageError
from ..core.events import Event, Note
from ._sagemaker import (
    BOTH,
    NEXT,
    TAG,
    VARIANTS,
    client,
    drop,
    drop_model,
    found_of,
    reaching,
    refuse_others,
    unscale,
    upload,
    variants,
)
from .base import Counted, Deployment, Health, await_done

MINUTE = 60
LIMIT, LOOK = 1800.0, 5.0
"""Seconds that AWS may take to move requests, and between two looks."""
KEEP = {
    "RetainAllVariantProperties": True,
    "ExcludeRetainedVariantProperties": [{"VariantPropertyType": "DesiredWeight"}],
}
"""A version that was scaled keeps its instances while the shares change."""


def begin(d: Deployment, archive: Callable[[Deployment, str], str], asked: Mapping[str, Mapping[str, Any]],
          share: float) -> Iterator[Event]:  # fmt: skip
    """Upload the new version, and put it behind the endpoint."""
    with reaching("put a new version beside the old one"):
        sagemaker = client("sagemaker", d.region)
        there = variants(sagemaker, d.name)
        if not there:
            raise UsageError(f"there is no {d.name} for a new version to stand beside", hint="--apply without --canary")
        if len(there) > 1:
            raise UsageError(f"a release of {d.name} is under way", hint=f"llmasos deploy promote|back {d.name}")
        refuse_others(sagemaker, "Endpoint", d.name)
        (old,) = there
        new = _other(d.name, old["ModelName"])
        for kind, name in (("EndpointConfig", f"{d.name}{BOTH}"), ("EndpointConfig", new), ("Model", new)):
            refuse_others(sagemaker, kind, name)
            drop(sagemaker, kind, name)  # what an earlier try has left
        url = archive(d, new)
        yield upload(client("s3", d.region), d, url)
        model, (variant,) = asked["model"], asked["endpoint-config"]["ProductionVariants"]
        container = {**model["PrimaryContainer"], "ModelDataUrl": url}
        sagemaker.create_model(**{**model, "ModelName": new, "PrimaryContainer": container}, Tags=[TAG])
        called = next(name for name in VARIANTS if name != old["VariantName"])
        alone = {**variant, "VariantName": called, "ModelName": new}
        two = [{**old, "InitialVariantWeight": 1 - share}, {**alone, "InitialVariantWeight": share}]
        for name, these in ((new, [alone]), (f"{d.name}{BOTH}", two)):
            sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=these, Tags=[TAG])
        yield Note(f"made Model {new}, and EndpointConfig {d.name}{BOTH} of both versions")
        sagemaker.update_endpoint(EndpointName=d.name, EndpointConfigName=f"{d.name}{BOTH}", **KEEP)


def ask(name: str, region: str | None, path: str, body: Any) -> Any:
    """Ask the new variant; see ``Target.ask``. SageMaker knows one path."""
    del path
    with reaching("ask the new version"):
        _, new = _both(client("sagemaker", region), name)
        runtime = client("sagemaker-runtime", region)
        try:
            reply = runtime.invoke_endpoint(
                EndpointName=name, TargetVariant=new["VariantName"], ContentType="application/json",
                Body=json.dumps(body).encode(),
            )  # fmt: skip
        except runtime.exceptions.ModelError as error:
            raise DeploymentError(f"the new version fails: {' '.join(str(error).split())[:300]}",
                                  hint=f"llmasos deploy logs {name}") from error  # fmt: skip
        return json.loads(reply["Body"].read())


def watch(name: str, region: str | None) -> Health:
    """Return what CloudWatch has counted of both variants; it is a minute or two behind."""
    with reaching("count its requests"):
        sagemaker, metrics = client("sagemaker", region), client("cloudwatch", region)
        since = found_of(sagemaker, "EndpointConfig", f"{name}{BOTH}").get("CreationTime")
        old, new = (one["VariantName"] for one in _both(sagemaker, name))

        def counted(variant: str, metric: str) -> int:
            dimensions = [{"Name": "EndpointName", "Value": name}, {"Name": "VariantName", "Value": variant}]
            found = metrics.get_metric_statistics(
                Namespace="AWS/SageMaker", MetricName=metric, Dimensions=dimensions, Period=MINUTE, Statistics=["Sum"],
                StartTime=since, EndTime=datetime.now(UTC) + timedelta(seconds=MINUTE),
            )  # fmt: skip
            return int(sum(point["Sum"] for point in found["Datapoints"]))

        return Health(
            *(Counted(counted(one, "Invocations"), counted(one, "Invocation5XXErrors")) for one in (old, new))
        )


def promote(name: str, region: str | None) -> Iterator[Event]:
    """Give all requests to the new variant, then remove the old one."""
    with reaching("promote it"):
        sagemaker = client("sagemaker", region)
        _settle(sagemaker, name)
        old, new = _both(sagemaker, name)
        yield from _alone(sagemaker, name, region, stays=new, goes=old)


def back(name: str, region: str | None) -> Iterator[Event]:
    """Give all requests to the old variant, then remove what there is of the new one."""
    with reaching("put the old version back"):
        sagemaker = client("sagemaker", region)
        _settle(sagemaker, name)
        there = variants(sagemaker, name)
        if len(there) > 1:
            yield from _alone(sagemaker, name, region, stays=there[0], goes=there[1])
            return
        if not there:
            raise UsageError(f"there is no {name}", hint="llmasos deploy status")
        gone = list(_removed(sagemaker, name, region, _other(name, there[0]["ModelName"])))
        if not gone:
            raise UsageError(f"no release of {name} is under way", hint=f"llmasos deploy status {name}")
        yield Note(f"removed {', '.join(gone)}")


# -- inside -------------------------------------------------------------------------------------------


def _alone(sagemaker: Any, name: str, region: str | None, *, stays: Mapping[str, Any],
           goes: Mapping[str, Any]) -> Iterator[Event]:  # fmt: skip
    """Move all requests to one variant, which is done at once, then take the other one away."""
    shares = [{"VariantName": one["VariantName"], "DesiredWeight": share} for one, share in ((stays, 1), (goes, 0))]
    sagemaker.update_endpoint_weights_and_capacities(EndpointName=name, DesiredWeightsAndCapacities=shares)
    yield Note(f"all requests go to {stays['ModelName']}")
    _settle(sagemaker, name)
    unscale(name, goes["VariantName"], region)  # a variant that scales cannot be taken away
    sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=stays["ModelName"], **KEEP)
    _settle(sagemaker, name)
    yield Note(f"removed {', '.join(_removed(sagemaker, name, region, goes['ModelName']))}")


def _removed(sagemaker: Any, name: str, region: str | None, version: str) -> Iterator[str]:
    for config in (f"{name}{BOTH}", version):
        if drop(sagemaker, "EndpointConfig", config):
            yield f"EndpointConfig {config}"
    yield from drop_model(sagemaker, client("s3", region), version)


def _other(name: str, version: str) -> str:
    return name if version != name else f"{name}{NEXT}"


def _both(sagemaker: Any, name: str) -> list[dict[str, Any]]:
    """Return the old and the new variant.

    Raises:
        DeploymentError: AWS has put the old one back by itself.
        UsageError: no release is under way.
    """
    if len(there := variants(sagemaker, name)) == 2:
        return there
    if found_of(sagemaker, "EndpointConfig", f"{name}{BOTH}"):
        why = found_of(sagemaker, "Endpoint", name).get("FailureReason", "it did not start")
        raise DeploymentError(f"AWS has not put the new version of {name} there: {why}",
                              hint=f"llmasos deploy back {name} removes what is left of it")  # fmt: skip
    raise UsageError(f"no release of {name} is under way", hint=f"llmasos deploy status {name}")


def _settle(sagemaker: Any, name: str) -> None:
    """Wait until AWS takes another change of an endpoint."""

    def is_done() -> bool:
        status = found_of(sagemaker, "Endpoint", name).get("EndpointStatus", "")
        return not str(status).endswith(("ing", "RollingBack"))

    await_done(is_done, f"{name} is still being changed", limit=LIMIT, look=LOOK)
