"""What an export to the web brings besides its model: the page, the TypeScript SDK, and ONNX Runtime Web.

It is built by npm from this package's own sources and a few libraries, whose versions and digests are locked. That is
done once for each version of the sources; the result is kept in ``LLMASOS_HOME/web``, and later exports need neither
npm nor a network. See docs/decisions/008-web-bundle.md.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..core import atomic, environment
from ..core.errors import BundleError, HardwareError, RemoteError, UsageError

_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE / "typescript", _PACKAGE.parents[1] / "sdks" / "typescript")
"""Where the sources are: in an installed package, or in a checkout."""
_PARTS = ("bundle.mjs", "mit.txt", "package.json", "package-lock.json", "page", "src")
_SECONDS = 900  # for npm


def check() -> None:
    """Raise where the page is not built yet and cannot be.

    Raises:
        HardwareError: there is no npm on this machine.
    """
    if not _place().is_dir():
        _command("npm")
        _command("node")


def built() -> Path:
    """Return the folder of everything but the model; build it if it is not there.

    Raises:
        HardwareError: there is no npm on this machine.
        RemoteError: npm could not fetch the libraries, or build the page from them.
    """
    place = _place()
    if not place.is_dir():
        check()
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".npm-") as scratch:
            try:
                _build(Path(scratch), place)
            except UsageError:
                if not place.is_dir():  # else another process has built the same meanwhile
                    raise
    return place


def _build(work: Path, place: Path) -> None:
    source = _source()
    for name in _PARTS:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy2
        copy(source / name, work / name)
    # no script of any package runs; the lock file names digests, and the registry is the user's own
    _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"], work)
    atomic.write_folder(place, lambda folder: _run(["node", "bundle.mjs", str(folder)], work))


def _place() -> Path:
    """Return where the page is kept: a folder named by the sources that it is built from."""
    source, found = _source(), hashlib.sha256()
    for path in sorted(file for name in _PARTS for file in [source / name, *(source / name).rglob("*")]):
        if path.is_file():
            found.update(f"{path.relative_to(source).as_posix()}\0{path.stat().st_size}\0".encode())
            found.update(path.read_bytes())
    return environment.home() / "web" / found.hexdigest()[:16]


def _source() -> Path:
    for place in _PLACES:
        if (place / "package-lock.json").is_file():
            return place
    raise BundleError(
        "this installation lacks the sources of the web page", hint="pip install --force-reinstall llmasos"
    )


def _command(name: str) -> str:
    if found := shutil.which(name):
        return found
    raise HardwareError(
        f"an export to the web needs {name}, which is not on this machine",
        hint="install Node.js 20 or newer, which brings node and npm; the page is built with it once, and kept",
    )


def _run(words: Sequence[str], folder: Path) -> None:
    command = [_command(words[0]), *words[1:]]
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=_SECONDS, check=False,
        )  # fmt: skip
        lines, failed = [line for line in done.stderr.splitlines() if line.strip()], done.returncode != 0
    except subprocess.TimeoutExpired:
        lines, failed = [f"no end after {_SECONDS} s"], True
    if failed:
        raise RemoteError(
            f"{' '.join(words[:2])} failed: {' '.join(lines[:3])[:400] or 'it says nothing'}",
            hint="npm must reach its registry once; `npm config get registry` shows which",
        )
