"""Send a pack to a registry of containers, and get one back: the OCI distribution protocol over HTTPS.

Plain HTTP is spoken to this machine alone. A login goes to the registry and to the token server that it names, never to
where it redirects a download, and is in no message. A broken download goes on where it stopped; a blob that the
registry has is not sent again; nothing has the tag before all of it is there.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import urljoin, urlsplit

from ..core.environment import registry_login
from ..core.errors import BundleError, LLMasOSError, RemoteError, UsageError
from .packing import LARGEST_MANIFEST, MANIFEST_TYPE, Blob, Pack

if TYPE_CHECKING:
    import httpx2

_REFERENCE = re.compile(
    r"(?P<host>(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?)"
    r"/(?P<name>[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127})|@(?P<digest>sha256:[0-9a-f]{64}))",
    re.ASCII,
)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_PIECE = 1 << 20
_TRIES = 5
_REDIRECTS = 5


class Reference(NamedTuple):
    """Where a model is in a registry: ``HOST/NAME:TAG`` or ``HOST/NAME@sha256:...``."""

    host: str
    name: str
    version: str

    @classmethod
    def of(cls, text: str) -> Self:
        """Read one.

        Raises:
            UsageError: it has another form.
        """
        found = _REFERENCE.fullmatch(text)
        if found is None or not ("." in found["host"] or ":" in found["host"] or found["host"] == "localhost"):
            raise UsageError(
                f"{text!r} is no reference to a registry", hint="REGISTRY/NAME:TAG, such as ghcr.io/me/my-model:1"
            )
        return cls(found["host"], found["name"], found["tag"] or found["digest"])

    @property
    def url(self) -> str:
        """The address of its API."""
        host = urlsplit(f"//{self.host}").hostname or ""
        return f"{'http' if _is_loopback(host) else 'https'}://{self.host}/v2/{self.name}"


class Registry:
    """A model's place in a registry; use as a context manager."""

    def __init__(self, reference: str) -> None:
        """Connect to nothing yet."""
        self.name, self._ref = reference, Reference.of(reference)
        self._authorization: str | None = None

    def __enter__(self) -> Self:
        import httpx2

        self._client = httpx2.Client(timeout=60.0, headers={"User-Agent": "llmasos"})
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def push(self, pack: Pack) -> str:
        """Send a pack, the manifest last; return the manifest's digest.

        Raises:
            RemoteError: the registry cannot be reached, or refused.
        """
        if self._ref.version.startswith("sha256:"):
            raise UsageError(f"{self.name} names a digest, which comes from the content", hint="REGISTRY/NAME:TAG")
        for blob in {blob.digest: blob for blob in (*pack.layers, pack.config)}.values():
            self._upload(blob)
        url, content = f"{self._ref.url}/manifests/{self._ref.version}", pack.manifest.content
        with self._asked("PUT", url, {"Content-Type": MANIFEST_TYPE}, lambda: content) as answer:
            self._expect(answer, 201)
            told = answer.headers.get("Docker-Content-Digest", pack.manifest.digest)
        if told != pack.manifest.digest:
            raise RemoteError(f"{self._ref.host} keeps {self.name} as {told[:80]}, not as {pack.manifest.digest}",
                              hint="do not use it; is a proxy on the way?")  # fmt: skip
        return pack.manifest.digest

    def manifest(self) -> bytes:
        """Return the manifest's bytes, checked against its digest."""
        url = f"{self._ref.url}/manifests/{self._ref.version}"
        with self._asked("GET", url, {"Accept": MANIFEST_TYPE}) as answer:
            self._expect(answer, 200)
            raw = b""
            for piece in answer.iter_bytes(_PIECE):
                raw += piece
                if len(raw) > LARGEST_MANIFEST:
                    raise BundleError(f"{self.name} has a manifest of more than 4 MB", hint="do not trust it")
            told = answer.headers.get("Docker-Content-Digest")
        wanted = self._ref.version if self._ref.version.startswith("sha256:") else told
        found = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if wanted is not None and wanted != found:
            raise BundleError(f"the manifest of {self.name} has the digest {found}, not {wanted[:80]}",
                              hint="try again, and if that fails too do not trust the registry")  # fmt: skip
        return raw

    def blob(self, digest: str, size: int) -> AbstractContextManager[IO[bytes]]:
        """Open a blob; a connection that breaks is taken up again where it broke."""
        return self._blob(digest, size)

    @contextmanager
    def _blob(self, digest: str, size: int) -> Iterator[IO[bytes]]:
        stream = _Download(self, f"{self._ref.url}/blobs/{digest}", size)
        try:
            yield stream  # type: ignore[misc]
        finally:
            stream.close()

    def _upload(self, blob: Blob) -> None:
        with self._asked("HEAD", f"{self._ref.url}/blobs/{blob.digest}") as answer:
            if answer.status_code == 200:
                return
        for left in reversed(range(_TRIES)):
            try:
                with self._asked("POST", f"{self._ref.url}/blobs/uploads/") as answer:
                    self._expect(answer, 202)
                    place = urljoin(str(answer.url), answer.headers.get("Location", ""))
                place += f"{'&' if '?' in place else '?'}digest={blob.digest}"
                size = {"Content-Length": str(blob.size), "Content-Type": "application/octet-stream"}
                with self._asked("PUT", place, size, lambda: _pieces(blob)) as answer:
                    self._expect(answer, 201)
                return
            except _Broken as error:
                if not left:
                    raise error.told from error
                time.sleep(0.2)

    @contextmanager
    def _asked(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, content: Callable[[], Any] | None = None
    ) -> Iterator[httpx2.Response]:
        """Ask, log in where that is asked for, follow redirects of what is only read; the answer is not read yet."""
        import httpx2

        logged_in = False
        for _ in range(_REDIRECTS + 2):
            own = self._is_own(url)
            more = {"Authorization": self._authorization} if self._authorization and own else {}
            self._check(url)
            body = content() if content else None
            request = self._client.build_request(method, url, headers={**(headers or {}), **more}, content=body)
            try:
                answer = self._client.send(request, stream=True)
            except httpx2.TransportError as error:
                raise _Broken(self._unreachable(url, error)) from error
            try:
                if answer.status_code == 401 and own and not logged_in:
                    self._authorization, logged_in = self._login(answer.headers.get("WWW-Authenticate", "")), True
                elif answer.is_redirect and method in ("GET", "HEAD"):
                    url = urljoin(url, answer.headers.get("Location", ""))
                else:
                    try:
                        yield answer
                    except httpx2.TransportError as error:
                        raise _Broken(self._unreachable(url, error)) from error
                    return
            finally:
                answer.close()
        raise RemoteError(f"{self._ref.host} redirects {self.name} without end", hint="is it a registry?")

    def _login(self, challenge: str) -> str:
        """Return what shows who we are, as the registry asks for it."""
        import httpx2

        scheme, _, rest = challenge.partition(" ")
        login, asked = registry_login(self._ref.host), dict(_CHALLENGE.findall(rest))
        basic = "Basic " + base64.b64encode(":".join(login).encode()).decode() if login else None
        if scheme.lower() == "basic" and basic:
            return basic
        if scheme.lower() != "bearer" or "realm" not in asked:
            raise self._refused(401, "")
        self._check(asked["realm"])
        try:
            answer = self._client.get(
                asked["realm"], params={name: asked[name] for name in ("service", "scope") if name in asked},
                headers={"Authorization": basic} if basic else {},
            )  # fmt: skip
            content = answer.json() if answer.status_code == 200 else {}
        except (httpx2.TransportError, ValueError) as error:
            raise self._unreachable(asked["realm"], error) from error
        token = (content.get("token") or content.get("access_token")) if isinstance(content, dict) else None
        if not isinstance(token, str):
            raise self._refused(401, "")
        return f"Bearer {token}"

    def _is_own(self, url: str) -> bool:
        return urlsplit(url)[:2] == urlsplit(self._ref.url)[:2]

    def _check(self, url: str) -> None:
        """Refuse to leave HTTPS, but for this machine: what is sent could be read, and what comes be changed."""
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
            raise RemoteError(f"{self._ref.host} leads to {parts.scheme}://{parts.hostname}, which is not encrypted",
                              hint="plain HTTP is spoken to this machine alone")  # fmt: skip

    def _expect(self, answer: httpx2.Response, status: int) -> None:
        if answer.status_code == status:
            return
        try:
            first = json.loads(b"".join(answer.iter_bytes())[:65536])["errors"][0]
            why = f"{first.get('code')}: {first.get('message')}"[:120]
        except (ValueError, LookupError, TypeError, AttributeError):
            why = ""
        raise self._refused(answer.status_code, why)

    def _refused(self, status: int, why: str) -> LLMasOSError:
        if status == 404:
            return UsageError(f"{self._ref.host} has no {self.name.partition('/')[2]}", hint="check name and tag")
        if status in (401, 403):
            hint = "set LLMASOS_REGISTRY_USER and LLMASOS_REGISTRY_PASSWORD, or docker login"
            return RemoteError(
                f"{self._ref.host} does not let you do that with {self.name.partition('/')[2]}", hint=hint
            )
        told = f" ({why})" if why else ""
        return RemoteError(f"{self._ref.host} answered with status {status}{told}", hint="try again later")

    def _unreachable(self, url: str, error: Exception) -> RemoteError:
        host = urlsplit(url).netloc.rpartition("@")[2]
        return RemoteError(f"{host} cannot be reached ({type(error).__name__})", hint="is it the right address?")


