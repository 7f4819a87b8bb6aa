"""Keys of the server: made, listed and revoked here, and known by their hashes alone.

A secret has 256 random bits, so a plain SHA-256 of it is as good as a slow hash: nobody can try them all. The file is
one for all servers of a machine, and a server that runs notices when it changes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..core import atomic
from ..core.environment import keys_file
from ..core.errors import UsageError, did_you_mean

PREFIX = "lm-"
"""What a secret begins with, so that searches for leaked ones find it."""

LIMITS = ("rate", "tokens", "concurrent")


@dataclass(frozen=True)
class Key:
    """A key, without its secret.

    Args:
        name: whose it is.
        digest: SHA-256 of the secret, in hexadecimal.
        begins: the first characters of the secret, by which its owner knows it again.
        created: when it was made, UTC.
        rate: requests a minute; None for any number, as for the other limits.
        tokens: tokens a minute, read and written.
        concurrent: requests at once.
    """

    name: str
    digest: str
    begins: str
    created: str
    rate: int | None = None
    tokens: int | None = None
    concurrent: int | None = None


def digest_of(secret: str) -> str:
    """Return what of a secret is kept."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def owner_of(secret: str, keys: Mapping[str, Key]) -> Key | None:
    """Return the key of a secret. All are compared, each in constant time: how long it takes tells nothing."""
    digest, found = digest_of(secret), None
    for key in keys.values():
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


class KeyFile:
    """The keys of this machine.

    Args:
        path: where they are; ``LLMASOS_KEYS``, or ``keys.json`` in the project's own folder, if not given.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or keys_file()
        self._seen: tuple[int, ...] | None = None
        self._keys: dict[str, Key] = {}

    def current(self) -> Mapping[str, Key]:
        """Return the keys by name; the file is read again only where it has changed.

        Raises:
            UsageError: the file is damaged. It stays so until it is readable again: then no key is right.
        """
        try:
            found = self.path.stat()
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        except FileNotFoundError:
            self._seen, self._keys = None, {}
            return self._keys
        if seen != self._seen:
            self._keys = self._read()
            self._seen = seen
        return self._keys

    def add(
        self, name: str, *, rate: int | None = None, tokens: int | None = None, concurrent: int | None = None
    ) -> str:
        """Make a key and return its secret, which is nowhere else.

        Raises:
            UsageError: there is one of that name, or it is no name.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise UsageError(f"{name!r} is no name for a key", hint="letters, digits, and . _ - between them")
        keys = dict(self.current())
        if name in keys:
            raise UsageError(f"there is a key {name!r}", hint=f"another name, or llmasos keys revoke {name} first")
        secret = PREFIX + secrets.token_urlsafe(32)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        keys[name] = Key(name, digest_of(secret), secret[: len(PREFIX) + 4], created, rate, tokens, concurrent)
        self._write(keys)
        return secret

    def revoke(self, name: str) -> None:
        """Make a key worthless, at once and for every server of this machine.

        Raises:
            UsageError: there is none of that name.
        """
        keys = dict(self.current())
        if name not in keys:
            known = f"known: {', '.join(keys)}" if keys else "there are no keys"
            raise UsageError(f"there is no key {name!r}", hint=f"{did_you_mean(name, keys)}{known}")
        del keys[name]
        self._write(keys)

    def _read(self) -> dict[str, Key]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            found = {one["name"]: Key(**one) for one in content["keys"]}
            for key in found.values():
                if not re.fullmatch(r"[0-9a-f]{64}", key.digest):
                    raise ValueError(key.name)
                for limit in LIMITS:
                    if (value := getattr(key, limit)) is not None and (not isinstance(value, int) or value < 1):
                        raise ValueError(limit)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UsageError(f"{self.path} holds no keys ({type(error).__name__})",
                             hint="restore it, or remove it and make new keys") from error  # fmt: skip
        return found

    def _write(self, keys: Mapping[str, Key]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"keys": [asdict(key) for key in keys.values()]}
        atomic.write_text(self.path, json.dumps(content, indent=2) + "\n", mode=0o600)
