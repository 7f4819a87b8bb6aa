"""Apps: what holds for every page, new projects, and the three examples in a real Chromium.

The latter need what ``test_web.py`` needs, and skip as it does; ``make test-apps`` runs them. Screenshots are left in
pytest's folder.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from browsers import driven
from llmasos import LLM, errors
from llmasos.apps import models as models_of
from llmasos.apps import scaffold
from llmasos.apps.models import Tuned, kept, models
from llmasos.apps.web import MOST_ANSWER, page, run
from llmasos.cli import main
from llmasos.client import Client
from llmasos.core import plugins
from llmasos.core.leash import leashed, let_go
from tiny import save_tiny_bert

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "src" / "llmasos" / "samples"
APPS = sorted(path.parent for path in ROOT.glob("examples/apps/*/app.py"))
NAMES = [path.name for path in APPS]
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
slow = pytest.mark.slow
each = pytest.mark.parametrize("folder", APPS, ids=NAMES)


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    (tmp_path / "index.html").write_text("<!doctype html><title>Mine</title>")
    return tmp_path


def asking(app: Any) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1:8080", raise_server_exceptions=False)


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Run an app as ``run`` does, in a thread; yield its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


# -- pages --------------------------------------------------------------------------------------------


def test_a_page_comes_with_the_kit_and_may_run_its_own_scripts_alone(pages: Path) -> None:
    (pages / "kit.css").write_text("mine {}")
    http = asking(page(pages))
    for path, begins in {"/": "<!doctype", "/kit.css": "mine", "/kit.js": "/**"}.items():
        answer = http.get(path)
        assert answer.text.startswith(begins)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/link.txt", "/a%00b"])
def test_nothing_beside_the_folder_is_served(pages: Path, path: str) -> None:
    folder = pages / "page"
    folder.mkdir()
    (pages / "index.html").rename(folder / "index.html")
    (pages / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(pages / "secret.txt")
    with running(page(folder)) as url:
        answer = httpx2.get(url + path)  # as it stands, unlike a browser's
    assert answer.status_code == 404
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"host": "127.0.0.1:8080"}, True), ({"host": "localhost:8080"}, True), ({"host": "[::1]:8080"}, True),
        ({"host": "shop.example.com"}, True), ({"host": "evil.example.com"}, False), ({"host": ""}, False),
        ({"host": "127.0.0.1.evil.example.com"}, False),
        ({"host": "localhost:8080", "origin": "http://localhost:8080"}, True),
        ({"host": "localhost:8080", "origin": "http://localhost:9000"}, False),
        ({"host": "localhost:8080", "origin": "null"}, False),
    ],
)  # fmt: skip
def test_an_app_is_asked_for_by_its_own_name_and_by_its_own_pages(
    pages: Path, headers: dict[str, str], allowed: bool
) -> None:
    answer = asking(page(pages, hosts=["shop.example.com"])).get("/", headers=headers)
    assert (answer.status_code == 200) == allowed
    assert allowed or answer.status_code == 403


def failing(pages: Path, error: BaseException) -> Any:
    app = page(pages, max_body=100)

    @app.post("/api/fail")
    def fail(content: dict[str, int]) -> None:
        raise error

    return asking(app)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UsageError("no such thing", hint="take another"), 400),
        (errors.DataError("no such thing", hint="take another"), 400),
        (errors.RemoteError("no such thing", hint="take another"), 502),
        (errors.MissingExtraError("no such thing", install="x"), 500),
    ],
)  # fmt: skip
def test_errors_of_the_building_blocks_are_told_in_words(pages: Path, error: Any, status: int) -> None:
    answer = failing(pages, error).post("/api/fail", json={})
    assert answer.status_code == status
    assert answer.json() == {"error": {"message": error.message, "hint": error.hint}}


def test_an_error_of_the_app_itself_tells_nothing_but_its_kind(pages: Path) -> None:
    answer = failing(pages, RuntimeError("the secret")).post("/api/fail", json={})
    assert answer.status_code == 500
    assert "RuntimeError" in answer.json()["error"]["message"]
    assert "secret" not in answer.text
    assert "content-security-policy" in answer.headers


def test_what_is_too_large_is_not_read(pages: Path) -> None:
    http = failing(pages, RuntimeError())
    for content in (b"x" * 101, iter([b"x" * 60, b"x" * 60])):  # with its length, and without
        answer = http.post("/api/fail", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert "100 bytes" in answer.json()["error"]["message"]
    answer = http.post("/api/fail", json={"a": "b"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("a: ")


def test_wrong_folders_and_relays_are_refused(tmp_path: Path, pages: Path) -> None:
    with pytest.raises(errors.UsageError, match=r"no index\.html"):
        page(tmp_path / "none")
    with pytest.raises(errors.UsageError, match=r"did you mean 'completions'"):
        page(pages, Client("http://127.0.0.1:1"), relays=["completion"])
    with pytest.raises(errors.UsageError, match="nobody to relay to"):
        page(pages, relays=["models"])


# -- the relay ----------------------------------------------------------------------------------------


class Endpoint:
    """A server that tells what it was asked, and sees when it is left."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.left = threading.Event()

    async def models(self, request: Any) -> Any:
        self.asked.append((request.url.path, dict(request.headers), await request.body()))
        return JSONResponse({"data": [{"id": "one"}]}, headers={"x-request-id": "r1", "set-cookie": "a=b"})

    async def embeddings(self, request: Any) -> Any:
        return JSONResponse({"error": {"message": "too much to do"}}, 429, {"retry-after": "7"})

    async def chat(self, request: Any) -> Any:
        asked = await request.body()

        async def pieces() -> Any:
            try:
                for number in range(10_000):
                    assert number < 20 or b"break off" not in asked, "as a server does that dies"
                    delta = {"content": EVIL if number == 0 else f" {number}"}
                    yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n"
                    await asyncio.sleep(0.02)
            finally:
                self.left.set()

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def classify(self, request: Any) -> Any:
        try:
            while not await request.is_disconnected():
                await asyncio.sleep(0.02)
        finally:
            self.left.set()
        return JSONResponse({})

    async def tag(self, request: Any) -> Any:
        return PlainTextResponse("<script>alert(1)</script>", media_type="text/html")

    async def predict(self, request: Any) -> Any:
        async def pieces() -> Any:
            for _ in range(MOST_ANSWER // (1 << 20) + 1):
                yield b" " * (1 << 20)

        return StreamingResponse(pieces(), media_type="application/json")


@pytest.fixture
def endpoint(pages: Path) -> Iterator[tuple[Endpoint, str]]:
    """An endpoint behind an app; yield it, and the app's address."""
    there = Endpoint()
    names = {"models": "models", "embeddings": "embeddings", "chat/completions": "chat", "classify": "classify",
             "tag": "tag", "predict": "predict"}  # fmt: skip
    routes = [Route(f"/v1/{path}", getattr(there, name), methods=["GET", "POST"]) for path, name in names.items()]
    with running(Starlette(routes=routes)) as url:
        relayed = page(pages, Client(url, key="secret-key"), relays=names)
        with running(relayed) as app:
            yield there, app


def test_the_relay_holds_the_key_and_passes_on_the_answer(endpoint: tuple[Endpoint, str]) -> None:
    there, url = endpoint
    answer = httpx2.get(f"{url}/v1/models", headers={"authorization": "Bearer of-the-page", "cookie": "c=d"})
    assert answer.json() == {"data": [{"id": "one"}]}
    assert answer.headers["x-request-id"] == "r1"
    assert "set-cookie" not in answer.headers
    assert "content-security-policy" in answer.headers
    assert "secret-key" not in f"{answer.text}{answer.headers}"
    (_, headers, _) = there.asked[0]
    assert headers["authorization"] == "Bearer secret-key"
    assert "cookie" not in headers


def test_refusals_of_the_endpoint_are_passed_on(endpoint: tuple[Endpoint, str]) -> None:
    answer = httpx2.post(f"{endpoint[1]}/v1/embeddings", json={"input": "a"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert answer.json()["error"]["message"] == "too much to do"


def test_what_is_not_named_is_not_relayed(endpoint: tuple[Endpoint, str]) -> None:
    assert httpx2.post(f"{endpoint[1]}/v1/completions", json={}).status_code in (404, 405)
    assert httpx2.post(f"{endpoint[1]}/v1/models", json={}).status_code == 405


def test_html_of_an_endpoint_does_not_reach_the_page(endpoint: tuple[Endpoint, str]) -> None:
    answer = httpx2.post(f"{endpoint[1]}/v1/tag", json={})
    assert answer.status_code == 502
    assert "script" not in answer.text


def test_a_page_that_leaves_ends_the_work(endpoint: tuple[Endpoint, str]) -> None:
    there, url = endpoint
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json={}) as answer:
        assert next(answer.iter_lines()).startswith("data: {")
    assert there.left.wait(10)
    there.left.clear()
    with pytest.raises(httpx2.ReadTimeout):  # before anything came
        httpx2.post(f"{url}/v1/classify", json={}, timeout=0.5)
    assert there.left.wait(10)


def test_a_stream_that_breaks_off_says_so(endpoint: tuple[Endpoint, str]) -> None:
    with httpx2.stream("POST", f"{endpoint[1]}/v1/chat/completions", json={"messages": "break off"}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert len(lines) == 21
    assert "went away" in json.loads(lines[-1].removeprefix("data: "))["error"]["message"]


def test_an_endless_answer_breaks_off(endpoint: tuple[Endpoint, str]) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        httpx2.post(f"{endpoint[1]}/v1/predict", json={}, timeout=60)


def test_an_endpoint_that_is_gone_is_told(pages: Path) -> None:
    with running(page(pages, Client("http://127.0.0.1:9"), relays=["models"])) as url:
        answer = httpx2.get(f"{url}/v1/models")
    assert answer.status_code == 502
    assert "http://127.0.0.1:9 cannot be reached" in answer.json()["error"]["message"]


# -- running ------------------------------------------------------------------------------------------


def test_a_taken_port_is_told(pages: Path) -> None:
    with running(page(pages)) as url, pytest.raises(errors.UsageError, match="is taken"):
        run(page(pages), port=int(url.rpartition(":")[2]), started=print)


def test_a_program_ends_with_its_holder(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    child = f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    holder = (
        "import subprocess, sys, time; from llmasos.core.leash import leashed; "
        f"leashed([sys.executable, '-c', {child!r}], stdout=subprocess.DEVNULL, stderr=None, environment={{}}); "
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", holder]) as process:
        pid = waited_for(lambda: told.is_file() and told.read_text() and int(told.read_text()))
        process.send_signal(signal.SIGKILL)
    waited_for(lambda: not is_alive(pid))


def test_a_program_that_is_let_go_is_gone() -> None:
    process = leashed(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=None, environment={})
    let_go(process)
    assert process.returncode is not None


def waited_for(told: Any, seconds: float = 60) -> Any:
    until = time.monotonic() + seconds
    while not (found := told()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_named_server_is_asked_and_none_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMASOS_URL", "http://models.example.com/v1")
    monkeypatch.setattr(models_of, "leashed", None)
    with models(chat="starter-chat", moods=Tuned("none", "none.csv")) as client:
        assert client.url == "http://models.example.com"


def test_two_projects_of_one_name_keep_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "home"))
    first, second = (kept(tmp_path / place / "shop") for place in ("a", "b"))
    assert first.is_dir()
    assert first != second
    assert kept(tmp_path / "a" / ".." / "a" / "shop") == first


@slow
def test_models_start_and_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMASOS_URL", raising=False)
    with models(chat="starter-chat") as client:
        assert [one.id for one in client.models()] == ["chat"]
        with pytest.raises(errors.UsageError, match="key"), Client(client.url) as other:
            other.models()
    with pytest.raises(errors.RemoteError), Client(client.url, retries=0) as late:
        late.models()


@slow
def test_models_that_cannot_be_opened_are_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMASOS_URL", raising=False)
    with pytest.raises(errors.RemoteError, match=r"could not be opened: .*no-such-folder"):
        models(chat="./no-such-folder").__enter__()


@slow
def test_a_model_is_tuned_once_and_again_when_its_rows_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "home"))
    base, rows = save_tiny_bert(tmp_path / "base"), tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "good day,good\nbad day,bad\n" * 12)
    first = Tuned(str(base), rows, epochs=1).folder("moods")
    assert (first / "llmasos.json").is_file()
    with monkeypatch.context() as patched:
        patched.setattr(models_of, "leashed", None)
        assert Tuned(str(base), rows, epochs=1).folder("moods") == first
    rows.write_text("nothing")
    with pytest.raises(errors.TrainingError, match="moods was not tuned"):
        Tuned(str(base), rows, epochs=1).folder("moods")


# -- new projects -------------------------------------------------------------------------------------


@each
def test_a_new_project_is_the_example_in_a_folder_of_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "app", "my-app", "--template", folder.name]) == 0
    assert "python app.py" in capsys.readouterr().out

    def files(place: Path) -> set[str]:
        found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
        return {name for name in found if "__pycache__" not in name and "_cache/" not in name}

    made = tmp_path / "my-app"
    assert files(made) == files(folder)
    for name in files(made):
        if not name.endswith((".py", ".md")):
            assert (made / name).read_bytes() == (folder / name).read_bytes()
    assert "examples/apps" not in (made / "README.md").read_text() + (made / "app.py").read_text()
    assert "python app.py" in (made / "app.py").read_text()


