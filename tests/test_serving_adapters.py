"""Adapters over one base, asked together, answer as each does alone; what is not theirs is refused at the start."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from llmasos import LLM, TextClassificationTask
from llmasos.core import plugins
from llmasos.core.errors import UsageError
from served import Server, serving, started
from tiny import save_tiny, save_tiny_bert

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("peft")
QUICK: dict[str, Any] = {"batch_size": 8, "precision": "float32", "threads": 1, "progress": False}
PROMPTS = ["one two", "three four five six", "a b c", "what is this and why", "x" * 40, "no"]
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "precision": "float32", "threads": 1}


def adapted(base: Path, name: str, folder: Path, **options: Any) -> Path:
    """Train an adapter on a task's sample, and return its folder."""
    task, rows = plugins.load("tasks", name).sample()
    LLM.from_pretrained(base).finetune(
        task, rows, eval_data=rows, output=folder, allow_truncated=1.0,
        **{"adapter": "lora", "epochs": 2, "learning_rate": 0.02, **QUICK, **options},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base that writes, and adapters over it: two that can write side by side, and one that cannot."""
    folder = tmp_path_factory.mktemp("writers")
    base = save_tiny(folder / "base", "AutoModelForCausalLM", max_length=512)
    different: dict[str, dict[str, Any]] = {
        "one": {},
        "two": {"seed": 7, "adapter_rank": 3, "adapter_targets": "q_proj,down_proj"},
        "other": {"seed": 3, "adapter": "dora"},
    }
    made = {name: adapted(base, "text-generation", folder / name, **own) for name, own in different.items()}
    return {"base": base, **made}


@pytest.fixture(scope="module")
def answerers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base that makes vectors, and adapters over it, each of another task."""
    folder = tmp_path_factory.mktemp("answerers")
    base = save_tiny_bert(folder / "base", max_length=160)
    kinds = {"mood": "text-classification", "tags": "token-classification", "near": "sentence-similarity"}
    return {"base": base, **{name: adapted(base, kind, folder / name) for name, kind in kinds.items()}}


def over(folders: dict[str, Path]) -> dict[str, Any]:
    """Return what ``serving`` is given of a base and adapters."""
    return {"models": {"base": folders["base"]}, "adapters": {k: v for k, v in folders.items() if k != "base"}}


@pytest.fixture(scope="module")
def writing(writers: dict[str, Path]) -> Iterator[Server]:
    with serving(**over(writers)) as server:
        yield server


@pytest.fixture(scope="module")
def answering(answerers: dict[str, Path]) -> Iterator[Server]:
    with serving(**over(answerers)) as server:
        yield server


def mixed(names: list[str], rows: list[Any]) -> list[tuple[str, Any]]:
    """Return every row for every model, those of one model never beside each other."""
    return [(names[(i + j) % len(names)], row) for i, row in enumerate(rows) for j in range(len(names))]


def written(server: Server, name: str, prompt: str, **more: Any) -> str:
    body = {"model": name, "prompt": prompt, "max_tokens": 12, "temperature": 0.0, **more}
    response = server.http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    found: str = response.json()["choices"][0]["text"]
    return found


def test_texts_of_adapters_asked_together_are_those_of_each_alone(writing: Server, writers: dict[str, Path]) -> None:
    alone = {name: LLM.from_pretrained(folder) for name, folder in writers.items()}
    wanted = {(name, p): one.generate(p, **GREEDY).text for name, one in alone.items() for p in PROMPTS}
    assert len({tuple(wanted[name, p] for p in PROMPTS) for name in writers}) == len(writers), "they write alike"
    asked = mixed([*writers], PROMPTS)
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda one: written(writing, *one), asked))
    assert {one: text for one, text in zip(asked, found, strict=True)} == wanted


