"""Sign a model's folder with a key, and check it with the other half: OpenSSF model signing, one file ``model.sig``.

The signature is a Sigstore bundle over an in-toto statement that names the SHA-256 of every file, as the library
``model-signing`` writes it, so that its own command line checks it too. Records of the run are left out: they are not
part of the model, are not packed with it, and nothing reads them to answer.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..core.atomic import full_disk
from ..core.bundle import RUN, check_folder, digest
from ..core.environment import key_password
from ..core.errors import BundleError, LLMasOSError, MissingExtraError, UsageError
from . import bill
from .bill import SIGNATURE

_LEFT_OUT = (SIGNATURE, RUN)
_GIT = (".git", ".gitattributes", ".github", ".gitignore")  # what the library's own command line leaves out


class Keys(NamedTuple):
    """The two files of a new key."""

    private: Path
    public: Path


class Signed(NamedTuple):
    """What a signature says: the files that it covers, as signed."""

    path: Path
    signature: Path
    files: tuple[str, ...]


def new_keys(private: str | Path) -> Keys:
    """Make a key of the curve P-256: the private half under this name, the public one beside it (``NAME.pub.pem``).

    Raises:
        UsageError: one of the files exists.
    """
    with _library():
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    path = Path(private).expanduser()
    keys = Keys(path, path.with_name(f"{path.name.removesuffix('.pem')}.pub.pem"))
    key, password = ec.generate_private_key(ec.SECP256R1()), key_password()
    encryption: Any = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    texts = (
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption),
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    )
    for file in keys:
        if file.exists():
            raise UsageError(f"{file} exists, and a key is never overwritten", hint="another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, text, mode in zip(keys, texts, (0o600, 0o644), strict=True):
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
            out.write(text)
    return keys


def sign(folder: str | Path, key: str | Path) -> Signed:
    """Write the bill of materials and the signature of a model's folder; an old signature is replaced.

    Args:
        folder: a model or an export.
        key: the private key, PEM, of the curve P-256, P-384 or P-521. If it is encrypted, ``LLMASOS_KEY_PASSWORD``
            opens it.

    Raises:
        BundleError: this is no model, it holds links, or files of it were changed since it was saved.
        UsageError: the key cannot be used, or lies in the folder.
    """
    folder, key = Path(folder), _key_file(key)
    check_folder(folder)
    if key.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"the private key {key} lies in the folder that others shall get", hint="move it elsewhere")
    _refuse_links(folder)
    with _library():
        from model_signing import hashing, signing

        with _explained_key(key, "private"):
            signer = signing.Config().use_elliptic_key_signer(private_key=key, password=key_password())
    bill.write(folder)
    fresh = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.partial"
    with full_disk(folder / SIGNATURE):
        try:
            signer.set_hashing_config(_hashing(hashing)).sign(folder.resolve(), fresh)
            os.replace(fresh, folder / SIGNATURE)
        finally:
            fresh.unlink(missing_ok=True)
    return Signed(folder, folder / SIGNATURE, tuple(_statement(folder).digests))


def verify(folder: str | Path, key: str | Path) -> Signed:
    """Check a signature and every file that it covers; nothing else of the folder is opened.

    Args:
        folder: a model or an export.
        key: the public key, PEM.

    Raises:
        BundleError: there is no signature, it is not of this key, or files were changed, added or removed: which.
        UsageError: the key cannot be used.
    """
    folder, key = Path(folder), _key_file(key)
    if not (folder / SIGNATURE).is_file():
        raise BundleError(
            f"{folder} has no signature ({SIGNATURE})", hint="llmasos sign makes one; do not use it as is"
        )
    _refuse_links(folder)
    with _library():
        from model_signing import hashing, verifying

        with _explained_key(key, "public"):
            verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    with _explained(folder, key):
        said = _statement(folder)
        verifier.set_hashing_config(_hashing(hashing)).verify(folder.resolve(), folder / SIGNATURE)
    if wider := sorted(set(said.left_out) - {*_LEFT_OUT, *_GIT}):
        raise BundleError(
            f"the signature of {folder} leaves out {', '.join(wider)}", hint="do not use it; sign the folder again"
        )
    return Signed(folder, folder / SIGNATURE, tuple(said.digests))


class _Statement(NamedTuple):
    digests: dict[str, str]
    left_out: tuple[str, ...]


def _statement(folder: Path) -> _Statement:
    """Return what a signature is over; its own words, which only a check makes true."""
    envelope = json.loads((folder / SIGNATURE).read_text(encoding="utf-8"))["dsseEnvelope"]
    predicate = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    digests = {str(resource["name"]): str(resource["digest"]) for resource in predicate["resources"]}
    return _Statement(digests, tuple(map(str, predicate["serialization"].get("ignore_paths", ()))))


def _changes(folder: Path) -> str:
    """Name the files that are not as a signature says; it must be valid."""
    signed = _statement(folder).digests
    every = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    there = {path.as_posix() for path in every if path.parts[0] not in _LEFT_OUT}
    found = {
        "changed": [name for name in signed if name in there and digest(folder / name) != signed[name]],
        "added": sorted(there - signed.keys()),
        "removed": [name for name in signed if name not in there],
    }
    return "; ".join(f"{word}: {', '.join(names[:10])}" for word, names in found.items() if names)


def _hashing(hashing: Any) -> Any:
    # Files of git are hashed too: whatever is added to the folder shall be seen.
    config = hashing.Config().use_file_serialization(hashing_algorithm="sha256")
    return config.set_ignored_paths(paths=_LEFT_OUT, ignore_git_paths=False)


def _key_file(key: str | Path) -> Path:
    path = Path(key).expanduser()
    if not path.is_file():
        raise UsageError(f"there is no key {path}", hint="llmasos sign --new-key FILE makes one")
    return path


def _refuse_links(folder: Path) -> None:
    """Raise where a link leads out of what is signed: its target could change and the signature still hold."""
    links = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink()]
    if links:
        raise BundleError(f"{folder} holds links: {', '.join(sorted(links)[:10])}", hint="copy their targets in")


@contextlib.contextmanager
def _library() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingExtraError("signing", install="'llmasos[sign]'") from error


@contextlib.contextmanager
def _explained_key(key: Path, half: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:  # an RSA key has no curve
        why = " ".join(str(error).split())[:120]
        raise UsageError(
            f"{key} is no {half} key that can be used: {why}",
            hint="a PEM file of the curve P-256, P-384 or P-521; LLMASOS_KEY_PASSWORD opens an encrypted one",
        ) from error


@contextlib.contextmanager
def _explained(folder: Path, key: Path) -> Iterator[None]:
    """Word what the library says of a signature; whatever it stumbles over means that there is no valid one."""
    from cryptography.exceptions import InvalidSignature

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # of signatures by old versions it speaks on standard output
            yield
    except LLMasOSError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, InvalidSignature) or "Key mismatch" in text:
            what, hint = f"is not signed with the key of {key}", "the public key of who signed it; else do not use it"
        elif text.startswith("Signature mismatch: "):
            what = f"is not as it was signed; {_changes(folder)}"
            hint = "do not use it; get the folder again"
        else:
            what, hint = f"has a damaged signature: {type(error).__name__}: {text[:120]}", "get the folder again"
        raise BundleError(f"{folder} {what}", hint=hint) from error
