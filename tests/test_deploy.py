"""``llmasos deploy``: what is rendered, kept, refused; and what a rehearsal sees. The real server is at the end."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from golden_targets import FOLDER, cases, deployment, rendered, save_light
from llmasos.core import plugins
from llmasos.core.config import DeployConfig
from llmasos.core.errors import BundleError, UsageError
from llmasos.deployment import RECORD, RELEASE, Job, render, settled
from llmasos.targets._server import OPENING
from llmasos.targets.base import Validated
from llmasos.targets.helm import filled

NAMES = plugins.names("targets")
CHANGED: dict[str, Any] = {
    "name": "other", "image": "mine:2", "replicas": 3, "max_replicas": 9, "cpus": 4.0, "memory": 9 << 30, "gpu": 2,
    "port": 9000, "region": "eu-west-1", "instance": "big", "engine": "onnxruntime", "quantize": "int8",
    "precision": "float32",
    "keys_secret": "others", "weights": "inside",
}  # fmt: skip
OWN: dict[str, dict[str, str]] = {
    "compose": {"keys": "./k", "scrape_key": "./s", "prometheus": "prom:1", "grafana": "grafana:1"},
    "kubernetes": {"model": "registry/me/mine:1", "registry_secret": "login", "namespace": "ml", "callers": "web",
                   "context": "staging"},
    "helm": {"model": "pvc:other", "namespace": "ml", "callers": "web", "context": "staging"},
    "kserve": {"model": "s3://bucket/mine", "namespace": "ml", "utilization": "50", "context": "staging",
               "mode": "knative"},
    "sagemaker": {"role": "arn:aws:iam::1:role/other", "bucket": "s3://other", "invocations": "10"},
    "azureml": {"deployment": "green", "at_once": "8", "workspace": "w", "group": "g", "subscription": "s"},
    "skypilot": {"cloud": "aws", "accelerator": "A100", "spot": "on", "requests": "2", "keys_file": "k.json"},
    "ray": {"model": "/m", "keys_file": "/k.json", "requests": "2", "route": "/mine", "address": "http://head:8265"},
    "systemd": {"program": "/usr/bin/llmasos", "model": "/m", "host": "0.0.0.0", "keys_file": "/k.json"},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_light(tmp_path_factory.mktemp("deploy") / "My_Model.v2")


def job(name: str, **changed: Any) -> Job:
    return Job(plugins.load("targets", name), deployment(name, **changed), Path("/models/mine"))


# -- what is rendered ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "edge"), cases())
def test_a_target_renders_its_golden_files(name: str, edge: str) -> None:
    kept = FOLDER / name / edge
    there = {path.relative_to(kept).as_posix(): path.read_text() for path in kept.rglob("*") if path.is_file()}
    assert rendered(name, edge) == there, "python tests/golden_targets.py writes them anew"


@pytest.mark.parametrize("name", NAMES)
def test_every_option_that_a_target_takes_changes_what_it_renders(name: str) -> None:
    target = plugins.load("targets", name)
    busy = {"max_replicas": 5, "engine": "openvino"} if "engine" in target.takes else {"max_replicas": 5}
    before = [target.render(deployment(name, **busy)), target.steps(deployment(name, **busy), "out")]
    for option in target.takes:
        d = deployment(name, **{**busy, option: CHANGED[option]})
        assert [target.render(d), target.steps(d, "out")] != before, option


@pytest.mark.parametrize("name", sorted(OWN))
def test_every_setting_of_a_target_changes_what_it_renders(name: str) -> None:
    target = plugins.load("targets", name)
    assert {field.name for field in fields(target.settings)} - set(OWN[name]) <= {"registry_secret", "concurrency"}
    busy: dict[str, Any] = {"max_replicas": 5, "gpu": 1}
    settings = {"model": "registry/me/mine:0"} if name == "kubernetes" else {}
    before = [target.render(deployment(name, settings, **busy)), target.steps(deployment(name, settings, **busy), "o")]
    for setting, value in OWN[name].items():
        d = deployment(name, {**settings, setting: value}, **busy)
        assert [target.render(d), target.steps(d, "o")] != before, setting


@pytest.mark.parametrize("name", NAMES)
def test_what_is_rendered_can_be_read_and_names_the_command_that_is_rehearsed(name: str) -> None:
    target, d = plugins.load("targets", name), deployment(name)
    files, contract = target.render(d), target.contract(d)
    for path, text in files.items():
        assert text.endswith("\n")
        if path.endswith(".json"):
            json.loads(text)
        elif path.endswith((".yaml", ".yml")) and "{{ .Values" not in text:
            assert list(yaml.safe_load_all(text))
    whole = "\n".join(files.values())
    words = contract.files.values() if contract.files else contract.words
    words = [word.replace("mine=/mnt", "{{.Name}}=/mnt") for word in words]
    assert [word for word in words if word not in whole] == []


@pytest.mark.parametrize("name", ["kubernetes", "helm", "kserve"])
def test_manifests_are_what_kubernetes_publishes(name: str) -> None:
    pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    target = plugins.load("targets", name)
    modes: list[dict[str, str]] = [{}, {"mode": "knative"}] if name == "kserve" else [{}]
    for more in ({}, {"max_replicas": 5, "gpu": 1}, {"weights": "inside"}):
        for mode in modes:
            found = target.validate(target.render(deployment(name, mode, **more)))
            assert found.problems == ()
        assert "kubernetes-validate 1." in found.tool


def test_a_manifest_that_kubernetes_does_not_know_is_told() -> None:
    pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    target = plugins.load("targets", "kubernetes")
    files = target.render(deployment("kubernetes"))
    wrong = files["deployment.yaml"].replace("readinessProbe", "readynessProbe")
    (problem,) = target.validate({"deployment.yaml": wrong}).problems
    assert "readynessProbe" in problem


def test_a_dockerfile_has_no_errors_by_hadolint() -> None:
    target = plugins.load("targets", "docker")
    if missing := target.validate(target.render(deployment("docker"))).missing:
        pytest.skip(f"needs hadolint: {missing}")
    for more in ({}, {"gpu": 1}, {"weights": "inside"}):
        assert target.validate(target.render(deployment("docker", **more))).problems == ()
    wrong = target.render(deployment("docker"))["Dockerfile"].replace("USER 10001", "USR 10001")
    assert "Dockerfile" in target.validate({"Dockerfile": wrong}).problems[0]


def test_docker_compose_itself_takes_the_composition() -> None:
    target = plugins.load("targets", "compose")
    if missing := target.validate(target.render(deployment("compose"))).missing:
        pytest.skip(f"needs docker compose: {missing}")
    for more in ({}, {"gpu": 1, "weights": "inside"}, {"light": True}):
        files = target.render(deployment("compose", **more))
        assert target.validate(files).problems == ()
    assert target.validate({"compose.yaml": rendered("compose", "large")["compose.yaml"]}).problems == ()
    for right, wrong, told in (("stop_grace_period: 55s", "stop_grace_period: soon", "soon"),
                               ("home:/var", "house:/var", "undefined volume house")):  # fmt: skip
        (problem,) = target.validate({"compose.yaml": files["compose.yaml"].replace(right, wrong)}).problems
        assert told in problem


def test_azures_own_package_takes_the_definitions() -> None:
    target = plugins.load("targets", "azureml")
    for more in ({}, {"gpu": 1, "replicas": 3}):
        files = target.render(deployment("azureml", **more))
        found = target.validate(files)
        if found.missing:
            pytest.skip(f"needs azure-ai-ml: {found.missing}")
        assert found.problems == ()
        assert found.tool.startswith("azure-ai-ml 1.")
    wrong = files["deployment.yml"].replace("instance_count", "instances")
    (problem,) = target.validate({**files, "deployment.yml": wrong}).problems
    assert "instances" in problem


def test_helm_itself_takes_the_chart() -> None:
    if shutil.which("helm") is None:
        pytest.skip("needs helm")
    target = plugins.load("targets", "helm")
    for more in ({}, {"max_replicas": 5, "gpu": 1}, {"weights": "inside"}):
        found = target.validate(target.render(deployment("helm", **more)))
        assert found.problems == ()
        assert found.tool.startswith("helm v")
    files = target.render(deployment("helm"))
    assert target.validate({**files, "Chart.yaml": "apiVersion: v2\nname: mine\n"}).problems
    wrong = files["templates/service.yaml"].replace("port: 80", "prt: 80")
    assert "'port' is a required" in " ".join(target.validate({**files, "templates/service.yaml": wrong}).problems)


def test_the_chart_with_its_own_values_is_the_manifests() -> None:
    more = {"max_replicas": 5}
    chart = plugins.load("targets", "helm").render(deployment("helm", **more))
    plain = plugins.load("targets", "kubernetes").render(deployment("kubernetes", **more))
    found = {name.removeprefix("templates/"): yaml.safe_load(text) for name, text in filled(chart).items()}
    assert found == {name: yaml.safe_load(text) for name, text in plain.items()}
    assert yaml.safe_load(chart["values.yaml"]).keys() >= {"image", "replicas", "maxReplicas", "memory", "keysSecret"}


def test_the_manifest_gives_a_model_the_time_that_the_contract_says() -> None:
    target, d = plugins.load("targets", "kubernetes"), deployment("kubernetes")
    pod = yaml.safe_load(target.render(d)["deployment.yaml"])["spec"]["template"]["spec"]
    container, contract = pod["containers"][0], target.contract(d)
    start = container["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] == OPENING == contract.ready.within
    assert container["readinessProbe"]["timeoutSeconds"] == contract.ready.seconds
    assert container["livenessProbe"]["httpGet"]["path"] == contract.live.path
    assert pod["terminationGracePeriodSeconds"] == contract.grace + contract.pause
    assert {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")} == set(
        contract.writable
    )


def test_a_unit_is_little_exposed(capsys: pytest.CaptureFixture[str]) -> None:
    target = plugins.load("targets", "systemd")
    found = target.validate(target.render(deployment("systemd")))
    if found.missing:
        pytest.skip(f"needs {found.missing}")
    assert found.problems == ()
    with capsys.disabled():
        print(found.tool)
    open_ = target.render(deployment("systemd"))["mine.service"].split("# What it does not need.")[0]
    assert "exposed to" in target.validate({"mine.service": open_}).problems[0]


# -- settling -----------------------------------------------------------------------------------------


def test_names_images_and_memory_follow_the_model(model: Path) -> None:
    d = settled("kubernetes", model, {}).deployment
    assert (d.name, d.keys_secret) == ("my-model-v2", "my-model-v2-keys")
    assert d.image.startswith("llmasos:")
    assert d.memory == 1_500_000_000 + 3 * d.size
    inside = settled("kubernetes", model, {"weights": "inside", "memory": "4GB"}).deployment
    assert inside.image.startswith("my-model-v2:")
    assert inside.memory == 4_000_000_000
    assert settled("docker", model, {"engine": "openvino-genai"}).deployment.extra == "openvino,openvino-genai"


@pytest.mark.parametrize(("target", "options", "told"), [
    ("kubernets", {}, "did you mean 'kubernetes'"),
    ("kubernetes", {"replica": 2}, "did you mean 'replicas'"),
    ("kubernetes", {"region": "eu"}, "region does nothing in kubernetes"),
    ("sagemaker", {"engine": "openvino"}, "engine does nothing in sagemaker"),
    ("kubernetes", {"name": "Mine"}, "name='Mine'"),
    ("kubernetes", {"replicas": 3, "max_replicas": 2}, "below replicas=3"),
    ("kubernetes", {"memory": "much"}, "no amount of memory"),
    ("docker", {"engine": "openvin"}, "did you mean 'openvino'"),
    ("skypilot", {"spot": "maybe"}, "spot='maybe'"),
])  # fmt: skip
def test_what_cannot_be_deployed_is_told(model: Path, target: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        settled(target, model, options)


def test_a_model_that_was_changed_is_not_deployed(model: Path, tmp_path: Path) -> None:
    from llmasos.core.bundle import write_manifest

    folder = Path(shutil.copytree(model, tmp_path / "model"))
    write_manifest(folder, {})
    settled("docker", folder, {})
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(BundleError, match=r"changed: config\.json"):
        settled("docker", folder, {})


def test_what_a_cloud_cannot_be_without_is_asked_for(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="role is not given") as error:
        render(settled("sagemaker", model, {"bucket": "s3://b"}), tmp_path / "out")
    assert "--set role=" in str(error.value)
    assert not (tmp_path / "out").exists()


# -- the folder ---------------------------------------------------------------------------------------


def test_a_file_that_was_edited_is_shown_and_stays(tmp_path: Path) -> None:
    render(job("kubernetes"), tmp_path)
    path, before = tmp_path / "service.yaml", (tmp_path / "deployment.yaml").read_text()
    path.write_text(path.read_text().replace("port: 80\n", "port: 81\n"))
    with pytest.raises(UsageError) as error:
        render(job("kubernetes", cpus=8.0), tmp_path)
    assert "-    port: 81\n" in str(error.value)
    assert "+    port: 80\n" in str(error.value)
    assert "port: 81" in path.read_text()
    assert (tmp_path / "deployment.yaml").read_text() == before
    render(job("kubernetes", cpus=8.0), tmp_path, overwrite=True)
    assert "port: 81" not in path.read_text()
    assert (tmp_path / "deployment.yaml").read_text() != before


def test_what_is_no_longer_rendered_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "hpa.yaml" in render(job("kubernetes", max_replicas=5), tmp_path).files
    assert render(job("kubernetes"), tmp_path).removed == ("hpa.yaml", "pdb.yaml")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        RECORD, "deployment.yaml", "networkpolicy.yaml", "notes.txt", "service.yaml",
    ]  # fmt: skip
    assert render(job("kubernetes"), tmp_path).removed == ()


def test_a_file_of_the_users_own_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    with pytest.raises(UsageError, match=r"edited by hand .* Dockerfile"):
        render(job("docker"), tmp_path)


def test_after_a_crash_in_the_midst_nothing_looks_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmasos.core import atomic

    render(job("kubernetes"), tmp_path)
    own, written = atomic.write_text, []

    def crash(path: Path, *args: Any, **options: Any) -> Path:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return own(path, *args, **options)

    monkeypatch.setattr(atomic, "write_text", crash)
    with pytest.raises(KeyboardInterrupt):
        render(job("kubernetes", cpus=8.0), tmp_path)
    monkeypatch.undo()
    render(job("kubernetes", cpus=3.0), tmp_path)


def test_a_record_that_points_outside_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(json.dumps({"../other": ["x"]}))
    with pytest.raises(BundleError, match="outside"):
        render(job("docker"), tmp_path)


SECRETS = ["lm-" + "a1B2" * 10, "AKIA" + "ABCD" * 4, "hf_" + "a1B2" * 9, "https://me:secret@example.com/image",
           "s3://b?X-Amz-Signature=" + "ab12" * 8]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_not_written_and_not_repeated(tmp_path: Path, secret: str) -> None:
    with pytest.raises(UsageError, match="would hold a secret") as error:
        render(job("docker", image=secret), tmp_path / "out")
    assert secret not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_the_makers_refuse_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = job("kubernetes")
    monkeypatch.setattr(type(wrong.target), "validate", lambda *_: Validated("tool 1", ("deployment.yaml: no",)))
    with pytest.raises(UsageError, match=r"tool 1 refuses(.|\n)*deployment.yaml: no"):
        render(wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- the command line ---------------------------------------------------------------------------------


def test_the_verb_renders_and_tells_what_to_do(model: Path, tmp_path: Path, capsys: Any) -> None:
    from llmasos.cli import main

    out = tmp_path / "out"
    words = ["deploy", "kubernetes", str(model), "--render", str(out), "--replicas", "2", "--set", "namespace=ml"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert str(out / "deployment.yaml") in said.out
    assert f"kubectl apply --namespace ml -f {out}" in said.err
    assert yaml.safe_load((out / "deployment.yaml").read_text())["spec"]["replicas"] == 2
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["rendered"]
    assert "deployment.yaml" in told["files"]


def test_apply_names_the_places_own_commands(model: Path, capsys: Any) -> None:
    from llmasos.cli import main

    assert main(["deploy", "helm", str(model), "--apply"]) == 2
    assert "helm upgrade --install my-model-v2 DIR" in capsys.readouterr().err
    assert main(["deploy", "kubernetes", str(model)]) == 2
    assert "--render DIR" in capsys.readouterr().err


def test_python_renders_too(model: Path, tmp_path: Path) -> None:
    from llmasos import LLM

    found = LLM.from_pretrained(model).deploy("docker", tmp_path / "out", cpus=3)
    assert found.files == ("Dockerfile", ".dockerignore", "run.sh")
    assert "--cpus 3 " in (tmp_path / "out" / "run.sh").read_text()
    with pytest.raises(UsageError, match="no folder"):
        LLM.from_pretrained(model).deploy("docker")


def test_the_options_are_those_of_the_configuration() -> None:
    names = {field.name for field in fields(DeployConfig)}
    assert names == set(CHANGED) | set(RELEASE)
    assert all(set(plugins.load("targets", name).takes) <= names for name in NAMES)


# -- rehearsals: the real server --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from served_models import tuned

    return tuned(tmp_path_factory.mktemp("rehearsed"), "text-classification")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_contract_is_kept_by_the_real_server(name: str, tuned_model: Path) -> None:
    from llmasos import LLM

    more = {}
    if name == "ray":
        pytest.importorskip("grpc_reflection", reason="needs ray[serve]")
        more = {"replicas": 2, "cpus": 1}
    found = LLM.from_pretrained(tuned_model).deploy(name, rehearse=True, name="mine", progress=True, **more)
    asked = [step.asked for step in found.steps]
    print(*((step.asked, step.seen, step.seconds) for step in found.steps), sep="\n")
    rolled = [step.seen for step in found.steps if "another server in its place" in step.asked]
    assert len(rolled) == (name in ("kubernetes", "helm", "kserve", "systemd"))
    assert all(seen.startswith("no request lost of ") for seen in rolled)
    assert asked[-2] == "no request lost at SIGTERM"
    assert "golden rows, in" in " ".join(step.seen for step in found.steps)
    killed = [step for step in found.steps if "killed under load" in step.asked]
    assert [step.asked.split()[1] for step in killed] == (["copy", "machine"] if name == "ray" else [])
    assert all(int(step.seen.split()[0]) >= 1 for step in killed)


def test_a_target_that_is_not_kept_is_an_error_with_the_log(tuned_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from llmasos.core.errors import DeploymentError
    from llmasos.core.events import result_of
    from llmasos.rehearsal import rehearse

    target = plugins.load("targets", "kubernetes")
    own = type(target).contract
    wrong = lambda self, d: replace(own(self, d), words=("serve", "mine=/nowhere", "--port", "8000"))  # noqa: E731
    monkeypatch.setattr(type(target), "contract", wrong)
    with pytest.raises(DeploymentError, match=r"ended with exit code 2(.|\n)*/nowhere"):
        result_of(rehearse(settled("kubernetes", tuned_model, {"name": "mine"})))


def test_a_model_without_golden_rows_is_not_rehearsed(model: Path) -> None:
    from llmasos.core.events import result_of
    from llmasos.rehearsal import rehearse

    with pytest.raises(BundleError, match="no golden rows"):
        result_of(rehearse(settled("docker", model, {})))


def test_labels_that_are_numbers_are_compared_by_their_names(
    tuned_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmasos import expected

    monkeypatch.setattr(expected, "answered", lambda *_: ((), 0.01))
    monkeypatch.setattr(expected, "_predicted", lambda *_: [({"text": "a"}, {"scores": {0: 0.25, 1: 0.75}})])
    assert expected.Expected(tuned_model).check(0, {"scores": {"0": 0.25, "1": 0.75}}).same


def test_an_answer_that_is_not_the_golden_one_is_told(tuned_model: Path) -> None:
    from llmasos.core.errors import DeploymentError
    from llmasos.expected import Expected

    expected = Expected(tuned_model)
    right = expected.answers[0]
    assert expected.check(0, json.loads(json.dumps(right))) == (pytest.approx(0.0), True)
    coarse = Expected(tuned_model, precision="bfloat16")
    assert coarse.tolerance > expected.tolerance
    number = next(number for number, one in enumerate(coarse.answers) if "score" in one)
    told, half = coarse.answers[number], coarse.tolerance / 2
    assert coarse.check(number, {**told, "score": told["score"] + half}).apart == pytest.approx(half, rel=1e-3)
    with pytest.raises(DeploymentError, match="score"):
        coarse.check(number, {**told, "score": told["score"] + 3 * half})
    for wrong in ({**right, "label": "?"}, {**right, "score": right["score"] + 0.1}, {}, None):
        with pytest.raises(DeploymentError, match="golden row 1 is answered otherwise"):
            expected.check(0, wrong)
