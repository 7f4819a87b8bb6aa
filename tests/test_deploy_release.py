"""A new version beside the old one on SageMaker: against moto's server, with what it lacks of an endpoint's change."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

pytest.importorskip("boto3", reason="needs boto3")
pytest.importorskip("moto.server", reason="needs moto[server]")

import boto3
import numpy as np

from llmasos import golden
from llmasos.cli import main
from llmasos.core.errors import DeploymentError, ParityError, RemoteError, UsageError
from llmasos.core.events import result_of
from llmasos.deployment import Job, apply, placed, removed, settled
from llmasos.expected import Expected
from llmasos.releasing import ENOUGH, ended, release, worse
from llmasos.targets.base import Counted, Health, State
from test_deploy_sagemaker import GIVEN, REGION, address, aws, names  # noqa: F401  # fixtures

OLD, NEW = "registry/llmasos:1", "registry/llmasos:2"


@pytest.fixture(scope="module")
def tuned_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from served_models import tuned

    return tuned(tmp_path_factory.mktemp("released"), "text-classification")


@pytest.fixture(scope="module")
def expected(tuned_model: Path) -> Expected:
    return Expected(tuned_model)


@dataclass
class Cloud:
    """SageMaker as far as moto lacks it: an endpoint takes another configuration, and its containers answer.

    Args:
        answers: what the containers answer to each row.
        asked: the variants that were asked.
        refuses: what an endpoint's change is answered with; it is done where there is nothing.
    """

    answers: dict[str, Any]
    asked: list[str] = field(default_factory=list)
    refuses: str = ""

    def count(self, variant: str, requests: int, errors: int) -> None:
        """Tell CloudWatch of requests that a variant was sent."""
        dimensions = [{"Name": "EndpointName", "Value": "mine"}, {"Name": "VariantName", "Value": variant}]
        data = [{"MetricName": name, "Dimensions": dimensions, "Value": float(value), "Timestamp": datetime.now(UTC)}
                for name, value in (("Invocations", requests), ("Invocation5XXErrors", errors))]  # fmt: skip
        boto3.client("cloudwatch", REGION).put_metric_data(Namespace="AWS/SageMaker", MetricData=data)


@pytest.fixture
def cloud(aws: Any, expected: Expected, monkeypatch: pytest.MonkeyPatch) -> Cloud:  # noqa: F811
    from moto.core.responses import ActionResult
    from moto.sagemaker.exceptions import AWSValidationException
    from moto.sagemaker.models import FakeEndpoint
    from moto.sagemaker.responses import SageMakerResponse
    from moto.sagemakerruntime.responses import SageMakerRuntimeResponse

    rows = [json.dumps(row, sort_keys=True) for row in expected.rows]
    found = Cloud(dict(zip(rows, expected.answers, strict=True)))

    def update_endpoint(self: Any) -> Any:
        if found.refuses:
            raise AWSValidationException(found.refuses)
        name, config = self._get_param("EndpointName"), self._get_param("EndpointConfigName")
        backend = self.sagemaker_backend
        endpoint, before = backend.endpoints[name], backend.endpoints[name].production_variants
        variants = backend.endpoint_configs[config].production_variants
        endpoint.endpoint_config_name = config
        endpoint.production_variants = FakeEndpoint._process_production_variants(endpoint, variants)
        assert self._get_param("RetainAllVariantProperties")
        assert before
        return ActionResult({"EndpointArn": endpoint.arn})

    def invoke(self: Any) -> Any:
        variant = next(value for name, value in self.headers.items() if name.lower().endswith("target-variant"))
        found.asked.append(unquote(variant))
        (row,) = json.loads(self.body)["inputs"]
        answer = found.answers[json.dumps(row, sort_keys=True)]
        return 200, {"Content-Type": "application/json"}, json.dumps([answer])

    monkeypatch.setattr(SageMakerResponse, "update_endpoint", update_endpoint, raising=False)
    monkeypatch.setattr(SageMakerRuntimeResponse, "invoke_endpoint", invoke)
    return found


def job(model: Path, **changed: Any) -> Job:
    return settled("sagemaker", model, {**GIVEN, **changed})


def running(aws: Any) -> list[tuple[str, str, float]]:  # noqa: F811
    """Return variant, image and weight of what is behind the endpoint."""
    endpoint = aws.describe_endpoint(EndpointName="mine")
    config = aws.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    models = {one["VariantName"]: one["ModelName"] for one in config["ProductionVariants"]}
    image = {name: aws.describe_model(ModelName=one)["PrimaryContainer"]["Image"] for name, one in models.items()}
    return [(one["VariantName"], image[one["VariantName"]], one.get("CurrentWeight", 1.0))
            for one in endpoint["ProductionVariants"]]  # fmt: skip


def scaled() -> list[tuple[str, int]]:
    scaling = boto3.client("application-autoscaling", REGION)
    found = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    return [(one["ResourceId"].rsplit("/", 1)[-1], one["MaxCapacity"]) for one in found]


def archives() -> list[str]:
    found = boto3.client("s3", REGION).list_objects_v2(Bucket="models").get("Contents", [])
    return [one["Key"] for one in found]


def test_a_good_version_takes_all_and_the_next_takes_its_place(aws, cloud, tuned_model, expected):  # noqa: F811
    result_of(apply(job(tuned_model, max_replicas=3)))
    new, weights = job(tuned_model, image=NEW, max_replicas=4, canary="10%", watch="1s"), []
    for event in release(new, 0.1, 0.2):
        if "of the requests go to" in str(event):
            weights = running(aws)
            cloud.count("all", 900, 9)
            cloud.count("next", 100, 2)
    assert weights == [("all", OLD, 0.9), ("next", NEW, 0.1)]
    assert set(cloud.asked) == {"next"}
    assert len(cloud.asked) == len(expected.rows)
    assert [one[:2] for one in running(aws)] == [("next", NEW)]
    assert sorted(names(aws)) == ["mine", "mine-next", "mine-next"]
    assert archives() == ["ours/mine-next/model.tar.gz"]
    assert scaled() == [("next", 4)]
    found = result_of(release(job(tuned_model, image=OLD), 0.5, 0.1))
    assert (found.rows, found.health.new.requests) == (len(expected.rows), 0)
    assert [one[:2] for one in running(aws)] == [("all", OLD)]
    assert (names(aws), archives(), scaled()) == (["mine"] * 3, ["ours/mine/model.tar.gz"], [])
    assert removed(placed("mine"))
    assert names(aws) == archives() == []


def test_a_version_that_fails_more_often_goes_again(aws, cloud, tuned_model):  # noqa: F811
    result_of(apply(job(tuned_model)))
    events = release(job(tuned_model, image=NEW, max_replicas=4), 0.1, 60)
    while "of the requests go to" not in str(next(events)):
        pass
    cloud.count("all", 900, 9)
    cloud.count("next", 100, 12)
    told = []
    with pytest.raises(DeploymentError, match=r"12 errors of 100 requests; old version: 9 of 900(.|\n)*worse"):
        drained(events, told)
    assert any("back to the old" in str(event) for event in told)
    assert [one[:2] for one in running(aws)] == [("all", OLD)]
    assert (names(aws), archives(), scaled()) == (["mine"] * 3, ["ours/mine/model.tar.gz"], [])


def test_why_a_version_goes_again_is_told_also_where_it_cannot_go(aws, cloud, tuned_model):  # noqa: F811
    result_of(apply(job(tuned_model)))
    events = release(job(tuned_model, image=NEW), 0.1, 60)
    while "of the requests go to" not in str(next(events)):
        pass
    cloud.count("all", 900, 9)
    cloud.count("next", 100, 12)
    cloud.refuses = "try later"
    with pytest.raises(DeploymentError, match=r"12 errors of 100(.|\n)*could not be put back: (.|\n)*try later"):
        drained(events, [])


def test_a_version_that_dies_while_it_is_watched_goes_again(aws, cloud, tuned_model, monkeypatch):  # noqa: F811
    from llmasos.targets.sagemaker import SageMaker

    result_of(apply(job(tuned_model)))
    events = release(job(tuned_model, image=NEW), 0.1, 0.1)
    while "of the requests go to" not in str(next(events)):
        pass
    monkeypatch.setattr(SageMaker, "state", lambda *_: State("Failed", failed=True, why="it died"))
    with pytest.raises(DeploymentError, match=r"it died(.|\n)*the old version has all requests again"):
        drained(events, [])
    assert [one[:2] for one in running(aws)] == [("all", OLD)]


def test_a_version_with_other_answers_goes_again_and_rows_are_shown(aws, cloud, tuned_model, capsys):  # noqa: F811
    result_of(apply(job(tuned_model)))
    cloud.answers = {row: {**answer, "label": "?"} for row, answer in cloud.answers.items()}
    words = [f"{name}={value}" for name, value in {**GIVEN, "image": NEW}.items()]
    line = ["deploy", "sagemaker", str(tuned_model), "--apply", "--canary", "10%", "--watch", "1s"]
    assert main([*line, *(part for word in words for part in ("--set", word))]) == 1
    said = capsys.readouterr().err
    assert "golden row 1 is answered otherwise" in said
    assert "the old version has all requests again" in said
    assert [one[:2] for one in running(aws)] == [("all", OLD)]
    assert names(aws) == ["mine"] * 3


def drained(events: Any, told: list[Any]) -> None:
    for event in events:
        told.append(event)  # noqa: PERF402  # what was told before an error counts


def broken_off(model: Path) -> None:
    """Begin a release and leave it where the new version is watched."""
    result_of(apply(job(model)))
    events = release(job(model, image=NEW), 0.1, 60)
    while "of the requests go to" not in str(next(events)):
        pass
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt)


@pytest.mark.slow
def test_a_release_that_was_broken_off_is_promoted_or_put_back(aws, cloud, tuned_model, capsys):  # noqa: F811
    broken_off(tuned_model)
    with pytest.raises(UsageError, match="a release of mine is under way"):
        result_of(release(job(tuned_model), 0.1, 1))
    assert main(["deploy", "promote", "mine"]) == 0
    assert [one[:2] for one in running(aws)] == [("next", NEW)]
    assert main(["deploy", "promote", "mine"]) == 2
    assert "no release of mine is under way" in capsys.readouterr().err
    broken_off(tuned_model)
    assert main(["deploy", "back", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ended"] == "back"
    assert [one[:2] for one in running(aws)] == [("all", OLD)]
    assert archives() == ["ours/mine/model.tar.gz"]
    assert main(["deploy", "back", "mine"]) == 2


def test_what_a_refused_version_has_left_is_removed(aws, cloud, tuned_model):  # noqa: F811
    result_of(apply(job(tuned_model)))
    cloud.refuses = "ResourceLimitExceeded: 0 of ml.c5.large"
    with pytest.raises(RemoteError, match="LimitExceeded") as error:
        result_of(release(job(tuned_model, image=NEW), 0.1, 1))
    assert "llmasos deploy back mine" in error.value.hint
    assert "mine-next" in names(aws)
    list(ended(placed("mine"), "back"))
    assert (names(aws), archives()) == (["mine"] * 3, ["ours/mine/model.tar.gz"])


def test_a_version_that_aws_has_taken_back_is_told(aws, cloud, tuned_model):  # noqa: F811
    result_of(apply(job(tuned_model)))
    events = release(job(tuned_model, image=NEW), 0.1, 1)
    while "of both versions" not in str(next(events)):
        pass
    from moto.sagemaker.responses import SageMakerResponse

    SageMakerResponse.update_endpoint = lambda self: ("", {}, "{}")  # AWS took it, and went back by itself
    with pytest.raises(DeploymentError, match="AWS has not put the new version of mine there"):
        list(events)
    assert names(aws) == ["mine"] * 3


def test_a_release_needs_something_to_stand_beside(aws, cloud, tuned_model):  # noqa: F811
    with pytest.raises(UsageError, match="no deployment 'mine'"):
        result_of(release(job(tuned_model), 0.1, 1))
    with pytest.raises(UsageError, match="kubernetes has no releases"):
        settled("kubernetes", tuned_model, {"canary": "10%"})
    for share in ("0%", "100%", "1.5", "some"):
        with pytest.raises(UsageError, match="no part of the requests"):
            job(tuned_model, canary=share)
    assert job(tuned_model, canary="25%", watch="90s")[-2:] == (0.25, 90.0)
    assert main(["deploy", "sagemaker", str(tuned_model), "--render", "x", "--canary", "10%"]) == 2


@pytest.mark.parametrize(("old", "new", "is_worse"), [
    ((1000, 0), (3, 3), False),  # three requests say nothing
    ((1000, 0), (ENOUGH, 2), False),  # nor do two errors
    ((1000, 0), (ENOUGH, 3), True),
    ((0, 0), (100, 50), True),  # there is nothing to be worse than, but half is too much
    ((ENOUGH - 1, 0), (100, 10), False),
    ((900, 90), (100, 10), False),
    ((900, 90), (100, 12), False),
    ((900, 90), (100, 25), True),
    ((900, 0), (100, 0), False),
])  # fmt: skip
def test_a_version_is_worse_by_counts(old, new, is_worse):
    assert bool(worse(Health(Counted(*old), Counted(*new)))) is is_worse


def test_a_server_elsewhere_may_compute_in_bfloat16_where_nobody_says_in_what(tuned_model):
    anywhere = [settled("kubernetes", tuned_model, {"precision": one}) for one in ("auto", "float32")]
    assert [one.precision(there=True) for one in anywhere] == ["bfloat16", "float32"]


@pytest.mark.parametrize("canary", [False, True])
def test_a_model_that_computes_something_else_is_not_put_there(aws, tuned_model, tmp_path, canary):  # noqa: F811
    wrong = shutil.copytree(tuned_model, tmp_path / "wrong")
    kept = json.loads((wrong / golden.FILE).read_text())
    kept["examples"][0]["outputs"] = np.add(kept["examples"][0]["outputs"], 1.0).tolist()
    (wrong / golden.FILE).write_text(json.dumps(kept))
    manifest = json.loads((wrong / "llmasos.json").read_text())
    manifest["files"][golden.FILE] = hashlib.sha256((wrong / golden.FILE).read_bytes()).hexdigest()
    (wrong / "llmasos.json").write_text(json.dumps(manifest))
    with pytest.raises(ParityError):
        result_of(release(job(wrong), 0.1, 1) if canary else apply(job(wrong)))
    assert names(aws) == archives() == []
