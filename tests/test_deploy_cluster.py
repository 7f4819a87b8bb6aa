"""Plain manifests, put into a cluster by its own client: against a small server that plays the API, and no cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="needs the package kubernetes")

from cluster import CONTEXT, NAMESPACE, Cluster, cluster, pod
from golden_targets import save_light
from llmasos.cli import main
from llmasos.core import plugins
from llmasos.core.errors import DeploymentError, RemoteError, UsageError
from llmasos.core.events import result_of
from llmasos.deployment import Job, apply, placed, removed, settled

GIVEN = {"name": "mine", "image": "registry/llmasos:1", "weights": "inside"}
ALL = ["Deployment mine", "HorizontalPodAutoscaler mine", "NetworkPolicy mine", "PodDisruptionBudget mine",
       "Service mine"]  # fmt: skip
FEW = ["Deployment mine", "NetworkPolicy mine", "Service mine"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_light(tmp_path_factory.mktemp("cluster") / "model")


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cluster]:
    with cluster() as state:
        state.add("Secret", "mine-keys", data={"keys.json": "e30="})
        use(state, tmp_path, monkeypatch)
        yield state


def use(state: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    """Let the client find a cluster."""
    (folder / "config").write_text(state.kubeconfig(**changed))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(folder / "config"))
    monkeypatch.setenv("LLMASOS_HOME", str(folder / "home"))
    monkeypatch.setattr("llmasos.deployment.PAUSE", 0.02)
    monkeypatch.setattr("llmasos.targets._cluster.LOOK", 0.01)


def runs(there: Cluster, kind: str, name: str, found: dict[str, Any] | None) -> None:
    """Do what the controllers of Kubernetes do with a Deployment, at once."""
    if kind != "Deployment":
        return
    for one in [key for key in there.objects if key[0] == "Pod"]:
        del there.objects[one]
    if found is not None:
        wanted = found["spec"].setdefault("replicas", 1)
        labels = found["spec"]["template"]["metadata"]["labels"]
        for number in range(wanted):
            there.objects["Pod", f"mine-{number}"] = pod(f"mine-{number}", labels, "llmasos")
            there.logs[f"mine-{number}", "llmasos", False] = f"serving as {number}\n"
        counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), wanted)
        found["status"] = {**counts, "observedGeneration": found["metadata"]["generation"]}


def waits(reason: str, message: str = "", **more: Any) -> Any:
    """Return controllers under which a Deployment's pod waits."""

    def controller(there: Cluster, kind: str, name: str, found: dict[str, Any] | None) -> None:
        runs(there, kind, name, found)
        if kind == "Deployment" and found is not None:
            labels = found["spec"]["template"]["metadata"]["labels"]
            state = {"state": {"waiting": {"reason": reason, "message": message}}, **more}
            there.objects["Pod", "mine-0"] = pod("mine-0", labels, "llmasos", **state)
            found["status"] |= {"availableReplicas": 0}

    return controller


def job(model: Path, **changed: Any) -> Job:
    return settled("kubernetes", model, {**GIVEN, **changed})


def line(model: Path, **changed: Any) -> list[str]:
    words = [f"{name}={value}" for name, value in {**GIVEN, **changed}.items()]
    return ["deploy", "kubernetes", str(model), "--apply", *(part for word in words for part in ("--set", word))]


