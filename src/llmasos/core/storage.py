"""Folders behind a URL (``s3://``, ``gs://``, ``file://``: what fsspec opens), each there whole or not at all.

A folder's files go up one by one, streamed; its manifest goes last and names each with its size and SHA-256. What has
no manifest does not count, and what comes down is compared with it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .atomic import full_disk, hold
from .bundle import inside
from .errors import BundleError, LLMasOSError, MissingExtraError, RemoteError, UsageError

MANIFEST = "manifest.json"


def is_url(source: object) -> bool:
    """Say whether a text is a URL, such as ``s3://bucket/folder``."""
    return isinstance(source, str) and "\n" not in source[:1024] and "://" in source[:32]


def opened(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Raises:
        UsageError: no such kind of URL.
        MissingExtraError: its package is not installed.
    """
    try:
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError(f"{url.partition('://')[0]}://", install=_package(error)) from error
    except ValueError as error:
        raise UsageError(f"{url}: {error}", hint="a path, or a URL that fsspec opens: s3://, gs://, hf://") from error
    return fs, path


def _package(error: ImportError) -> str:
    """Return the package that fsspec asks for: ``Install s3fs to access S3``."""
    words = str(error).replace('"', " ").split()
    return words[words.index("Install") + 1] if "Install" in words[:-1] else "fsspec"


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn what goes wrong on the way to a URL into a RemoteError; a file that is not there stays as it is."""
    try:
        yield
    except (LLMasOSError, FileNotFoundError):
        raise
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise RemoteError(
            f"{url} cannot be reached: {why[:200]}", hint="is it reachable from here, with these credentials?"
        ) from error


class Storage:
    """Folders by name under a URL; the name "" is the URL itself."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._fs, self._path = opened(self.url)

    def put(self, name: str, folders: Mapping[str, Path]) -> None:
        """Write a folder: the files of local ones, each below a name of its own ("" for none); an old one is replaced.

        Raises:
            RemoteError: it could not be written, and does not count.
        """
        with reaching(self.url):
            self.remove(name)
            files: dict[str, dict[str, Any]] = {}
            for below, folder in folders.items():
                for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                    key = "/".join(part for part in (below, file.relative_to(folder).as_posix()) if part)
                    files[key] = {"bytes": file.stat().st_size, "sha256": _digest(file)}
                    self._fs.makedirs(self._at(name, key).rpartition("/")[0], exist_ok=True)
                    self._fs.put_file(str(file), self._at(name, key))
            self._fs.pipe_file(self._at(name, MANIFEST), json.dumps({"files": files}).encode())

    def get(self, name: str, folder: Path) -> None:
        """Copy a folder to this machine, in the place of what is there.

        Raises:
            BundleError: it is not there whole, or not as it was written.
            RemoteError: it could not be read.
        """
        with reaching(self.url):
            files = self.manifest(name)
            if files is None:
                raise BundleError(f"{self.url}/{name} is not there, or not whole", hint="write it again")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for key, told in files.items():
                target = folder / key
                if not target.resolve().is_relative_to(folder.resolve()):
                    raise BundleError(f"{self.url}/{name} names a file outside its folder: {key}", hint="do not use it")
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._fs.get_file(self._at(name, key), str(target))
                except FileNotFoundError as error:
                    raise _damaged(self.url, name, key) from error
                if target.stat().st_size != told["bytes"] or _digest(target) != told["sha256"]:
                    raise _damaged(self.url, name, key)

    def bring(self, files: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
        """Copy files of the URL itself into a folder, which is there whole or not at all; go on where a copy broke off.

        Args:
            files: sizes as ``bytes``, and where it is known the ``sha256`` of each, by names.
            folder: takes its name when all of them are there.

        Raises:
            BundleError: a file is not as it is told, or has a name outside of the folder.
            RemoteError: it could not be read.
        """
        if outside := [name for name in files if not inside(name)]:
            raise BundleError(f"{self.url} names a file outside its folder: {outside[0]}", hint="do not use it")
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        with hold(part), reaching(self.url), full_disk(folder):
            for name, told in files.items():
                path, digest = part / name, told.get("sha256")
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._continue(self._at(name), path, int(told["bytes"]))
                except FileNotFoundError as error:
                    raise _damaged(self.url, "", name) from error
                if path.stat().st_size != told["bytes"] or (digest and _digest(path) != digest):
                    path.unlink()
                    raise _damaged(self.url, "", name)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)

    def _continue(self, source: str, path: Path, size: int) -> None:
        """Copy what a file does not have yet."""
        have = path.stat().st_size if path.exists() else 0
        if have > size:
            have = 0
        with path.open("r+b" if have else "wb") as out, self._fs.open(source, "rb") as stream:
            out.truncate(have)
            out.seek(have)
            stream.seek(have)
            shutil.copyfileobj(stream, out, 1 << 20)

    def sizes(self) -> dict[str, int]:
        """Return the files below the URL, with their sizes; none where there is nothing."""
        with reaching(self.url):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._path, detail=True)
            except FileNotFoundError:
                return {}
            start = len(self._path.rstrip("/")) + 1
            return {str(path)[start:]: int(about["size"]) for path, about in found.items()}

    def read(self, name: str) -> bytes:
        """Return a small file."""
        with reaching(self.url):
            return bytes(self._fs.cat_file(self._at(name)))

    def manifest(self, name: str) -> dict[str, dict[str, Any]] | None:
        """Return the files of a folder, or None if it is not there whole."""
        with reaching(self.url):
            try:
                return dict(json.loads(self._fs.cat_file(self._at(name, MANIFEST)))["files"])
            except (FileNotFoundError, ValueError, KeyError):
                return None

    def names(self) -> list[str]:
        """Return the names of the folders that are there, whole or not."""
        with reaching(self.url):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._path, detail=False)
            except FileNotFoundError:
                return []
            return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def remove(self, name: str = "") -> None:
        """Remove a folder, its manifest first."""
        with reaching(self.url):
            self._fs.invalidate_cache()
            for path in (self._at(name, MANIFEST), self._at(name)):
                if self._fs.exists(path):
                    self._fs.rm(path, recursive=True)

    def _at(self, *parts: str) -> str:
        return "/".join(part for part in (self._path, *parts) if part)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _damaged(url: str, name: str, key: str) -> BundleError:
    url = "/".join(part for part in (url, name) if part)
    return BundleError(f"{url} is damaged: {key} is not as it was written", hint="write it again")
