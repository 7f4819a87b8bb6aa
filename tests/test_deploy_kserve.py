"""KServe by its cluster: against a small server that plays the API and KServe's controllers, before real servers.

No cluster and no KServe is run. What the controllers do with a service is written after KServe's own source; the pods
behind it are real servers of this project, which are asked for their golden rows and for what they have counted.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="needs the package kubernetes")

from cluster import Cluster, cluster, pod
from golden_targets import deployment
from llmasos.cli import main
from llmasos.core import plugins
from llmasos.core.errors import DeploymentError, RemoteError, UsageError
from llmasos.core.events import result_of
from llmasos.deployment import Job, apply, placed, removed, settled
from llmasos.releasing import release
from llmasos.serving.guard import Guard
from llmasos.serving.keys import KeyFile
from served import Server, serving
from served_models import tuned
from test_deploy_cluster import use

OLD, NEW = "registry/llmasos:1", "registry/llmasos:2"
GIVEN = {"name": "mine", "image": OLD, "model": "s3://models/mine", "mode": "knative"}
TEXT = {"inputs": "what a day"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned(tmp_path_factory.mktemp("released"), "text-classification")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    return KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="module")
def servers(model: Path, keys: KeyFile) -> Iterator[dict[str, Server]]:
    """Run a server for each image."""
    keys.add("first")
    with serving({"mine": model}, guard=Guard(keys)) as old, serving({"mine": model}, guard=Guard(keys)) as new:
        yield {OLD: old, NEW: new}


@dataclass
class KServe:
    """KServe's and Knative's controllers, as far as a release sees them.

    Args:
        servers: the server of an image; a pod of another one never starts.
        revisions: made so far: name, what it was made of, and whether it answers.
        moved: where requests went after each change: revisions, each with its percent.
        rolled: the revision that had all requests last.
    """

    servers: dict[str, Server]
    revisions: list[tuple[str, dict[str, Any], bool]] = field(default_factory=list)
    moved: list[list[tuple[str, int]]] = field(default_factory=list)
    rolled: str = ""

    def __call__(self, there: Cluster, kind: str, name: str, found: dict[str, Any] | None) -> None:
        if kind != "InferenceService":
            return
        if found is None:
            self.revisions.clear()
            for key in [key for key in there.objects if key[0] in ("Pod", "Revision")]:
                del there.objects[key]
            return
        predictor = found["spec"]["predictor"]
        runtime = there.objects["ServingRuntime", predictor["model"]["runtime"]]
        made = copy.deepcopy(
            {"predictor": predictor, "runtime": runtime["spec"], "of": found["metadata"]["annotations"]}
        )
        made["predictor"].pop("canaryTrafficPercent", None)
        made["predictor"]["model"].pop("runtime")
        if not self.revisions or self.revisions[-1][1] != made:
            self.revise(there, name, made)
        self.route(there, found, predictor.get("canaryTrafficPercent"))

    def revise(self, there: Cluster, name: str, made: dict[str, Any]) -> None:
        """Make a revision, its pod and its server."""
        called = f"{name}-predictor-{len(self.revisions) + 1:05}"
        image = made["runtime"]["containers"][0]["image"]
        labels = {**made["predictor"]["labels"], "serving.kserve.io/inferenceservice": name}
        there.add("Revision", called, metadata={"labels": labels})
        state = {} if image in self.servers else {"state": {"waiting": {"reason": "ImagePullBackOff"}}}
        one = pod(f"{called}-pod", {**labels, "serving.knative.dev/revision": called}, "kserve-container", **state)
        there.objects["Pod", f"{called}-pod"] = one
        there.logs[f"{called}-pod", "kserve-container", False] = f"{image} was here\n"
        if image in self.servers:
            there.servers[f"{called}-pod"] = self.servers[image].url
        self.revisions.append((called, made, image in self.servers))

    def route(self, there: Cluster, found: dict[str, Any], canary: int | None) -> None:
        """Move requests, and take away the pods of revisions that get none."""
        created, ready = self.revisions[-1][0], [name for name, _, answers in self.revisions if answers][-1:]
        if canary is not None and self.rolled:
            traffic = [(name, canary) for name in ready] + [(self.rolled, 100 - canary)]
        else:
            traffic = [(name, 100) for name in ready]
            self.rolled = ready[0] if ready else ""
        self.moved.append(traffic)
        kept = {created, *(name for name, _ in traffic)}
        for key in [key for key in there.objects if key[0] == "Pod" and key[1].removesuffix("-pod") not in kept]:
            del there.objects[key]
        well = str(bool(ready) and created == ready[0])
        told = {"latestCreatedRevision": created, "latestReadyRevision": (ready or [""])[0],
                "latestRolledoutRevision": self.rolled}  # fmt: skip
        found["status"] = {"conditions": [{"type": "Ready", "status": well}], "components": {"predictor": told},
                           "url": "http://mine.team.example.com"}  # fmt: skip


@pytest.fixture
def kserve(servers: dict[str, Server]) -> KServe:
    return KServe(dict(servers))


@pytest.fixture
def there(kserve: KServe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keys: KeyFile) -> Iterator[Cluster]:
    with cluster() as state:
        state.add("Secret", "mine-keys")
        use(state, tmp_path, monkeypatch)
        monkeypatch.setattr("llmasos.targets._kserve_release.LOOK", 0.01)
        monkeypatch.setattr("llmasos.targets._kserve_release.LIMIT", 5.0)
        if "deployer" in keys.current():
            keys.revoke("deployer")
        monkeypatch.setenv("LLMASOS_API_KEY", keys.add("deployer"))
        state.controllers = [kserve]
        yield state


def job(model: Path, **changed: Any) -> Job:
    return settled("kserve", model, {**GIVEN, **changed})


def line(model: Path, **changed: Any) -> list[str]:
    words = [f"{name}={value}" for name, value in {**GIVEN, **changed}.items()]
    return ["deploy", "kserve", str(model), "--apply", *(part for word in words for part in ("--set", word))]


def running(there: Cluster) -> tuple[str, str, int | None]:
    """Return image, place and share of the service's version."""
    predictor = there.objects["InferenceService", "mine"]["spec"]["predictor"]
    runtime = there.objects["ServingRuntime", place := predictor["model"]["runtime"]]
    return runtime["spec"]["containers"][0]["image"], place, predictor.get("canaryTrafficPercent")


