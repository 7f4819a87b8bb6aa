"""A new version beside the old one on Azure Machine Learning: each a real server, behind a server that plays Azure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from azure_server import KEY, Azure
from llmasos.cli import main
from llmasos.core.errors import DeploymentError, UsageError
from llmasos.core.events import result_of
from llmasos.deployment import Job, apply, placed, removed, settled
from llmasos.expected import Expected
from llmasos.releasing import release
from llmasos.targets._azureml_release import _is_failure
from test_deploy_azureml import azure, kinds, played  # noqa: F401  # fixtures

OLD, NEW = "registry/llmasos:1", "registry/llmasos:2"
TAGS = {"made-by": "llmasos"}


@pytest.fixture(scope="module")
def tuned_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from served_models import tuned

    return tuned(tmp_path_factory.mktemp("released"), "text-classification")


def job(model: Path, **changed: Any) -> Job:
    return settled("azureml", model, {"name": "mine", "image": OLD, **changed})


def ask(azure: Azure, row: str, **headers: str) -> httpx2.Response:  # noqa: F811
    address = azure.things["onlineEndpoints/mine"]["properties"]["scoringUri"]
    return httpx2.post(
        address, json={"input_data": [row]}, headers={"Authorization": f"Bearer {KEY}", **headers}, timeout=90
    )


def until_watched(events: Any) -> None:
    while "of the requests go to the new version" not in str(next(events)):
        pass


def drained(events: Any, told: list[str]) -> None:
    for event in events:
        told.append(str(event))  # noqa: PERF401  # what was told before an error counts


@pytest.mark.slow
def test_a_good_version_answers_its_golden_rows_takes_all_and_the_next_takes_its_place(azure, tuned_model):  # noqa: F811
    result_of(apply(job(tuned_model)))
    assert ask(azure, "I love this!").json()[0]["label"]
    azure.scored.clear()
    new, shares = job(tuned_model, image=NEW, canary="10%", watch="1s"), {}
    for event in release(new, 0.1, 0.1):
        if "golden rows answered by the new version" in str(event):
            assert azure.shares() == {"blue": 100}
        if "of the requests go to the new" in str(event):
            shares = azure.shares()
            azure.counted |= {("blue", "200", "200"): 891, ("blue", "424", "500"): 9, ("green", "200", "200"): 98}
            azure.counted |= {("green", "424", "500"): 2, ("green", "424", "400"): 50}
    rows = len(Expected(tuned_model).rows)
    assert (shares, azure.scored) == ({"blue": 90, "green": 10}, ["green"] * rows)
    assert (azure.images(), azure.shares()) == ({"green": NEW}, {"green": 100})
    assert azure.things["onlineEndpoints/mine"]["tags"] == TAGS
    assert kinds(azure) == ["environments", "models", "onlineEndpoints", "onlineEndpoints"]
    found = result_of(release(job(tuned_model), 0.5, 0.0))
    assert found.rows == rows
    assert (azure.images(), azure.shares()) == ({"blue": OLD}, {"blue": 100})
    assert removed(placed("mine"))
    assert (azure.names(), azure.blobs) == ([], {})


def test_a_version_that_fails_more_often_goes_again(azure, tuned_model):  # noqa: F811
    result_of(apply(job(tuned_model)))
    events, told = release(job(tuned_model, image=NEW), 0.1, 60), []
    until_watched(events)
    azure.counted.clear()
    azure.counted |= {("blue", "200", "200"): 900, ("blue", "424", "422"): 50, ("green", "200", "200"): 30}
    azure.broken.add("green")
    assert [ask(azure, "a", **{"azureml-model-deployment": "green"}).status_code for _ in range(6)] == [424] * 6
    with pytest.raises(DeploymentError, match=r"6 errors of 36 requests; old version: 0 of 950(.|\n)*worse"):
        drained(events, told)
    assert any("back to the old" in event for event in told)
    assert (azure.images(), azure.shares()) == ({"blue": OLD}, {"blue": 100})
    assert azure.things["onlineEndpoints/mine"]["tags"] == TAGS
    assert kinds(azure) == ["environments", "models", "onlineEndpoints", "onlineEndpoints"]


def test_a_version_with_other_answers_goes_again_and_rows_are_shown(azure, tuned_model, capsys):  # noqa: F811
    result_of(apply(job(tuned_model)))
    azure.altered.add("green")
    line = ["deploy", "azureml", str(tuned_model), "--apply", "--canary", "10%", "--watch", "1s", "--name", "mine"]
    assert main([*line, "--image", NEW]) == 1
    said = capsys.readouterr().err
    assert "golden row 1 is answered otherwise" in said
    assert "the old version has all requests again" in said
    assert (azure.images(), azure.shares()) == ({"blue": OLD}, {"blue": 100})


@pytest.mark.slow
def test_a_version_that_does_not_answer_goes_again(azure, tuned_model, capsys):  # noqa: F811
    result_of(apply(job(tuned_model)))
    azure.broken.add("green")
    line = ["deploy", "azureml", str(tuned_model), "--apply", "--canary", "10%", "--watch", "1s", "--name", "mine"]
    assert main([*line, "--image", NEW]) == 1
    assert "the new version fails: 424 the model does not answer" in capsys.readouterr().err
    assert (azure.images(), azure.shares()) == ({"blue": OLD}, {"blue": 100})


def test_a_version_that_never_gets_ready_goes_again(azure, tuned_model):  # noqa: F811
    result_of(apply(job(tuned_model)))
    azure.gives_up["green"] = ("OutOfQuota", "Not enough quota available")
    with pytest.raises(DeploymentError, match=r"OutOfQuota(.|\n)*the old version has all requests again"):
        result_of(release(job(tuned_model, image=NEW), 0.1, 1))
    assert (azure.images(), azure.shares()) == ({"blue": OLD}, {"blue": 100})


@pytest.mark.slow
def test_a_release_that_was_broken_off_is_promoted_or_put_back(azure, tuned_model, capsys):  # noqa: F811
    result_of(apply(job(tuned_model)))
    for verb, image in (("back", OLD), ("promote", NEW)):
        events = release(job(tuned_model, image=NEW), 0.1, 60)
        until_watched(events)
        with pytest.raises(KeyboardInterrupt):
            events.throw(KeyboardInterrupt)
        with pytest.raises(UsageError, match="a release of mine is under way"):
            result_of(apply(job(tuned_model)))
        with pytest.raises(UsageError, match="a release of mine is under way"):
            result_of(release(job(tuned_model), 0.1, 1))
        assert azure.shares() == {"blue": 90, "green": 10}
        assert main(["deploy", verb, "mine", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["ended"] == verb
        assert list(azure.images().values()) == [image]
        assert list(azure.shares().values()) == [100]
        assert main(["deploy", verb, "mine"]) == 2
        assert "no release of mine is under way" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "model", "fails"), [
    ("200", "200", False), ("424", "500", True), ("424", "400", False), ("424", "Unknown", True), ("408", "", True),
    ("429", "", False), ("401", "", False), ("503", "", True),
])  # fmt: skip
def test_what_a_client_did_wrong_is_no_failure(status, model, fails):
    assert _is_failure(status, model) is fails


def test_a_release_needs_something_to_stand_beside_and_whole_percents(azure, tuned_model):  # noqa: F811
    with pytest.raises(UsageError, match="no deployment 'mine'"):
        result_of(release(job(tuned_model), 0.1, 1))
    result_of(apply(job(tuned_model)))
    with pytest.raises(UsageError, match="whole percents"):
        result_of(release(job(tuned_model), 0.125, 1))
    del azure.things["onlineEndpoints/mine/deployments/blue"]
    with pytest.raises(UsageError, match="0 deployments that answer"):
        result_of(release(job(tuned_model), 0.1, 1))
    del azure.things["onlineEndpoints/mine"]
    with pytest.raises(UsageError, match="no mine for a new version"):
        result_of(release(job(tuned_model), 0.1, 1))
