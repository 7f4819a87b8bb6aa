"""Write a model as an OCI image layout that follows the CNCF ModelPack specification, and read one back.

Each file is a layer of its own, uncompressed, named by an annotation: weights hardly compress, and what did not change
is not sent again. The same folder gives the same bytes: nothing in a pack holds a time, a user or a folder's name.
What is read back is believed in nothing: every name is checked, every byte is counted and hashed, and the folder takes
its name only when it is whole and a model.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, Protocol

from ..core import bundle
from ..core.atomic import full_disk, write_folder
from ..core.errors import BundleError, HardwareError, UsageError
from ..core.hardware import disk_free
from . import signing
from .bill import BILL, SIGNATURE

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
LAYER_TYPE = "application/vnd.cncf.model.{kind}.v1.raw"
FILEPATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"  # by which other clients name the file
LARGEST_MANIFEST = 4 << 20  # bytes; registries take no larger one

_RAW = re.compile(r"application/vnd\.cncf\.model\.[a-z.]+\.v1\.raw")
_TAR = re.compile(r"application/vnd\.cncf\.model\.[a-z.]+\.v1\.tar")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BLOB = re.compile(r"blobs/sha256/[0-9a-f]{64}")
_PIECE = 1 << 20


class Blob(NamedTuple):
    """A blob of a pack: its descriptor's digest and size, and the file or the bytes that it is."""

    digest: str
    size: int
    content: Path | bytes

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Open it for reading."""
        with io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb") as stream:
            yield stream


class Pack(NamedTuple):
    """A model as a registry holds it: the manifest, the configuration, and a blob for each file."""

    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]


class Unpacked(NamedTuple):
    """A folder that came out of a pack: its place, the digest of the manifest, its files, and whether it was signed."""

    path: Path
    digest: str
    files: tuple[str, ...]
    signed: bool


class Store(Protocol):
    """Where a pack lies: a folder, a tar or a registry."""

    name: str

    def manifest(self) -> bytes:
        """Return the manifest's bytes, checked against the digest that it was asked by, if there is one."""

    def blob(self, digest: str, size: int) -> AbstractContextManager[IO[bytes]]:
        """Open a blob for reading; what comes is checked by who reads it."""


def make(folder: str | Path) -> Pack:
    """Describe a model's folder as a pack.

    Records of the run stay out: they tell of the machine that it was trained on, and nothing reads them to answer.

    Raises:
        BundleError: this is no model, it is unsafe, or files of it were changed since it was saved.
    """
    folder = Path(folder)
    bundle.check_folder(folder)
    bundle.verify(folder)
    manifest = bundle.read_manifest(folder)
    names = sorted([*bundle.files_of(folder), *([] if manifest is None else [bundle.MANIFEST])])
    artifact = bundle.artifact_of(manifest)
    weights = set(artifact["files"]) if artifact else set(bundle.weight_files(folder))
    layers, described = [], []
    for name in names:
        path = folder / name
        if path.is_symlink() or not bundle.inside(name):
            raise BundleError(f"{folder} holds {name!r}, which cannot be packed", hint="no links, and plain names")
        blob = Blob(f"sha256:{bundle.digest(path)}", path.stat().st_size, path)
        layers.append(blob)
        kind = "weight" if name in weights else "doc" if _is_doc(name) else "weight.config"
        described.append(
            _descriptor(blob, LAYER_TYPE.format(kind=kind)) | {"annotations": {FILEPATH: name, TITLE: name}}
        )
    config = _bytes(_config(folder, manifest or {}, artifact, [blob.digest for blob in layers]))
    content = {
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": ARTIFACT_TYPE,
        "config": _descriptor(config, CONFIG_TYPE), "layers": described,
    }  # fmt: skip
    return Pack(_bytes(content), config, tuple(layers))


def write(folder: str | Path, output: str | Path, *, overwrite: bool = False) -> Pack:
    """Write a model's folder as an OCI image layout: ``oci:FOLDER``, or the same in a file, ``NAME.tar``.

    Raises:
        UsageError: the output exists, or is neither.
        BundleError: this is no model.
        HardwareError: the disk is full; nothing is left behind.
    """
    text, pack = str(output), make(folder)
    if text.startswith("oci:"):
        write_folder(text[4:], lambda fresh: _lay_out(pack, fresh), overwrite=overwrite, replaces=_is_layout)
    elif text.endswith(".tar"):
        _write_tar(pack, Path(text).expanduser(), overwrite)
    else:
        raise UsageError(f"{text} is neither a file NAME.tar nor oci:FOLDER", hint="--output my-model.tar")
    return pack


