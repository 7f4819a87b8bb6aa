"""Who may ask a server: keys and their limits, hosts and origins, HTTPS, and nobody by default."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from served import Server, serving
from tiny import save_tiny_bert

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from llmasos.core import plugins
from llmasos.core.errors import UsageError
from llmasos.serving.guard import Guard
from llmasos.serving.keys import KeyFile

PAIRS = {"pairs": [["a good day", "a day"]]}
PAGE = "https://chat.example.com"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("guarded") / "base")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    return KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="module")
def secret(keys: KeyFile) -> str:
    return keys.add("ada")


@pytest.fixture(scope="module")
def server(folder: Path, keys: KeyFile, secret: str) -> Iterator[Server]:
    with serving({"base": folder}, guard=Guard(keys, origins=[PAGE])) as running:
        yield running


@pytest.fixture(scope="module")
def keyless(folder: Path) -> Iterator[Server]:
    with serving({"base": folder}, guard=Guard(hosts=["models.example.com"], origins=[PAGE])) as running:
        yield running


def ask(server: Server, secret: str | None = None, **headers: str) -> httpx2.Response:
    given = {"authorization": f"Bearer {secret}"} if secret else {}
    return server.http.post("/v1/similarity", json=PAIRS, headers=given | headers)


def test_every_route_but_the_probes_needs_a_key(server: Server) -> None:
    paths = {(method, path) for path, operations in server.app.openapi()["paths"].items() for method in operations}
    paths |= {("get", path) for path in ("/metrics", "/docs", "/openapi.json", "/nothing", "/health/live/")}
    open_ = {path for name in plugins.names("protocols") for path in plugins.load("protocols", name).probes}
    assert open_ == {"/", "/ping", "/v2/health/live", "/v2/health/ready"}
    assert len(paths) > 10
    for method, path in sorted(one for one in paths if one[1] not in open_):
        answer = server.http.request(method.upper(), path, json={})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
    assert server.http.get("/health/live").status_code == 200
    assert server.http.get("/health/ready").status_code == 200


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key"])
def test_a_key_comes_in_any_of_three_headers(server: Server, secret: str, name: str) -> None:
    value = f"Bearer {secret}" if name == "authorization" else secret
    assert server.http.get("/metrics", headers={name: value}).status_code == 200
    wrong = server.http.get("/metrics", headers={name: value[:-1]})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
    assert secret[:-1] not in wrong.text


@pytest.mark.parametrize("value", ["", "Bearer", "Basic YTpi", "bearer lm-", "Bearer \xff\xfe", "lm-x"])
def test_what_is_no_key_is_refused(server: Server, value: str) -> None:
    headers = [(b"authorization", value.encode("latin-1"))]
    assert server.http.get("/metrics", headers=headers).status_code == 401


def test_keys_are_made_and_revoked_while_the_server_runs(server: Server, keys: KeyFile) -> None:
    new = keys.add("bob")
    assert ask(server, new).status_code == 200
    keys.revoke("bob")
    assert ask(server, new).status_code == 401


def test_the_first_key_closes_a_server_and_the_last_does_not_open_it(folder: Path, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    with serving({"base": folder}, guard=Guard(keys)) as server:
        assert ask(server).status_code == 200
        secret = keys.add("ada")
        assert ask(server).status_code == 401
        assert ask(server, secret).status_code == 200
        keys.path.unlink()
        assert ask(server).status_code == 401
        assert ask(server, secret).status_code == 401


# -- limits -------------------------------------------------------------------------------------------


def test_requests_a_minute_are_limited_for_each_key_alone(server: Server, keys: KeyFile, secret: str) -> None:
    slow = keys.add("slow", rate=2)
    statuses = [ask(server, slow).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = ask(server, slow)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert ask(server, secret).status_code == 200


def test_tokens_a_minute_are_limited_by_what_was_read(server: Server, keys: KeyFile) -> None:
    used = ask(server, keys.add("counts")).json()["usage"]["prompt_tokens"]
    few = keys.add("few", tokens=2 * used + 1)
    assert [ask(server, few).status_code for _ in range(2)] == [200, 200]
    refused = ask(server, few)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60


def test_requests_at_once_are_limited(server: Server, keys: KeyFile) -> None:
    one = keys.add("one", concurrent=1)
    served = server.desk.shelves["base"].served
    lane, engine = served.scheduler._lane, served.parts.engine
    stop, compute = threading.Event(), engine.together
    engine.together = lambda batches: (stop.wait(20), compute(batches))[1]
    answers: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: answers.append(httpx2.post(
        f"{server.url}/v1/similarity", json=PAIRS, headers={"x-api-key": one}, timeout=60)))  # fmt: skip
    thread.start()
    while not lane.running:
        stop.wait(0.01)
    second = ask(server, one)
    stop.set()
    thread.join()
    engine.together = compute
    assert (second.status_code, second.headers["retry-after"]) == (429, "1")
    assert answers[0].status_code == 200
    assert [ask(server, one).status_code for _ in range(5)] == [200] * 5


# -- hosts and origins --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:1", 200), ("[::1]:8000", 200),
        ("models.example.com", 200), ("evil.example.com", 403), ("evil.example.com:8000", 403), ("10.0.0.1", 403),
        ("localhost.evil.com", 403), ("127.0.0.1.evil.com", 403), ("localhost@evil.com", 403), ("", 403),
    ],
)  # fmt: skip
def test_without_keys_a_server_is_asked_for_by_its_own_name(keyless: Server, host: str, status: int) -> None:
    answer = ask(keyless, host=host)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "host_not_allowed"
    assert keyless.http.get("/health/live", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://localhost:3000", 200), ("http://127.0.0.1", 200), (PAGE, 200), ("https://evil.example.com", 403),
     ("null", 403), (f"{PAGE}.evil.com", 403), (f"{PAGE}:8443", 403), ("http://chat.example.com", 403),
     ("http://[", 403), ("http://[::1", 403), ("", 403)],
)  # fmt: skip
def test_without_keys_other_pages_may_not_ask(keyless: Server, origin: str, status: int) -> None:
    answer = ask(keyless, origin=origin)
    assert answer.status_code == status
    assert answer.headers.get("access-control-allow-origin") == (PAGE if origin == PAGE else None)


@pytest.mark.parametrize(
    "page", ["http://[", "chat.example.com", "ftp://a.b", "https://a.b/c", "https://", "https://u@a.b"]
)
def test_what_is_no_page_cannot_be_listed(page: str) -> None:
    with pytest.raises(UsageError, match="is no origin"):
        Guard(origins=[page])


def test_a_listed_page_may_ask_and_read(server: Server, secret: str) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
    before = server.http.options("/v1/similarity", headers={"origin": PAGE, **asks})
    assert before.status_code == 204
    assert before.headers["access-control-allow-origin"] == PAGE
    assert before.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "POST" in before.headers["access-control-allow-methods"]
    answer = ask(server, secret, origin=PAGE)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    assert answer.headers["vary"] == "Origin"
    assert ask(server, origin=PAGE).headers["access-control-allow-origin"] == PAGE  # it may read why it was refused


def test_other_pages_are_told_nothing(server: Server, secret: str) -> None:
    evil = {"origin": "https://evil.example.com", "access-control-request-method": "POST"}
    before = server.http.options("/v1/similarity", headers=evil)
    assert before.status_code == 403
    assert "access-control-allow-origin" not in before.headers
    answer = ask(server, secret, origin="https://evil.example.com")
    assert "access-control-allow-origin" not in answer.headers


def test_a_form_of_a_page_is_no_request(keyless: Server) -> None:
    """A browser sends forms and plain text anywhere without asking first."""
    body = b'{"pairs": [["a", "b"]]}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = keyless.http.post("/v1/similarity", content=body, headers={"content-type": kind})
        assert answer.status_code in (400, 415), kind


def test_hosts_that_were_named_hold_with_keys_too(folder: Path, keys: KeyFile, secret: str) -> None:
    with serving({"base": folder}, guard=Guard(keys, loopback=False, hosts=["models.example.com"])) as server:
        assert ask(server, secret, host="models.example.com").status_code == 200
        assert ask(server, secret, host="evil.example.com").status_code == 403


# -- HTTPS --------------------------------------------------------------------------------------------


def certificate(folder: Path, password: bytes | None) -> dict[str, str]:
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    (folder / "cert.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)
    )
    return {"ssl_certfile": str(folder / "cert.pem"), "ssl_keyfile": str(folder / "key.pem")}


def test_a_server_speaks_https(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = certificate(tmp_path, b"secret")
    monkeypatch.setenv("LLMASOS_KEY_PASSWORD", "secret")
    with serving({"base": folder}, **files) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=files["ssl_certfile"])
        context.check_hostname = False
        assert httpx2.get(f"{server.url}/health/live", verify=context).status_code == 200


@pytest.mark.parametrize("change", [{"ssl_certfile": None}, {"ssl_keyfile": "nowhere.pem"}, {"ssl_certfile": "no.pem"}])
def test_a_certificate_that_cannot_be_used_is_told_at_the_start(tmp_path: Path, change: dict[str, Any]) -> None:
    from llmasos.core.config import ServeConfig
    from llmasos.serving.start import _tls

    with pytest.raises(UsageError, match="ssl_"):
        _tls(ServeConfig.of(certificate(tmp_path, None) | change))


def test_a_key_whose_password_is_wrong_is_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmasos.core.config import ServeConfig
    from llmasos.serving.start import _tls

    for password in ("", "wrong"):
        monkeypatch.setenv("LLMASOS_KEY_PASSWORD", password)
        with pytest.raises(UsageError, match="cannot be used"):
            _tls(ServeConfig.of(certificate(tmp_path, b"secret")))
