"""Signatures, bills of materials, packs and registries: what they hold, and what they refuse."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmasos.cli import main
from llmasos.core import atomic, bundle
from llmasos.core.errors import BundleError, HardwareError, RemoteError, UsageError
from llmasos.supply import packing, registry, signing
from llmasos.supply.packing import ARTIFACT_TYPE, CONFIG_TYPE, FILEPATH
from tiny import save_tiny_bert

TASK = {"tag": "text-classification", "num_labels": 2, "labels": ["bad", "good"]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_bert(tmp_path_factory.mktemp("supply") / "mine")
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text(json.dumps({"command": ["secret"], "versions": {"torch": "2.13"}}))
    metric = {"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}}
    bundle.write_manifest(folder, {
        "made_by": "llmasos 0", "task": TASK, "base": {"ref": "org/base", "revision": "abc", "source": "hub"},
        "data": {"train": {"fingerprint": "f" * 64, "rows": 7}}, "report": {"rows": 3, "metrics": metric},
    })  # fmt: skip
    return folder


@pytest.fixture
def model(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> signing.Keys:
    return signing.new_keys(tmp_path_factory.mktemp("keys") / "key.pem")


# -- signatures and bills -----------------------------------------------------------------------------


def test_a_signed_folder_is_verified_with_the_public_key(model, keys):
    signed = signing.sign(model, keys.private)
    assert signing.verify(model, keys.public) == signed
    assert set(signed.files) == {"bom.cdx.json", "llmasos.json", *bundle.files_of(model)} - {"model.sig"}
    assert keys.private.stat().st_mode & 0o077 == 0
    signing.sign(model, keys.private)
    signing.verify(model, keys.public)


@pytest.mark.parametrize(("change", "told"), [
    (lambda f: (f / "config.json").write_text((f / "config.json").read_text() + " "), "changed: config.json"),
    (lambda f: (f / "tokenizer.json").unlink(), "removed: tokenizer.json"),
    (lambda f: (f / "more.txt").write_text("x"), "added: more.txt"),
    (lambda f: (f / ".gitattributes").write_text("x"), "added: .gitattributes"),
    (lambda f: (f / "more.txt").symlink_to(f / "config.json"), "holds links: more.txt"),
    (lambda f: (f / "model.sig").unlink(), "has no signature"),
    (lambda f: (f / "model.sig").write_text((f / "model.sig").read_text()[:90]), "damaged signature"),
    (lambda f: (f / "model.sig").write_text("[]"), "damaged signature"),
])  # fmt: skip
def test_what_is_not_as_it_was_signed_is_refused_by_name(model, keys, change, told):
    signing.sign(model, keys.private)
    change(model)
    with pytest.raises(BundleError, match=told):
        signing.verify(model, keys.public)


def test_a_signature_that_was_rewritten_does_not_pass(model, keys):
    signing.sign(model, keys.private)
    content = json.loads((model / "model.sig").read_text())
    said = json.loads(base64.b64decode(content["dsseEnvelope"]["payload"]))
    said["predicate"]["resources"].pop()
    content["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
    (model / "model.sig").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"not signed with the key|damaged"):
        signing.verify(model, keys.public)


def test_another_key_is_refused(model, keys, tmp_path):
    signing.sign(model, keys.private)
    with pytest.raises(BundleError, match="not signed with the key"):
        signing.verify(model, signing.new_keys(tmp_path / "other.pem").public)


def test_a_key_with_a_password_needs_it(model, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMASOS_KEY_PASSWORD", "open sesame")
    keys = signing.new_keys(tmp_path / "own.pem")
    assert b"ENCRYPTED" in keys.private.read_bytes()
    signing.sign(model, keys.private)
    signing.verify(model, keys.public)
    monkeypatch.delenv("LLMASOS_KEY_PASSWORD")
    with pytest.raises(UsageError, match="no private key that can be used"):
        signing.sign(model, keys.private)


def test_keys_are_not_shipped_and_not_overwritten(model, keys):
    shutil.copy(keys.private, model / "key.pem")
    with pytest.raises(UsageError, match="lies in the folder"):
        signing.sign(model, model / "key.pem")
    with pytest.raises(UsageError, match="never overwritten"):
        signing.new_keys(keys.private)


def test_a_changed_model_is_not_signed(model, keys):
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    with pytest.raises(BundleError, match=r"config\.json"):
        signing.sign(model, keys.private)
    assert not (model / "model.sig").exists()


def test_openssf_s_own_command_line_takes_the_signature(model, keys):
    signing.sign(model, keys.private)
    from model_signing import hashing, verifying

    config = hashing.Config().set_ignored_paths(paths=["model.sig", "run"])
    verifying.Config().use_elliptic_key_verifier(public_key=keys.public).set_hashing_config(config).verify(
        model, model / "model.sig"
    )


def test_the_command_line_checks_the_signature_before_anything_is_opened(model, keys, capsys):
    assert main(["sign", str(model), "--key", str(keys.private)]) == 0
    (model / "llmasos.json").write_text("no JSON at all")
    capsys.readouterr()
    assert main(["verify", str(model), "--key", str(keys.public)]) == 2
    assert "changed: llmasos.json" in capsys.readouterr().err


def test_the_bill_of_materials_is_valid_and_complete(model, keys):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    signing.sign(model, keys.private)
    text = (model / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    about = bill["metadata"]["component"]
    assert (about["type"], about["pedigree"]["ancestors"][0]["name"]) == ("machine-learning-model", "org/base")
    assert about["modelCard"]["modelParameters"]["task"] == "text-classification"
    (metric,) = about["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metric["confidenceInterval"] == {"lowerBound": "0.7", "upperBound": "0.9"}
    parts = {part["bom-ref"]: part for part in bill["components"]}
    assert parts["file-model.safetensors"]["hashes"][0]["content"] == bundle.digest(model / "model.safetensors")
    assert {"name": "llmasos:fingerprint", "value": "f" * 64} in parts["data-train"]["properties"]
    assert parts["package-torch"]["version"] == "2.13"


# -- packs --------------------------------------------------------------------------------------------


def test_a_pack_is_a_modelpack_of_all_files_but_the_run_s(model, tmp_path):
    pack = packing.write(model, f"oci:{tmp_path / 'layout'}")
    manifest = json.loads((tmp_path / "layout" / "blobs" / "sha256" / pack.manifest.digest[7:]).read_text())
    assert (manifest["artifactType"], manifest["config"]["mediaType"]) == (ARTIFACT_TYPE, CONFIG_TYPE)
    kinds = {layer["annotations"][FILEPATH]: layer["mediaType"].split("model.")[1] for layer in manifest["layers"]}
    assert kinds.keys() == {"llmasos.json", *bundle.files_of(model)}
    assert kinds["model.safetensors"] == "weight.v1.raw"
    assert kinds["config.json"] == "weight.config.v1.raw"
    config = json.loads((tmp_path / "layout" / "blobs" / "sha256" / manifest["config"]["digest"][7:]).read_text())
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}
    assert config["config"] == {"architecture": "transformer", "format": "safetensors", "precision": "float32"}


@pytest.mark.parametrize(("ref", "source"), [("https://models.test/base", "https://models.test/base"),
                                             ("org/base", None), ("/home/me/base", None)])  # fmt: skip
def test_a_pack_s_configuration_has_the_fields_that_the_specification_knows(model, ref, source):
    manifest = bundle.read_manifest(model)
    artifact = {"target": "onnx", "engine": "onnxruntime", "precision": "int8", "files": ["model.safetensors"]}
    bundle.write_manifest(model, manifest | {"base": {"ref": ref}, "artifact": artifact})
    pack = packing.make(model)
    config, manifest = json.loads(pack.config.content), json.loads(pack.manifest.content)
    assert config.keys() == {"descriptor", "config", "modelfs"}
    assert config["descriptor"] == {"family": "bert", "title": TASK["tag"]} | ({"sourceURL": source} if source else {})
    assert config["config"] == {"architecture": "transformer", "format": "onnx", "precision": "int8"}
    assert config["modelfs"] == {"type": "layers", "diffIds": [blob.digest for blob in pack.layers]}
    assert manifest.keys() == {"schemaVersion", "mediaType", "artifactType", "config", "layers"}
    assert (manifest["schemaVersion"], manifest["mediaType"]) == (2, packing.MANIFEST_TYPE)
    assert all(layer.keys() == {"mediaType", "digest", "size", "annotations"} for layer in manifest["layers"])


def test_the_same_folder_gives_the_same_bytes(model, saved, tmp_path):
    other = shutil.copytree(saved, tmp_path / "elsewhere")
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    packing.write(model, tmp_path / "a.tar")
    packing.write(other, tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.parametrize("place", ["{}/pack.tar", "oci:{}/layout"])
def test_what_is_packed_comes_out_as_it_was(model, keys, tmp_path, place, capsys):
    signing.sign(model, keys.private)
    place = place.format(tmp_path)
    assert main(["pack", str(model), "--output", place]) == 0
    assert main(["pull", place, "--output", str(tmp_path / "out"), "--key", str(keys.public)]) == 0
    there = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == there
    assert main(["pack", str(model), "--output", place]) == 2
    assert main(["pull", place, "--output", str(tmp_path / "out")]) == 2
    assert main(["pull", place, "--output", str(tmp_path / "out"), "--overwrite"]) == 0


def test_an_unsafe_or_changed_model_is_not_packed(model, tmp_path):
    (model / "config.json").write_text('{"auto_map": {"AutoModel": "code.Model"}}')
    with pytest.raises(BundleError, match="auto_map"):
        packing.write(model, tmp_path / "pack.tar")
    assert not (tmp_path / "pack.tar").exists()


def test_without_space_no_pack_and_no_model_is_left(model, tmp_path, monkeypatch):
    packing.write(model, tmp_path / "pack.tar")
    monkeypatch.setattr(packing, "disk_free", lambda _: 1000)
    with pytest.raises(HardwareError, match="less free"), packing.opened(str(tmp_path / "pack.tar")) as pack:
        packing.unpack(pack, tmp_path / "out")
    monkeypatch.undo()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "_place", full)
    with pytest.raises(HardwareError, match="no space"), packing.opened(str(tmp_path / "pack.tar")) as pack:
        packing.unpack(pack, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(HardwareError, match="no space"):
        packing.write(model, tmp_path / "more.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "pack.tar"]


def added(name: str, content: bytes = b"x", **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in more.items():
        setattr(member, key, value)
    return member, content


HOSTILE = {
    "above": (added("../evil"), "outside"),
    "absolute": (added("/tmp/evil"), "outside"),
    "drive": (added("C:\\evil"), "outside"),
    "deep": (added("a/../../evil"), "outside"),
    "symlink": (added("link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "link or a device"),
    "hard link": (added("link", b"", type=tarfile.LNKTYPE, linkname="config.json"), "link or a device"),
    "device": (added("null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3), "link or a device"),
    "pipe": (added("pipe", b"", type=tarfile.FIFOTYPE), "link or a device"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_tar_that_reaches_out_of_its_folder_is_refused(model, tmp_path, kind):
    (member, content), told = HOSTILE[kind]
    packing.write(model, tmp_path / "pack.tar")
    with tarfile.open(tmp_path / "pack.tar", "a") as archive:
        archive.addfile(member, io.BytesIO(content))
    refuses(tmp_path, told)


@pytest.mark.parametrize("kind", [*HOSTILE, "twice"])
def test_so_is_such_a_layer(model, tmp_path, kind):
    (member, content), told = HOSTILE.get(kind, (added("config.json"), "config.json twice"))
    kept = io.BytesIO()
    with tarfile.open(fileobj=kept, mode="w") as archive:
        archive.addfile(member, io.BytesIO(content))
    layered(model, tmp_path, kept.getvalue(), "application/vnd.cncf.model.weight.config.v1.tar")
    refuses(tmp_path, told)


@pytest.mark.parametrize(("name", "told"), [
    ("../evil", "outside"), ("/tmp/evil", "outside"), ("config.json", "twice"), (7, "outside"), ("", "outside"),
    ("config.json/x", "a file and a folder"),
])  # fmt: skip
def test_so_is_a_layer_named_so(model, tmp_path, name, told):
    layered(model, tmp_path, b"x", "application/vnd.cncf.model.doc.v1.raw", name=name)
    refuses(tmp_path, told)


@pytest.mark.parametrize(("size", "told"), [(3, "longer than the 3 bytes"), (9, "cut off at 4 of 9")])
def test_a_layer_of_another_length_than_announced_is_refused(model, tmp_path, size, told):
    layered(model, tmp_path, b"four", "application/vnd.cncf.model.doc.v1.raw", name="README.md", size=size)
    refuses(tmp_path, told)


def test_a_layer_of_an_unknown_type_is_refused(model, tmp_path):
    layered(model, tmp_path, b"x", "application/x-python-code", name="x.py")
    refuses(tmp_path, "layer of type")


@pytest.mark.parametrize("at", [0.3, 0.6, 0.99])
def test_a_damaged_tar_is_refused(model, tmp_path, at):
    packing.write(model, tmp_path / "pack.tar")
    content = bytearray((tmp_path / "pack.tar").read_bytes())
    weights = (model / "model.safetensors").read_bytes()
    start = bytes(content).index(weights[:64])
    content[start + int(at * len(weights))] ^= 1
    (tmp_path / "pack.tar").write_bytes(content)
    refuses(tmp_path, "does not have its digest")
    (tmp_path / "pack.tar").write_bytes(content[: start + int(at * len(weights))])
    refuses(tmp_path, r"cut off|lacks|damaged|unexpected end")


def layered(model: Path, folder: Path, content: bytes, kind: str, *, name: Any = "x", size: int | None = None) -> None:
    """Write a pack as a tar with one more layer."""
    pack = packing.make(model)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    manifest = json.loads(pack.manifest.content)
    manifest["layers"].append({
        "mediaType": kind, "digest": digest, "size": len(content) if size is None else size,
        "annotations": {FILEPATH: name},
    })  # fmt: skip
    raw = json.dumps(manifest).encode()
    made = packing.Blob(f"sha256:{hashlib.sha256(raw).hexdigest()}", len(raw), raw)
    more = packing.Blob(digest, len(content), content)
    packing._write_tar(pack._replace(manifest=made, layers=(*pack.layers, more)), folder / "pack.tar", False)


def refuses(folder: Path, told: str) -> None:
    with pytest.raises(BundleError, match=told), packing.opened(str(folder / "pack.tar")) as pack:
        packing.unpack(pack, folder / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["model", "pack.tar"]


# -- registries ---------------------------------------------------------------------------------------


@pytest.fixture
def docker(tmp_path) -> Iterator[str]:
    """Debian's docker-registry on a free port of this machine."""
    if (program := shutil.which("docker-registry")) is None:
        pytest.skip("needs Debian's package docker-registry, which is not here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "registry").mkdir()
    config = {"version": 0.1, "log": {"level": "error"}, "http": {"addr": host},
              "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}}  # fmt: skip
    (tmp_path / "registry.yml").write_text(json.dumps(config))
    with (tmp_path / "registry.log").open("w") as log:
        server = subprocess.Popen([program, "serve", str(tmp_path / "registry.yml")], stdout=log, stderr=log)
    try:
        for _ in range(200):
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", int(host.rpartition(":")[2]))) == 0:
                    break
            time.sleep(0.05)
        yield host
    finally:
        server.terminate()
        server.wait()


def test_a_real_registry_keeps_the_model(model, keys, docker, tmp_path, capsys):
    signing.sign(model, keys.private)
    reference = f"{docker}/me/mine:1"
    assert main(["push", str(model), reference, "--json"]) == 0
    digest = json.loads(capsys.readouterr().out)["digest"]
    log = tmp_path / "registry.log"
    sent = log.read_text().count('"PUT /v2/me/mine/blobs')
    assert main(["push", str(model), f"{docker}/me/mine:2"]) == 0
    assert log.read_text().count('"PUT /v2/me/mine/blobs') == sent > 0  # nothing was sent twice
    for number, name in enumerate((reference, f"{docker}/me/mine@{digest}")):
        assert main(["pull", name, "--output", str(tmp_path / f"out{number}"), "--key", str(keys.public)]) == 0
        assert (tmp_path / f"out{number}" / "model.safetensors").read_bytes() == (
            model / "model.safetensors"
        ).read_bytes()
    assert main(["pull", f"{docker}/me/none:1", "--output", str(tmp_path / "no")]) == 2
    assert "has no me/none:1" in capsys.readouterr().err


class Server:
    """A registry of one pack, that can also misbehave."""

    def __init__(self, pack: packing.Pack) -> None:
        self.blobs = {blob.digest: blob for blob in (pack.config, *pack.layers)}
        self.manifest = pack.manifest
        self.cut: list[int] = []  # downloads break off after so many bytes, one after another
        self.altered = ""  # a blob that is sent with another last byte
        self.ranges = True
        self.moved = ""  # where blobs are redirected to
        self.realm = ""  # a token server: who it is asks for a login
        self.seen: list[tuple[str, str | None]] = []

    def __enter__(self) -> Server:
        handler = type("Handler", (_Handler,), {"server_": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.host = f"127.0.0.1:{self.http.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, allowed = self.server_, self.headers["Authorization"]
        server.seen.append((self.path, allowed))
        if self.path.startswith("/token"):
            return self.send(200, json.dumps({"token": "t0ken"} if allowed else {}).encode())
        if server.realm and allowed != "Bearer t0ken":
            challenge = f'Bearer realm="{server.realm}",service="here",scope="repository:me/mine:pull"'
            return self.send(401, b"", {"WWW-Authenticate": challenge})
        if "/manifests/" in self.path:
            return self.send(200, server.manifest.content)
        if server.moved and self.path.startswith("/v2"):
            return self.send(307, b"", {"Location": server.moved.rstrip("/") + self.path.replace("/v2", "/moved")})
        digest = self.path.rpartition("/")[2]
        with server.blobs[digest].opened() as stream:
            content = stream.read()
        if server.altered == digest:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int((self.headers["Range"] or "bytes=0-")[6:-1]) if server.ranges else 0
        more = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        return self.send(206 if start else 200, content[start:], more)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if "/blobs/" in self.path and len(body) > 1000 and self.server_.cut:
            body = body[: self.server_.cut.pop(0)]
        self.wfile.write(body)


def pulled(server: Server, folder: Path) -> packing.Unpacked:
    with registry.Registry(f"{server.host}/me/mine:1") as place:
        return packing.unpack(place, folder / "out")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_goes_on(model, tmp_path, ranges):
    with Server(packing.make(model)) as server:
        server.cut, server.ranges = [700, 900, 1], ranges
        assert pulled(server, tmp_path).path.is_dir()
    assert bundle.digest(tmp_path / "out" / "model.safetensors") == bundle.digest(model / "model.safetensors")


def test_a_download_that_breaks_forever_leaves_nothing(model, tmp_path):
    with Server(packing.make(model)) as server:
        server.cut = [0] * 99
        with pytest.raises(RemoteError, match="cannot be reached"):
            pulled(server, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_registry_alters_is_refused(model, tmp_path):
    pack = packing.make(model)
    with Server(pack) as server:
        server.altered = pack.layers[-1].digest
        with pytest.raises(BundleError, match="does not have its digest"):
            pulled(server, tmp_path)
        place = registry.Registry(f"{server.host}/me/mine@sha256:{'0' * 64}")
        with place, pytest.raises(BundleError, match="the manifest of"):
            place.manifest()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_login_goes_to_the_token_server_and_not_to_where_blobs_are_moved(model, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMASOS_REGISTRY_USER", "me")
    monkeypatch.setenv("LLMASOS_REGISTRY_PASSWORD", "hush")
    pack = packing.make(model)
    with Server(pack) as server, Server(pack) as other:
        server.realm, server.moved = f"http://{other.host}/token", f"http://{other.host}"
        pulled(server, tmp_path)
        basic = "Basic " + base64.b64encode(b"me:hush").decode()
        assert {said for path, said in other.seen if path.startswith("/token")} == {basic}
        assert {said for path, said in other.seen if path.startswith("/moved")} == {None}
        assert {said for _, said in server.seen} == {None, "Bearer t0ken"}


def test_docker_s_own_file_logs_in(model, tmp_path, monkeypatch):
    with Server(packing.make(model)) as server:
        kept = {"auths": {server.host: {"auth": base64.b64encode(b"you:hush").decode()}}}
        (tmp_path / "config.json").write_text(json.dumps(kept))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        server.realm = f"http://{server.host}/token"
        pulled(server, tmp_path)


def test_without_a_login_it_is_asked_for_and_no_word_of_one_is_shown(model, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with Server(packing.make(model)) as server:
        server.realm = f"http://{server.host}/token"
        with pytest.raises(RemoteError, match="does not let you") as told:
            pulled(server, tmp_path)
    assert "LLMASOS_REGISTRY_PASSWORD" in str(told.value)


def test_no_way_leads_from_a_registry_to_an_open_line(model, tmp_path):
    with Server(packing.make(model)) as server:
        server.moved = "http://blobs.example"
        with pytest.raises(RemoteError, match="not encrypted"):
            pulled(server, tmp_path)
    assert registry.Reference.of("ghcr.io/me/my-model:1").url == "https://ghcr.io/v2/me/my-model"
    assert registry.Reference.of("localhost:5000/mine:1").url.startswith("http://")


@pytest.mark.parametrize("text", ["mine", "me/mine:1", "ghcr.io/Me/mine:1", "ghcr.io/me/mine", "ghcr.io/../mine:1",
                                  "u:p@ghcr.io/me/mine:1", "https://ghcr.io/me/mine:1"])  # fmt: skip
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(UsageError, match="no reference"):
        registry.Reference.of(text)


def test_the_folder_is_replaced_in_one_step(model, tmp_path, monkeypatch):
    """A pull over an old model that fails leaves the old one."""
    old = Path(shutil.copytree(model, tmp_path / "out"))
    pack = packing.make(model)
    with Server(pack) as server, registry.Registry(f"{server.host}/me/mine:1") as place:
        server.altered = pack.layers[-1].digest
        with pytest.raises(BundleError, match="does not have its digest"):
            packing.unpack(place, old, overwrite=True)
    assert atomic.recover(old) is None
    bundle.verify(old)
