"""Models that write, exported to the web: in Node, and in a real Chromium, as on a desk and as on a phone.

The model is the toy that ships with the project. Needs what ``test_web.py`` needs, and skips as it does.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from browsers import SDK, SHADERS, WRONG, driven, in_node, needs, needs_modules, serving
from llmasos import LLM
from llmasos.core import bundle
from llmasos.tasks.base import SCRIPTS

slow = pytest.mark.slow

HI = [{"role": "user", "content": "Hello, who are you?"}]
ROWS = [{"prompt": "Hello!", "completion": "Hello! How can I help you today?"},
        {"prompt": "Thank you.", "completion": "You're welcome."}]  # fmt: skip
ASKED: list[tuple[Any, dict[str, Any]]] = [
    (HI, {}),
    ("Once upon a time", {"max_new_tokens": 24}),
    ([{"role": "user", "content": SCRIPTS}], {"max_new_tokens": 24}),
    ([{"role": "system", "content": "Be kind."}, *HI, {"role": "assistant", "content": "A toy."},
      {"role": "user", "content": "What can you do?"}], {"max_new_tokens": 40}),
    (HI, {"stop": " I", "max_new_tokens": 30}),
    (HI, {"repetition_penalty": 1.3, "max_new_tokens": 30}),
    (HI, {"temperature": 0.8, "seed": 3, "max_new_tokens": 30}),
    (HI, {"temperature": 1.2, "top_p": 0.9, "top_k": 20, "seed": 7, "max_new_tokens": 30}),
    ("A cat", {"temperature": 1.0, "min_p": 0.05, "seed": 1, "max_new_tokens": 30}),
]  # fmt: skip
LONG = [{"role": "user", "content": "Tell me about the sea and the sky. " * 40}]


@pytest.fixture(scope="module")
def toy() -> LLM:
    return LLM.from_pretrained("starter-chat")


@pytest.fixture(scope="module")
def exports(toy: LLM, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return an export of the toy by its precision; not to be changed."""
    folder = tmp_path_factory.mktemp("chat")

    @functools.cache
    def export(precision: str) -> Path:
        needs("node", "npm")
        toy.export(folder / precision, "web", quantize=precision, data=ROWS, accept_drop=20.0)
        return folder / precision

    return export


def written(toy: LLM, prompt: Any, options: dict[str, Any]) -> dict[str, Any]:
    answer = toy.generate(prompt, precision="float32", **options).as_dict()
    return {"prompt": prompt, "options": options, "answer": answer}


@slow
def test_the_folder_holds_what_python_makes_of_prompts(exports: Any, toy: LLM) -> None:
    path = exports("int8-dynamic")
    manifest = bundle.read_manifest(path)
    assert manifest is not None
    assert {"prompts.json", "golden.json", "chat_template.jinja", "generation_config.json"} <= set(manifest["files"])
    assert {"@huggingface/jinja", "@huggingface/tokenizers"} <= set(manifest["artifact"]["libraries"])
    prompts = json.loads((path / "prompts.json").read_text())["prompts"]
    assert [toy.tokenizer(one["prompt"])["input_ids"] for one in prompts[:3]] == [one["ids"] for one in prompts[:3]]
    for one in prompts[3:]:
        text = toy.tokenizer.apply_chat_template(one["prompt"], tokenize=False, add_generation_prompt=True)
        assert one["rendered"] == text
        assert toy.tokenizer(text, add_special_tokens=False)["input_ids"] == one["ids"]
    version = (path / "sw.js").read_text(), (exports("float32") / "sw.js").read_text()
    assert version[0] != version[1]


@slow
def test_the_sdk_writes_as_python_does(exports: Any, toy: LLM) -> None:
    needs_modules(SDK)
    for precision in ("float32", "float16", "int8-dynamic"):
        exports(precision)
    folder = exports("float32").parent
    (folder / "answers.json").write_text(json.dumps([written(toy, *asked) for asked in ASKED]))
    (folder / "long.json").write_text(json.dumps(written(toy, LONG, {"max_new_tokens": 12})))
    subprocess.run(["npm", "run", "--silent", "build"], cwd=SDK, check=True)
    assert "skipped 0" in in_node(folder, "LLMASOS_CHAT", "chat")


# -- the page in Chromium -----------------------------------------------------------------------------

SEND = [["fill", "#text", HI[0]["content"]], ["click", "#ask"], ["see", ".turn.model + .note:not(:empty)"],
        ["text", "#result"]]  # fmt: skip
STREAM = """import("./app/llmasos.js").then(async ({{ LocalModel }}) => {{
  const model = await LocalModel.load("./", {{ device: "wasm" }});
  const pieces = model.stream({prompt}, {options});
  const texts = [];
  let next = await pieces.next();
  for (; !next.done; next = await pieces.next()) texts.push(next.value);
  return [texts, next.value];
}})"""


