"""The model folder on disk: a standard Hugging Face folder plus ``llmasos.json``.

``check_folder`` says whether a folder is safe and complete before a library opens it; the manifest
carries what a Hugging Face folder has no place for, and a digest of every file. Weights are
safetensors only: a pickle can run code when it is opened, and so can a model with its own code.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from . import atomic, plugins
from .atomic import recover, write_json, write_text
from .errors import BundleError

__all__ = ["ADAPTER", "ADAPTER_CONFIG", "FORMAT", "MANIFEST", "archive", "artifact_of", "check_folder",
           "check_remote_code", "digest", "inside", "is_adapter", "is_bundle", "read_manifest", "recover",
           "saved_task", "verify", "weight_files", "write_folder", "write_json", "write_manifest",
           "write_text"]  # fmt: skip

FORMAT = 1
MANIFEST = "llmasos.json"
RUN = "run"
"""Records of the run; they are not part of the model, and not hashed."""

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
OTHERS = (".h5", ".keras", ".msgpack", ".onnx", ".gguf", ".tflite", ".npz", ".safetensors")
_LARGEST_HEADER = 100_000_000  # bytes; the safetensors format's own limit
_CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def write_folder(target: str | Path, fill: Callable[[Path], None], *, overwrite: bool = False) -> Path:
    """Let ``fill`` write a model folder, which takes its name only when it is complete and on disk.

    With ``overwrite`` an existing model folder is replaced in one step; a folder that holds something
    else is never deleted. See ``atomic.write_folder`` for arguments and errors.
    """
    return atomic.write_folder(target, fill, overwrite=overwrite, replaces=is_bundle)


def is_bundle(folder: Path) -> bool:
    """Say whether a folder looks like a model (or the beginning of one), not like a home folder."""
    return any((folder / name).exists() for name in (MANIFEST, "config.json", ADAPTER_CONFIG, f"{RUN}/run.json"))


def is_adapter(folder: Path) -> bool:
    """Say whether a folder holds an adapter alone, whose base model lies elsewhere."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``llmasos.json``: the content, the format's version and the sha256 of every file."""
    hashes = {name: digest(folder / name) for name in files_of(folder)}
    write_json(folder / MANIFEST, {**content, "format": FORMAT, "files": hashes})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the content of ``llmasos.json``, or None for a plain Hugging Face folder.

    Raises:
        BundleError: it is damaged, written by a newer version, or names a file outside of the folder.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        return None
    content = _read_object(path)
    version = content.get("format")
    if not isinstance(version, int) or version < 1:
        raise BundleError(f"{path} has no format version", hint="it is damaged: save the model again")
    if version > FORMAT:
        raise BundleError(
            f"{path} has format {version}, made by a newer version of LLMasOS (this one reads up to {FORMAT})",
            hint="pip install --upgrade llmasos",
        )
    files = content.get("files", {})
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise BundleError(f"{path}: 'files' is not a mapping of names to digests", hint="save the model again")
    for name in files:
        if not inside(name):
            raise BundleError(f"{path} names a file outside of the folder: {name!r}", hint="do not trust this folder")
    return content