def test_rows_of_adapters_are_written_to_in_one_step(writing: Server) -> None:
    served = {name: shelf.served for name, shelf in writing.desk.shelves.items()}
    generators = {name: one.parts.generator for name, one in served.items()}
    assert generators["base"].writes_beside(generators["one"])
    assert generators["one"].writes_beside(generators["two"])
    assert "decoders/llama" in generators["two"].how
    assert not generators["one"].writes_beside(generators["other"])
    assert "other than LoRA" in generators["other"].how
    counts = served["base"].scheduler.counts
    steps, rows = counts.steps, counts.rows
    asked = mixed(["base", "one", "two"], PROMPTS)
    with ThreadPoolExecutor(len(asked)) as pool:
        list(pool.map(lambda one: written(writing, *one), asked))
    assert counts.rows - rows > 2 * (counts.steps - steps)


def test_what_one_adapter_read_of_a_prompt_is_not_anothers(writing: Server, writers: dict[str, Path]) -> None:
    prompt = " ".join("abcdefghij" * 8)  # several blocks of what is kept
    names = ["one", "two", "base", "one", "two", "base"]
    counts = writing.desk.shelves["base"].served.scheduler.counts
    before, found = counts.tokens_reused, {}
    for name in names:
        found.setdefault(name, set()).add(written(writing, name, prompt))
    assert counts.tokens_reused > before
    for name in ("one", "two", "base"):
        assert found[name] == {LLM.from_pretrained(writers[name]).generate(prompt, **GREEDY).text}


def test_an_adapter_alone_takes_the_proven_step_too(writers: dict[str, Path]) -> None:
    llm = LLM.from_pretrained(writers["two"])
    fast = [llm.generate(prompt, **GREEDY).tokens for prompt in PROMPTS]
    (generator,) = llm._generators.values()
    assert "decoders/llama" in generator.how
    assert fast == [llm.generate(prompt, speed="plain", **GREEDY).tokens for prompt in PROMPTS]


def test_adapters_of_several_tasks_answer_as_each_alone(answering: Server, answerers: dict[str, Path]) -> None:
    alone = {name: LLM.from_pretrained(folder) for name, folder in answerers.items()}
    texts = ["a good day", "bad", "what is this", "no no no", "abc " * 10]

    def ask(name: str, text: str) -> Any:
        if name in ("base", "near"):
            response = answering.http.post("/v1/embeddings", json={"model": name, "input": text})
            return response.json()["data"][0]["embedding"]
        route = {"mood": "classify", "tags": "tag"}[name]
        response = answering.http.post(f"/v1/{route}", json={"model": name, "inputs": text})
        assert response.status_code == 200, response.text
        return response.json()["result"]

    asked = mixed([*answerers], texts) * 3
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda one: ask(*one), asked))
    exact: dict[str, Any] = {"precision": "float32", "threads": 1}
    for (name, text), one in zip(asked, found, strict=True):
        if name in ("base", "near"):
            assert one == pytest.approx(alone[name].embed(text, **exact).tolist(), abs=1e-5)
        elif name == "mood":
            wanted = alone[name].predict(text, **exact)
            assert (one["label"], one["score"]) == (wanted.label, pytest.approx(wanted.score, abs=1e-5))
        else:
            entities = alone[name].predict(text, **exact).entities
            assert [(e["label"], e["text"]) for e in one["entities"]] == [(e.label, e.text) for e in entities]


def test_the_weights_of_the_base_are_there_once(answering: Server, writing: Server) -> None:
    for server in (answering, writing):
        shelves = dict(server.desk.shelves)
        base = shelves.pop("base")
        engine = base.served.parts.generator or base.served.parts.engine
        there = {id(weight) for weight in engine.model.parameters()}
        for shelf in shelves.values():
            computing = shelf.served.parts.generator or shelf.served.parts.engine
            own = [w for w in computing.model.parameters() if id(w) not in there]
            assert shelf.bytes == sum(w.numel() * w.element_size() for w in own)
            assert 0 < sum(w.numel() for w in own) < 0.6 * sum(w.numel() for w in engine.model.parameters())


def test_models_are_listed_with_their_parent(answering: Server) -> None:
    listed = {one["id"]: one for one in answering.http.get("/v1/models").json()["data"]}
    assert {name: one.get("parent") for name, one in listed.items()} == {
        "base": None, "mood": "base", "tags": "base", "near": "base",
    }  # fmt: skip
    assert {name: one["checked"] for name, one in listed.items()} == {
        "base": False, "mood": True, "tags": True, "near": True,
    }  # fmt: skip
    page = answering.http.get("/metrics").text
    assert 'llmasos_model_state{model="mood",state="idle"} 1.0' in page
    assert 'llmasos_works_total{model="base"}' in page
    assert 'llmasos_works_total{model="mood"}' not in page