def unpack(
    store: Store, output: str | Path, *, key: str | Path | None = None, overwrite: bool = False
) -> Unpacked:  # fmt: skip
    """Write the folder that a pack holds; it takes its name when every byte was checked and it is a model.

    Args:
        store: where the pack lies.
        output: the new folder.
        key: a public key that the folder must be signed with.
        overwrite: replace a model that is there.

    Raises:
        BundleError: the pack is damaged, unsafe or no model, or not signed with the key.
        HardwareError: the disk is full; nothing is left behind.
    """
    raw = store.manifest()
    layers = _layers(store.name, raw)
    needed = sum(layer["size"] for layer in layers)
    target = Path(output).expanduser()
    if needed > disk_free(target):
        raise HardwareError(f"{store.name} needs {needed / 1e9:.2f} GB, and the disk of {target} has less free",
                            hint="free some space, or another disk")  # fmt: skip
    names: list[str] = []

    def fill(fresh: Path) -> None:
        for layer in layers:
            name = (layer.get("annotations") or {}).get(FILEPATH) or (layer.get("annotations") or {}).get(TITLE)
            with store.blob(layer["digest"], layer["size"]) as stream:
                if _RAW.fullmatch(layer["mediaType"]):
                    path = _place(store.name, fresh, name)
                    with path.open("xb") as out:
                        _copy(store.name, stream, out, layer["digest"], layer["size"])
                else:
                    _unpack_tar(store.name, stream, fresh, layer)
        names.extend(sorted(path.relative_to(fresh).as_posix() for path in fresh.rglob("*") if path.is_file()))
        try:
            if key is not None:
                signing.verify(fresh, key)
            bundle.check_folder(fresh)
            bundle.verify(fresh)
        except BundleError as error:  # the folder has no name yet that tells a user anything
            raise BundleError(error.message.replace(str(fresh), store.name), hint=error.hint) from error

    path = bundle.write_folder(target, fill, overwrite=overwrite)
    return Unpacked(path, f"sha256:{hashlib.sha256(raw).hexdigest()}", tuple(names), key is not None)


# -- what a pack says ---------------------------------------------------------------------------------


def _descriptor(blob: Blob, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}


def _bytes(content: Mapping[str, Any]) -> Blob:
    raw = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    return Blob(f"sha256:{hashlib.sha256(raw).hexdigest()}", len(raw), raw)


def _is_doc(name: str) -> bool:
    path = PurePosixPath(name)
    return name in (BILL, SIGNATURE) or path.suffix == ".md" or path.stem.upper() in ("README", "LICENSE", "NOTICE")


def _config(
    folder: Path, manifest: Mapping[str, Any], artifact: Mapping[str, Any] | None, digests: list[str]
) -> dict[str, Any]:
    """Return the configuration that ModelPack asks for: its schema knows no other fields, and all values are text.

    What the model was made of is named where it has an address; a folder's name would tell of the machine.
    """
    shape = json.loads((folder / name).read_text("utf-8")) if (folder / (name := "config.json")).is_file() else {}
    base = str((manifest.get("base") or {}).get("ref"))
    technical = {"architecture": "transformer", "format": artifact["target"] if artifact else "safetensors"}
    precision = artifact["precision"] if artifact else shape.get("dtype") or shape.get("torch_dtype") or "float32"
    return {
        "descriptor": {
            **({"family": shape["model_type"]} if isinstance(shape.get("model_type"), str) else {}),
            **({"title": manifest["task"]["tag"]} if manifest.get("task") else {}),
            **({"sourceURL": base} if "://" in base else {}),
        },
        "config": {**technical, "precision": str(precision)},
        "modelfs": {"type": "layers", "diffIds": digests},
    }


def _layers(called: str, raw: bytes) -> list[dict[str, Any]]:
    """Return the layers of a manifest, each with a digest, a size and a type that is known here."""
    content = _object(called, raw)
    if content.get("artifactType") != ARTIFACT_TYPE and (content.get("config") or {}).get("mediaType") != CONFIG_TYPE:
        raise BundleError(
            f"{called} is no ModelPack: its artifactType is {content.get('artifactType')!r}",
            hint=f"llmasos pack and push write {ARTIFACT_TYPE}",
        )
    layers = content.get("layers")
    if not isinstance(layers, list) or not layers:
        raise BundleError(f"{called} has no layers", hint="pack the model again")
    for layer in layers:
        sound = isinstance(layer, dict) and isinstance(layer.get("size"), int) and layer["size"] >= 0
        if not sound or not _DIGEST.fullmatch(str(layer.get("digest"))) or isinstance(layer["size"], bool):
            raise BundleError(f"{called} has a layer that makes no sense: {layer!r}"[:200], hint="do not use it")
        kind = str(layer.get("mediaType"))
        if not _RAW.fullmatch(kind) and not _TAR.fullmatch(kind):
            raise BundleError(f"{called} has a layer of type {kind!r}", hint="raw and tar layers of ModelPack are read")
    return layers