@pytest.mark.parametrize("name", ["../up", "/tmp/x", "a/b", "..", "", ".hidden", "a b", "x" * 101, "a\nb", "-x"])
def test_a_name_that_is_no_folder_here_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.UsageError, match="no name for a project"):
        scaffold.new_app(name, "writer", parent=tmp_path / "in")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("mine", "link"):
        with pytest.raises(errors.UsageError, match="exists"):
            scaffold.new_app(name, "writer", parent=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine"]


def test_a_project_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("the disk is broken")

    monkeypatch.setattr(scaffold.shutil, "copytree", broken)
    with pytest.raises(OSError, match="the disk is broken"):
        scaffold.new_app("mine", "writer", parent=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_template_is_refused_with_the_nearest() -> None:
    with pytest.raises(errors.UsageError, match="did you mean 'writer'"):
        scaffold.new_app("mine", "writter")


def test_only_apps_can_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "shop", "mine", "--template", "writer"]) == 2
    assert "llmasos new app" in capsys.readouterr().err


@slow
def test_an_installed_package_brings_the_examples_and_the_kit(tmp_path: Path) -> None:
    places = ["build", "--build-base", str(tmp_path / "b"), "build_py", "--build-lib", str(tmp_path / "lib")]
    line = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), *places]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    package = tmp_path / "lib" / "llmasos"
    assert sorted(path.parent.name for path in package.glob("scaffolds/*/app.py")) == NAMES
    assert (package / "scaffolds" / "support" / "tests" / "test_app.py").is_file()
    assert {"kit.css", "kit.js", "llmasos.js"} <= {path.name for path in package.glob("apps/page/*")}


