"""Models, data and runs in the storage of Azure and Google: against Azurite and an emulator, as in S3."""

from __future__ import annotations

import importlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import buckets
import storing
from llmasos import LLM
from llmasos.cli import main
from llmasos.core.storage import opened
from llmasos.errors import BundleError, RemoteError, UsageError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")]


base, tuned = storing.base, storing.tuned


class Cloud(NamedTuple):
    url: str
    fs: Any
    environment: dict[str, str]


@pytest.fixture(scope="module", params=["az", "gs"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("cloud")
    if request.param == "az":
        pytest.importorskip("adlfs", reason="needs llmasos[azure]")
        if (program := shutil.which("azurite")) is None:
            pytest.skip("needs azurite: npm install --global azurite")
        started = buckets.azure(program, folder)
    else:
        pytest.importorskip("gcsfs", reason="needs llmasos[gcs]")
        pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator")
        started = buckets.google(folder)
    with started as environment:
        yield request.param, environment


@pytest.fixture
def cloud(server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cloud:
    scheme, environment = server
    for name in [name for name in os.environ if name.startswith(("AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name, value in {**environment, "LLMASOS_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("llmasos.training.curves.plot_curves", lambda *_: None)
    forget(scheme)
    bucket = f"b{time.time_ns()}"
    fs, _ = opened(f"{scheme}://{bucket}/x")
    fs.mkdir(bucket)
    return Cloud(f"{scheme}://{bucket}", fs, environment)


def forget(scheme: str) -> None:
    """Let the next call open the storage anew, with the environment as it is now."""
    module, name = {"az": ("adlfs", "AzureBlobFileSystem"), "gs": ("gcsfs", "GCSFileSystem")}[scheme]
    getattr(importlib.import_module(module), name).clear_instance_cache()


def test_a_model_goes_there_and_comes_back(cloud, tuned, tmp_path, monkeypatch):
    url = f"{cloud.url}/models/mine"
    storing.goes_there_and_comes_back(url, tuned, tmp_path / "elsewhere", monkeypatch)
    assert main(["pull", url, "--output", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == (tuned / "model.safetensors").read_bytes()


def test_other_files_are_kept_and_damage_is_seen(cloud, tuned):
    name = cloud.url.partition("://")[2]
    cloud.fs.pipe_file(f"{name}/shared/theirs.txt", b"theirs")
    with pytest.raises(UsageError, match=r"holds other files, such as theirs\.txt"):
        LLM.from_pretrained(tuned).save(f"{cloud.url}/shared", overwrite=True)
    LLM.from_pretrained(tuned).save(f"{cloud.url}/mine")
    cloud.fs.pipe_file(f"{name}/mine/config.json", (tuned / "config.json").read_bytes() + b" ")
    with pytest.raises(BundleError, match=r"damaged: config\.json"):
        LLM.from_pretrained(f"{cloud.url}/mine")


def test_a_copy_that_broke_off_goes_on(cloud, tmp_path, monkeypatch):
    storage = storing.goes_on_at_the_file(f"{cloud.url}/mine", tmp_path / "in", monkeypatch)
    part = tmp_path / "out.part"
    part.mkdir()
    (part / "a").write_bytes(b"a" * (1 << 20))
    storage.get("", tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"a" * (2 << 20)


def test_a_large_file_that_broke_off_goes_on(cloud, tmp_path, monkeypatch):
    if cloud.url.startswith("gs:"):
        pytest.skip("Google's begins anew")
    storing.goes_on_within_a_file(f"{cloud.url}/mine", tmp_path / "in", "azure", monkeypatch)


def test_a_bucket_that_is_not_there_is_told(cloud, tuned):
    scheme = cloud.url.partition("://")[0]
    with pytest.raises(UsageError, match="there is no bucket nothing"):
        LLM.from_pretrained(tuned).save(f"{scheme}://nothing/mine")
    with pytest.raises(UsageError, match=r"there is no bucket nothing|holds no model"):
        LLM.from_pretrained(f"{scheme}://nothing/mine")


def test_without_credentials_it_is_told_how_to_get_some(cloud, monkeypatch):
    scheme = cloud.url.partition("://")[0]
    if scheme == "gs":
        pytest.skip("an emulator asks for none")
    for name in cloud.environment:
        monkeypatch.delenv(name)
    forget(scheme)
    with pytest.raises(UsageError, match=r"there are no credentials for[\s\S]*az login"):
        LLM.from_pretrained(f"{cloud.url}/mine")


def test_a_server_that_is_not_there_is_told(cloud, monkeypatch):
    scheme = cloud.url.partition("://")[0]
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value.replace("127.0.0.1:", "127.0.0.1:9/"))
    forget(scheme)
    with pytest.raises(RemoteError, match="cannot be reached"):
        LLM.from_pretrained(f"{cloud.url}/mine")


def test_a_killed_run_goes_on_to_the_same_bits_on_another_machine(cloud, base, tmp_path):
    for number, rows in enumerate(storing.shards()):
        cloud.fs.pipe_file(f"{cloud.url.partition('://')[2]}/rows/part-{number}.jsonl", rows)
    storing.a_killed_run_goes_on(f"{cloud.url}/mine", f"{cloud.url}/rows/*.jsonl", base, tmp_path)
