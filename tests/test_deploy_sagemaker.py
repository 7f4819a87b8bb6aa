"""SageMaker, put there by boto3: against moto's server, which answers as AWS does and runs no container."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("boto3", reason="needs boto3")
pytest.importorskip("moto.server", reason="needs moto[server]")

import boto3

from golden_targets import save_light
from llmasos.cli import main
from llmasos.core.errors import DeploymentError, RemoteError, UsageError
from llmasos.core.events import result_of
from llmasos.deployment import Job, apply, placed, removed, settled
from llmasos.targets.base import State

REGION, ROLE = "eu-central-1", "arn:aws:iam::123456789012:role/serve"
GIVEN = {"name": "mine", "image": "registry/llmasos:1", "bucket": "s3://models/ours", "role": ROLE, "region": REGION}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    import httpx2

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
                        "AWS_EC2_METADATA_DISABLED": "true", "LLMASOS_HOME": str(tmp_path / "home"),
                        "AWS_CONFIG_FILE": "/none", "AWS_SHARED_CREDENTIALS_FILE": "/none"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("llmasos.targets._sagemaker_release.LOOK", 0.01)
    httpx2.post(f"{address}/moto-api/reset")
    boto3.client("s3", REGION).create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": REGION})
    monkeypatch.setattr("llmasos.deployment.PAUSE", 0.05)
    return boto3.client("sagemaker", REGION)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_light(tmp_path_factory.mktemp("sagemaker") / "model")
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text("{}")
    return folder


def job(model: Path, **changed: Any) -> Job:
    return settled("sagemaker", model, {**GIVEN, **changed})


def names(aws: Any) -> list[str]:
    return [
        *(one["EndpointName"] for one in aws.list_endpoints()["Endpoints"]),
        *(one["EndpointConfigName"] for one in aws.list_endpoint_configs()["EndpointConfigs"]),
        *(one["ModelName"] for one in aws.list_models()["Models"]),
    ]


def test_an_endpoint_is_put_there_looked_at_and_removed(aws, model, capsys):
    found = result_of(apply(job(model, replicas=2, max_replicas=5, instance="ml.m5.large")))
    assert (found.word, found.ready) == ("InService", True)
    assert found.address.endswith("/endpoints/mine/invocations")
    config = aws.describe_endpoint_config(EndpointConfigName="mine")["ProductionVariants"][0]
    assert (config["InstanceType"], config["InitialInstanceCount"]) == ("ml.m5.large", 2)
    container = aws.describe_model(ModelName="mine")["PrimaryContainer"]
    assert container["Environment"]["LLMASOS_BEHIND"] == "sagemaker"
    assert container["ModelDataUrl"] == "s3://models/ours/mine/model.tar.gz"
    packed = boto3.client("s3", REGION).get_object(Bucket="models", Key="ours/mine/model.tar.gz")["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        assert "./run/run.json" not in archive.getnames()
        assert archive.extractfile("./config.json").read() == (model / "config.json").read_bytes()
    scaling = boto3.client("application-autoscaling", REGION)
    (target,) = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (2, 5)

    assert main(["deploy", "status", "mine", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["target"], told["region"], told["state"]["word"]) == ("sagemaker", REGION, "InService")
    assert main(["deploy", "logs", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lines"] == []
    assert main(["deploy", "rm", "mine"]) == 0
    assert "removed Endpoint mine" in capsys.readouterr().err
    assert names(aws) == []
    assert "Contents" not in boto3.client("s3", REGION).list_objects_v2(Bucket="models")
    assert scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"] == []
    assert main(["deploy", "status", "mine"]) == 2


def test_what_was_broken_off_is_found_and_goes_on(aws, model, monkeypatch, capsys):
    from llmasos.targets import _sagemaker

    own, made = _sagemaker.client, []

    def broken(service: str, region: str | None) -> Any:
        found = own(service, region)
        if service == "sagemaker":
            found.create_endpoint = lambda **_: made.append(1) or (_ for _ in ()).throw(KeyboardInterrupt)
        return found

    words = [f"{name}={value}" for name, value in GIVEN.items()]
    line = ["deploy", "sagemaker", str(model), "--apply", *(part for word in words for part in ("--set", word))]
    with monkeypatch.context() as patch:
        patch.setattr(_sagemaker, "client", broken)
        assert main(line) == 130
    assert made
    assert "llmasos deploy status mine" in capsys.readouterr().err
    assert main(["deploy", "status", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] is None
    assert names(aws) == ["mine"] * 2
    assert main(line) == 0
    assert names(aws) == ["mine"] * 3
    assert main(["deploy", "rm", "mine"]) == 0
    assert names(aws) == []


def test_an_endpoint_that_never_gets_ready_is_removed(aws, model, monkeypatch):
    from llmasos.targets.sagemaker import SageMaker

    monkeypatch.setattr(SageMaker, "state", lambda *_: State("Failed", failed=True, why="no ping"))
    monkeypatch.setattr(SageMaker, "logs", lambda *_: iter(["the model is damaged"]))
    with pytest.raises(DeploymentError, match=r"never got ready: no ping(.|\n)*the model is damaged"):
        result_of(apply(job(model)))
    assert names(aws) == []
    with pytest.raises(UsageError, match="no deployment 'mine'"):
        placed("mine")


def test_one_that_takes_too_long_is_removed(aws, model, monkeypatch):
    from llmasos.targets.sagemaker import SageMaker

    monkeypatch.setattr(SageMaker, "state", lambda *_: State("Creating"))
    with pytest.raises(DeploymentError, match=r"not ready within 0\.2 s"):
        result_of(apply(job(model), patience=0.2))
    assert names(aws) == []


def test_a_name_that_others_have_is_not_taken_from_them(aws, model):
    aws.create_model(ModelName="mine", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "theirs:1"})
    with pytest.raises(UsageError, match="Model mine already"):
        result_of(apply(job(model)))
    assert names(aws) == ["mine"]
    assert boto3.client("s3", REGION).list_objects_v2(Bucket="models")["KeyCount"] == 0
    assert removed(placed("mine")) == []  # what was remembered of it; it is not ours
    assert names(aws) == ["mine"]


def test_what_is_elsewhere_is_not_forgotten_there(aws, model, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    result_of(apply(settled("sagemaker", model, {k: v for k, v in GIVEN.items() if k != "region"})))
    assert placed("mine").region == REGION
    with pytest.raises(UsageError, match=rf"mine is in sagemaker, {REGION} already(.|\n)*deploy rm mine"):
        result_of(apply(job(model, region="eu-west-1")))
    assert placed("mine").region == REGION
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    aws.delete_endpoint(EndpointName="mine")  # what is no longer there may be elsewhere
    with pytest.raises(RemoteError, match="refuses"):
        result_of(apply(job(model, region="eu-west-1", bucket="s3://other")))
    assert placed("mine").region == "eu-west-1"


def test_what_is_there_from_here_is_made_anew(aws, model):
    result_of(apply(job(model)))
    result_of(apply(job(model, image="registry/llmasos:2")))
    assert aws.describe_model(ModelName="mine")["PrimaryContainer"]["Image"] == "registry/llmasos:2"
    assert names(aws) == ["mine"] * 3


def test_what_keeps_a_deployment_from_going_there_is_told(aws, model, monkeypatch):
    with pytest.raises(UsageError, match="in no registry"):
        result_of(apply(settled("sagemaker", model, {k: v for k, v in GIVEN.items() if k != "image"})))
    with pytest.raises(RemoteError, match=r"AWS refuses(.|\n)*NoSuchBucket"):
        result_of(apply(job(model, bucket="s3://other")))
    with pytest.raises(UsageError, match=r"ml\.none\.large(.|\n)*another --instance"):
        result_of(apply(job(model, instance="ml.none.large")))
    removed(placed("mine"))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(RemoteError, match="AWS cannot be reached"):
            result_of(apply(job(model)))
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(UsageError, match="no credentials"):
            result_of(apply(job(model)))
    removed(placed("mine"))
    with pytest.raises(UsageError, match="no region"):
        result_of(apply(settled("sagemaker", model, {k: v for k, v in GIVEN.items() if k != "region"})))


def test_a_quota_that_is_used_up_is_told():
    from botocore.exceptions import ClientError

    from llmasos.targets._sagemaker import reaching

    refused = ClientError(
        {"Error": {"Code": "ResourceLimitExceeded", "Message": "0 of ml.g5.xlarge"}}, "CreateEndpoint"
    )
    with pytest.raises(RemoteError, match=r"ml\.g5\.xlarge(.|\n)*a larger quota"), reaching("put it there"):
        raise refused
