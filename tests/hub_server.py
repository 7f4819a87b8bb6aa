"""A small Hub on loopback, serving folders as model repositories, that can also misbehave.

Speaks what huggingface_hub reads: model info, the file tree, HEAD and GET of files with ranges.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self

LARGE = (".safetensors", ".bin", ".pt")


class Seen(NamedTuple):
    """One request."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """The server. Fields under ``repos`` are its ways to misbehave."""

    repos: dict[str, Path] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)  # file: bytes after which a download breaks off, once
    altered: set[str] = field(default_factory=set)  # files sent with other content of the same size
    short: set[str] = field(default_factory=set)  # files announced and sent with one byte less
    tags: dict[str, str] = field(default_factory=dict)  # file: the ETag sent for it
    status: dict[str, tuple[int, str]] = field(default_factory=dict)  # repo: status and error code of every answer
    listed: list[str] = field(default_factory=list)  # more file names in every tree
    seen: list[Seen] = field(default_factory=list)

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End; from here on connections are refused."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def commit(self, repo: str) -> str:
        content = b"".join(b"%s%s" % (path.name.encode(), path.read_bytes()) for path in _files(self.repos[repo]))
        return hashlib.sha1(content).hexdigest()

    def downloads(self) -> list[str]:
        """Return the names of the files that were asked for, in order."""
        return [seen.path.split("/resolve/")[1].split("/", 1)[1] for seen in self.seen
                if seen.method == "GET" and "/resolve/" in seen.path]  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.hub.seen.append(Seen(self.command, path, self.headers["Range"], self.headers["Authorization"]))
        repo = next((name for name in self.hub.repos if f"/{name}/" in f"{path}/"), None)
        if repo is None:
            self._refuse(404, "RepoNotFound")
        elif repo in self.hub.status:
            self._refuse(*self.hub.status[repo])
        elif "/resolve/" in path:
            self._file(repo, path.split("/resolve/")[1].split("/", 1)[1], body)
        elif "/tree/" in path:
            self._json(_tree(self.hub.repos[repo], self.hub.listed))
        elif path.rpartition("/revision/")[2] not in ("main", self.hub.commit(repo)) and "/revision/" in path:
            self._refuse(404, "RevisionNotFound")
        else:
            self._json({"id": repo, "sha": self.hub.commit(repo), "private": False, "tags": [], "siblings": []})

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, repo: str, name: str, body: bool) -> None:
        path = self.hub.repos[repo] / name
        if not path.is_file():
            return self._refuse(404, "EntryNotFound")
        content = path.read_bytes()
        entry = _entry(path, name)
        self.send_response(206 if self.headers["Range"] else 200)
        self.send_header("ETag", f'"{self.hub.tags.get(name, entry.get("lfs", entry)["oid"])}"')
        self.send_header("X-Repo-Commit", self.hub.commit(repo))
        if name in self.hub.altered:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if name in self.hub.short:
            content = content[:-1]
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return None
        cut = self.hub.cut.pop(name, None)
        self.wfile.write(content[start:cut])
        self.close_connection = cut is not None
        return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _entry(path: Path, name: str) -> dict[str, Any]:
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob}
    if name.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry


def _tree(folder: Path, more: list[str]) -> list[dict[str, Any]]:
    entries = [_entry(path, path.relative_to(folder).as_posix()) for path in _files(folder)]
    return entries + [{"type": "file", "path": name, "size": 2, "oid": "0" * 40} for name in more]
