"""Models, data and runs in S3: against moto's server, with the packages and the credentials that the real one takes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("s3fs", reason="needs s3fs")
pytest.importorskip("moto.server", reason="needs moto[server]")

import boto3
import httpx2

import storing
from buckets import cutting, s3
from llmasos import LLM
from llmasos.cli import main
from llmasos.core.storage import MANIFEST, UNFINISHED, Storage
from llmasos.errors import BundleError, RemoteError, UsageError
from storing import GIVEN, ROWS, TASK

base, tuned = storing.base, storing.tuned


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3() as environment:
        yield environment


@pytest.fixture
def bucket(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    import s3fs

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**server, "LLMASOS_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("llmasos.training.curves.plot_curves", lambda *_: None)
    httpx2.post(f"{server['AWS_ENDPOINT_URL']}/moto-api/reset")
    s3fs.S3FileSystem.clear_instance_cache()
    made = boto3.resource("s3").Bucket("bucket")
    made.create()
    yield made
    s3fs.S3FileSystem.clear_instance_cache()


def keys(bucket: Any) -> list[str]:
    return sorted(found.key for found in bucket.objects.all())


# -- models -----------------------------------------------------------------------------------------------


def test_a_model_is_saved_there_and_opened_on_another_machine(bucket, tuned, tmp_path, monkeypatch):
    url = "s3://bucket/models/mine"
    storing.goes_there_and_comes_back(url, tuned, tmp_path / "elsewhere", monkeypatch)
    assert f"models/mine/{MANIFEST}" in keys(bucket)
    assert not any(UNFINISHED in key for key in keys(bucket))


def test_push_and_pull_carry_the_run_and_the_folder_is_the_same(bucket, tuned, tmp_path, capsys):
    assert main(["push", str(tuned), "s3://bucket/mine", "--json"]) == 0
    files = {path.relative_to(tuned).as_posix() for path in tuned.rglob("*") if path.is_file()}
    assert json.loads(capsys.readouterr().out)["files"] == len(files)
    assert main(["push", str(tuned), "s3://bucket/mine"]) == 2
    assert main(["push", str(tuned), "s3://bucket/mine", "--overwrite"]) == 0
    assert main(["pull", "s3://bucket/mine", "--output", str(tmp_path / "mine")]) == 0
    assert {path.relative_to(tmp_path / "mine").as_posix(): path.read_bytes()
            for path in (tmp_path / "mine").rglob("*") if path.is_file() and path.name != MANIFEST} == {
        name: (tuned / name).read_bytes() for name in files}  # fmt: skip
    assert main(["push", str(tuned), "registry.example.com/me/mine:1", "--overwrite"]) == 2
    bucket.Object("mine/config.json").put(Body=(tuned / "config.json").read_bytes() + b" ")
    assert main(["pull", "s3://bucket/mine", "--output", str(tmp_path / "other")]) == 0  # what the cache has is right
    with pytest.raises(BundleError, match=r"s3://bucket/mine is damaged: config\.json"):
        LLM.from_pretrained("s3://bucket/mine", cache_dir=tmp_path / "cache")


@pytest.mark.slow
def test_an_export_goes_to_its_url(bucket, tuned, capsys):
    pytest.importorskip("onnxruntime", reason="needs llmasos[onnx]")
    found = LLM.from_pretrained(tuned).export("s3://bucket/mine-onnx", "onnx")
    assert found.path == "s3://bucket/mine-onnx"
    assert LLM.from_pretrained("s3://bucket/mine-onnx").predict("fine")
    with pytest.raises(UsageError, match="exists already"):
        LLM.from_pretrained(tuned).export("s3://bucket/mine-onnx", "onnx")


def test_other_files_in_a_bucket_are_never_removed(bucket, tuned, base):
    bucket.Object("shared/theirs.txt").put(Body=b"theirs")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"holds other files, such as theirs\.txt"):
            LLM.from_pretrained(tuned).save("s3://bucket/shared", overwrite=overwrite)
        with pytest.raises(UsageError, match="holds other files"):
            LLM.from_pretrained(base).finetune(TASK, ROWS, output="s3://bucket", overwrite=overwrite, **GIVEN)
    LLM.from_pretrained(tuned).save("s3://bucket/shared/mine")
    bucket.Object("shared/mine/notes.txt").put(Body=b"theirs too")
    LLM.from_pretrained(tuned).save("s3://bucket/shared/mine", overwrite=True)
    assert {"shared/theirs.txt", "shared/mine/notes.txt"} <= set(keys(bucket))


def test_a_copy_that_broke_off_is_not_read_and_goes_on(bucket, tmp_path, monkeypatch):
    storage = storing.goes_on_at_the_file("s3://bucket/mine", tmp_path / "in", monkeypatch)
    assert keys(bucket) == ["mine/a", "mine/b", "mine/config.json", f"mine/{MANIFEST}"]
    (tmp_path / "in" / "a").unlink()
    storage.put("", {"": tmp_path / "in"})
    assert keys(bucket) == ["mine/b", "mine/config.json", f"mine/{MANIFEST}"]


def test_a_large_file_that_broke_off_goes_on(bucket, tmp_path, monkeypatch):
    def begun() -> list[str]:
        return [one.object_key for one in bucket.multipart_uploads.all()]

    storing.goes_on_within_a_file("s3://bucket/mine", tmp_path / "in", "s3", monkeypatch)
    assert begun() == []
    for key in ("mine/a", "mine-too/a"):
        bucket.Object(key).initiate_multipart_upload()
    Storage("s3://bucket").remove("mine")
    assert begun() == ["mine-too/a"]  # which is not below it


def test_a_model_that_could_not_be_sent_stays_and_is_named(bucket, tuned, tmp_path, monkeypatch):
    def failing(*_: Any) -> None:
        raise RemoteError("the storage is away", hint="wait")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put", failing)
        with pytest.raises(RemoteError) as caught:
            LLM.from_pretrained(tuned).save("s3://bucket/mine")
    left = Path(str(caught.value.hint).partition("it lies in ")[2].partition(":")[0])
    assert left.is_relative_to(tmp_path / "home")
    assert main(["push", str(left), "s3://bucket/mine"]) == 0


# -- what goes wrong --------------------------------------------------------------------------------------


def refused(kind: type[Exception], match: str, tuned: Path, *, url: str = "s3://bucket/mine") -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for call in (lambda: LLM.from_pretrained(url), lambda: LLM.from_pretrained(tuned).save(url),
                 lambda: LLM.from_pretrained(tuned).evaluate(f"{url}/rows.jsonl")):  # fmt: skip
        with pytest.raises(kind, match=match):
            call()


def test_without_credentials_it_is_told_how_to_get_some(bucket, tuned, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    refused(UsageError, r"there are no credentials for s3://bucket/mine[\s\S]*aws configure", tuned)


def test_a_bucket_that_is_not_there_is_named_and_not_made(bucket, tuned, server):
    refused(UsageError, "there is no bucket nothing", tuned, url="s3://nothing/mine")
    assert [found.name for found in boto3.resource("s3").buckets.all()] == ["bucket"]


def test_a_server_that_is_not_there_is_told(bucket, tuned, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    refused(RemoteError, "cannot be reached", tuned)


def test_what_may_not_be_read_is_told(bucket, tuned, server):
    LLM.from_pretrained(tuned).save("s3://bucket/mine")
    httpx2.post(f"{server['AWS_ENDPOINT_URL']}/moto-api/reset-auth", content=b"0")
    try:
        refused(RemoteError, "s3://bucket/mine[\\S]* is refused", tuned)
    finally:
        httpx2.post(f"{server['AWS_ENDPOINT_URL']}/moto-api/reset-auth", content=b"inf")


def test_a_model_that_is_not_there_is_told(bucket):
    with pytest.raises(UsageError, match="s3://bucket/nothing holds no model"):
        LLM.from_pretrained("s3://bucket/nothing")


def test_lines_that_are_cut_are_read_on(bucket, tmp_path, monkeypatch, server):
    import s3fs

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(os.urandom(3 << 20))
    Storage("s3://bucket/mine").put("", {"": tmp_path / "in"})
    s3fs.S3FileSystem.clear_instance_cache()
    with cutting(int(server["AWS_ENDPOINT_URL"].rpartition(":")[2]), times=2, after=1 << 20) as (port, cuts):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        Storage("s3://bucket/mine").get("", tmp_path / "out")
    assert len(cuts) == 2
    assert (tmp_path / "out" / "a").read_bytes() == (tmp_path / "in" / "a").read_bytes()


def test_rows_whose_line_stays_cut_are_an_error_of_the_network(bucket, tuned, tmp_path, monkeypatch, server):
    import s3fs

    bucket.Object("rows.jsonl").put(Body=json.dumps(ROWS[0]).encode() + b"\n" + b" " * (1 << 20))
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    with cutting(int(server["AWS_ENDPOINT_URL"].rpartition(":")[2]), times=99, after=1 << 16) as (port, cuts):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(RemoteError, match=r"s3://bucket/rows\.jsonl cannot be reached"):
            LLM.from_pretrained(tuned).evaluate("s3://bucket/rows.jsonl")
    assert cuts


# -- runs -------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(bucket: Any) -> str:
    for number, text in enumerate(storing.shards()):
        bucket.Object(f"rows/part-{number}.jsonl").put(Body=text)
    return "s3://bucket/rows/*.jsonl"


def test_a_model_is_trained_from_a_bucket_into_a_bucket(bucket, rows, base, tuned, tmp_path, capsys):
    Storage("s3://bucket/base").put("", {"": base})
    line = ["finetune", "s3://bucket/base", "--task", "text-classification", "--data", rows, "--eval-data", rows,
            "--output", "s3://bucket/mine", "--epochs", "1", "--threads", "1", "--json"]  # fmt: skip
    assert main(line) == 0
    assert main(["evaluate", "s3://bucket/mine", "--data", rows, "--json"]) == 0
    assert [key for key in keys(bucket) if "unfinished" in key] == []
    assert "mine/run/run.json" in keys(bucket)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits_on_another_machine(bucket, rows, base, tmp_path):
    storing.a_killed_run_goes_on("s3://bucket/mine", rows, base, tmp_path)
