"""Folders behind a URL (``s3://``, ``az://``, ``gs://``, ``file://``: what fsspec opens), each whole or not there.

A folder's files go up one by one, streamed; its manifest goes last and names each with its size and SHA-256. What has
no manifest does not count, and what comes down is compared with it. Until then ``unfinished.json`` tells what is there,
so that a copy that broke off goes on, in both directions; a large file goes on in its midst where ``parts.py`` knows
how. Only files that were put there from here are ever replaced.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from . import parts
from .atomic import full_disk, hold
from .bundle import inside
from .environment import home
from .errors import BundleError, LLMasOSError, MissingExtraError, RemoteError, UsageError

T = TypeVar("T")

MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
_WORTH = 1 << 20
"""Bytes from which on it is written down that a file is there: what is smaller is sent again."""
_BUCKETS = {"s3": "s3", "s3a": "s3", "az": "azure", "abfs": "azure", "abfss": "azure", "adl": "azure", "gs": "gcs",
            "gcs": "gcs"}  # fmt: skip
"""Kinds of URL that begin with a bucket, which is not made from here, and whose each is."""
_LOGIN = {
    "s3": "aws configure, aws sso login, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "azure": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and az login",
    "gcs": "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS",
}
_NOBODY = (
    "NoCredentials", "PartialCredentials", "ProfileNotFound", "TokenRetrieval", "SSOToken", "DefaultCredentials",
    "CredentialUnavailable", "Anonymous caller", "Must provide either a connection_string or account_name",
)  # fmt: skip
_NO_BUCKET = ("bucket does not exist", "NoSuchBucket", "container does not exist", "ContainerNotFound")
_REFUSED = (
    "PermissionError", "Forbidden", "AccessDenied", "ClientAuthentication", "ExpiredToken", "InvalidAccessKey",
    "SignatureDoesNotMatch", "RefreshError", "AuthenticationFailed", "AuthorizationFailure", "Invalid Credentials",
)  # fmt: skip
"""Parts of what the clouds' packages say, by which each fault is known."""


def is_url(source: object) -> bool:
    """Say whether a text is a URL, such as ``s3://bucket/folder``."""
    return isinstance(source, str) and "\n" not in source[:1024] and "://" in source[:32]