@slow
@each
def test_the_projects_own_tests_pass(folder: Path, tmp_path: Path) -> None:
    made = scaffold.new_app("mine", folder.name, parent=tmp_path)
    environment = os.environ | {"LLMASOS_HOME": str(tmp_path / "home"), "LLMASOS_URL": ""}
    command = [sys.executable, "-m", "pytest", "-q"]
    done = subprocess.run(command, cwd=made, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout


# -- the examples -------------------------------------------------------------------------------------


@each
def test_an_example_is_short_and_says_how_it_is_started(folder: Path) -> None:
    text = (folder / "app.py").read_text(encoding="utf-8")
    assert f"python examples/apps/{folder.name}/app.py" in text.split('"""')[1]
    assert len(text.splitlines()) <= 100
    imported = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert not {"torch", "transformers", "llmasos.llm"} & imported


@each
def test_pages_hold_no_script_and_make_no_html_of_text(folder: Path) -> None:
    html = (folder / "page" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script[^>]*>[^<]|\son\w+=|\sstyle=|(?:src|href)=\"(?:https?:)?//", html) == []
    scripts = [*folder.glob("page/*.js"), ROOT / "src" / "llmasos" / "apps" / "page" / "kit.js"]
    code = "".join(path.read_text(encoding="utf-8") for path in scripts)
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|DOMParser", code) == []


@each
def test_every_word_of_a_page_is_there_in_chinese(folder: Path) -> None:
    html = (folder / "page" / "index.html").read_text(encoding="utf-8")
    body = html.partition("<body>")[2].partition("<noscript>")[0]
    bare = [tag for tag, text in re.findall(r"<(\w+[^>]*)>([^<]*[A-Za-z][^<]*)</", body) if "data-zh" not in tag]
    assert bare == []
    placeholders = re.findall(r"<[^>]* placeholder=[^>]*>", body)
    assert all("data-zh-placeholder" in tag for tag in placeholders)


# -- the examples in a browser ------------------------------------------------------------------------

looks = pytest.mark.parametrize("look", ["desk-light", "desk-dark", "phone-light", "phone-dark"])
TOP: list[Any] = ["run", "void scrollTo({ top: 0, behavior: 'instant' })"]


@contextmanager
def example(name: str, home: Path, *words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start an example by its one command; yield its process and its address. Ctrl-C ends it and its models."""
    told = {"LLMASOS_HOME": str(home), "LLMASOS_URL": "", "LLMASOS_API_KEY": "", **environment}
    command = [sys.executable, f"examples/apps/{name}/app.py", "--port", "0", *words]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | told
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert re.fullmatch(r"[\w -]+: http://127\.0\.0\.1:\d+\n", line), line
            programs = descendants(process.pid)
            yield process, line.split()[-1]
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            waited_for(lambda: not any(map(is_alive, programs)))
        finally:
            process.kill()


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [one for child in map(int, children) for one in (child, *descendants(child))]


def shot(look: str, folder: Path, steps: list[list[Any]]) -> list[Any]:
    """Take steps in a look, and then a picture of the whole page."""
    steps = [*steps, TOP, ["shot", str(folder / f"{look}.png")]]
    return seen(steps, phone="phone" in look, dark="dark" in look)


def seen(steps: list[list[Any]], **more: Any) -> list[Any]:
    """Let a browser take steps; return what those gave that give something."""
    return [found for found in driven(steps, **more) if found is not None]


@pytest.fixture(scope="module")
def shop_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("support")


@pytest.fixture(scope="module")
def shop(shop_home: Path) -> Iterator[str]:
    with example("support", shop_home) as (_, url):
        yield url


@slow
@looks
def test_the_desk_answers_cites_and_hands_over(shop: str, look: str, tmp_path: Path) -> None:
    def asked(text: str, number: int) -> list[list[Any]]:
        return [["fill", "#message", text], ["click", "#send"], ["see", f":nth-match(.reply, {number})"]]

    intent, answer, open_, title, images, ticket, chinese = shot(look, tmp_path, [
        ["goto", shop], ["see", ".chip"], *asked("where is my parcel", 1), ["click", ".source"],
        *asked(f"{EVIL} I forgot my password", 2), *asked("I want to talk to a human!!", 3), *asked("水壶漏水了", 4),
        ["text", ".intent b"], ["text", ".answer"], ["text", "details.cited[open] summary"], ["run", "document.title"],
        ["run", "document.querySelectorAll('#talk img, #talk script').length"], ["text", ".ticket"],
        ["text", ":nth-match(.source, 3)"],
    ])  # fmt: skip
    assert intent == "delivery"
    assert "tracking number" in answer
    assert open_ == "Where is my parcel?"
    assert (title, images) == ("Moss & Kettle: help", 0)
    assert "You asked for a person." in ticket
    assert "水壶漏水" in chinese


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with example("tutor", tmp_path_factory.mktemp("tutor")) as (_, url):
        yield url


@slow
@looks
def test_the_tutor_answers_with_places_and_asks_back(lesson: str, look: str, tmp_path: Path) -> None:
    marked, answer, right = shot(look, tmp_path, [
        ["goto", lesson], ["see", "#send:not([disabled])"],
        ["fill", "#question", "At what temperature does yeast die?"], ["click", "#send"], ["see", ".place"],
        ["text", "mark"], ["text", ".place"], ["click", "#quiz"],
        ["fill", "#asked input", "Bread"], ["click", "#asked button"], ["text", ".right"],
    ])  # fmt: skip
    assert marked == "In a refrigerator it hardly works at all, and above 55 degrees it dies."
    assert answer == f"[1]{marked}"
    assert right == "Right!"


@slow
def test_the_tutor_reads_your_text_and_treats_it_as_text(lesson: str) -> None:
    text = f"🍞 Ada baked bread. {EVIL}. 🥐 Ben baked croissants in Lyon."
    nothing, marked, title, images = seen([
        ["goto", lesson], ["see", "#send:not([disabled])"], ["click", "#own"], ["click", "#read"],
        ["text", ".trouble"], ["fill", "#pasted", text],
        ["click", "#read"], ["see", "#text:has-text('Ada')"], ["fill", "#question", "Where did Ben bake croissants?"],
        ["click", "#send"], ["see", ".place"], ["text", "mark"], ["run", "document.title"],
        ["run", "document.querySelectorAll('main img, main script').length"],
    ])  # fmt: skip
    assert nothing == "Paste a text, or choose a file."
    assert marked == "🥐 Ben baked croissants in Lyon."
    assert (title, images) == ("Tutor", 0)


@slow
def test_a_reader_finds_the_words_that_answer(tmp_path: Path) -> None:
    task, rows = plugins.load("tasks", "question-answering").sample()
    llm = LLM.from_pretrained(save_tiny_bert(tmp_path / "base", max_length=160))
    llm.finetune(task, rows, epochs=60, batch_size=8, learning_rate=5e-3, progress=False, allow_truncated=1.0,
                 allow_unknown=1.0, output=tmp_path / "reader")  # fmt: skip
    row = rows[0]
    with example("tutor", tmp_path / "home", "--reader", str(tmp_path / "reader")) as (_, url):
        text = httpx2.post(f"{url}/api/texts", json={"text": row["context"]}, timeout=60).json()
        asked = {"text": text["id"], "question": row["question"]}
        places = httpx2.post(f"{url}/api/ask", json=asked, timeout=60).json()
    (first, *_) = places
    assert len(first["text"]) < len(row["context"])
    assert first["text"] == row["context"][first["start"] : first["end"]]


@slow
def test_chinese_intents_are_told_by_a_base_that_knows_chinese(shop_home: Path, shop: str, tmp_path: Path) -> None:
    del shop  # its English classifier is taken from there
    rows = (SAMPLES / "support_zh.jsonl").read_text(encoding="utf-8")
    letters = "".join(sorted(set(rows) - set(map(chr, range(128)))))
    base = save_tiny_bert(tmp_path / "base", max_length=128, letters=letters)
    with example("support", shop_home, "--chinese", str(base)) as (_, url):
        answer = httpx2.post(f"{url}/api/ask", json={"message": "水壶漏水了"}, timeout=60).json()
    assert answer["intent"]["label"] in {json.loads(row)["label"] for row in rows.splitlines()}


@slow
@looks
def test_the_studio_writes_variants_side_by_side(toy: str, look: str, tmp_path: Path) -> None:
    note, first, second, third, sheet = shot(look, tmp_path, [
        ["goto", toy], ["see", "#write:not([disabled])"], ["click", "#openings .chip"], ["text", "#toy"],
        ["click", "#write"], ["see", ":nth-match(.variant button:not([disabled]), 3)"],
        *(["text", f":nth-match(.variant .text, {number})"] for number in (1, 2, 3)),
        ["run", "document.querySelector('.variant button').click(); document.querySelector('#text').value"],
    ])  # fmt: skip
    assert "toy" in note
    assert all(text.strip() for text in (first, second, third))
    assert len({first, second, third}) > 1
    assert sheet.startswith("It was the first morning")
    assert sheet.endswith(f"lighthouse {first}")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with example("writer", tmp_path_factory.mktemp("writer")) as (_, url):
        yield url


@slow
def test_stop_ends_the_work_and_keeps_what_came(tmp_path: Path) -> None:
    there = Endpoint()
    routes = [Route("/v1/models", there.models), Route("/v1/chat/completions", there.chat, methods=["POST"])]
    with running(Starlette(routes=routes)) as url, example("writer", tmp_path, LLMASOS_URL=url) as (_, app):
        text, troubles, title, images = seen([
            ["goto", app], ["see", "#write:not([disabled])"], ["fill", "#text", "Once"], ["fill", "#variants", "1"],
            ["click", "#write"], ["see", ".variant .text:has-text(' 20')"], ["click", "#stop"],
            ["see", ".variant button:not([disabled])"], ["text", ".variant .text"],
            ["run", "document.querySelectorAll('.trouble').length"], ["run", "document.title"],
            ["run", "document.querySelectorAll('main img, main script').length"],
        ])  # fmt: skip
        assert there.left.wait(10)
    assert text.startswith(f"{EVIL} 1 2 3")
    assert (troubles, title, images) == (0, "Writing studio", 0)


@slow
def test_a_variant_that_breaks_off_keeps_what_came_and_is_written_again(tmp_path: Path) -> None:
    there = Endpoint()
    routes = [Route("/v1/models", there.models), Route("/v1/chat/completions", there.chat, methods=["POST"])]
    with running(Starlette(routes=routes)) as url, example("writer", tmp_path, LLMASOS_URL=url) as (_, app):
        first, trouble, again, troubles = seen([
            ["goto", app], ["see", "#write:not([disabled])"], ["fill", "#text", "break off"],
            ["fill", "#variants", "1"], ["click", "#write"], ["see", ".trouble"], ["text", ".variant .text"],
            ["text", ".trouble"], ["click", ".trouble button"], ["see", ".trouble"], ["text", ".variant .text"],
            ["run", "document.querySelectorAll('.trouble').length"],
        ])  # fmt: skip
    assert first == again == EVIL + "".join(f" {number}" for number in range(1, 20))
    assert "went away" in trouble
    assert troubles == 1


@slow
def test_a_server_that_is_gone_is_told_in_the_page_and_asked_again(tmp_path: Path) -> None:
    with example("tutor", tmp_path) as (process, app):
        os.kill(descendants(process.pid)[-1], signal.SIGKILL)
        trouble, again, after = seen([
            ["goto", app], ["see", ".trouble"], ["text", ".trouble"], ["text", ".trouble button"],
            ["run", "document.querySelector('.trouble button').click()"], ["see", ".trouble"],
            ["run", "document.querySelectorAll('.trouble').length"],
        ])  # fmt: skip
    assert "cannot be reached" in trouble
    assert again == "Try again"
    assert after == 1


@slow
def test_the_page_of_the_guide_streams(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guides" / "first-app.md").read_text(encoding="utf-8")
    for name, kind in {"index.html": "html", "app.js": "js"}.items():
        (block,) = re.findall(f"^```{kind}\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
        (tmp_path / name).write_text(block)
    there = Endpoint()
    routes = [Route("/v1/models", there.models), Route("/v1/chat/completions", there.chat, methods=["POST"])]
    with running(Starlette(routes=routes)) as url:
        app = page(tmp_path, Client(url), relays=["models", "chat/completions"])
        with running(app) as here:
            (text,) = seen([
                ["goto", here], ["fill", "#question", "Once"], ["click", "button"], ["see", ".text:has-text(' 20')"],
                ["text", "#answers .text"],
            ])  # fmt: skip
    assert text.startswith(f"{EVIL} 1 2 3")