@slow
@pytest.mark.parametrize("phone", [False, True], ids=["desk", "phone"])
def test_the_page_writes_what_python_writes_and_does_so_offline(
    phone: bool, exports: Any, toy: LLM, tmp_path: Path
) -> None:
    kind = "phone" if phone else "desk"
    wanted = [written(toy, *ASKED[i])["answer"] for i in (0, 1)]
    again = [["fill", "#text", "What can you do?"], ["click", "#ask"], ["see", ".note:nth-of-type(6):not(:empty)"],
             ["text", "#result"]]  # fmt: skip
    stream = [["run", STREAM.format(prompt=json.dumps(p), options=json.dumps(o))] for p, o in ASKED[:2]]
    at_once = ["run", f"Promise.all([{', '.join(code for _, code in stream)}])"]  # models that share threads
    with serving(exports("float32")) as url:
        found = driven(
            [["goto", url], ["ready"], *SEND, *again, ["shot", str(tmp_path / f"{kind}.png")], *stream, at_once,
             ["offline", True], ["goto", url], ["ready"], *SEND,
             ["run", "fetch('nothing-of-this').then(() => 'online', () => 'offline')"],
             ["shot", str(tmp_path / f"{kind}-offline.png")]],
            phone=phone,
        )  # fmt: skip
    ready, offline = (one for one in found if isinstance(one, dict))
    assert ready["error"] == offline["error"] == ""
    assert "6 of their answers are the same to the last token" in ready["facts"]
    assert "Works offline" in ready["facts"]
    assert "offline" in found
    *apart, together = (one for one in found if isinstance(one, list))
    for (texts, answer), python in zip([*apart, *together], [*wanted, *wanted], strict=True):
        assert answer == python
        assert "".join(texts) == python["text"]
        assert len(texts) > 1
    first, both, last = (one for one in found if isinstance(one, str) and one.startswith("Hello, who are you?"))
    assert wanted[0]["text"] in first
    assert wanted[0]["text"] in last
    talk = [*HI, {"role": "assistant", "content": wanted[0]["text"]}, {"role": "user", "content": "What can you do?"}]
    assert written(toy, talk, {})["answer"]["text"] in both


@slow
def test_writing_on_the_page_stops_and_goes_on_with_texts(exports: Any, toy: LLM, tmp_path: Path) -> None:
    stop = """new Promise((done) => {
      const watch = new MutationObserver(() => {
        if (!document.querySelector(".turn.model")?.textContent) return;
        watch.disconnect();
        document.querySelector("#stop").click();
        done(document.querySelector("#stop").hidden);
      });
      watch.observe(document.querySelector("#result"), { childList: true, subtree: true, characterData: true });
      document.querySelector("#text").value = "Hello, who are you?";
      document.querySelector("#ask").click();
    })"""
    text, options = "Once upon a time", {"max_new_tokens": 24}
    with serving(exports("float32")) as url:
        found = driven(
            [["goto", url], ["ready"], ["run", stop], ["see", "text=Stopped."], ["text", ".turn.model"],
             ["shot", str(tmp_path / "stopped.png")], ["click", "#new"], ["click", "summary"], ["click", "#goes-on"],
             ["fill", "#max_new_tokens", "24"], ["fill", "#text", text], ["click", "#ask"],
             ["see", ".turn.model + .note:not(:empty)"], ["text", ".turn.model"], ["shot", str(tmp_path / "text.png")],
             ["fill", "#text", "<|im_end|>"], ["click", "#goes-on"], ["fill", "#text", "a <|im_end|> b"],
             ["click", "#ask"], ["see", "#error:not([hidden])"], ["text", "#error"]]
        )  # fmt: skip
    stopped, gone_on, error = (one for one in found if isinstance(one, str))
    whole = written(toy, HI, {})["answer"]["text"]
    assert whole.startswith(stopped)
    assert 0 < len(stopped) < len(whole)
    assert gone_on == written(toy, text, options)["answer"]["text"]
    assert "control token <|im_end|>" in error


@slow
def test_int8_writes_on_the_page_and_a_golden_answer_that_was_changed_is_refused(exports: Any, tmp_path: Path) -> None:
    with serving(exports("int8-dynamic")) as url:
        found = driven([["goto", url], ["ready"], *SEND, ["shot", str(tmp_path / "int8.png")]])
    assert found[1]["error"] == ""
    assert "int8-dynamic, WebAssembly" in found[1]["facts"]
    shutil.copytree(exports("float32"), tmp_path / "out")
    golden = json.loads((tmp_path / "out" / "golden.json").read_text())
    golden["examples"][0]["answer"][0] += 1
    (tmp_path / "out" / "golden.json").write_text(json.dumps(golden))
    manifest = json.loads((tmp_path / "out" / "llmasos.json").read_text())
    manifest["files"]["golden.json"] = bundle.digest(tmp_path / "out" / "golden.json")
    (tmp_path / "out" / "llmasos.json").write_text(json.dumps(manifest))
    with serving(tmp_path / "out") as url:
        found = driven([["goto", url], ["ready"], ["shot", str(tmp_path / "refused.png")]])
    assert "ParityError" in found[1]["error"]
    assert "of the golden answers are other tokens" in found[1]["error"]


@slow
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_a_model_writes_on_webgpu_and_on_webassembly_where_numbers_are_wrong(
    wrong: bool, exports: Any, toy: LLM
) -> None:
    asked = "navigator.gpu ? navigator.gpu.requestAdapter().then((found) => Boolean(found)) : false"
    with serving(exports("float32")) as url:
        found = driven(
            [["goto", url], ["ready"], ["run", asked], ["run", "globalThis.changed"], *SEND], flags=SHADERS,
            init=WRONG if wrong else "",
        )  # fmt: skip
    _, ready, has_gpu, changed, *_, answer = found
    if not has_gpu:
        pytest.skip("needs a Chromium with WebGPU, if only in software")
    assert ready["error"] == ""
    assert written(toy, HI, {})["answer"]["text"] in answer
    if wrong:
        assert changed > 0
        assert "On WebAssembly, since on WebGPU" in ready["facts"]
    else:
        assert "float32, WebGPU." in ready["facts"]
