"""Model folders: whole or not at all, complete, unchanged, and safe to open."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmasos.core import atomic
from llmasos.core.bundle import (
    FORMAT,
    check_folder,
    read_manifest,
    verify,
    write_folder,
    write_json,
    write_manifest,
    write_text,
)
from llmasos.core.errors import BundleError, HardwareError, UsageError


def model(folder: Path, text: str = "new") -> Path:
    """Fill a folder with the least that counts as a model."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "text": text}))
    save_file({"a": np.zeros(10, np.float32), "b": np.zeros((2, 3), np.float32)}, folder / "model.safetensors")
    return folder


def text_of(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["text"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model(tmp_path / "model")


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which a new folder takes the name of the old one."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchange_call", lambda: None)
    elif atomic._exchange_call() is None:
        pytest.skip("this system has no renameat2")
    return str(request.param)


# Writing


def test_a_new_folder_is_written_with_its_missing_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    assert write_folder(target, model) == target
    check_folder(target)
    assert os.listdir(tmp_path / "a") == ["b"]


def test_a_new_folder_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    write_folder(tmp_path / "model", model)
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_existing_folder_is_not_replaced_unless_asked(folder: Path) -> None:
    with pytest.raises(UsageError, match="exists") as caught:
        write_folder(folder, lambda new: model(new, "other"))
    assert "--overwrite" in caught.value.hint
    assert text_of(folder) == "new"


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    check_folder(write_folder(tmp_path / "model", model))


def test_overwriting_replaces_the_whole_folder(folder: Path, way: str) -> None:
    (folder / "old.txt").write_text("old")
    write_folder(folder, lambda new: model(new, "other"), overwrite=True)
    assert text_of(folder) == "other"
    assert not (folder / "old.txt").exists()
    assert os.listdir(folder.parent) == ["model"]


def test_overwriting_never_deletes_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds other files"):
        write_folder(tmp_path, model, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_a_link_to_a_folder_stays_a_link(folder: Path, way: str) -> None:
    link = folder.with_name("latest")
    link.symlink_to(folder.name)
    write_folder(link, lambda new: model(new, "other"), overwrite=True)
    assert link.is_symlink()
    assert text_of(folder) == "other"


def test_a_failure_while_writing_leaves_the_old_folder_and_nothing_else(folder: Path) -> None:
    def fill(new: Path) -> None:
        model(new, "half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, fill, overwrite=True)
    assert text_of(folder) == "new"
    assert os.listdir(folder.parent) == ["model"]


def test_a_failure_while_renaming_brings_the_old_folder_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(atomic, "_exchange_call", lambda: None)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        write_folder(folder, lambda new: model(new, "other"), overwrite=True)
    assert text_of(folder) == "new"


KILLED = """
import os, signal, sys
from pathlib import Path
from llmasos.core import atomic
from llmasos.core.bundle import write_folder
target, where = Path(sys.argv[1]), sys.argv[2]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def fill(new):
    (new / "config.json").write_text('{"text": "other"}')
    if where == "writing": die()
if where == "between the renames":
    atomic._exchange_call = lambda: None
    rename = Path.rename
    Path.rename = lambda self, to: (rename(self, to), die())
if where == "removing the old": atomic.shutil.rmtree = die
write_folder(target, fill, overwrite=True)
"""


@pytest.mark.parametrize(
    ("where", "left"), [("writing", "new"), ("between the renames", "new"), ("removing the old", "other")]
)
def test_a_killed_program_leaves_a_whole_folder_and_the_next_one_cleans_up(where: str, left: str, folder: Path) -> None:
    code = subprocess.run([sys.executable, "-c", KILLED, folder, where], check=False).returncode
    assert code == -signal.SIGKILL
    assert len(os.listdir(folder.parent)) == 2 if where != "between the renames" else not folder.exists()
    atomic.recover(folder)
    assert text_of(folder) == left
    assert os.listdir(folder.parent) == ["model"]


def test_the_next_save_removes_what_a_killed_one_left(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, folder, "writing"], check=False)
    write_folder(folder, lambda new: model(new, "third"), overwrite=True)
    assert text_of(folder) == "third"
    assert os.listdir(folder.parent) == ["model"]


def test_a_save_in_progress_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    def fill(new: Path) -> None:
        atomic.recover(tmp_path / "model")
        model(new)

    check_folder(write_folder(tmp_path / "model", fill))


def test_a_full_disk_is_named_and_nothing_is_left(folder: Path) -> None:
    def fill(new: Path) -> None:
        (new / "weights").symlink_to("/dev/full")  # every write to it fails as on a full disk
        with (new / "weights").open("wb", buffering=0) as file:
            file.write(b"weights")

    with pytest.raises(HardwareError, match="no space left"):
        write_folder(folder, fill, overwrite=True)
    assert text_of(folder) == "new"
    assert os.listdir(folder.parent) == ["model"]


def test_a_full_disk_under_another_library_is_named_too(tmp_path: Path) -> None:
    def fill(new: Path) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(HardwareError, match="no space left"):
        write_folder(tmp_path / "model", fill)


@pytest.mark.parametrize("name", ["file", "file/model"])
def test_a_file_in_the_way_is_a_usage_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(UsageError, match="file"):
        write_folder(tmp_path / name, model, overwrite=True)
    assert (tmp_path / "file").read_text() == "text"


def test_a_text_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "a.txt", "old\n")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(HardwareError):
        write_text(path, "new\n")
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_is_readable_and_never_holds_nan(tmp_path: Path) -> None:
    assert write_json(tmp_path / "a.json", {"label": "好"}).read_text(encoding="utf-8") == '{\n  "label": "好"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))


# The manifest


def test_a_manifest_comes_back_with_its_format_and_digests(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").write_text("{}")
    write_manifest(folder, {"task": "text-classification"})
    content = read_manifest(folder)
    assert content is not None
    assert (content["task"], content["format"]) == ("text-classification", FORMAT)
    assert sorted(content["files"]) == ["config.json", "model.safetensors"]
    verify(folder)


def test_a_plain_hugging_face_folder_has_no_manifest_and_nothing_to_verify(folder: Path) -> None:
    assert read_manifest(folder) is None
    verify(folder)


def test_changed_and_missing_files_are_named(folder: Path) -> None:
    (folder / "vocab.txt").write_text("a")
    write_manifest(folder, {})
    (folder / "vocab.txt").unlink()
    (folder / "config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"missing: vocab\.txt; changed: config\.json"):
        verify(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"format": "1"}', '{"format": 1, "files": []}', "[" * 9999])
def test_a_damaged_manifest_is_refused(content: str, folder: Path) -> None:
    (folder / "llmasos.json").write_text(content)
    with pytest.raises(BundleError, match=r"llmasos\.json"):
        read_manifest(folder)


def test_a_manifest_of_a_newer_version_asks_for_an_upgrade(folder: Path) -> None:
    write_json(folder / "llmasos.json", {"format": FORMAT + 1})
    with pytest.raises(BundleError, match="newer version") as caught:
        read_manifest(folder)
    assert "--upgrade" in caught.value.hint


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..\\x", "c:x", ""])
def test_a_manifest_that_names_files_elsewhere_is_refused(name: str, folder: Path) -> None:
    write_json(folder / "llmasos.json", {"format": 1, "files": {name: "0"}})
    with pytest.raises(BundleError, match="outside"):
        verify(folder)


# Checks before a folder is opened


def test_a_whole_folder_passes(folder: Path) -> None:
    check_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"no config\.json"),
        ("config.json", "{", r"config\.json is not JSON"),
        ("config.json", "[]", r"config\.json holds a list"),
        ("config.json", '{"auto_map": {"AutoModel": "m.M"}, "model_type": "x"}', "Python code"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["t.T", null]}}', "Python code"),
        ("model.safetensors", None, "no weights at all"),
        ("model.safetensors", "", r"model\.safetensors is not a safetensors file"),
        ("model.safetensors", "<html>not found</html>", r"model\.safetensors is not a safetensors file"),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        ("model.safetensors", "\x09\0\0\0\0\0\0\0[1, 2, 3]", r"model\.safetensors is not a safetensors file"),
    ],
)
def test_a_damaged_or_unsafe_file_is_named(name: str, content: str | None, message: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(BundleError, match=message) as caught:
        check_folder(folder)
    assert caught.value.hint


@pytest.mark.parametrize("size", [20, 150, -1])
def test_cut_off_weights_are_named(size: int, folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(BundleError, match=r"model\.safetensors is cut off: \d+ bytes"):
        check_folder(folder)
    check_folder(folder, weights=False)


def test_weights_with_more_bytes_than_announced_are_refused(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(BundleError, match="too long"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_weights_as_pickle_only_are_refused_with_the_way_out(name: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(BundleError, match=f"only as pickle \\({name}\\)") as caught:
        check_folder(folder)
    assert "save_pretrained" in caught.value.hint


def test_a_pickle_beside_safetensors_does_no_harm(folder: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"pickle")
    check_folder(folder)


def test_weights_in_another_format_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.onnx")
    with pytest.raises(BundleError, match=r"only model\.onnx"):
        check_folder(folder)


def sharded(folder: Path, files: dict[str, str]) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def test_missing_shards_are_named(folder: Path) -> None:
    sharded(folder, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    with pytest.raises(BundleError, match=r"lacks 1 of 2 weight files: model-2\.safetensors"):
        check_folder(folder)


def test_a_cut_off_shard_is_named(folder: Path) -> None:
    sharded(folder, {"a": "model-1.safetensors"})
    check_folder(folder)
    (folder / "model-1.safetensors").write_bytes((folder / "model-1.safetensors").read_bytes()[:-3])
    with pytest.raises(BundleError, match=r"model-1\.safetensors is cut off"):
        check_folder(folder)


@pytest.mark.parametrize("files", [{"a": "../model.safetensors"}, {"a": 1}, {}])
def test_an_index_that_leads_elsewhere_or_nowhere_is_refused(files: dict[str, str], folder: Path) -> None:
    sharded(folder, files)
    with pytest.raises(BundleError, match=r"index\.json"):
        check_folder(folder)


def test_links_inside_a_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "blobs" / "0")
    (folder / "model.safetensors").symlink_to(tmp_path / "blobs" / "0")  # as in the Hub's cache
    check_folder(folder)
