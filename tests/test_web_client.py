"""The TypeScript client: against the real server, from Node and from a page; and what is generated of it is current.

What is run is the file that apps serve to pages, ``llmasos/apps/page/llmasos.js``; nothing is built for these tests.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import llmasos
from browsers import CHROMIUM, SDK, driven, in_node, needs, needs_modules
from browsers import serving as files_of
from llmasos import LLM
from llmasos.core import plugins
from served import Server, serving
from served_models import Exact, sample, tuned
from servers import with_tools
from tiny import save_tiny

pytest.importorskip("fastapi")
slow = pytest.mark.slow
CLIENT = Path(llmasos.__file__).parent / "apps" / "page" / "llmasos.js"
TASKS = {"classify": "text-classification", "tag": "token-classification", "answer": "question-answering",
         "translate": "translation", "summarize": "summarization", "near": "sentence-similarity"}  # fmt: skip
GUIDE = SDK.parents[1] / "docs" / "guides" / "one-model-two-places.md"
TEXTS = ["a good day", "bad", "what is this", "no no no"]


# -- what is generated --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wire() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wire", SDK / "wire.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def document(wire: ModuleType) -> dict[str, Any]:
    found: dict[str, Any] = wire.document()
    return found


def test_the_types_are_those_of_the_servers_document(wire: ModuleType, document: dict[str, Any]) -> None:
    assert wire.PLACE.read_text(encoding="utf-8") == wire.typescript(document), "python sdks/typescript/wire.py"


def test_the_file_for_pages_is_small() -> None:
    content = CLIENT.read_bytes()
    assert len(gzip.compress(content)) <= 20_000
    assert not re.search(rb"\bimport\b\s*[\"'{*(]", content), "it needs nothing else"


def test_the_file_for_pages_is_current(tmp_path: Path) -> None:
    needs_modules(SDK)
    command = json.loads((SDK / "package.json").read_text(encoding="utf-8"))["scripts"]["client"]
    words = [word for word in shlex.split(command) if not word.startswith("--outfile=")]
    subprocess.run(["npx", *words, f"--outfile={tmp_path / 'made.js'}"], cwd=SDK, check=True, capture_output=True)
    assert CLIENT.read_bytes() == (tmp_path / "made.js").read_bytes(), "npm run client, in sdks/typescript"


# -- servers that misbehave ---------------------------------------------------------------------------


def test_faults_have_their_errors_and_nothing_is_asked_twice_that_may_not_be(tmp_path: Path) -> None:
    needs("node")
    assert "fail 0" in in_node(tmp_path, "LLMASOS_SERVED", "client-faults")


# -- the real server ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    needs("node")
    folder = tmp_path_factory.mktemp("models")
    made = {name: tuned(folder / name, task) for name, task in TASKS.items()}
    chat = Path(llmasos.__file__).parent / "starters" / "starter-chat"
    writer = save_tiny(folder / "writer", "AutoModelForCausalLM", max_length=2048)
    return {**made, "chat": chat, "tools": with_tools(folder / "tools"), "writer": writer}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Serve a folder with the client to pages, from another origin than the server's."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copy(CLIENT, folder)
    (folder / "index.html").write_text('<!doctype html><title>page</title><link rel="icon" href="data:,">')
    with files_of(folder) as url:
        yield folder, url


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], origin: tuple[Path, str]) -> Iterator[Server]:
    from llmasos.serving.guard import Guard

    with serving(folders, guard=Guard(origins=[origin[1].rstrip("/")]), max_new_tokens=2000, timeout=120) as running:
        yield running


@pytest.fixture(scope="module")
def known(
    server: Server, folders: dict[str, Path], document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a folder with where the server is, and what Python answers."""
    models = {name: Exact(path) for name, path in folders.items()}
    rows = {name: sample(task) for name, task in TASKS.items() if name != "near"}
    answers = {name: [one.as_dict() for one in models[name].predict(asked)] for name, asked in rows.items()}
    embedded = models["near"].embed(TEXTS)
    pairs = [TEXTS[:2], TEXTS[2:]]
    cosines = [float(embedded[i] @ embedded[i + 1]) for i in (0, 2)]
    order = sorted(range(3), key=lambda i: -float(embedded[0] @ embedded[i + 1]))
    vectors = {"texts": TEXTS, "embedded": embedded.tolist(), "pairs": pairs, "cosines": cosines, "order": order}
    hello = [{"role": "user", "content": "Hello, who are you?"}]
    written = {"chat": models["chat"].generate(hello).text,
               "complete": models["chat"].generate("Once upon", max_new_tokens=8).text}  # fmt: skip
    has = {"tools": importlib.util.find_spec("llguidance") is not None, "golden": "/v1/golden" in document["paths"],
           "models": {name: str(path) for name, path in folders.items()}}  # fmt: skip
    folder = tmp_path_factory.mktemp("known")
    told = {"url": server.url, "rows": rows, "answers": answers, "vectors": vectors, "written": written, "has": has}
    (folder / "served.json").write_text(json.dumps(told))
    return folder


@slow
def test_every_route_answers_as_python_does(known: Path, wire: ModuleType, document: dict[str, Any]) -> None:
    said = in_node(known, "LLMASOS_SERVED", "client")
    assert (
        "skipped 0" in said or importlib.util.find_spec("llguidance") is None or "/v1/golden" not in document["paths"]
    )
    asked = set(json.loads((known / "asked.json").read_text()))
    for method, path, _ in wire.operations(document):
        route = re.compile(re.sub(r"\{[^}]+\}", ".+", f"{method} {path}"))
        assert any(route.fullmatch(one) for one in asked), f"the client has no {method} {path}"


