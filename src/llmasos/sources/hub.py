"""Models on the Hugging Face Hub, or on any server that speaks its protocol (``HF_ENDPOINT``).

The Hub's own client does the talking, and models lie in its cache, where other libraries find them.
What is ours: only files of known, harmless kinds are fetched; a model that comes with code or pickles
is refused before its weights are downloaded; and every file is compared with the digest in the Hub's
listing before it enters the cache. The client is therefore told to download into a plain folder: in
its cache it names files after a header that the server sends, and does not check where that leads.
What passed is written down beside the snapshots, so that the next call hashes nothing.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..core import environment
from ..core.atomic import full_disk
from ..core.bundle import check_folder, check_remote_code, digest, inside, weight_files, write_json
from ..core.errors import BundleError, LLMasOSError, RemoteError, UsageError
from .base import Located

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile

_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SMALL = re.compile(r"(additional_chat_templates/)?[^/]+\.(json|txt|model|jinja)")
_OFFLINE = "without a network use pkg:NAME of an installed package, a folder, or a model that was downloaded before"
_TOKEN = "set HF_TOKEN to an access token of an account that may read it"


class Hub:
    """``org/name`` or ``name``: whatever no other source claims."""

    order = 90

    def matches(self, ref: str) -> bool:
        """Say whether the reference has the form of a Hub id."""
        return _ID.fullmatch(ref) is not None

    def fetch(self, ref: str, *, revision: str | None, cache_dir: Path | None, weights: bool = True) -> Located:
        """Download the model, or find it in the cache, and check it; see ``Source.fetch``."""
        from huggingface_hub import HfApi
        from huggingface_hub.constants import HF_HUB_CACHE

        cache = Path(cache_dir or HF_HUB_CACHE).expanduser().absolute()
        api = HfApi(endpoint=environment.hub_endpoint(), library_name="llmasos")
        with _explained(ref, revision), full_disk(cache):
            commit = api.resolve_revision(ref, revision=revision, cache_dir=cache).resolved
            if not _COMMIT.fullmatch(commit):
                raise RemoteError(
                    f"{_host()} gives {ref} the revision {commit!r}", hint="it is no Hub: check HF_ENDPOINT"
                )
            snapshot = _Snapshot(api, ref, commit, cache)
            if not snapshot.is_verified(weights):
                snapshot.download(weights)
        check_folder(snapshot.folder, weights=weights)
        return Located(snapshot.folder, ref, commit, "hub")


class _Snapshot:
    """One commit of one model in the Hub's cache."""

    def __init__(self, api: HfApi, ref: str, commit: str, cache: Path) -> None:
        self._api, self._ref, self._commit, self._cache = api, ref, commit, cache
        self._storage = cache / f"models--{ref.replace('/', '--')}"
        self._inbox = self._storage / "unverified" / commit
        self._record = self._storage / "verified" / f"{commit}.json"
        self.folder = self._storage / "snapshots" / commit

    def is_verified(self, weights: bool) -> bool:
        """Say whether all files were verified once and still have the same sizes."""
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            return (record["weights"] or not weights) and all(
                (self.folder / name).stat().st_size == size for name, size in record["sizes"].items()
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return False

    def download(self, weights: bool) -> None:
        """Fetch what is missing, verify it and write down that it was verified."""
        from huggingface_hub.utils import WeakFileLock

        try:
            files = self._listing()
        except _Unreachable as error:
            if self._is_usable(weights):  # another library downloaded it
                return
            raise error.__cause__ or error from None
        lock = self._cache / ".locks" / self._storage.name / f"{self._commit}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if not self.is_verified(weights):  # another process may have been at it
                self._fill(weights, files)

    def _fill(self, weights: bool, files: Mapping[str, RepoFile]) -> None:
        names = [name for name in files if _SMALL.fullmatch(name)]
        if not {"config.json", "adapter_config.json"} & set(names):
            raise BundleError(
                f"{self._ref} is not a model: it has no config.json", hint="check the name and the revision"
            )
        self._bring(names, files)
        check_remote_code(self.folder)
        if weights:
            shards = weight_files(self.folder, listed=files, called=self._ref)
            self._bring(shards, files)
            names += shards
        with contextlib.suppress(OSError):  # a cache that is read-only is verified again next time
            self._record.parent.mkdir(exist_ok=True)
            write_json(self._record, {"weights": weights, "sizes": {name: files[name].size for name in names}})
        shutil.rmtree(self._inbox, ignore_errors=True)

    def _listing(self) -> dict[str, RepoFile]:
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import HfHubHTTPError

        try:
            # fails at once where there is no network; the listing alone would be tried for 20 seconds
            self._api.model_info(self._ref, revision=self._commit)
            entries = list(self._api.list_repo_tree(self._ref, recursive=True, revision=self._commit))
        except Exception as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise  # the Hub has answered: no such model, no permission
            raise _Unreachable from error
        for entry in entries:
            if not inside(entry.path):
                raise BundleError(
                    f"{self._ref} lists a file outside of its folder: {entry.path!r}", hint="do not trust it"
                )
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _is_usable(self, weights: bool) -> bool:
        with contextlib.suppress(BundleError):
            check_folder(self.folder, weights=weights)
            return True
        return False

    def _bring(self, names: Iterable[str], files: Mapping[str, RepoFile]) -> None:
        from huggingface_hub import snapshot_download

        wanted = [name for name in names if not self._has(name, files[name])]
        if not wanted:
            return
        with _bars_only_on_terminals():
            snapshot_download(
                self._ref,
                revision=self._commit,
                local_dir=self._inbox,
                cache_dir=self._inbox,  # else it would copy a damaged file over from the cache
                endpoint=self._api.endpoint,
                library_name="llmasos",
                allow_patterns=[glob.escape(name) for name in wanted],
            )
        wrong = [name for name in wanted if not _is_as_listed(self._inbox / name, files[name])]
        for name in wanted:
            if name not in wrong:
                self._keep(name, files[name])
        if wrong:
            shutil.rmtree(self._inbox)
            raise BundleError(
                f"{self._ref}: what {_host()} sent for {', '.join(wrong)} does not have the digest that it lists",
                hint="it was removed; try again, and if that fails too do not trust the server or a proxy on the way",
            )

    def _has(self, name: str, entry: RepoFile) -> bool:
        """Say whether the file is in the cache as listed, perhaps with another revision."""
        if _is_as_listed(self.folder / name, entry):
            return True
        if not _is_as_listed(self._blob(entry), entry):
            return False
        self._link(name, entry)
        return True

    def _keep(self, name: str, entry: RepoFile) -> None:
        """Move a verified file into the cache, laid out as the Hub's client does it."""
        blob = self._blob(entry)
        blob.parent.mkdir(exist_ok=True)
        (self._inbox / name).replace(blob)
        self._link(name, entry)

    def _link(self, name: str, entry: RepoFile) -> None:
        path, blob = self.folder / name, self._blob(entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            path.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:  # a system or disk without links
            blob.replace(path)

    def _blob(self, entry: RepoFile) -> Path:
        name = str(entry.lfs.sha256 if entry.lfs is not None else entry.blob_id)
        if not _DIGEST.fullmatch(name):
            raise BundleError(
                f"{self._ref} lists {entry.path} without a digest", hint="it is no Hub: check HF_ENDPOINT"
            )
        return self._storage / "blobs" / name


class _Unreachable(Exception):
    """The listing could not be had, for a reason that a cached model makes up for."""


def _is_as_listed(path: Path, entry: RepoFile) -> bool:
    # large files are listed with the sha256 of their content, the others with their Git blob id
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    if entry.lfs is not None:
        return bool(digest(path) == entry.lfs.sha256)
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False)
    return bool(blob.hexdigest() == entry.blob_id)


@contextlib.contextmanager
def _bars_only_on_terminals() -> Iterator[None]:
    from huggingface_hub import utils

    if sys.stderr.isatty() or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _host() -> str:
    """Return the Hub's host and port: an address may carry a password, which no message shows."""
    parts = urlsplit(environment.hub_endpoint())
    return parts.netloc.rpartition("@")[2] or "the Hub"


@contextlib.contextmanager
def _explained(ref: str, revision: str | None) -> Iterator[None]:
    """Give the client's errors our sentence first."""
    try:
        yield
    except LLMasOSError:
        raise
    except Exception as error:
        raise _explain(error, ref, revision) from error


def _explain(error: Exception, ref: str, revision: str | None) -> LLMasOSError:
    from huggingface_hub import errors

    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    host = _host()
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{ref} has no revision {revision!r}", hint="give a branch, a tag or a commit of the model")
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{ref!r} is not a Hub id", hint="write org/name")
    if isinstance(error, errors.GatedRepoError):
        return RemoteError(f"{ref} is gated on {host}", hint=f"accept its conditions on its page, then {_TOKEN}")
    if status in (401, 403):
        return RemoteError(f"{host} does not let you read {ref}: it is private, or there is no such model",
                           hint=f"check the spelling; {_TOKEN}")  # fmt: skip
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return UsageError(f"there is no model {ref!r} on {host}, and no folder of that name here",
                          hint="check the spelling; models are named org/name")  # fmt: skip
    if status is not None:
        return RemoteError(f"{host} answered {ref} with status {status}", hint=f"try again later; {_OFFLINE}")
    if isinstance(error, OSError) and error.filename:
        return UsageError(
            f"cannot write {error.filename}: {error.strerror}", hint="give another cache_dir, or set HF_HOME"
        )
    if isinstance(error, errors.RevisionResolutionError):
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return RemoteError(f"{ref} cannot be downloaded: no connection to {host} ({type(error).__name__})", hint=_OFFLINE)


PLUGIN = Hub()