def begun(events: Iterator[Any]) -> None:
    """Go on to where the new version is watched."""
    while "of the requests go to" not in str(next(events)):
        pass


def clients(server: Server, key: str, many: int) -> list[int]:
    """Ask a server, as clients do; return what came."""
    headers = {"Authorization": f"Bearer {key}"}
    return [server.http.post("/v1/classify", json=TEXT, headers=headers).status_code for _ in range(many)]


@contextmanager
def computing(server: Server, changed: Callable[[list[Any]], list[Any]]) -> Iterator[None]:
    """Let a server compute something else."""
    engine = server.desk.shelves["mine"].served.parts.engine
    good = engine.together
    engine.together = lambda batches: changed(good(batches))
    yield
    engine.together = good


def broken(outputs: list[Any]) -> list[Any]:
    raise RuntimeError("broken")


def test_a_service_is_put_there_changed_looked_at_and_removed(there, kserve, model, capsys):
    found = result_of(apply(job(model, replicas=1)))
    assert (found.word, found.ready, found.address) == ("1 of 1 ready", True, "http://mine.team.example.com")
    assert there.names() == ["InferenceService mine", "ServingRuntime mine"]
    assert main(["deploy", "logs", "mine"]) == 0
    assert capsys.readouterr().out == f"{OLD} was here\n"
    result_of(apply(job(model, image=NEW)))
    assert running(there) == (NEW, "mine-next", None)
    assert there.names() == ["InferenceService mine", "ServingRuntime mine-next"]
    result_of(apply(job(model, image=NEW)))
    assert [name for name, _, _ in kserve.revisions] == ["mine-predictor-00001", "mine-predictor-00002"]
    with pytest.raises(UsageError, match="mode knative, which cannot be changed"):
        result_of(apply(job(model, mode="standard")))
    assert main(["deploy", "rm", "mine"]) == 0
    assert "removed InferenceService mine" in capsys.readouterr().err
    assert there.names() == []