IN_A_PAGE = """import("./llmasos.js").then(async ({{ Client }}) => {{
  const client = new Client({{ url: {url} }});
  const [chat, writer] = [{{ model: "chat", temperature: 0 }}, {{ model: "writer", max_tokens: 1900 }}];
  const why = (error) => [error.name, error.status, error.code, error.request_id];
  const pieces = [];
  for await (const piece of client.stream("Hello, who are you?", chat)) pieces.push(piece);
  const stop = new AbortController();
  const left = client.stream_completion("a good day", {{ ...writer, signal: stop.signal }});
  const leaving = async () => {{ for await (const _ of left) stop.abort(); }};
  return {{
    pieces,
    here: new Client().url,
    aborted: await leaving().catch(why),
    late: await client.complete("a", {{ ...writer, timeout: 0.05 }}).catch(why),
    away: await new Client({{ url: "http://127.0.0.1:9", timeout: 5 }}).chat("a", {{ model: "m" }}).catch(why),
    refused: await client.classify("a", {{ model: "none" }}).catch(why),
    golden: {golden} ? await client.verify({{ model: "classify" }}) : null,
    label: (await client.classify({row}, {{ model: "classify" }})).label,
    vectors: (await client.embed(["a", "b"], {{ model: "near" }})).map((one) => one.length),
  }};
}})"""


@slow
def test_a_page_of_another_origin_asks_too(server: Server, origin: tuple[Path, str], known: Path) -> None:
    needs_modules(SDK / "test")
    if CHROMIUM is None:
        pytest.skip("needs Chromium, which is not here: apt-get install chromium")
    told = json.loads((known / "served.json").read_text())
    code = IN_A_PAGE.format(url=json.dumps(f"{server.url}/v1"), row=json.dumps(told["rows"]["classify"][0]),
                            golden=json.dumps(told["has"]["golden"]))  # fmt: skip
    before = server.desk.shelves["writer"].served
    left = before.scheduler.counts.left if before else 0
    _, found = driven([["goto", origin[1]], ["run", code]])
    assert "".join(found["pieces"]) == told["written"]["chat"]
    assert len(found["pieces"]) > 2
    ends = [found[name][0] for name in ("aborted", "late", "away")]
    assert ends == ["AbortError", "OverdueError", "RemoteError"]
    assert found["refused"][:3] == ["UsageError", 404, "model_not_found"]
    assert found["refused"][3].startswith("req_")
    assert found["here"] == origin[1].rstrip("/")
    assert found["label"] == told["answers"]["classify"][0]["label"]
    assert len(found["vectors"]) == 2
    assert server.desk.shelves["writer"].served.scheduler.counts.left > left


# -- the guide ----------------------------------------------------------------------------------------


def blocks(language: str, page: Path = GUIDE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("language", ["js", "ts"])
def test_the_guide_has_the_same_code_in_both_languages(language: str) -> None:
    here, there = (
        [re.sub(r" *// .*", "", block) for block in blocks(language, page)]
        for page in (GUIDE, GUIDE.with_suffix(".zh-CN.md"))
    )
    assert here == there
    assert here


@slow
def test_the_guides_code_runs_in_a_page(
    server: Server, origin: tuple[Path, str], folders: dict[str, Path], known: Path
) -> None:
    folder, url = origin
    rows = plugins.load("tasks", "text-classification").sample()[1]
    llm = LLM.from_pretrained(folders["classify"])
    llm.export(folder / "my-page", "web", quantize="float32", data=rows, accept_drop=20.0)
    code = "".join(blocks("js")).replace("http://127.0.0.1:8000", server.url)
    said = "const said = []; console.log = (...words) => said.push(words.join(' '));\n"
    (folder / "guide.js").write_text(f"{said}{code}\nexport {{ said, opened, classified, server }};\n")
    found = driven(
        [["goto", url], ["run", "import('./guide.js').then(({ said }) => said)"],
         ["run", "import('./guide.js').then(async ({ opened }) => (await opened('./my-page/')).device)"],
         ["run", "import('./guide.js').then(async ({ opened, server }) => (await opened('./none/')) === server)"],
         ["run", "import('./guide.js').then(({ classified }) => classified('works like a charm'))"],
         ["run", "import('./guide.js').then(({ classified, server }) => { server.classify = (...words) => new "
                 "server.constructor({ url: 'http://127.0.0.1:9' }).classify(...words); "
                 "return classified('works like a charm'); })"]]
    )  # fmt: skip
    _, logged, device, is_server, there, here = found
    assert logged[:2] == logged[2:4], "the same label and score, and the same labels"
    *_, verified, written = logged
    assert (verified, written) == ("true true true", "true")
    assert (device, is_server) == ("wasm", True)
    assert there["label"] == here["label"] == llm.predict("works like a charm").label
    assert there["score"] == pytest.approx(here["score"], abs=1e-4)


@slow
def test_the_types_of_the_guide_and_of_the_client_are_right(tmp_path: Path) -> None:
    needs_modules(SDK)
    (tmp_path / "guide.ts").write_text("".join(blocks("ts")))
    shutil.copy(SDK / "test" / "types.ts", tmp_path)
    names = {"llmasos": "index.ts", "llmasos/client": "client/index.ts"}
    paths = {name: [str(SDK / "src" / file)] for name, file in names.items()}
    options = {"noEmit": True, "declaration": False, "rootDir": "/", "noUnusedLocals": False, "paths": paths}
    config = {"extends": str(SDK / "tsconfig.json"), "compilerOptions": options, "include": ["*.ts"]}
    (tmp_path / "tsconfig.json").write_text(json.dumps(config))
    done = subprocess.run(["npx", "tsc", "-p", str(tmp_path)], cwd=SDK, capture_output=True, text=True)
    assert done.stdout == ""