def test_manifests_are_put_there_looked_at_and_removed(there, model, capsys):
    there.controllers = [runs]
    found = result_of(apply(job(model, replicas=2, max_replicas=5)))
    assert (found.word, found.ready, found.address) == ("2 of 2 ready", True, "http://mine.team.svc")
    assert there.names() == ALL
    servers = there.objects["Deployment", "mine"]
    assert servers["spec"]["template"]["spec"]["containers"][0]["image"] == "registry/llmasos:1"
    assert servers["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "llmasos"
    assert there.owners["Service", "mine"].keys() == {"llmasos"}
    assert main(["deploy", "status", "mine", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["target"], told["region"], told["state"]["ready"]) == ("kubernetes", f"{NAMESPACE}@{CONTEXT}", True)
    assert main(["deploy", "logs", "mine"]) == 0
    assert capsys.readouterr().out == "mine-0: serving as 0\nmine-1: serving as 1\n"
    there.logs["mine-0", "llmasos", False] = "".join(f"line {number}\n" for number in range(2000))
    assert main(["deploy", "logs", "mine"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert (len(said), said[0]) == (1001, "mine-0: line 1000")
    there.add("Service", "others", metadata={"labels": {"app.kubernetes.io/instance": "mine"}})
    assert main(["deploy", "rm", "mine"]) == 0
    assert "removed Deployment mine" in capsys.readouterr().err
    assert there.names() == ["Service others"]
    assert ("Secret", "mine-keys") in there.objects
    assert main(["deploy", "status", "mine"]) == 2


def test_what_was_broken_off_is_found_and_goes_on(there, model, monkeypatch, capsys):
    there.controllers = [runs]
    from llmasos.targets import _cluster

    own, made = _cluster.Cluster.put, []

    def broken(self: Any, body: Any) -> None:
        if body["kind"] == "Deployment":
            made.append(1)
            raise KeyboardInterrupt
        own(self, body)

    with monkeypatch.context() as patch:
        patch.setattr(_cluster.Cluster, "put", broken)
        assert main(line(model)) == 130
    assert made
    assert "llmasos deploy status mine" in capsys.readouterr().err
    assert main(["deploy", "status", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] is None
    assert there.names() == FEW[1:]
    assert main(line(model)) == 0
    assert there.names() == FEW
    assert main(["deploy", "rm", "mine"]) == 0
    assert there.names() == []


@pytest.mark.parametrize(("reason", "more", "told"), [
    ("ImagePullBackOff", {}, r"ImagePullBackOff, container llmasos of mine-0: Back-off"),
    ("CrashLoopBackOff", {"restartCount": 3, "lastState": {"terminated": {"exitCode": 2}}}, "exit code 2"),
])  # fmt: skip
def test_a_deployment_that_never_starts_is_removed_and_its_log_shown(there, model, reason, more, told):
    there.controllers = [waits(reason, "Back-off", **more)]
    there.logs = {("mine-0", "llmasos", True): "the model is damaged\n"}
    with pytest.raises(DeploymentError, match=told) as error:
        result_of(apply(job(model)))
    assert ("the model is damaged" in error.value.message) is (reason == "CrashLoopBackOff")
    assert there.names() == []
    with pytest.raises(UsageError, match="no deployment 'mine'"):
        placed("mine")


def test_one_that_takes_too_long_is_removed(there, model):
    with pytest.raises(DeploymentError, match=r"not ready within 0\.2 s"):
        result_of(apply(job(model), patience=0.2))
    assert there.names() == []


def test_pods_that_find_no_machine_are_told_while_they_wait(there, model):
    def full(there: Cluster, kind: str, name: str, found: dict[str, Any] | None) -> None:
        waits("")(there, kind, name, found)
        if kind == "Deployment" and found is not None:
            told = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient cpu"}
            there.objects["Pod", "mine-0"]["status"] = {"conditions": [told]}

    there.controllers, events = [full], apply(job(model), patience=0.2)
    while "0 of 1 ready; 0/3 nodes are available" not in str(next(events)):
        pass
    with pytest.raises(DeploymentError, match="not ready within"):
        list(events)


def test_a_quota_that_is_used_up_is_told(there, model):
    def refused(there: Cluster, kind: str, name: str, found: dict[str, Any] | None) -> None:
        if kind == "Deployment" and found is not None:
            told = {"type": "ReplicaFailure", "status": "True", "message": "pods mine- is forbidden: exceeded quota: q"}
            found["status"] = {"observedGeneration": found["metadata"]["generation"], "conditions": [told]}

    there.controllers = [refused]
    with pytest.raises(DeploymentError, match="never got ready: pods mine- is forbidden: exceeded quota"):
        result_of(apply(job(model)))
    assert there.names() == []
    there.refuses = {("PATCH", "Service"): (403, 'services "mine" is forbidden: exceeded quota: q, requested: 1')}
    with pytest.raises(RemoteError, match=r"exceeded quota(.|\n)*a larger quota"):
        result_of(apply(job(model)))


def test_a_next_version_that_does_not_start_leaves_the_one_before_it(there, model):
    there.controllers = [runs]
    result_of(apply(job(model, max_replicas=3)))

    def half(there: Cluster, kind: str, name: str, found: dict[str, Any] | None) -> None:
        image = found["spec"]["template"]["spec"]["containers"][0]["image"] if kind == "Deployment" and found else ""
        (waits("ImagePullBackOff") if image.endswith(":2") else runs)(there, kind, name, found)

    there.controllers = [half]
    with pytest.raises(DeploymentError, match=r"ImagePullBackOff(.|\n)*what was there before is back"):
        result_of(apply(job(model, image="registry/llmasos:2")))
    servers = there.objects["Deployment", "mine"]
    assert servers["spec"]["template"]["spec"]["containers"][0]["image"] == "registry/llmasos:1"
    assert "HorizontalPodAutoscaler mine" in there.names()
    assert placed("mine").plugin.state("mine", placed("mine").region).ready


def test_what_is_there_from_here_is_changed_and_what_is_none_of_it_any_more_removed(there, model):
    there.controllers = [runs]
    result_of(apply(job(model, max_replicas=3)))
    assert "HorizontalPodAutoscaler mine" in there.names()
    result_of(apply(job(model, image="registry/llmasos:2")))
    assert there.names() == FEW
    servers = there.objects["Deployment", "mine"]
    assert servers["spec"]["template"]["spec"]["containers"][0]["image"] == "registry/llmasos:2"
    assert "topologySpreadConstraints" not in servers["spec"]["template"]["spec"]


def test_the_number_of_an_autoscaler_stays(there, model):
    there.controllers = [runs]
    result_of(apply(job(model, replicas=2, max_replicas=5)))
    there.edit("Deployment", "mine", ("spec", "replicas"), 4)
    assert result_of(apply(job(model, replicas=2, max_replicas=5, image="registry/llmasos:2"))).word == "4 of 4 ready"


def test_in_a_pod_of_the_cluster_its_own_namespace_is_meant(there, model, monkeypatch, tmp_path):
    (tmp_path / "config").unlink()
    (tmp_path / "namespace").write_text("pods\n")
    monkeypatch.setattr("llmasos.targets._cluster.NAMESPACE", tmp_path / "namespace")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    plugin = plugins.load("targets", "kubernetes")
    assert plugin.where(job(model).deployment) == "pods@"
    assert plugin.where(job(model, namespace="others").deployment) == "others@"
    with pytest.raises(UsageError, match=r"no cluster is known here(.|\n)*Service host"):
        plugin.state("mine", "pods@")


def test_a_name_that_others_have_is_not_taken_from_them(there, model):
    there.add("Service", "mine", metadata={"labels": {"app.kubernetes.io/managed-by": "Helm"}})
    with pytest.raises(UsageError, match="Service mine already"):
        result_of(apply(job(model)))
    assert there.names() == ["Service mine"]
    removed(placed("mine"))
    assert there.names() == ["Service mine"]


def test_what_somebody_has_changed_there_is_told_and_stays(there, model):
    there.controllers = [runs]
    result_of(apply(job(model)))
    there.edit("Deployment", "mine", ("spec", "replicas"), 7)
    with pytest.raises(UsageError, match=r"kubectl-edit(.|\n)*\.spec\.replicas"):
        result_of(apply(job(model)))
    assert there.objects["Deployment", "mine"]["spec"]["replicas"] == 7


def test_a_secret_that_is_missing_is_told_with_the_command_that_makes_it(there, model):
    there.objects.clear()
    with pytest.raises(UsageError, match=r"no secret mine-keys in the namespace team(.|\n)*kubectl create secret"):
        result_of(apply(job(model)))
    assert there.names() == []
    there.controllers, there.refuses = [runs], {("GET", "Secret"): (403, "may not look")}
    assert result_of(apply(job(model))).ready


def test_what_keeps_a_deployment_from_going_there_is_told(there, model, monkeypatch, tmp_path, capfd):
    with pytest.raises(UsageError, match=r"no context 'tset'(.|\n)*did you mean 'test'"):
        result_of(apply(job(model, context="tset")))
    with pytest.raises(UsageError, match="does not know these credentials"):
        result_of(apply(job(model, context="other")))
    with pytest.raises(UsageError, match="no secret mine-keys in the namespace nowhere"):
        result_of(apply(job(model, namespace="nowhere")))
    there.refuses = {("GET", "Secret"): (403, "may not look")}
    with pytest.raises(UsageError, match=r"no such namespace(.|\n)*kubectl create namespace"):
        result_of(apply(job(model, namespace="nowhere")))
    there.refuses = {("PATCH", "Service"): (403, "services is forbidden: User u cannot patch")}
    with pytest.raises(RemoteError, match=r"403, services is forbidden(.|\n)*auth can-i"):
        result_of(apply(job(model)))
    there.refuses = {("PATCH", "Service"): (503, "")}
    with pytest.raises(RemoteError, match=r"refuses to put it there: 503(.|\n)*try again"):
        result_of(apply(job(model)))
    there.refuses, there.missing = {}, ("policy/v1",)
    with pytest.raises(UsageError, match="this cluster has no PodDisruptionBudget of policy/v1"):
        result_of(apply(job(model, max_replicas=2)))
    removed(placed("mine"))
    use(there, tmp_path, monkeypatch, clusters=[{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}])
    with pytest.raises(RemoteError, match="the cluster cannot be reached"):
        result_of(apply(job(model)))
    assert capfd.readouterr().err == ""
    (tmp_path / "config").unlink()
    with pytest.raises(UsageError, match=r"no cluster is known here(.|\n)*--set context=NAME"):
        result_of(apply(job(model)))


def test_a_connection_that_breaks_is_made_again(there, model, monkeypatch):
    there.controllers, there.breaks = [runs], 2
    assert result_of(apply(job(model))).ready
    assert there.breaks == 0
