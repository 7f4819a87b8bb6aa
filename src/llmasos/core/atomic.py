"""Write files and folders that are there whole or not at all, whatever stops the program.

A folder is filled under a temporary name beside its target, forced to disk, and then takes the name in
one step of the file system: ``renameat2`` exchanges it with the old folder where the system can do so.
Elsewhere two renames do it, and ``recover`` undoes the first one if the program died between them.
Every temporary folder is held by a lock that dies with its process, so that leftovers of killed
programs can be told from work in progress, also between containers that share a disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .errors import HardwareError, UsageError

try:
    import fcntl
except ImportError:  # Windows has other locks; there leftovers stay until they are removed by hand
    fcntl = None  # type: ignore[assignment]

_NEW, _OLD = ".partial", ".previous"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_folder(
    target: str | Path,
    fill: Callable[[Path], None],
    *,
    overwrite: bool = False,
    replaces: Callable[[Path], bool] = lambda _: True,
) -> Path:
    """Let ``fill`` write a folder, and give it its name only when it is complete and on disk.

    Args:
        target: where the folder shall be; missing parents are made, an empty folder may be there.
        fill: called with an empty temporary folder.
        overwrite: whether an existing folder is replaced (whole: nothing of it remains).
        replaces: says of an existing folder whether it is of a kind that may be replaced.

    Returns:
        The absolute path of the folder.

    Raises:
        UsageError: the target exists, is a file, or cannot be written.
        HardwareError: the disk is full. The old folder is as it was.
    """
    target = Path(os.path.realpath(os.path.expanduser(target)))
    recover(target)
    _check_target(target, overwrite, replaces)
    with full_disk(target):
        fresh = _new_folder(target)
        with held(fresh):
            try:
                fill(fresh)
                _sync_tree(fresh)
                _check_target(target, overwrite, replaces)  # fill may have taken hours
                _take_name(fresh, target)
            finally:  # after an exchange this is the old folder
                shutil.rmtree(fresh, ignore_errors=True)
        _sync(target.parent)
    return target


def recover(target: Path) -> None:
    """Put right what killed programs left beside ``target``: restore its old folder, remove temporary ones."""
    if not target.parent.is_dir():
        return
    for old in _siblings(target, _OLD):
        if _is_abandoned(old) and not target.exists():
            old.rename(target)
    for leftover in (*_siblings(target, _OLD), *_siblings(target, _NEW)):
        if target.exists() or leftover.suffix == _NEW:
            _remove_abandoned(leftover)


def write_text(path: str | Path, text: str, *, mode: int = 0o666) -> Path:
    """Write a text file (UTF-8) that is there whole or not at all; ``mode`` says who may read it, less the umask.

    Raises:
        HardwareError: the disk is full. An old file is as it was.
    """
    path = Path(os.path.realpath(path))
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_NEW}")
    with full_disk(path):
        try:
            with open(fresh, "w", encoding="utf-8", newline="\n", opener=partial(os.open, mode=mode)) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    _sync(path.parent)
    return path


def write_json(path: str | Path, content: Any) -> Path:
    """Write ``content`` as indented JSON that is there whole or not at all; NaN is refused."""
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def full_disk(target: Path) -> Iterator[None]:
    """Turn "no space left" of any library inside the block into a HardwareError."""
    try:
        yield
    except Exception as error:
        if not _says_full(error):
            raise
        raise HardwareError(
            f"no space left on the disk while writing {target}", hint="free some space or write to another disk"
        ) from error


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder while the block runs, where the system has locks.

    Raises:
        UsageError: another process works there.
    """
    if fcntl is None:
        yield
        return
    with held(folder) as free:
        if not free:
            raise UsageError(f"another process is at work in {folder}", hint="wait for it, or name another output")
        yield


def _says_full(error: Exception) -> bool:
    # safetensors and tokenizers raise errors of their own, with the system's number only in the text
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(f"os error {number}" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def _check_target(target: Path, overwrite: bool, replaces: Callable[[Path], bool]) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file, not a folder", hint="give the path of a new folder")
    if not overwrite:
        raise UsageError(
            f"{target} exists", hint="choose another folder, or replace this one with overwrite=True (--overwrite)"
        )
    if not replaces(target):
        raise UsageError(f"{target} holds other files, which overwriting would delete", hint="choose another folder")


def _new_folder(target: Path) -> Path:
    # mkdir, not tempfile.mkdtemp: the folder keeps this name's permissions, so the umask must decide them
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_NEW}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
    except OSError as error:
        if _says_full(error):
            raise
        raise UsageError(
            f"cannot write {target}: {error.strerror}", hint="choose a folder that you may write to"
        ) from error
    return fresh


def _take_name(fresh: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        fresh.rename(target)
        return
    exchange = _exchange_call()
    if exchange and exchange(_AT_FDCWD, os.fsencode(fresh), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
        return
    old = fresh.with_suffix(_OLD)
    with held(target):
        target.rename(old)
        try:
            fresh.rename(target)
        except BaseException:
            old.rename(target)
            raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchange_call() -> Callable[..., int] | None:
    """Return the C library's ``renameat2``, or None where there is none."""
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return None


def _siblings(target: Path, suffix: str) -> list[Path]:
    return sorted(target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}{suffix}"))


def is_held(path: Path) -> bool:
    """Say whether a living process is inside ``held(path)``, as far as the system has such locks (Windows: yes)."""
    if not path.exists():
        return False
    with held(path, shared=True) as free:  # shared: two who ask at once do not take each other for the holder
        return not free


@contextlib.contextmanager
def held(path: Path, *, shared: bool = False) -> Iterator[bool]:
    """Hold the lock of a folder or file inside the block; yield False when another process holds it."""
    if fcntl is None:
        yield path.suffix == _OLD
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        got = True
    except OSError:
        got = False
    try:
        yield got
    finally:
        os.close(handle)


def _is_abandoned(folder: Path) -> bool:
    with held(folder) as got:
        return got


def _remove_abandoned(folder: Path) -> None:
    with contextlib.suppress(OSError), held(folder) as got:
        if got:
            shutil.rmtree(folder, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    # folders cannot be opened on Windows, and pipes or devices cannot be synced: nothing to lose there
    with contextlib.suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
