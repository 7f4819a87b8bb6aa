"""An endpoint that speaks OpenAI and says what a test wants it to: for loops that depend on what a model answers.

It is a real server on a real port; only its words are given. Its vectors count words, so that texts with common words
are near to each other.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

WIDTH = 64

Said = str | dict[str, Any] | Callable[[dict[str, Any]], Any]


@dataclass
class Endpoint:
    """What was asked, and what will be said: texts, messages, ``(status, error)``, or functions of the request."""

    url: str = ""
    says: list[Any] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    embedded: list[list[str]] = field(default_factory=list)
    models_embedded: list[str] = field(default_factory=list)
    models: list[dict[str, Any]] = field(
        default_factory=lambda: [{"id": "words", "object": "model", "embeds": True}, {"id": "chat", "object": "model"}]
    )
    salt: str = ""
    longest: int = 10**9
    lock: Any = field(default_factory=threading.Lock)

    def chats(self, *says: Said | tuple[int, dict[str, Any]]) -> None:
        """Say these next."""
        self.says = list(says)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """Return a message that calls a tool."""
    return raw_call(name, json.dumps(arguments))


def raw_call(name: str, arguments: str) -> dict[str, Any]:
    """Return a message that calls a tool with this text as arguments."""
    made = {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [made]}


def vector(text: str, salt: str = "") -> np.ndarray:
    """Return a text's vector: how often each word's place is hit."""
    found = np.zeros(WIDTH, "<f4")
    for word in text.lower().split():
        found[int(hashlib.sha256((salt + word.strip(".,?!")).encode()).hexdigest(), 16) % WIDTH] += 1
    return found + 1e-6


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Let a handler answer until the block ends; yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    """Run an endpoint until the block ends."""
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(200, {"object": "list", "data": state.models})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/v1/embeddings":
                self.answer(*embeddings(state, body))
                return
            with state.lock:
                state.asked.append(body)
                said = state.says.pop(0)
            said = said(body) if callable(said) else said
            if isinstance(said, tuple):
                self.answer(*said)
            elif body.get("stream"):
                self.stream(str(said))
            else:
                self.answer(200, reply(said))

        def answer(self, status: int, content: Any) -> None:
            whole = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole)

        def stream(self, text: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            parts: Sequence[dict[str, Any]] = [{"content": word} for word in text.split("|")]
            for number, delta in enumerate(parts, 1):
                end = "stop" if number == len(parts) else None
                choice = {"index": 0, "delta": delta, "finish_reason": end}
                chunk = {"id": "1", "object": "chat.completion.chunk", "model": "chat", "choices": [choice]}
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

    with listening(Handler) as state.url:
        yield state


def embeddings(state: Endpoint, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Answer a request for vectors; a text that is too long is refused as OpenAI does it."""
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    with state.lock:
        state.embedded.append(texts)
        state.models_embedded.append(body["model"])
    if any(len(text) > state.longest for text in texts):
        return 400, {"error": {"message": "too long", "code": "context_length_exceeded", "param": "input"}}
    made = [base64.b64encode(vector(text, state.salt).tobytes()).decode() for text in texts]
    data = [{"object": "embedding", "index": place, "embedding": one} for place, one in enumerate(made)]
    return 200, {"object": "list", "data": data, "model": body.get("model", "words")}


def reply(said: str | dict[str, Any]) -> dict[str, Any]:
    """Return a whole answer."""
    message = {"role": "assistant", "content": said} if isinstance(said, str) else dict(said)
    end = message.pop("finish_reason", "tool_calls" if message.get("tool_calls") else "stop")
    choice = {"index": 0, "message": message, "finish_reason": end}
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    return {"id": "1", "object": "chat.completion", "model": "chat", "choices": [choice], "usage": usage}