def artifact_of(manifest: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a manifest says of an exported model: its target, engine, precision and files; None for others.

    Raises:
        BundleError: it makes no sense, or names a file outside of the folder.
    """
    found = (manifest or {}).get("artifact")
    if found is None:
        return None
    words = ("target", "engine", "precision")
    if not isinstance(found, dict) or not all(isinstance(found.get(word), str) for word in words):
        raise BundleError(f"the artifact in {MANIFEST} makes no sense: {found!r}", hint="export the model again")
    files = found.get("files")
    if not isinstance(files, list) or not files or not all(isinstance(name, str) and inside(name) for name in files):
        raise BundleError(f"the artifact's files in {MANIFEST} make no sense: {files!r}", hint="export the model again")
    return found


def verify(folder: Path, *, ending: str = "") -> None:
    """Compare every file whose name ends so with the digest that ``llmasos.json`` holds; a folder without one passes.

    Raises:
        BundleError: names the files that are missing or were changed.
    """
    manifest = read_manifest(folder)
    files: dict[str, str] = manifest.get("files", {}) if manifest else {}
    hashes = {name: value for name, value in files.items() if name.endswith(ending)}
    missing = [name for name in hashes if not (Path(folder) / name).is_file()]
    changed = [name for name, value in hashes.items() if name not in missing and digest(Path(folder) / name) != value]
    if missing or changed:
        parts = [f"{word}: {', '.join(names)}" for word, names in (("missing", missing), ("changed", changed)) if names]
        raise BundleError(f"{folder} is not as it was saved; {'; '.join(parts)}", hint="copy or save the model again")


def check_folder(folder: str | Path, *, weights: bool = True) -> None:
    """Check that a model folder is safe to open and complete.

    Args:
        folder: a folder in the Hugging Face layout.
        weights: whether the weights are checked as well (headers and sizes, not every number).

    Raises:
        BundleError: no or wrong ``config.json``; code of its own; weights that are missing, cut off,
            or only there in a format that can run code.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder", hint="give a folder with config.json and safetensors weights")
    if not (folder / "config.json").is_file() and not is_adapter(folder):
        raise BundleError(
            f"{folder} is not a model: it has no config.json", hint="give the folder that holds config.json"
        )
    check_remote_code(folder)
    artifact = artifact_of(read_manifest(folder))
    if artifact is not None:
        if missing := [name for name in artifact["files"] if not (folder / name).is_file()]:
            raise BundleError(f"{folder} lacks {', '.join(missing)}", hint="copy or export the model again")
    elif weights:
        for name in weight_files(folder):
            _check_weights(folder / name)


def check_remote_code(folder: Path) -> None:
    """Refuse a model that comes with Python code to be run.

    Raises:
        BundleError: a configuration file refers to code, or is not JSON.
    """
    for name in _CONFIGS:
        path = folder / name
        if not path.is_file():
            continue
        content = _read_object(path)
        if content.get("auto_map"):
            kind = content.get("model_type", "this model")
            raise BundleError(
                f"{path} asks to run Python code that comes with the model (auto_map), which is never done here",
                hint=f"use a model of a type built into transformers; if {kind!r} is built in, "
                "remove auto_map from a copy of the folder",
            )


def weight_files(folder: Path, *, listed: Collection[str] | None = None, called: str | None = None) -> list[str]:
    """Return the names of the safetensors files that make up the model.

    Args:
        folder: the model's folder; its index of weights, if it has one, must be there.
        listed: the files that the model has, wherever they are; those in the folder if None.
        called: how errors call the model; the folder if None.

    Raises:
        BundleError: there are none (with the reason), or the index names files that are not there.
    """
    names = set(files_of(folder) if listed is None else listed)
    if WEIGHTS in names:
        return [WEIGHTS]
    if ADAPTER in names and "config.json" not in names:
        return [ADAPTER]
    if INDEX not in names:
        raise _no_weights(called or str(folder), sorted(names))
    shards = _shards(folder / INDEX)
    missing = [name for name in shards if name not in names]
    if missing:
        raise BundleError(
            f"{called or folder} lacks {len(missing)} of {len(shards)} weight files: {', '.join(missing[:10])}",
            hint="copy or download the model again",
        )
    return shards


def digest(path: Path) -> str:
    """Return the sha256 of a file as hex, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(name: str) -> bool:
    """Say whether a relative file name from outside stays inside its folder, on every system."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not set(name) & set("\\:\0")


def archive(folder: Path, path: Path) -> None:
    """Write a model as a ``.tar.gz``, without the records of its run, and without what tells of this machine."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if PurePosixPath(member.name).parts[:1] == (RUN,):
            return None
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(path, "w:gz", compresslevel=1) as packed:  # weights hardly shrink
        packed.add(folder, arcname=".", filter=plain)


def files_of(folder: Path) -> Iterator[str]:
    """Yield the names of a model's files in a fixed order: all but the manifest and the records of the run."""
    for parent, folders, names in os.walk(folder):
        here = Path(parent).relative_to(folder)
        folders[:] = sorted(name for name in folders if here / name != Path(RUN))
        yield from ((here / name).as_posix() for name in sorted(names) if (here / name).as_posix() != MANIFEST)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}", hint="copy or download the model again") from error
    if not isinstance(content, dict):
        raise BundleError(
            f"{path} holds a {type(content).__name__}, not an object", hint="copy or download the model again"
        )
    return content


def _shards(index: Path) -> list[str]:
    names = _read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise BundleError(f"{index} has no weight_map", hint="copy or download the model again")
    for name in names.values():
        if not inside(name):
            raise BundleError(f"{index} names a file outside of the folder: {name!r}", hint="do not trust this folder")
    return sorted(set(names.values()))


def _no_weights(called: str, names: list[str]) -> BundleError:
    pickles = [name for name in names if name.endswith(PICKLES)]
    others = [name for name in names if name.endswith(OTHERS)]
    if pickles:
        return BundleError(
            f"{called} has its weights only as pickle ({', '.join(pickles[:3])}), which can run code when opened",
            hint="take a revision or a copy with model.safetensors; or, if you trust it, convert it once elsewhere: "
            "load it with transformers and save_pretrained() it",
        )
    found = f"only {', '.join(others[:3])}" if others else "no weights at all"
    return BundleError(f"{called} has no {WEIGHTS}: {found}", hint="take or save the model in the safetensors format")


def _check_weights(path: Path) -> None:
    """Compare a safetensors file's size with what its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(b"version "):
            raise BundleError(f"{path} is a Git LFS pointer, not the weights", hint="run `git lfs pull` in that folder")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = file.read(length) if 2 <= length <= _LARGEST_HEADER else b""
    try:
        tensors = json.loads(header)
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        if 8 + length > size and 2 <= length <= _LARGEST_HEADER:
            raise _wrong_size(path, size, 8 + length) from error
        raise BundleError(f"{path} is not a safetensors file: its header cannot be read",
                          hint="copy or download the model again") from error  # fmt: skip
    if size != expected:
        raise _wrong_size(path, size, expected)


def _wrong_size(path: Path, size: int, expected: int) -> BundleError:
    what = "is cut off" if size < expected else "is too long"
    return BundleError(
        f"{path} {what}: {size} bytes where its header says {expected}", hint="copy or download the model again"
    )


def head_task(folder: Path) -> Any:
    """Return the task of a published model that has no manifest, where its head tells; else None."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        head = next(found for name in config["architectures"] if (found := name[name.rindex("For") :]) in _HEADS)
        return plugins.load("tasks", _HEADS[head]).of_head(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None  # whatever is wrong with it is said where it is opened


_HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}


def saved_task(content: Any, folder: Path) -> Any:
    """Rebuild the task of a manifest.

    Raises:
        BundleError: it makes no sense.
    """
    try:
        return plugins.load("tasks", content["tag"]).from_dict(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"the task in {folder / MANIFEST} makes no sense: {error!r}", hint="copy or save the model again"
        ) from error