def test_a_version_that_does_not_start_leaves_the_one_before_it(there, kserve, model):
    result_of(apply(job(model)))
    with pytest.raises(DeploymentError, match=r"ImagePullBackOff(.|\n)*what was there before is back"):
        result_of(apply(job(model, image="registry/none:1")))
    assert running(there) == (OLD, "mine", None)
    assert there.names() == ["InferenceService mine", "ServingRuntime mine"]
    assert kserve.moved[-1] == [(kserve.revisions[-1][0], 100)]
    removed(placed("mine"))
    with pytest.raises(DeploymentError, match="ImagePullBackOff"):
        result_of(apply(job(model, image="registry/none:1")))
    assert there.names() == []


def test_what_others_have_and_what_is_missing_is_told(there, model):
    there.add("ServingRuntime", "mine-next", metadata={"labels": {}})
    with pytest.raises(UsageError, match="ServingRuntime mine-next already"):
        result_of(apply(job(model)))
    there.remove("ServingRuntime", "mine-next")
    there.missing = ("serving.kserve.io/v1alpha1", "serving.kserve.io/v1beta1")
    with pytest.raises(UsageError, match=r"no ServingRuntime of serving\.kserve\.io/v1alpha1"):
        result_of(apply(job(model)))
    there.missing = ()
    there.objects.clear()
    with pytest.raises(UsageError, match="no secret mine-keys"):
        result_of(apply(job(model)))


def test_a_good_version_takes_all_and_the_next_takes_its_place(there, kserve, servers, model, keys):
    result_of(apply(job(model)))
    key = keys.add("clients")
    events, shares = release(job(model, image=NEW), 0.1, 0.4), []
    for event in events:
        if "of the requests go to" in str(event):
            shares = kserve.moved[-1]
        if "old version: 0 of 0" in str(event):  # the first look
            assert {*clients(servers[OLD], key, 30), *clients(servers[NEW], key, 25)} == {200}
        last = str(event)
    assert shares == [("mine-predictor-00002", 10), ("mine-predictor-00001", 90)]
    assert "removed" in last
    assert running(there) == (NEW, "mine-next", None)
    assert kserve.moved[-1] == [("mine-predictor-00002", 100)]
    assert [key for key in there.objects if key[0] == "Pod"] == [("Pod", "mine-predictor-00002-pod")]
    assert there.names() == ["InferenceService mine", "ServingRuntime mine-next"]
    asked = [path for method, path in there.asked if method == "POST" and "/proxy/v2/models/mine/infer" in path]
    assert asked
    assert {path.split("/")[6] for path in asked} == {"mine-predictor-00002-pod:8080"}
    found = result_of(release(job(model, image=OLD), 0.5, 0.05))
    assert (found.rows, found.health.new.requests) == (len(asked), 0)
    assert running(there) == (OLD, "mine", None)
    keys.revoke("clients")


