"""A large file in parts, so that sending it goes on where it broke off.

The cloud keeps what has arrived where no reader sees it, so nothing has to be written down beside it. S3 keeps the
parts of a multipart upload until that is ended or given up, and tells the MD5 of each as its ETag; in a bucket whose
keys are KMS's it tells something else, and all parts are sent again. Azure keeps blocks for a week; here their names
are made of the file's SHA-256, so those of another file are not taken for its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

PART, MOST, AT_ONCE = 16 << 20, 10_000, 4
"""Bytes of a part, at the least; parts of a file, at the most, which is S3's bound; and how many go up at once."""
_NAME = 48
"""Letters of a block's name: all of a blob must have as many, and those of Azure's own package have these."""


class Sender(Protocol):
    """Sends the parts of one file; parts have numbers from 0."""

    def has(self, number: int, data: bytes) -> bool:
        """Say whether a part has arrived."""

    def send(self, number: int, data: bytes) -> None:
        """Send a part."""

    def end(self, count: int) -> None:
        """Make the parts the file."""


def send(sender: Sender, file: Path, bar: Any) -> None:
    """Send a file, but for the parts that have arrived; ``bar`` is told of each."""
    size = file.stat().st_size
    step = max(PART, -(-size // MOST))

    def one(number: int) -> int:
        with file.open("rb") as stream:
            stream.seek(number * step)
            data = stream.read(step)
        if not sender.has(number, data):
            sender.send(number, data)
        return len(data)

    count = -(-size // step)
    bar.set_size(size)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for length in pool.map(one, range(count)):
            bar.relative_update(length)
    sender.end(count)


class S3:
    """A multipart upload: the newest that was begun of this key, or a new one."""

    def __init__(self, fs: Any, path: str, digest: str) -> None:
        del digest  # each part is known by its own
        bucket, key, _ = fs.split_path(path)
        self._fs, self._path, self._key = fs, path, {"Bucket": bucket, "Key": key}
        self._etags: dict[int, str] = {}
        begun = [one for one in _uploads(fs, path) if one["Key"] == key]
        if begun:
            self._key["UploadId"] = max(begun, key=lambda one: one["Initiated"])["UploadId"]
            self._etags = self._arrived()
        else:
            self._key["UploadId"] = fs.call_s3("create_multipart_upload", **self._key)["UploadId"]

    def _arrived(self) -> dict[int, str]:
        etags, after = dict[int, str](), 0
        while True:
            told = self._fs.call_s3("list_parts", **self._key, PartNumberMarker=after)
            etags |= {part["PartNumber"] - 1: part["ETag"] for part in told.get("Parts", ())}
            if not told.get("IsTruncated"):
                return etags
            after = told["NextPartNumberMarker"]

    def has(self, number: int, data: bytes) -> bool:
        """Say whether a part has arrived."""
        return self._etags.get(number, "").strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()

    def send(self, number: int, data: bytes) -> None:
        """Send a part; it takes the place of another with its number."""
        told = self._fs.call_s3("upload_part", **self._key, PartNumber=number + 1, Body=data)
        self._etags[number] = told["ETag"]

    def end(self, count: int) -> None:
        """Make the parts the file; the upload is over."""
        parts = [{"PartNumber": number + 1, "ETag": self._etags[number]} for number in range(count)]
        self._fs.call_s3("complete_multipart_upload", **self._key, MultipartUpload={"Parts": parts})
        self._fs.invalidate_cache(self._path)


def give_up(fs: Any, path: str) -> None:
    """Give up uploads to S3 below a path, where that is allowed: parts cost money as long as they are kept."""
    bucket, _, _ = fs.split_path(path)
    with suppress(OSError):
        for one in _uploads(fs, f"{path}/"):
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=one["Key"], UploadId=one["UploadId"])


def _uploads(fs: Any, path: str) -> list[dict[str, Any]]:
    """Return what was begun of keys that begin like a path; nothing where that may not be asked."""
    bucket, prefix, _ = fs.split_path(path)
    try:
        return list(fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix).get("Uploads", ()))
    except OSError:  # what else is wrong the next call tells
        return []


class Azure:
    """Blocks of a blob."""

    def __init__(self, fs: Any, path: str, digest: str) -> None:
        from azure.core.exceptions import ResourceNotFoundError

        container, blob, _ = fs.split_path(path)
        self._fs, self._path, self._digest = fs, path, digest
        self._blob = fs.service_client.get_blob_client(container, blob)
        try:
            _, blocks = self._wait(self._blob.get_block_list, "uncommitted")
        except ResourceNotFoundError:
            blocks = []
        self._sizes = {block.id: block.size for block in blocks}

    def _wait(self, call: Callable[..., Any], *words: Any, **options: Any) -> Any:
        from fsspec.asyn import sync

        return sync(self._fs.loop, call, *words, **options)

    def _name(self, number: int) -> str:
        return f"{self._digest[: _NAME - 8]}{number:08d}"

    def has(self, number: int, data: bytes) -> bool:
        """Say whether a part has arrived."""
        return self._sizes.get(self._name(number)) == len(data)

    def send(self, number: int, data: bytes) -> None:
        """Send a part."""
        self._wait(self._blob.stage_block, self._name(number), data, len(data))

    def end(self, count: int) -> None:
        """Make the parts the file; all other blocks go."""
        from azure.storage.blob import BlobBlock

        blocks = [BlobBlock(self._name(number)) for number in range(count)]
        self._wait(self._blob.commit_block_list, blocks, metadata={"is_directory": "false"})  # as adlfs writes files
        self._fs.invalidate_cache(self._path)


SENDERS: dict[str, Callable[[Any, str, str], Sender]] = {"s3": S3, "azure": Azure}