def _object(called: str, raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{called} has a damaged manifest: {error}", hint="pack the model again") from error
    if not isinstance(content, dict):
        raise BundleError(f"{called} has a manifest that is no object", hint="pack the model again")
    return content


# -- bytes ----------------------------------------------------------------------------------------------


def _copy(called: str, stream: IO[bytes], out: IO[bytes] | None, digest: str, size: int) -> None:
    """Copy a blob and raise if it is not exactly the bytes that were announced."""
    found, left = hashlib.sha256(), size
    while piece := stream.read(min(_PIECE, left + 1)):
        left -= len(piece)
        if left < 0:
            raise BundleError(
                f"{called}: {digest[:19]} is longer than the {size} bytes announced", hint="do not use it"
            )
        found.update(piece)
        if out is not None:
            out.write(piece)
    if left or f"sha256:{found.hexdigest()}" != digest:
        what = f"is cut off at {size - left} of {size} bytes" if left else "does not have its digest"
        raise BundleError(f"{called}: {digest[:19]} {what}", hint="copy or pack it again; else do not use it")


def _place(called: str, folder: Path, name: Any) -> Path:
    """Return where a file of a pack goes: inside the folder, and once."""
    if not isinstance(name, str) or not bundle.inside(name) or len(name) > 500:
        raise BundleError(f"{called} names a file outside of its folder: {str(name)[:80]!r}", hint="do not trust it")
    path = folder / name
    if os.path.lexists(path):
        raise BundleError(f"{called} holds {name} twice", hint="do not trust it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BundleError(f"{called} holds a file and a folder of the name {name}", hint="do not trust it") from error
    return path


def _unpack_tar(called: str, stream: IO[bytes], folder: Path, layer: Mapping[str, Any]) -> None:
    """Write the files of a layer that is a tar, once it has its digest: it is kept beside them until then."""
    with tempfile.TemporaryFile(dir=folder.parent) as kept:
        _copy(called, stream, kept, layer["digest"], layer["size"])
        kept.seek(0)
        with _tar(called, kept) as archive:
            for member in _members(called, archive):
                path, content = _place(called, folder, member.name), archive.extractfile(member)
                assert content is not None
                with path.open("xb") as out:
                    shutil.copyfileobj(content, out)


@contextmanager
def _tar(called: str, stream: IO[bytes]) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            yield archive
    except tarfile.TarError as error:
        raise BundleError(f"{called} is a damaged tar: {error}", hint="copy or pack it again") from error


def _members(called: str, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield a tar's files; anything that is not a plain file inside the folder, once, is refused."""
    seen: set[str] = set()
    for member in archive:
        if not bundle.inside(member.name):
            raise BundleError(
                f"{called} holds a file outside of its folder: {member.name[:80]!r}", hint="do not trust it"
            )
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise BundleError(
                f"{called} holds {member.name[:80]!r}, which is a link or a device", hint="do not trust it"
            )
        name = PurePosixPath(member.name).as_posix()
        if name in seen:
            raise BundleError(f"{called} holds {name[:80]} twice", hint="do not trust it")
        seen.add(name)
        yield member


# -- layouts on disk ------------------------------------------------------------------------------------


def _index(pack: Pack) -> bytes:
    entry = _descriptor(pack.manifest, MANIFEST_TYPE) | {"artifactType": ARTIFACT_TYPE}
    return _raw(_bytes({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}))


def _raw(blob: Blob) -> bytes:
    assert isinstance(blob.content, bytes)
    return blob.content


def _entries(pack: Pack) -> dict[str, Blob]:
    """Return the files of a layout in their order; equal files are one."""
    small = {"oci-layout": _bytes({"imageLayoutVersion": "1.0.0"})}
    small["index.json"] = Blob("", 0, _index(pack))
    blobs = {blob.digest: blob for blob in (pack.manifest, pack.config, *pack.layers)}
    return small | {f"blobs/sha256/{digest[7:]}": blobs[digest] for digest in sorted(blobs)}


def _lay_out(pack: Pack, folder: Path) -> None:
    for name, blob in _entries(pack).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with blob.opened() as stream, (folder / name).open("wb") as out:
            shutil.copyfileobj(stream, out, _PIECE)


def _is_layout(folder: Path) -> bool:
    return (folder / "oci-layout").is_file()


def _write_tar(pack: Pack, path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists", hint="another name, or --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with full_disk(path):
        try:
            with fresh.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for name, blob in _entries(pack).items():
                    member = tarfile.TarInfo(name)
                    member.size = len(blob.content) if isinstance(blob.content, bytes) else blob.size
                    if member.size >= 8 << 30:  # which the old format has no digits for
                        archive.format = tarfile.GNU_FORMAT
                    with blob.opened() as stream:
                        archive.addfile(member, stream)
                archive.close()
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)


class Layout:
    """An OCI image layout in a folder."""

    def __init__(self, folder: str | Path) -> None:
        """Open one.

        Raises:
            BundleError: there is none.
        """
        self.name, self._folder = str(folder), Path(folder).expanduser()
        if not _is_layout(self._folder):
            raise BundleError(f"{self.name} is no OCI image layout", hint="a folder that llmasos pack wrote")

    def manifest(self) -> bytes:
        """Return the bytes of the only manifest."""
        return _only_manifest(self.name, self._read)

    def blob(self, digest: str, size: int) -> AbstractContextManager[IO[bytes]]:  # noqa: ARG002
        """Open a blob."""
        return self._read(f"blobs/sha256/{digest[7:]}")

    def _read(self, name: str) -> IO[bytes]:
        path = self._folder / name
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{self.name} lacks {name}", hint="copy or pack it again")
        return path.open("rb")


class Archive:
    """An OCI image layout in a tar."""

    def __init__(self, path: str | Path, stream: IO[bytes]) -> None:
        """Open one; the stream must stay open.

        Raises:
            BundleError: it is damaged, or holds anything that is not of a layout.
        """
        self.name, self._stream = str(path), stream
        with _tar(self.name, stream) as archive:
            members = list(_members(self.name, archive))
        known = ("oci-layout", "index.json")
        wrong = [member.name for member in members if member.name not in known and not _BLOB.fullmatch(member.name)]
        if wrong:
            raise BundleError(f"{self.name} holds {wrong[0][:80]!r}, which no pack has", hint="do not trust it")
        self._members = {member.name: member for member in members}

    def manifest(self) -> bytes:
        """Return the bytes of the only manifest."""
        return _only_manifest(self.name, self._read)

    def blob(self, digest: str, size: int) -> AbstractContextManager[IO[bytes]]:  # noqa: ARG002
        """Open a blob."""
        return self._read(f"blobs/sha256/{digest[7:]}")

    def _read(self, name: str) -> IO[bytes]:
        member = self._members.get(name)
        if member is None:
            raise BundleError(f"{self.name} lacks {name}", hint="copy or pack it again")
        return _Part(self._stream, member.offset_data, member.size)  # type: ignore[return-value]


class _Part(io.RawIOBase):
    """A part of a file, for reading in order."""

    def __init__(self, stream: IO[bytes], start: int, size: int) -> None:
        self._stream, self._at, self._left = stream, start, size

    def read(self, size: int = -1) -> bytes:
        count = self._left if size < 0 else min(size, self._left)
        self._stream.seek(self._at)
        piece = self._stream.read(count)
        self._at, self._left = self._at + len(piece), self._left - len(piece)
        return piece


def _only_manifest(called: str, read: Callable[[str], AbstractContextManager[IO[bytes]]]) -> bytes:
    with read("index.json") as stream:
        entries = _object(called, stream.read(LARGEST_MANIFEST)).get("manifests")
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
        raise BundleError(f"{called} does not hold exactly one model", hint="pack one model")
    digest, size = str(entries[0].get("digest")), entries[0].get("size")
    if not _DIGEST.fullmatch(digest) or not isinstance(size, int) or not 0 <= size <= LARGEST_MANIFEST:
        raise BundleError(f"{called} has an index that makes no sense", hint="copy or pack it again")
    kept = io.BytesIO()
    with read(f"blobs/sha256/{digest[7:]}") as stream:
        _copy(called, stream, kept, digest, size)
    return kept.getvalue()


@contextmanager
def opened(source: str) -> Iterator[Store | None]:
    """Open a pack on disk, ``NAME.tar`` or ``oci:FOLDER``; None for a reference to a registry."""
    if source.startswith("oci:"):
        yield Layout(source[4:])
    elif source.endswith(".tar"):
        path = Path(source).expanduser()
        if not path.is_file():
            raise UsageError(f"there is no file {source}", hint="a file that llmasos pack wrote, or REGISTRY/NAME:TAG")
        with path.open("rb") as stream:
            yield Archive(source, stream)
    else:
        yield None