def test_a_version_that_fails_more_often_goes_again(there, kserve, servers, model, keys):
    result_of(apply(job(model)))
    key, events = keys.add("clients"), release(job(model, image=NEW), 0.1, 30)
    while "old version: 0 of 0" not in str(next(events)):
        pass
    assert set(clients(servers[OLD], key, 40)) == set(clients(servers[NEW], key, 20)) == {200}
    with computing(servers[NEW], broken):
        assert set(clients(servers[NEW], key, 10)) == {500}
    with pytest.raises(DeploymentError, match=r"10 errors of 30 requests; old version: 0 of 40(.|\n)*worse"):
        list(events)
    assert running(there) == (OLD, "mine", None)
    assert kserve.moved[-2:] == [[("mine-predictor-00003", 0), ("mine-predictor-00001", 100)],
                                 [("mine-predictor-00003", 100)]]  # fmt: skip
    assert there.names() == ["InferenceService mine", "ServingRuntime mine"]
    assert ("Revision", "mine-predictor-00002") not in there.objects
    keys.revoke("clients")


def test_a_version_with_other_answers_goes_again_and_rows_are_shown(there, servers, model, capsys):
    result_of(apply(job(model)))
    with computing(servers[NEW], lambda outputs: [-one for one in outputs]):
        assert main([*line(model, image=NEW), "--canary", "10%", "--watch", "1s"]) == 1
    said = capsys.readouterr().err
    assert "golden rows are not answered as they must be" in said
    assert "the old version has all requests again" in said
    assert running(there) == (OLD, "mine", None)


def test_a_version_that_does_not_start_has_no_requests_and_goes_again(there, kserve, model):
    result_of(apply(job(model)))
    with pytest.raises(DeploymentError, match=r"ImagePullBackOff(.|\n)*the old version has all requests again"):
        result_of(release(job(model, image="registry/none:1"), 0.1, 1))
    assert all(("mine-predictor-00002" not in dict(moved)) for moved in kserve.moved)
    assert running(there) == (OLD, "mine", None)
    assert ("Revision", "mine-predictor-00002") not in there.objects


def broken_off(model: Path) -> None:
    """Begin a release and leave it where the new version is watched."""
    events = release(job(model, image=NEW), 0.25, 60)
    begun(events)
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt)


