"""Exports to the web: the SDK in Node, and the page in a real Chromium, as on a desk and as on a phone.

Needs Node.js with npm, what npm installs for these tests (``make test-web`` does), and Chromium; skips saying so where
one is absent. Screenshots are left in pytest's folder.
"""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, GPT2Config, MarianConfig

from browsers import SDK, SHADERS, WRONG, Files, driven, in_node, needs, needs_modules, serving
from llmasos import LLM, TextClassificationTask, errors
from llmasos.core import bundle, plugins
from llmasos.exporters import _web_app
from tiny import save_tiny_bert

slow = pytest.mark.slow

PAIRS = [{"text": f"a {a} day", "text_pair": f"a {b} day", "label": "same" if a == b else "other"}
         for a in ("good", "bad", "long") for b in ("good", "bad", "long") for _ in range(3)]  # fmt: skip
LABELS = [{"text": f"{a} and {b} {i}", "label": sorted({a, b})} for a in "xyz" for b in "xyz" for i in range(3)]


def tuned(folder: Path, task: Any, rows: list[dict[str, Any]]) -> LLM:
    """Return a tiny model that has learned a little of some rows."""
    llm = LLM.from_pretrained(save_tiny_bert(folder / "base", max_length=160))
    llm.finetune(task, rows, epochs=40, batch_size=8, learning_rate=5e-3, progress=False, allow_truncated=1.0,
                 allow_unknown=1.0)  # fmt: skip
    return llm


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a tuned model by the name of what it does, and its rows."""

    @functools.cache
    def model(name: str) -> tuple[LLM, list[dict[str, Any]]]:
        sample = {"classify": "text-classification", "tag": "token-classification", "answer": "question-answering",
                  "similarity": "sentence-similarity"}  # fmt: skip
        if name in sample:
            task, rows = plugins.load("tasks", sample[name]).sample()
        else:
            task, rows = TextClassificationTask(multi_label=name == "labels"), LABELS if name == "labels" else PAIRS
        return tuned(tmp_path_factory.mktemp(name), task, rows), rows

    return model


@pytest.fixture(scope="module")
def exports(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return an export by name: classify, classify-int8, tag, ...; not to be changed."""
    folder = tmp_path_factory.mktemp("artifacts")
    precisions = {"int8": "int8-dynamic", "float16": "float16"}

    @functools.cache
    def export(name: str) -> Path:
        needs("node", "npm")
        which, _, precision = name.partition("-")
        llm, rows = models(which)
        llm.export(folder / name, "web", quantize=precisions.get(precision, "float32"), data=rows, accept_drop=20.0)
        return folder / name

    return export


# -- the folder ---------------------------------------------------------------------------------------


@slow
def test_the_folder_holds_a_page_and_a_model_that_verify(exports: Any, models: Any) -> None:
    path = exports("classify-int8")
    names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    page = {"index.html", "sw.js", "manifest.webmanifest", "icon.svg"}
    app = {f"app/{name}" for name in ("llmasos.js", "page.js", "LICENSES.txt", "ort-wasm-simd-threaded.wasm")}
    assert page | app | {"onnx/model_quantized.onnx", "tokenizer.json", "golden.json"} <= names
    manifest = bundle.read_manifest(path)
    assert manifest is not None
    assert set(manifest["files"]) == names - {"llmasos.json"}
    artifact = manifest["artifact"]
    assert artifact["target"] == "web"
    assert set(artifact["libraries"]) >= {"onnxruntime-web", "@huggingface/tokenizers"}
    assert artifact["later"] == ["app/ort-wasm-simd-threaded.asyncify.mjs", "app/ort-wasm-simd-threaded.asyncify.wasm"]
    found = LLM.from_pretrained(path).verify(models("classify")[1])
    assert found.same_rows
    licences = (path / "app" / "LICENSES.txt").read_text(encoding="utf-8")
    assert "onnxruntime-web" in licences
    assert "Apache License" in licences
    assert json.loads((path / "manifest.webmanifest").read_text())["name"] == "Text classification"