def opened(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Raises:
        UsageError: no such kind of URL, or no credentials for it.
        MissingExtraError: its package is not installed.
    """
    try:
        from fsspec.core import url_to_fs

        with reaching(url):
            fs, path = url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError(f"{url.partition('://')[0]}://", install=_package(error)) from error
    return fs, path


def _package(error: ImportError) -> str:
    """Return the package that fsspec asks for: ``Install s3fs to access S3``."""
    words = str(error).replace('"', " ").split()
    after = [word for before, word in pairwise(words) if before.lower() == "install"]
    return after[0] if after else "fsspec"


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn what goes wrong on the way to a URL into errors of this project; a file that is not there stays as it is.

    Raises:
        UsageError: no such kind of URL, no credentials, or no such bucket.
        RemoteError: it cannot be reached, or refuses.
    """
    try:
        yield
    except (LLMasOSError, ImportError):
        raise
    except Exception as error:
        kind = _BUCKETS.get(url.partition("://")[0])
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if kind and any(word in why for word in _NO_BUCKET):
            bucket = url.partition("://")[2].partition("/")[0]
            raise UsageError(f"{url}: there is no bucket {bucket}", hint="make it first, or check its name") from error
        if isinstance(error, FileNotFoundError):
            raise
        if isinstance(error, ValueError) and "Protocol not known" in why:
            raise UsageError(
                f"{url}: {error}", hint="a path, or a URL that fsspec opens: s3://, gs://, hf://"
            ) from error
        if kind and any(word in why for word in _NOBODY):
            raise UsageError(f"there are no credentials for {url}", hint=_LOGIN[kind]) from error
        if kind and any(word in why for word in _REFUSED):
            raise RemoteError(f"{url} is refused: {why}", hint="may these credentials read and write it?") from error
        raise RemoteError(
            f"{url} cannot be reached: {why}", hint="is it reachable from here, with these credentials?"
        ) from error


class Storage:
    """Folders by name under a URL; the name "" is the URL itself. ``shown``: draw bars of transfers on a terminal."""

    def __init__(self, url: str, *, shown: bool = False) -> None:
        self.url = url.rstrip("/")
        self._fs, self._path = opened(self.url)
        self._kind, self._shown = _BUCKETS.get(self.url.partition("://")[0]), shown

    def check_free(self, *, overwrite: bool) -> None:
        """Check that a folder may be put at the URL itself.

        Raises:
            UsageError: one is there and may not be replaced, or there are files that were not put there from here.
        """
        if self.manifest("") is not None:
            if not overwrite:
                raise UsageError(f"{self.url} exists already", hint="another output, or overwrite (--overwrite)")
        elif (others := self.names()) and UNFINISHED not in others:
            raise UsageError(f"{self.url} holds other files, such as {others[0]}, and is not replaced",
                             hint="another output, such as a folder in it")  # fmt: skip

    def put(self, name: str, folders: Mapping[str, Path]) -> None:
        """Write a folder: the files of local ones, each below a name of its own ("" for none); an old one is replaced.

        Where an earlier call broke off, what it has sent is not sent again.

        Raises:
            UsageError: there are no credentials, or no such bucket.
            RemoteError: it could not be written, and does not count.
        """
        local = {
            "/".join(part for part in (below, file.relative_to(folder).as_posix()) if part): file
            for below, folder in folders.items() for file in sorted(folder.rglob("*")) if file.is_file()
        }  # fmt: skip
        for own in (MANIFEST, UNFINISHED):  # of a folder that was put where it is in this way
            local.pop(own, None)
        files = {key: {"bytes": file.stat().st_size, "sha256": _digest(file)} for key, file in local.items()}
        with reaching(self.url), self._in_bucket():
            self._fs.invalidate_cache()
            sent = self.manifest(name, UNFINISHED) or {}
            old = {**sent, **(self.manifest(name) or {})}
            self._write(name, UNFINISHED, old)
            self._drop(name, MANIFEST)
            for key, file in local.items():
                if sent.get(key) == files[key] and self._size(name, key) == files[key]["bytes"]:
                    continue
                self._send(file, self._at(name, key), str(files[key]["sha256"]))
                old[key] = sent[key] = files[key]
                if file.stat().st_size >= _WORTH:
                    self._write(name, UNFINISHED, old)
            for key in set(old) - set(files):
                self._drop(name, key)
            self._write(name, MANIFEST, files)
            self._drop(name, UNFINISHED)

    def deliver(self, folder: Path) -> None:
        """Put a finished folder at the URL itself; where that fails the folder stays, and the error tells where."""
        try:
            self.put("", {"": folder})
        except BaseException as error:
            left = f"it lies in {folder}: llmasos push sends it"
            if isinstance(error, LLMasOSError):
                error.hint = f"{error.hint}; {left}"
            else:
                error.add_note(left)
            raise

    def get(self, name: str, folder: Path) -> None:
        """Copy a folder to this machine, in the place of what is there; see ``bring``.

        Raises:
            BundleError: it is not there whole, or not as it was written.
            RemoteError: it could not be read.
        """
        files = self.manifest(name)
        if files is None:
            raise BundleError(f"{self.url}/{name} is not there, or not whole", hint="write it again")
        self.bring(files, folder, name)

    def bring(self, files: Mapping[str, Mapping[str, Any]], folder: Path, name: str = "") -> None:
        """Copy files of a folder into a local one, which is there whole or not at all; go on where a copy broke off.

        Args:
            files: sizes as ``bytes``, and where it is known the ``sha256`` of each, by names.
            folder: takes its name when all of them are there.
            name: the folder under the URL.

        Raises:
            BundleError: a file is not as it is told, or has a name outside of the folder.
            RemoteError: it could not be read.
        """
        where = "/".join(part for part in (self.url, name) if part)
        if outside := [key for key in files if not inside(key)]:
            raise BundleError(f"{where} names a file outside its folder: {outside[0]}", hint="do not use it")
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        with hold(part), reaching(self.url), full_disk(folder):
            for path in [path for path in part.rglob("*") if path.is_file()]:
                if path.relative_to(part).as_posix() not in files:
                    path.unlink()  # of what was there before
            for key, told in files.items():
                path = part / key
                path.parent.mkdir(parents=True, exist_ok=True)
                # what a copy that broke off has left may be of another file: then once more, from its beginning
                if not any(self._continue(self._at(name, key), path, told) for _ in range(2 if path.exists() else 1)):
                    raise BundleError(f"{where} is damaged: {key} is not as it was written", hint="write it again")
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)

    def _continue(self, source: str, path: Path, told: Mapping[str, Any]) -> bool:
        """Copy what a file does not have yet; say whether it is as told, else it is removed."""
        size, digest = int(told["bytes"]), told.get("sha256")
        have = path.stat().st_size if path.exists() else 0
        have = have if have <= size else 0
        try:
            if have < size or not path.exists():
                with path.open("r+b" if have else "wb") as out, self._fs.open(source, "rb") as stream:
                    out.truncate(have)
                    out.seek(have)
                    stream.seek(have)
                    with self._bar(source) as bar:
                        bar.set_size(size)
                        bar.absolute_update(have)
                        while piece := stream.read(_WORTH):
                            out.write(piece)
                            bar.relative_update(len(piece))
        except FileNotFoundError:
            pass
        if path.exists() and path.stat().st_size == size and (not digest or _digest(path) == digest):
            return True
        path.unlink(missing_ok=True)
        return False

    def sizes(self) -> dict[str, int]:
        """Return the files below the URL, with their sizes; none where there is nothing."""
        with reaching(self.url):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._path, detail=True)
            except FileNotFoundError as error:
                return _nothing(error, {})
            start = len(self._path.rstrip("/")) + 1
            return {str(path)[start:]: int(about["size"]) for path, about in found.items()}

    def read(self, name: str) -> bytes:
        """Return a small file."""
        with reaching(self.url):
            return bytes(self._fs.cat_file(self._at(name)))

    def manifest(self, name: str, listed: str = MANIFEST) -> dict[str, dict[str, Any]] | None:
        """Return the files of a folder, or None if it is not there whole."""
        with reaching(self.url):
            try:
                files = dict(json.loads(self._fs.cat_file(self._at(name, listed)))["files"])
                return {
                    key: {"bytes": int(told["bytes"]), "sha256": str(told["sha256"])} for key, told in files.items()
                }
            except FileNotFoundError as error:
                return _nothing(error, None)
            except (ValueError, LookupError, TypeError, AttributeError):
                return None

    def names(self) -> list[str]:
        """Return the names of the folders and files that are there, whole or not."""
        with reaching(self.url):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._path, detail=False)
            except FileNotFoundError as error:
                return _nothing(error, [])
            names = {str(path).rstrip("/") for path in found} - {self._path.rstrip("/")}
            return sorted(path.rpartition("/")[2] for path in names)

    def remove(self, name: str = "") -> None:
        """Remove a folder with all that is in it, its manifest first."""
        with reaching(self.url):
            self._drop(name, MANIFEST)
            self._drop(name)
            if self._kind == "s3":
                parts.give_up(self._fs, self._at(name))

    # -- inside -------------------------------------------------------------------------------------------

    def _send(self, file: Path, target: str, digest: str) -> None:
        sender = parts.SENDERS.get(self._kind or "") if file.stat().st_size > parts.PART else None
        if not self._has_buckets():
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        with self._bar(target) as bar:
            if sender is not None:
                parts.send(sender(self._fs, target, digest), file, bar)
            else:
                self._fs.put_file(str(file), target, callback=bar)

    def _write(self, name: str, listed: str, files: Mapping[str, Any]) -> None:
        if not self._has_buckets():
            self._fs.makedirs(self._at(name), exist_ok=True)
        self._fs.pipe_file(self._at(name, listed), json.dumps({"files": files}).encode())

    def _drop(self, name: str, *key: str) -> None:
        """Remove a file or a folder, if it is there."""
        path = self._at(name, *key)
        self._fs.invalidate_cache()
        if self._fs.exists(path):
            self._fs.rm(path, recursive=not key)

    def _size(self, name: str, key: str) -> int | None:
        try:
            return int(self._fs.info(self._at(name, key))["size"])
        except FileNotFoundError:
            return None

    def _has_buckets(self) -> bool:
        """Say whether folders are but names; to make one would make a bucket that is not there."""
        return self._kind is not None

    @contextmanager
    def _in_bucket(self) -> Iterator[None]:
        """Tell what a bucket that is not there looks like to who writes."""
        try:
            yield
        except FileNotFoundError as error:
            if self._has_buckets() and not (error.filename and Path(error.filename).is_absolute()):
                raise FileNotFoundError(f"NoSuchBucket: {error}") from error
            raise

    def _bar(self, path: str) -> Any:
        """Return what is told of a transfer: nothing, or on a terminal a bar that is gone when it is done."""
        from fsspec.callbacks import NoOpCallback, TqdmCallback

        looks = {"desc": path.rpartition("/")[2], "unit": "B", "unit_scale": True, "leave": False, "disable": None}
        return TqdmCallback(looks) if self._shown else NoOpCallback()

    def _at(self, *parts: str) -> str:
        return "/".join(part for part in (self._path, *parts) if part)


@contextmanager
def outgoing(output: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give the folder to write to: the output, or for a URL one of this machine, which is sent when the block ends.

    Raises:
        UsageError: there is something at the URL that may not be replaced.
        RemoteError: it could not be sent; the folder stays, and the hint tells where.
    """
    if not (isinstance(output, str) and is_url(output)):
        yield Path(output)
        return
    storage = Storage(output, shown=True)
    storage.check_free(overwrite=overwrite)
    folder = place_of("outgoing", storage.url)
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    storage.deliver(folder)
    shutil.rmtree(folder)


def place_of(kind: str, url: str) -> Path:
    """Return the folder of this machine that stands for a URL."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return home() / kind / digest / (url.rpartition("/")[2] or "model")


def _nothing(error: FileNotFoundError, found: T) -> T:
    """Return what is found where nothing is, unless the bucket is not there either."""
    if any(word in str(error) for word in _NO_BUCKET):
        raise error
    return found


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
