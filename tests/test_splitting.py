"""A share of the requests is handed on to a new version; what that does not take is answered by the old one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from llmasos.core.config import ServeConfig
from llmasos.replicas import Replica
from llmasos.serving import splitting
from llmasos.serving.splitting import Split


def old(*, fails: bool = False) -> Any:
    async def answer(request: Request) -> PlainTextResponse:
        if fails:
            raise RuntimeError("broken")
        return PlainTextResponse(f"old {request.url.path} {len(await request.body())}")

    return Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])


class Next:
    """Another version: takes requests, or not, and answers so far."""

    def __init__(self, *, takes: bool = True, begins: bool = True, status: int = 200, ends: bool = True) -> None:
        self.takes, self.begins, self.status, self.ends = takes, begins, status, ends
        self.asked: list[tuple[Mapping[str, Any], bytes]] = []

    async def __call__(self, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[dict[str, Any]]:
        self.asked.append((scope, body))
        if not self.takes:
            await asyncio.Event().wait()
        yield {}
        if not self.begins:
            raise RuntimeError("killed")
        yield {"type": "http.response.start", "status": self.status, "headers": [(b"x-version", b"new")]}
        yield {"type": "http.response.body", "body": b"new ", "more_body": True}
        if not self.ends:
            raise RuntimeError("killed")
        yield {"type": "http.response.body", "body": body}


Told = list[tuple[str, bool]]


def asked(
    app: Any, hand: Any, *, share: float = 1.0, times: int = 1, method: str = "POST", path: str = "/v1/predict",
    root: str = "", body: bytes = b"rows", counted: bool = True, raises: bool = False, **options: Any,
) -> tuple[list[httpx2.Response], Told]:  # fmt: skip
    """Ask, and return the answers and what was counted."""
    told: Told = []

    def count(version: str, failed: bool) -> None:
        told.append((version, failed))

    split = Split(ServeConfig.of(options))
    split.before(app)
    split.to(share, hand, count if counted else None)

    async def ask() -> list[httpx2.Response]:
        there = httpx2.ASGITransport(split, raise_app_exceptions=raises, root_path=root)
        async with httpx2.AsyncClient(transport=there, base_url="http://here") as http:
            return [await http.request(method, path, content=body) for _ in range(times)]

    return asyncio.run(ask()), told


def test_the_new_version_answers_its_share_and_both_are_counted(monkeypatch):
    draws = iter([0.1, 0.9, 0.29, 0.31] * 5)
    monkeypatch.setattr("llmasos.serving.splitting.random.random", lambda: next(draws))
    replies, told = asked(old(), new := Next(), share=0.3, times=20)
    assert [reply.text for reply in replies] == ["new rows", "old /v1/predict 4"] * 10
    assert told == [("new", False), ("old", False)] * 10
    assert replies[0].headers["x-version"] == "new"
    scope, body = new.asked[0]
    assert (scope["path"], scope["method"], body) == ("/v1/predict", "POST", b"rows")


@pytest.mark.parametrize("new", [Next(takes=False), Next(begins=False)])
def test_what_the_new_version_does_not_answer_is_its_error_and_the_old_one_answers(new, monkeypatch):
    monkeypatch.setattr(splitting, "TAKEN", 0.05)
    (reply,), told = asked(old(), new)
    assert (reply.status_code, reply.text) == (200, "old /v1/predict 4")
    assert told == [("new", True), ("old", False)]


def test_an_answer_that_breaks_off_is_not_given_twice():
    told: Told = []
    with pytest.raises(RuntimeError, match="killed"):
        asked(old(), Next(ends=False), raises=True)
    (reply,), told = asked(old(), Next(ends=False))
    assert "old" not in reply.text
    assert told == [("new", True)]


def test_only_faults_of_the_server_are_errors():
    assert asked(old(), Next(status=503))[1] == [("new", True)]
    assert asked(old(), Next(status=429))[1] == [("new", False)]
    (reply,), told = asked(old(fails=True), None)
    assert (reply.status_code, told) == (500, [("old", True)])


def test_probes_pages_and_what_is_too_large_stay_here():
    assert asked(old(), Next(), method="GET")[1] == []
    (reply,), told = asked(old(), new := Next(), body=b"x" * 3000, max_body=1024)
    assert (reply.text, told, new.asked) == ("old /v1/predict 3000", [("old", False)], [])


POST = {"type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "headers": []}


def test_a_request_that_breaks_off_is_not_handed_on():
    came = [{"type": "http.request", "body": b"ro", "more_body": True}, {"type": "http.disconnect"}]
    messages, read, new = iter(came), list[Any](), Next()

    async def here(scope: Any, receive: Callable[..., Any], send: Any) -> None:
        read.extend([await receive(), await receive()])

    async def receive() -> dict[str, Any]:
        return next(messages)

    split = Split(ServeConfig())
    split.before(here)
    split.to(1.0, new, lambda *_: None)
    asyncio.run(split(POST, receive, receive))
    assert (read, new.asked) == (came, [])


def test_only_so_many_are_read_at_once_to_be_handed_on(monkeypatch):
    monkeypatch.setattr(splitting, "READING", 1)
    split, told = Split(ServeConfig()), list[str]()
    split.before(old())
    split.to(1.0, Next(), lambda version, _: told.append(version))

    async def nothing() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def ask() -> str:
        there = httpx2.ASGITransport(split)
        async with httpx2.AsyncClient(transport=there, base_url="http://here") as http:
            return (await http.post("/v1/predict", content=b"rows")).text

    async def both() -> list[str]:
        slow = asyncio.ensure_future(split(POST, nothing, nothing))
        await asyncio.sleep(0)
        first = await ask()
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        return [first, await ask()]

    assert asyncio.run(both()) == ["old /v1/predict 4", "new rows"]
    assert told == ["old", "new"]


def test_without_a_release_nothing_is_counted():
    (reply,), told = asked(old(), Next(), counted=False)
    assert (reply.text, told) == ("old /v1/predict 4", [])


def test_an_application_is_asked_below_its_route():
    (reply,), _ = asked(old(), None, root="/mine", path="/mine/v1/predict")
    assert reply.text == "old /v1/predict 4"
    _, _ = asked(old(), new := Next(), root="/mine", path="/mine/v1/predict")
    assert new.asked[0][0]["path"] == "/v1/predict"


def handed(app: Any, *, most: int | None = None) -> list[dict[str, Any]]:
    copy = Replica({}, {})
    copy._app = app
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "headers": []}

    async def messages() -> list[dict[str, Any]]:
        found, answer = [], copy.handed(scope, b"rows")
        async for message in answer:
            found.append(message)
            if len(found) == most:
                await answer.aclose()
        return found

    return asyncio.run(messages())


def test_a_copy_answers_what_is_handed_to_it_message_by_message():
    taken, start, *rest = handed(old())
    assert (taken, start["status"]) == ({}, 200)
    assert b"".join(message["body"] for message in rest) == b"old /v1/predict 4"
    with pytest.raises(RuntimeError, match="broken"):
        handed(old(fails=True))


def test_an_answer_that_nobody_waits_for_is_given_up():
    ended: list[bool] = []

    async def slow(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await receive()
        finally:
            ended.append(True)

    assert len(handed(slow, most=2)) == 2
    assert ended == [True]