@slow
def test_another_model_has_another_version_and_the_same_model_the_same(
    exports: Any, models: Any, tmp_path: Path
) -> None:
    llm, rows = models("classify")
    llm.export(tmp_path / "again", "web", quantize="float32", data=rows)
    version = [re.findall(r'"([0-9a-f]{16})"', (folder / "sw.js").read_text())
               for folder in (exports("classify"), tmp_path / "again", exports("tag"))]  # fmt: skip
    assert version[0] == version[1] != version[2]
    assert all(len(found) == 1 for found in version)


def test_the_page_has_no_scripts_but_files_of_its_own() -> None:
    page = (SDK / "page" / "index.html").read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy"\s+content="([^"]+)"', page)
    assert "script-src 'self' 'wasm-unsafe-eval';" in policy
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert re.findall(r"<script[^>]*>[^<]", page) == []
    assert re.findall(r"\son\w+=|style=|https?://", page) == []
    sources = "".join(file.read_text(encoding="utf-8") for file in SDK.glob("page/*.ts"))
    assert "innerHTML" not in sources


def test_lock_files_name_digests_and_no_host() -> None:
    for lock in (SDK / "package-lock.json", SDK / "test" / "package-lock.json"):
        packages = json.loads(lock.read_text(encoding="utf-8"))["packages"]
        assert all("integrity" in content for name, content in packages.items() if name)
        assert not any("resolved" in content for content in packages.values())


def test_without_npm_the_hint_says_what_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    task = plugins.load("tasks", "text-classification")()
    with pytest.raises(errors.HardwareError, match=r"needs npm(.|\n)*install Node\.js 20"):
        plugins.load("exporters", "web").check(task, BertConfig(), None)


def test_a_registry_that_cannot_be_reached_is_named_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("node", "npm")
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(errors.RemoteError, match=r"npm ci failed(.|\n)*registry"):
        _web_app.built()
    assert [path.name for path in (tmp_path / "home" / "web").iterdir()] == []


def test_what_the_web_does_not_hold_is_refused_by_name() -> None:
    for tag, config in (
        ("fill-mask", BertConfig()),
        ("language-modeling", GPT2Config()),
        ("translation", MarianConfig()),
    ):
        with pytest.raises(errors.UsageError, match=f"web holds no {tag}"):
            plugins.load("exporters", "web").check(plugins.load("tasks", tag)(), config, None)


# -- the SDK in Node ----------------------------------------------------------------------------------

ASKED = {
    "classify": ["a good day number 3", "a bad day, number 44!", "Ünïcode: 你好", "good " * 100],
    "pairs": [{"text": "a good day", "text_pair": "a bad day"}, {"text": "long " * 80, "text_pair": "bad " * 60}],
    "labels": ["x and y", "z", "nothing"],
    "tag": ["ask li na in new york", ["ask", "ida", "in", "北", "京"], "ask tom, in lima. " * 40],
    "answer": [
        {"question": "how many?", "context": "we saw 25 cats"}, {"question": "how many?", "context": "no dogs today"},
        {"question": "how many?", "context": "Ünïcode: café, then 31 birds sit here. " * 12},
        {"question": "how many? " * 30, "context": "it took 61 days"},
    ],
    "similarity": [["anvil?", "anvil anvil"], ["cello?", "a drum"], ["oven " * 70, "kettle"]],
}  # fmt: skip


def as_rows(name: str, asked: Sequence[Any]) -> list[Any]:
    """Return what the SDK takes as rows of Python."""
    if name == "tag":
        return [{"text": one} if isinstance(one, str) else {"tokens": one} for one in asked]
    if name == "similarity":
        return [{"anchor": one, "positive": other} for one, other in asked]
    return [{"text": one} if isinstance(one, str) else one for one in asked]


def in_javascript(answer: Any) -> Any:
    """Return an answer as the SDK gives it: the same, with places that count UTF-16 units; here all are the same."""
    return json.loads(json.dumps(answer.as_dict()))


@pytest.fixture(scope="module")
def artifacts(exports: Any, models: Any) -> Path:
    """Return the folder that the SDK's own tests read."""
    for name, asked in ASKED.items():
        llm = LLM.from_pretrained(exports(name))
        is_cut = name not in ("labels", "tag")
        with pytest.warns(errors.TruncatedWarning) if is_cut else nullcontext():
            rows = as_rows(name, asked)  # texts and words are other columns
            found = [llm.predict(row) for row in rows] if name == "tag" else llm.predict(rows)
            answers = [in_javascript(answer) for answer in found]
        (exports(name).parent / f"{name}.json").write_text(json.dumps({"rows": asked, "answers": answers}))
    for name in ("classify-int8", "classify-float16"):
        exports(name)
    folder = exports("classify").parent
    texts = ["anvil", "a b c d e", "你好 ok"]
    vectors = [vector.tolist() for vector in models("similarity")[0].embed(texts, precision="float32")]
    (folder / "embed.json").write_text(json.dumps({"texts": texts, "vectors": vectors}))
    return folder


@slow
def test_the_sdk_answers_as_python_does(artifacts: Path) -> None:
    needs_modules(SDK)
    subprocess.run(["npm", "run", "--silent", "build"], cwd=SDK, check=True)
    assert "skipped 0" in in_node(artifacts, "LLMASOS_ARTIFACTS", "model")


@slow
def test_types_are_right() -> None:
    needs_modules(SDK)
    for project in (".", "page"):
        done = subprocess.run(["npx", "tsc", "-p", project, "--noEmit"], cwd=SDK, capture_output=True, text=True)
        assert done.stdout == ""


# -- the page in Chromium -----------------------------------------------------------------------------


ON_PAGE = {
    "classify": ([["fill", "#text", "a bad day number 7"]], "complaint"),
    "classify-int8": ([["fill", "#text", "a bad day number 7"]], "complaint"),
    "tag": ([["fill", "#text", "ask li na in new york"]], "li na"),
    "answer": ([["fill", "#context", "we saw 25 cats"], ["fill", "#question", "how many?"]], "25"),
    "similarity": ([["fill", "#anchor", "anvil?"], ["fill", "#positive", "anvil anvil"]], "0."),
}


@slow
@pytest.mark.parametrize("phone", [False, True], ids=["desk", "phone"])
@pytest.mark.parametrize("name", list(ON_PAGE))
def test_the_page_answers_and_does_so_offline(name: str, phone: bool, exports: Any, tmp_path: Path) -> None:
    steps, wanted = ON_PAGE[name]
    kind = "phone" if phone else "desk"
    ask = [*steps, ["click", "#ask"], ["see", "#result:not([hidden])"], ["text", "#result"]]
    llm = LLM.from_pretrained(exports(name))
    with serving(exports(name)) as url:
        found = driven(
            [["goto", url], ["ready"], *ask, ["shot", str(tmp_path / f"{name}-{kind}.png")],
             ["run", "crossOriginIsolated"], ["offline", True], ["goto", url], ["ready"], *ask,
             ["run", "fetch('nothing-of-this').then(() => 'online', () => 'offline')"],
             ["shot", str(tmp_path / f"{name}-{kind}-offline.png")]],
            phone=phone,
        )  # fmt: skip
    ready, again = (one for one in found if isinstance(one, dict))
    assert ready["error"] == again["error"] == ""
    assert "Works offline" in ready["facts"]
    assert "golden rows give the tokens of the export" in ready["facts"]
    (first, second) = (one for one in found if isinstance(one, str) and wanted in one)
    assert first == second
    assert "offline" in found
    assert True in found, "the page is isolated, so that it may use threads"
    if name == "classify":
        score = llm.predict("a bad day number 7").score
        assert f"{100 * score:.1f}\u00a0%" in first
    assert (tmp_path / f"{name}-{kind}.png").stat().st_size > 5000


@slow
def test_a_page_shows_texts_as_texts(exports: Any) -> None:
    text = "ask <img src=x onerror=alert(1)> in rome"
    with serving(exports("tag")) as url:
        found = driven([["goto", url], ["ready"], ["fill", "#text", text], ["click", "#ask"],
                        ["see", "#result:not([hidden])"], ["html", "#result"]])  # fmt: skip
    assert "<img" not in found[-1]
    assert "&lt;" in found[-1]


@slow
def test_a_golden_output_that_was_changed_is_refused_by_the_page(exports: Any, tmp_path: Path) -> None:
    shutil.copytree(exports("classify"), tmp_path / "out")
    golden = json.loads((tmp_path / "out" / "golden.json").read_text())
    golden["examples"][0]["outputs"][0][0] += 1.0
    (tmp_path / "out" / "golden.json").write_text(json.dumps(golden))
    with serving(tmp_path / "out") as url:
        found = driven([["goto", url], ["ready"], ["shot", str(tmp_path / "refused.png")]])
    assert "golden.json is not the file that was exported" in found[1]["error"]
    assert "Not kept for use offline" in found[1]["facts"]
    manifest = json.loads((tmp_path / "out" / "llmasos.json").read_text())
    manifest["files"]["golden.json"] = bundle.digest(tmp_path / "out" / "golden.json")
    (tmp_path / "out" / "llmasos.json").write_text(json.dumps(manifest))
    with serving(tmp_path / "out") as url:
        found = driven([["goto", url], ["ready"], ["shot", str(tmp_path / "refused-2.png")]])
    assert "ParityError" in found[1]["error"]
    assert "golden row 1 differs by 1" in found[1]["error"]


@slow
def test_another_export_takes_over_when_it_is_asked_to(exports: Any, models: Any, tmp_path: Path) -> None:
    shutil.copytree(exports("classify"), tmp_path / "served")
    other = exports("tag")
    ask = [["fill", "#text", "ask ida in rome"], ["click", "#ask"], ["see", "#result:not([hidden])"]]
    swap = "fetch('swap')"  # the server below puts the other export in the place of the first

    class Swapping(Files):
        def do_GET(self) -> None:
            if self.path == "/swap":
                shutil.rmtree(tmp_path / "served")
                shutil.copytree(other, tmp_path / "served")
            super().do_GET()

    handler = functools.partial(Swapping, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        found = driven(
            [["goto", url], ["ready"], ["run", swap + ".then(() => 0)"], ["goto", url], ["ready"],
             ["see", "#update:not([hidden])"], ["shot", str(tmp_path / "update.png")], ["click", "#use-update"],
             ["see", "text=Find entities"], ["ready"], *ask]
        )  # fmt: skip
        server.shutdown()
    titles = [one["title"] for one in found if isinstance(one, dict)]
    assert titles == ["Text classification", "Text classification", "Token classification"]


@slow
def test_pages_of_ones_own_import_the_sdk_of_an_export(exports: Any, tmp_path: Path) -> None:
    shutil.copytree(exports("similarity"), tmp_path / "model")
    (tmp_path / "index.html").write_text("<!doctype html><title>mine</title>")
    code = """import("./model/app/llmasos.js").then(async ({ LocalModel }) => {
      const model = await LocalModel.load("./model/", { device: "wasm" });
      const [vector] = await model.embed(["anvil"]);
      return [vector.length, model.threads, model.device];
    })"""
    with serving(tmp_path) as url:
        found = driven([["goto", url], ["run", code]])
    assert found[1] == [32, 1, "wasm"]


@slow
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_wrong_numbers_on_webgpu_fall_back_to_webassembly_and_it_is_said(
    wrong: bool, exports: Any, tmp_path: Path
) -> None:
    asked = "navigator.gpu ? navigator.gpu.requestAdapter().then((found) => Boolean(found)) : false"
    with serving(exports("classify")) as url:
        found = driven(
            [["goto", url], ["ready"], ["run", asked], ["run", "globalThis.changed"], ["fill", "#text", "a bad day"],
             ["click", "#ask"], ["see", "#result:not([hidden])"], ["text", "#result"],
             ["shot", str(tmp_path / "webgpu.png")]],
            flags=SHADERS, init=WRONG if wrong else "",
        )  # fmt: skip
    _, ready, has_gpu, changed, *_, answer, _ = found
    if not has_gpu:
        pytest.skip("needs a Chromium with WebGPU, if only in software")
    assert ready["error"] == ""
    assert "complaint" in answer
    if wrong:
        assert changed > 0
        assert "float32, WebAssembly" in ready["facts"]
        assert "On WebAssembly, since on WebGPU an output of golden row" in ready["facts"]
    else:
        assert "float32, WebGPU." in ready["facts"]