def test_a_base_and_its_adapters_come_and_go_together(answerers: dict[str, Path], tmp_path: Path) -> None:
    other = save_tiny_bert(tmp_path / "other")
    models = over(answerers)
    with serving({**models["models"], "other": other}, adapters=models["adapters"], pinned=("other",)) as server:
        shelves = server.desk.shelves
        assert shelves["base"].served is None
        assert server.http.post("/v1/classify", json={"model": "mood", "inputs": "a"}).status_code == 200
        assert all(shelves[name].served is not None for name in answerers)
        server.desk._shut(shelves["base"])
        assert all(shelves[name].served is None for name in answerers)
        server.desk.memory = server.desk.used_bytes + sum(shelves[name].bytes for name in answerers) - 1
        refused = server.http.post("/v1/classify", json={"model": "mood", "inputs": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")


def test_what_is_no_adapter_of_these_models_is_refused_at_the_start(
    answerers: dict[str, Path], writers: dict[str, Path], tmp_path: Path
) -> None:
    def refused(name: str, folder: Path) -> str:
        with pytest.raises(UsageError) as wrong, serving({"base": answerers["base"]}, adapters={name: folder}):
            pass
        return f"{wrong.value} {wrong.value.hint}"

    assert "sha256" in refused("one", writers["one"])
    assert str(writers["base"]) in refused("one", writers["one"])
    assert "no adapter" in refused("plain", writers["base"])
    assert "called base" in refused("base", answerers["mood"])
    changed = shutil.copytree(answerers["mood"], tmp_path / "changed")
    manifest = json.loads((changed / "llmasos.json").read_text())
    manifest["adapter"]["base"]["files"]["model.safetensors"] = "0" * 64
    (changed / "llmasos.json").write_text(json.dumps(manifest))
    assert "trained on other weights" in refused("changed", changed)


def other_output(folder: Path) -> None:
    content = json.loads((folder / "golden.json").read_text())
    for one in content["examples"]:
        one["outputs"] = [[value + 1.0 for value in line] if isinstance(line, list) else line + 1.0
                          for line in one["outputs"]]  # fmt: skip
    (folder / "golden.json").write_text(json.dumps(content))


def other_bit(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-9] ^= 1
    file.write_bytes(bytes(whole))


def other_shape(folder: Path) -> None:
    """Say another rank, which is only seen when the weights are put in."""
    content = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(content | {"r": content["r"] + 1}))


def no_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


@pytest.mark.parametrize("damage", [other_output, other_bit, other_shape, no_config])
def test_a_damaged_adapter_is_refused_alone(
    writers: dict[str, Path], damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(writers["one"], tmp_path / "one")
    damage(folder)
    with serving({"base": writers["base"]}, adapters={"one": folder, "two": writers["two"]}) as server:
        assert server.http.get("/health/ready").status_code == 200
        for name in ("base", "two"):
            wanted = LLM.from_pretrained(writers[name]).generate(PROMPTS[1], **GREEDY).text
            assert written(server, name, PROMPTS[1]) == wanted
        refused = server.http.post("/v1/completions", json={"model": "one", "prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_damaged")
        assert str(tmp_path) not in refused.text
        listed = {one["id"]: one for one in server.http.get("/v1/models").json()["data"]}
        assert {name: one.get("refused") for name, one in listed.items()} == {
            "base": None, "two": None, "one": "model_damaged",
        }  # fmt: skip
        assert "one is not served" in caplog.text
        assert str(folder) in caplog.text  # the log alone says which folder
        if damage is no_config:
            return  # nobody knows any more over which model it lies
        shutil.rmtree(folder)
        shutil.copytree(writers["one"], folder)
        server.desk._shut(server.desk.shelves["base"])
        wanted = LLM.from_pretrained(folder).generate(PROMPTS[1], **GREEDY).text
        assert written(server, "one", PROMPTS[1]) == wanted
        assert server.desk.shelves["one"].refused is None


def test_an_adapter_that_cannot_even_be_opened_is_refused_alone_by_the_command(
    answerers: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(answerers["mood"], tmp_path / "mood")
    (folder / "llmasos.json").write_text("{")
    words = [f"base={answerers['base']}", "--adapter", f"mood={folder}", "--adapter", f"tags={answerers['tags']}"]
    with started(*words, "--port", "0", "--threads", "1") as (_, url):
        asked = {"model": "mood", "inputs": "a"}
        assert httpx2.post(f"{url}/v1/classify", json=asked, timeout=60).status_code == 503
        assert httpx2.post(f"{url}/v1/tag", json=asked | {"model": "tags"}, timeout=60).status_code == 200


def test_an_adapter_saved_without_golden_rows_says_so_until_it_is_saved_again(
    answerers: dict[str, Path], tmp_path: Path
) -> None:
    def listed(folder: Path) -> dict[str, Any]:
        with serving({"base": answerers["base"]}, adapters={"mood": folder}) as server:
            return {one["id"]: one for one in server.http.get("/v1/models").json()["data"]}

    old = shutil.copytree(answerers["mood"], tmp_path / "old")
    (old / "golden.json").unlink()
    manifest = json.loads((old / "llmasos.json").read_text())
    del manifest["files"]["golden.json"]
    (old / "llmasos.json").write_text(json.dumps(manifest))
    found = listed(old)
    assert (found["mood"]["checked"], "save it again" in found["mood"]["checked_why"]) == (False, True)
    assert "never saved by LLMasOS" in found["base"]["checked_why"]
    LLM.from_pretrained(old).save(tmp_path / "new")
    found = listed(tmp_path / "new")
    assert (found["mood"]["checked"], "checked_why" in found["mood"]) == (True, False)


def test_the_command_serves_adapters(answerers: dict[str, Path], capsys: Any) -> None:
    from llmasos.cli import main

    argv = ["serve", f"base={answerers['base']}", "--port", "0", "--adapter"]
    assert main([*argv, f"mood={answerers['base'].parent / 'missing'}"]) == 2
    assert "missing" in capsys.readouterr().err
    assert main([*argv, f"mood={answerers['base']}"]) == 2
    assert "no adapter" in capsys.readouterr().err


def test_an_adapter_whose_base_has_moved_lies_on_the_one_that_is_served(
    answerers: dict[str, Path], tmp_path: Path
) -> None:
    moved = shutil.copytree(answerers["base"], tmp_path / "moved")
    folder = adapted(moved, "text-classification", tmp_path / "adapter", seed=2)
    shutil.rmtree(moved)
    with serving({"base": answerers["base"]}, adapters={"mood": folder}) as server:
        answer = server.http.post("/v1/classify", json={"model": "mood", "inputs": "a good day"}).json()["result"]
    wanted = LLM.from_pretrained(folder, base=answerers["base"]).predict("a good day", precision="float32")
    assert answer["label"] == wanted.label
    assert isinstance(LLM.from_pretrained(folder).task, TextClassificationTask)


@pytest.mark.slow  # a process of its own
def test_adapters_are_tools_too(answerers: dict[str, Path], tmp_path: Path) -> None:
    anyio, mcp = pytest.importorskip("anyio"), pytest.importorskip("mcp")
    damaged = shutil.copytree(answerers["tags"], tmp_path / "tags")
    other_bit(damaged)
    words = ["-m", "llmasos", "mcp", f"base={answerers['base']}", "--precision", "float32",
             "--adapter", f"mood={answerers['mood']}", "--adapter", f"tags={damaged}"]  # fmt: skip

    async def whole() -> Any:
        server = mcp.StdioServerParameters(command=sys.executable, args=words, env={**os.environ})
        async with mcp.Client(server) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            return names, await client.call_tool("classify-mood", {"text": "ab"})

    names, answer = anyio.run(whole)
    assert sorted(names) == ["classify-mood", "embed-base", "similarity-base"]
    wanted = LLM.from_pretrained(answerers["mood"]).predict("ab", precision="float32")
    assert answer.structured_content["label"] == wanted.label
    assert answer.structured_content["score"] == pytest.approx(wanted.score, abs=1e-5)