def test_a_release_that_was_broken_off_is_promoted_or_put_back(there, model, capsys, monkeypatch):
    result_of(apply(job(model)))
    broken_off(model)
    assert running(there) == (NEW, "mine-next", 25)
    assert main(["deploy", "status", "mine"]) == 0
    assert "with 25 % of the requests" in capsys.readouterr().out
    for again in (lambda: release(job(model), 0.1, 1), lambda: apply(job(model))):
        with pytest.raises(UsageError, match="a release of mine is under way"):
            result_of(again())
    assert main(["deploy", "promote", "mine"]) == 0
    assert running(there) == (NEW, "mine-next", None)
    assert main(["deploy", "promote", "mine"]) == 2
    assert "no release of mine is under way" in capsys.readouterr().err
    result_of(apply(job(model)))
    broken_off(model)
    from llmasos.targets import _kserve_release

    with monkeypatch.context() as patch:  # broken off again, while the old version is put back
        patch.setattr(_kserve_release, "_settle", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["deploy", "back", "mine"]) == 130
    assert running(there) == (OLD, "mine", 0)
    assert main(["deploy", "promote", "mine"]) == 2
    assert "is being put back" in capsys.readouterr().err
    assert main(["deploy", "back", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ended"] == "back"
    assert running(there) == (OLD, "mine", None)
    assert there.names() == ["InferenceService mine", "ServingRuntime mine"]
    assert main(["deploy", "back", "mine"]) == 2


def test_what_was_put_there_before_the_service_was_changed_is_removed(there, model):
    result_of(apply(job(model)))
    there.refuses = {("PATCH", "InferenceService"): (403, "inferenceservices is forbidden: exceeded quota: q")}
    with pytest.raises(RemoteError, match=r"exceeded quota(.|\n)*llmasos deploy back mine"):
        result_of(release(job(model, image=NEW), 0.1, 1))
    there.refuses = {}
    assert "ServingRuntime mine-next" in there.names()
    assert main(["deploy", "back", "mine"]) == 0
    assert there.names() == ["InferenceService mine", "ServingRuntime mine"]


def test_a_release_needs_something_to_stand_beside_and_the_means(there, model, monkeypatch):
    result_of(apply(job(model, mode="standard")))
    with pytest.raises(UsageError, match=r"in its Knative mode alone(.|\n)*--set mode=knative"):
        result_of(release(job(model, mode="standard", image=NEW), 0.1, 1))
    with pytest.raises(UsageError, match="KServe divides requests by whole percents"):
        result_of(release(job(model, image=NEW), 0.005, 1))
    removed(placed("mine"))
    result_of(apply(job(model)))
    with pytest.raises(UsageError, match="version of mine that is there is the same"):
        result_of(release(job(model), 0.1, 1))
    monkeypatch.setenv("LLMASOS_API_KEY", "lm-other")
    with pytest.raises(UsageError, match=r"want a key(.|\n)*LLMASOS_API_KEY"):
        result_of(release(job(model, image=NEW), 0.1, 1))
    there.servers = dict.fromkeys(there.servers, "http://127.0.0.1:9")
    with pytest.raises(UsageError, match="by way of the cluster, which fails"):
        result_of(release(job(model, image=NEW), 0.1, 1))
    assert there.names() == ["InferenceService mine", "ServingRuntime mine"]
    there.objects["InferenceService", "mine"]["status"]["components"] = {}
    with pytest.raises(UsageError, match="has not been ready yet"):
        result_of(release(job(model, image=NEW), 0.1, 1))
    there.remove("InferenceService", "mine")
    with pytest.raises(UsageError, match="no mine for a new version to stand beside"):
        result_of(release(job(model, image=NEW), 0.1, 1))


POD = ("containers", "volumes", "enableServiceLinks", "automountServiceAccountToken")
CONTAINER = ("name", "args", "env", "image", "livenessProbe", "ports", "readinessProbe", "resources", "securityContext",
             "volumeMounts")  # fmt: skip
PERSON = ("capabilities", "readOnlyRootFilesystem", "runAsUser", "runAsGroup", "runAsNonRoot", "seccompProfile",
          "allowPrivilegeEscalation")  # fmt: skip


def test_what_is_rendered_for_knative_has_nothing_that_knative_refuses():
    import yaml

    target = plugins.load("targets", "kserve")
    files = target.render(deployment("kserve", {"mode": "knative"}, max_replicas=4, gpu=1))
    runtime, service = (yaml.safe_load(files[f"{name}.yaml"])["spec"] for name in ("runtime", "service"))
    scale = ("model", "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")
    assert {*service["predictor"]} - {*scale} <= {*POD}
    (one,) = runtime["containers"]
    assert {*one} <= {*CONTAINER}
    assert {*one["securityContext"]} <= {*PERSON}
    assert one["securityContext"]["runAsNonRoot"] is True
    assert [port["name"] for port in one["ports"]] == ["http1"]
    assert {one[name]["httpGet"]["port"] for name in ("livenessProbe", "readinessProbe")} == {8080}
    assert {name for volume in runtime["volumes"] for name in volume} == {"name", "emptyDir", "secret"}
    assert service["predictor"]["scaleMetric"] in ("concurrency", "rps")


def test_copies_are_added_in_knative_by_the_requests_at_once():
    target = plugins.load("targets", "kserve")
    files = [target.render(deployment("kserve", {"mode": "knative", **more}))["service.yaml"]
             for more in ({}, {"concurrency": "3"})]  # fmt: skip
    assert ["scaleTarget: 16" in files[0], "scaleTarget: 3" in files[1]] == [True, True]


@pytest.mark.parametrize(("mode", "setting"), [("knative", "utilization"), ("standard", "concurrency")])
def test_what_scales_in_one_mode_is_refused_in_the_other(mode, setting):
    with pytest.raises(UsageError, match=f"{setting} does nothing in mode {mode}"):
        deployment("kserve", {"mode": mode, setting: "5"})