class _Broken(RemoteError):
    """A connection that could not be made or broke; ``told`` is what the user reads of it in the end."""

    def __init__(self, told: RemoteError) -> None:
        super().__init__(told.message, hint=told.hint)
        self.told = told


class _Download:
    """A blob as it comes, in order."""

    def __init__(self, registry: Registry, url: str, size: int) -> None:
        self._registry, self._url, self._size = registry, url, size
        self._at, self._kept, self._left = 0, b"", _TRIES
        self._answer: Any = None
        self._pieces: Iterator[bytes] = iter(())

    def read(self, size: int) -> bytes:
        """Return up to so many bytes, none at the end."""
        while not self._kept:
            try:
                if self._answer is None:
                    self._open()
                self._kept = next(self._pieces)
            except StopIteration:
                return b""
            except _Broken as error:
                self._again(error)
            except Exception as error:
                import httpx2

                if not isinstance(error, httpx2.TransportError):
                    raise
                self._again(_Broken(self._registry._unreachable(self._url, error)))
        piece, self._kept = self._kept[:size], self._kept[size:]
        self._at += len(piece)
        return piece

    def _again(self, error: _Broken) -> None:
        self.close()
        self._left -= 1
        if not self._left:
            raise error.told from error
        time.sleep(0.2)

    def close(self) -> None:
        """Hang up."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.__exit__(None, None, None)

    def _open(self) -> None:
        headers = {"Range": f"bytes={self._at}-"} if self._at else {}
        asked = self._registry._asked("GET", self._url, {**headers, "Accept-Encoding": "identity"})
        answer = asked.__enter__()
        self._answer = asked
        resumed = self._at and answer.headers.get("Content-Range", "").startswith(f"bytes {self._at}-")
        self._registry._expect(answer, 206 if resumed else 200)
        self._pieces = answer.iter_bytes(_PIECE)
        skip = 0 if resumed else self._at  # a server without ranges begins again
        while skip > 0:
            piece = next(self._pieces)
            skip, self._kept = skip - len(piece), piece[skip:]


def _pieces(blob: Blob) -> Iterator[bytes]:
    with blob.opened() as stream:
        while piece := stream.read(_PIECE):
            yield piece


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
