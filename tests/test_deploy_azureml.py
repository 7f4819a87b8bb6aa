"""Azure Machine Learning, put there through azure-core: against a server that plays the paths of it that are asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("azure.mgmt.core", reason="needs llmasos[azureml]")
pytest.importorskip("azure.storage.blob", reason="needs llmasos[azureml]")
pytest.importorskip("azure.identity", reason="needs llmasos[azureml]")
pytest.importorskip("cryptography", reason="needs cryptography")

import azure_server
from azure_server import WORKSPACE, Azure
from golden_targets import save_light
from llmasos.cli import main
from llmasos.core import plugins
from llmasos.core.errors import DeploymentError, MissingExtraError, RemoteError, UsageError
from llmasos.core.events import result_of
from llmasos.deployment import Job, apply, placed, removed, settled
from llmasos.targets import _azure

OURS = {"made-by": "llmasos"}
GIVEN = {"name": "mine", "image": "registry/llmasos:1"}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Azure, dict[str, str]]]:
    with azure_server.azure(tmp_path_factory.mktemp("azure")) as found:
        yield found


@pytest.fixture
def azure(played: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Azure:
    state, environment = played
    for name in ("AZURE_SUBSCRIPTION_ID", "AZURE_DEFAULTS_GROUP", "AZURE_DEFAULTS_WORKSPACE", "AZURE_CLIENT_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**environment, "LLMASOS_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("llmasos.deployment.PAUSE", 0.02)
    monkeypatch.setattr("llmasos.targets._azure.LOOK", 0.02)
    monkeypatch.setattr("llmasos.targets._azure._opened", _azure._opened.__wrapped__)  # as the environment is now
    state.forget()
    return state


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_light(tmp_path_factory.mktemp("azureml") / "model")
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text("{}")
    return folder


def job(model: Path, **changed: Any) -> Job:
    return settled("azureml", model, {**GIVEN, **changed})


def kinds(azure: Azure) -> list[str]:
    return [name.split("/")[0] for name in azure.names()]


def test_an_endpoint_is_put_there_looked_at_and_removed(azure, model, capsys):
    found = result_of(apply(job(model, replicas=2, instance="Standard_D4s_v5", at_once=8, deployment="one")))
    assert (found.word, found.ready, found.address) == ("Succeeded", True, f"{azure.url}/score/mine")
    assert kinds(azure) == ["environments", "models", "onlineEndpoints", "onlineEndpoints"]
    made = azure.things["onlineEndpoints/mine/deployments/one"]
    assert (made["sku"]["capacity"], made["tags"]) == (2, OURS)
    told = made["properties"]
    assert (told["instanceType"], told["requestSettings"]["maxConcurrentRequestsPerInstance"]) == ("Standard_D4s_v5", 8)
    assert told["readinessProbe"]["timeout"] == "PT2S"
    assert told["environmentVariables"]["LLMASOS_BEHIND"] == "azureml"
    assert azure.shares() == {"one": 100}
    image = azure.things[told["environmentId"].removeprefix(f"{WORKSPACE}/")]["properties"]
    assert image["image"] == "registry/llmasos:1"
    assert image["inferenceConfig"]["scoringRoute"] == {"path": "/score", "port": 8000}
    below = azure.things[told["model"].removeprefix(f"{WORKSPACE}/")]["properties"]["modelUri"].partition("/paths/")[2]
    assert sorted(azure.blobs) == [f"{below}/config.json", f"{below}/model.safetensors"]
    assert azure.blobs[f"{below}/config.json"] == (model / "config.json").read_bytes()

    assert main(["deploy", "status", "mine", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["target"], told["region"], told["state"]["word"]) == ("azureml", WORKSPACE, "Succeeded")
    azure.refuses.append(("POST", "getLogs", 400, "BadRequest", "the container does not run yet"))
    assert main(["deploy", "logs", "mine"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "one: (BadRequest) the container does not run yet"
    assert said[1:] == ["one: one opens its model", "one: one is 1000 lines long"]
    assert main(["deploy", "rm", "mine"]) == 0
    assert "removed endpoint mine" in capsys.readouterr().err
    assert (azure.names(), azure.blobs) == ([], {})
    assert main(["deploy", "status", "mine"]) == 2


def test_the_next_one_takes_its_place_when_it_is_ready_and_the_same_model_is_sent_once(azure, model):
    result_of(apply(job(model)))
    sent = dict(azure.blobs)
    azure.blobs.clear()
    azure.things["onlineEndpoints/mine"]["properties"]["publicNetworkAccess"] = "Disabled"
    result_of(apply(job(model, image="registry/llmasos:2")))
    assert (azure.images(), azure.shares(), azure.blobs) == ({"green": "registry/llmasos:2"}, {"green": 100}, {})
    assert azure.things["onlineEndpoints/mine"]["properties"]["publicNetworkAccess"] == "Disabled"
    assert kinds(azure) == ["environments", "models", "onlineEndpoints", "onlineEndpoints"]
    azure.blobs |= sent
    result_of(apply(job(model)))
    assert azure.images() == {"blue": "registry/llmasos:1"}
    assert azure.things["onlineEndpoints/mine"]["tags"] == OURS


def test_what_an_earlier_try_has_left_goes_and_its_requests_with_it(azure, model):
    result_of(apply(job(model)))
    blue = azure.things["onlineEndpoints/mine/deployments/blue"]
    blue["properties"]["provisioningState"] = "Failed"
    result_of(apply(job(model, image="registry/llmasos:2")))
    assert (azure.images(), azure.shares()) == ({"blue": "registry/llmasos:2"}, {"blue": 100})


def test_one_that_never_gets_ready_is_removed(azure, model):
    azure.gives_up["blue"] = ("ResourceNotReady", "User container has crashed or terminated")
    with pytest.raises(DeploymentError, match=r"never got ready: \(ResourceNotReady\)(.|\n)*blue opens its model"):
        result_of(apply(job(model)))
    assert (azure.names(), azure.blobs) == ([], {})
    with pytest.raises(UsageError, match="no deployment 'mine'"):
        placed("mine")


def test_what_answered_before_goes_on_where_the_next_never_gets_ready(azure, model):
    result_of(apply(job(model)))
    azure.stuck.add("green")
    with pytest.raises(DeploymentError, match=r"not ready within 0\.3 s(.|\n)*blue is 1000(.|\n)*green is 1000 lines "
                       r"long\nwhat was there before is back"):  # fmt: skip
        result_of(apply(job(model, image="registry/llmasos:2"), patience=0.3))
    assert (azure.images(), azure.shares()) == ({"blue": "registry/llmasos:1"}, {"blue": 100})
    assert kinds(azure) == ["environments", "models", "onlineEndpoints", "onlineEndpoints"]


def test_why_the_next_never_gets_ready_is_told_also_where_nothing_can_be_put_back(azure, model):
    result_of(apply(job(model)))
    azure.gives_up["green"] = ("ResourceNotReady", "User container has crashed")
    azure.refuses.append(("DELETE", "deployments/green$", 403, "AuthorizationFailed", "not yours to delete"))
    with pytest.raises(DeploymentError, match=r"has crashed(.|\n)*could not be put back: (.|\n)*not yours to delete"):
        result_of(apply(job(model, image="registry/llmasos:2")))


def test_what_was_broken_off_is_found_and_goes_on(azure, model, monkeypatch, capsys):
    line = ["deploy", "azureml", str(model), "--apply", "--image", "registry/llmasos:1", "--name", "mine"]
    own = _azure.Azure.begin

    def broken(self: Any, verb: str, path: str, body: Any = None) -> Any:
        if "/deployments/" in path:
            raise KeyboardInterrupt
        return own(self, verb, path, body)

    with monkeypatch.context() as patch:
        patch.setattr(_azure.Azure, "begin", broken)
        assert main(line) == 130
    assert "llmasos deploy status mine" in capsys.readouterr().err
    assert main(["deploy", "status", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"]["word"] == "no deployment"
    assert main(line) == 0
    assert azure.shares() == {"blue": 100}
    assert main(["deploy", "rm", "mine"]) == 0
    assert azure.names() == []


def test_a_name_that_others_have_is_not_taken_from_them(azure, model):
    azure.things["onlineEndpoints/mine"] = {"name": "mine", "tags": {}, "properties": {}}
    with pytest.raises(UsageError, match="endpoint mine already, and it was not made from here"):
        result_of(apply(job(model)))
    assert azure.names() == ["onlineEndpoints/mine"]
    azure.things.clear()
    azure.refuses.append(("PUT", "onlineEndpoints/mine$", 400, "BadRequest", "Endpoint name mine is already taken"))
    with pytest.raises(UsageError, match=r"the name is taken(.|\n)*--name"):
        result_of(apply(job(model)))


@pytest.mark.parametrize(("refusal", "kind", "told"), [
    ((403, "AuthorizationFailed", "The client does not have authorization"), RemoteError, r"refuses.*\n.*credentials"),
    ((400, "OutOfQuota", "Not enough quota available for Standard_DS3_v2"), RemoteError, r"refuses.*\n.*larger quota"),
    ((400, "BadArgument", "The VM size Standard_X is not available in westeurope"), UsageError, "no such machine"),
    ((500, "InternalServerError", "try later"), RemoteError, "refuses.*try later"),
    ((503, "ServiceUnavailable", "The service is not available"), RemoteError, "refuses.*is not available"),
])  # fmt: skip
def test_what_azure_refuses_is_told(azure, model, monkeypatch, refusal, kind, told):
    monkeypatch.setattr("llmasos.targets._azure.RETRIES", 0)
    azure.refuses.append(("PUT", "deployments/blue$", *refusal))
    with pytest.raises(kind, match=told):
        result_of(apply(job(model)))
    removed(placed("mine"))
    assert azure.names() == []


def test_a_quota_that_is_used_up_is_told_also_when_azure_finds_it_out_later(azure, model):
    azure.gives_up["blue"] = ("OutOfQuota", "Not enough quota available")
    with pytest.raises(DeploymentError, match=r"never got ready: \(OutOfQuota\) Not enough quota"):
        result_of(apply(job(model)))
    assert azure.names() == []


def test_what_did_not_come_through_is_asked_again_and_a_change_under_way_is_waited_for(azure, model):
    azure.refuses += [("GET", "^$", 503, "ServerBusy", "busy"), ("PUT", "mine$", 409, "Conflict", "another operation"),
                      ("DELETE", "mine$", 409, "Conflict", "another operation")]  # fmt: skip
    azure.things["onlineEndpoints/mine"] = {"id": "-", "name": "mine", "location": "westeurope", "tags": OURS,
                                           "properties": {"provisioningState": "Succeeded"}}  # fmt: skip
    result_of(apply(job(model)))
    removed(placed("mine"))
    assert (azure.refuses, azure.names()) == ([], [])


def test_what_keeps_a_deployment_from_going_there_is_told(azure, model, monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="in no registry"):
        result_of(apply(settled("azureml", model, {"name": "mine"})))
    with pytest.raises(UsageError, match="3 to 32 letters"):
        result_of(apply(job(model, name="m" * 33)))
    with pytest.raises(UsageError, match="no workspace other in the resource group ours"):
        result_of(apply(job(model, workspace="other")))
    with monkeypatch.context() as patch:
        patch.setattr("llmasos.targets._azure.RETRIES", 0)
        (tmp_path / "clouds.config").write_text("[Here]\nendpoint_resource_manager = https://localhost:9\n")
        (tmp_path / "config").write_text("[cloud]\nname = Here\n")
        patch.setenv("AZURE_CONFIG_DIR", str(tmp_path))
        with pytest.raises(UsageError, match=r"no subscription of Azure"):
            result_of(apply(job(model)))
        patch.setenv("AZURE_SUBSCRIPTION_ID", "s")
        with pytest.raises(UsageError, match=r"group is not given"):
            result_of(apply(job(model)))
        patch.setenv("AZURE_DEFAULTS_GROUP", "g")
        with pytest.raises(UsageError, match=r"workspace is not given"):
            result_of(apply(job(model)))
        with pytest.raises(RemoteError, match="Azure cannot be reached"):
            result_of(apply(job(model, name="far", workspace="w")))
        with pytest.raises(UsageError, match=r"mine is in azureml, .*/other already, or nobody can tell: Azure cannot"):
            result_of(apply(job(model, workspace="w")))
        patch.setenv("AZURE_CLOUD_NAME", "Nowhere")
        with pytest.raises(UsageError, match="no cloud 'Nowhere'"):
            result_of(apply(job(model, name="far", workspace="w")))
    with monkeypatch.context() as patch:
        patch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
        with pytest.raises(UsageError, match="no credentials for Azure"):
            result_of(apply(job(model)))
    azure.refuses.append(("GET", "^$", 401, "InvalidAuthenticationToken", "The access token is invalid"))
    with pytest.raises(RemoteError, match=r"Azure refuses(.|\n)*may these credentials"):
        result_of(apply(job(model)))
    assert azure.names() == []


def test_where_azure_is_comes_from_its_own_tools(azure, monkeypatch):
    for name, manager, authority in (
        ("AzureCloud", "https://management.azure.com/", None),
        ("AzureChinaCloud", "https://management.chinacloudapi.cn/", "login.chinacloudapi.cn"),
        ("Here", azure.url, None),
    ):
        monkeypatch.setenv("AZURE_CLOUD_NAME", name)
        found = _azure._cloud()
        assert (found.manager, found.authority) == (manager, authority)
        assert found.scope == f"{manager.rstrip('/')}/.default"


def test_a_workspace_is_given_or_what_azures_tools_are_set_to(azure, model, monkeypatch, tmp_path):
    def found(**given: str) -> str:
        return plugins.load("targets", "azureml").where(job(model, **given).deployment)

    assert found() == WORKSPACE
    monkeypatch.setenv("AZURE_DEFAULTS_GROUP", "theirs")
    assert found() == WORKSPACE.replace("/ours/", "/theirs/")
    given = found(subscription="s", group="g", workspace="w")
    assert given == "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
    monkeypatch.setenv("AZURE_CONFIG_DIR", str(tmp_path))
    for name, text in (("config", "group = x"), ("azureProfile.json", "[]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match=f"{name} is damaged"):
            found(group="g") if name == "azureProfile.json" else found(subscription="s")
        (tmp_path / name).unlink()


def test_what_is_not_installed_is_named(azure, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "azure.mgmt.core", None)
    with pytest.raises(MissingExtraError) as error:
        result_of(apply(job(model)))
    assert "'llmasos[azureml]'" in str(error.value)


def test_a_token_is_asked_for_once(azure, model, monkeypatch):
    monkeypatch.setattr("llmasos.targets._azure._opened", lru_cache(_azure._opened))
    result_of(apply(job(model)))
    removed(placed("mine"))
    assert azure.asked.count(("GET", "/token")) == 1


def test_a_signature_is_not_shown():
    assert _azure.told(ValueError("no way to /x?sv=2&sig=ab%2Fcd&se=3")) == "no way to /x?sv=2&sig=...&se=3"
