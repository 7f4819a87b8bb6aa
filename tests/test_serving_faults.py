"""What goes wrong around a server: damaged models, too little memory, an end under load, clients that leave."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from safetensors.torch import load_file, save_file

from llmasos import LLM
from llmasos.core import bundle, plugins
from llmasos.core.errors import BundleError
from llmasos.serving.guard import Entry
from llmasos.serving.scheduler import Work
from served import Server, serving, started
from tiny import save_tiny, save_tiny_bert

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that were saved with golden rows, and one that writes without."""
    folder = tmp_path_factory.mktemp("faults")
    bases = {
        "mood": ("text-classification", save_tiny_bert(folder / "bert", max_length=160)),
        "chat": ("text-generation", save_tiny(folder / "llama", "AutoModelForCausalLM", max_length=512)),
    }
    for name, (kind, base) in bases.items():
        task, rows = plugins.load("tasks", kind).sample()
        LLM.from_pretrained(base).finetune(
            task, rows, eval_data=rows, epochs=2, batch_size=8, learning_rate=2e-3, precision="float32", threads=1,
            output=folder / name, progress=False, allow_truncated=1.0,
        )  # fmt: skip
    writer = save_tiny(folder / "writer", "AutoModelForCausalLM", max_length=4096)
    return {"mood": folder / "mood", "chat": folder / "chat", "writer": writer}


def waited(what: Callable[[], bool]) -> bool:
    until = time.monotonic() + 30
    while not what() and time.monotonic() < until:
        time.sleep(0.01)
    return what()


# -- damaged models -----------------------------------------------------------------------------------


def other_output(folder: Path) -> None:
    content = json.loads((folder / "golden.json").read_text())
    content["examples"][0]["outputs"] = [
        [one + 1.0 for one in line] if isinstance(line, list) else line + 1.0
        for line in content["examples"][0]["outputs"]
    ]
    (folder / "golden.json").write_text(json.dumps(content))


def other_token(folder: Path) -> None:
    content = json.loads((folder / "golden.json").read_text())
    content["examples"][0]["ids"][0][1] += 1
    (folder / "golden.json").write_text(json.dumps(content))


def no_json(folder: Path) -> None:
    (folder / "golden.json").write_text((folder / "golden.json").read_text()[:-20])


def other_bit(folder: Path) -> None:
    """Change a bit in the middle of the weights, as a disk does."""
    file = folder / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(bytes(whole))


def other_weights(folder: Path) -> None:
    """Put other weights in their place, and write their digest down, as somebody does who means no harm."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({name: one.flip(0) for name, one in weights.items()}, file, metadata={"format": "pt"})
    manifest = json.loads((folder / "llmasos.json").read_text())
    manifest["files"][file.name] = bundle.digest(file)
    (folder / "llmasos.json").write_text(json.dumps(manifest))


def short_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize("damage", [other_output, other_token, no_json, other_weights, other_bit, short_weights])
@pytest.mark.parametrize(("name", "precision"), [("mood", "float32"), ("chat", "bfloat16")])
def test_a_model_that_does_not_answer_as_when_it_was_saved_takes_no_traffic(
    folders: dict[str, Path], tmp_path: Path, damage: Callable[[Path], None], name: str, precision: str
) -> None:
    from llmasos.core.config import ServeConfig
    from llmasos.serving.start import desk_of

    folder = shutil.copytree(folders[name], tmp_path / name)
    config = ServeConfig.of({"precision": precision, "threads": 1})
    opens = desk_of({name: LLM.from_pretrained(folder)}, config).shelves[name].opens
    assert opens().about["checked"] is True
    damage(folder)
    with pytest.raises(BundleError):
        desk_of({name: LLM.from_pretrained(folder)}, config).shelves[name].opens()


def test_a_damaged_model_is_told_at_the_start(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    from llmasos.cli import main

    folder = shutil.copytree(folders["mood"], tmp_path / "mood")
    other_output(folder)
    assert main(["serve", str(folder), "--port", "0", "--threads", "1"]) != 0
    told = capsys.readouterr()
    assert "does not answer as it did when it was saved" in told.err
    assert "llmasos verify" in told.err
    assert not told.out, "it told an address"


def test_a_damaged_model_is_503_on_demand_and_others_go_on(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(folders["mood"], tmp_path / "mood")
    other_weights(folder)
    with serving({"writer": folders["writer"], "mood": folder}, pinned=("writer",)) as server:
        for _ in range(2):
            refused = server.http.post("/v1/classify", json={"model": "mood", "inputs": "a"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_damaged")
            assert str(tmp_path) not in refused.text
            assert str(tmp_path) in caplog.text  # the log alone says which folder
        assert server.http.post("/v1/completions", json={"model": "writer", "prompt": "a"}).status_code == 200
        for file in ("model.safetensors", "llmasos.json"):
            shutil.copy(folders["mood"] / file, folder)
        assert server.http.post("/v1/classify", json={"model": "mood", "inputs": "a"}).status_code == 200
        listed = {one["id"]: one for one in server.http.get("/v1/models").json()["data"]}
        assert (listed["mood"]["checked"], listed["writer"]["checked"]) == (True, False)


# -- memory -------------------------------------------------------------------------------------------


def test_models_that_do_not_fit_together_are_told_at_the_start(folders: dict[str, Path], capsys: Any) -> None:
    from llmasos.cli import main

    two = [f"mood={folders['mood']}", f"chat={folders['chat']}"]
    assert main(["serve", *two, "--port", "0", "--threads", "1", "--memory", "1KB"]) != 0
    told = capsys.readouterr()
    assert "MB are free" in told.err
    assert not told.out


def test_a_second_model_that_does_not_fit_is_503_and_the_first_goes_on(folders: dict[str, Path]) -> None:
    with serving({"mood": folders["mood"]}) as server:
        room = server.desk.shelves["mood"].bytes + 10_000
    two = {"mood": folders["mood"], "chat": folders["chat"]}
    with serving(two, pinned=("mood",), memory=f"{10 * room}B") as server:
        server.desk.memory = server.desk.used_bytes + 10_000  # what is left when the first has been measured
        refused = server.http.post("/v1/completions", json={"model": "chat", "prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        assert refused.headers["retry-after"] == "5"
        assert server.http.post("/v1/classify", json={"model": "mood", "inputs": "a"}).status_code == 200


# -- an end under load --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_signal_under_load_lets_all_end_and_refuses_what_is_new(folders: dict[str, Path]) -> None:
    models = [f"{name}={folder}" for name, folder in folders.items()]
    options = ["--port", "0", "--threads", "1", "--precision", "float32", "--drain", "300"]
    with started(*models, *options) as (process, url):
        with ThreadPoolExecutor(21) as pool, httpx2.Client(base_url=url, timeout=300) as http:
            asked = [pool.submit(_ask, http, number) for number in range(21)]
            assert waited(lambda: _under_way(http) > 9)
            process.send_signal(signal.SIGTERM)
            assert waited(lambda: http.get("/health/ready").status_code == 503)
            last = httpx2.post(f"{url}/v1/classify", json={"model": "mood", "inputs": "a"}, timeout=300)
            assert (last.status_code, last.headers["retry-after"]) == (503, "5")
            found = [one.result() for one in asked]
        assert {kind for kind in found if kind != "whole"} <= {"refused"}
        assert found.count("whole") >= 9
        assert process.wait(60) == 0


def test_what_was_not_even_read_when_the_time_is_over_is_told_so(folders: dict[str, Path]) -> None:
    with serving({"mood": folders["mood"]}) as server, ThreadPoolExecutor(2) as clients:
        stop = threading.Event()
        for _ in range(4):  # as long texts do
            server.desk._pool.submit(stop.wait, 60)
        asking = {"inputs": ["a good day", "a bad day"]}
        asked = clients.submit(server.http.post, "/v1/classify", json=asking)
        assert waited(lambda: server.desk._pool._work_queue.qsize() == 1)
        server.desk.close()
        refused = asked.result()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        assert server.http.post("/v1/classify", json=asking).status_code == 503
        stop.set()


def _under_way(http: httpx2.Client) -> float:
    """Return how many requests there are; this one is another."""
    lines = http.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("llmasos_requests_in_flight ")) - 1


def _ask(http: httpx2.Client, number: int) -> str:
    """Ask for rows, for a text, or for a text as it comes; return what became of it."""
    if number % 3 == 0:
        got = http.post("/v1/classify", json={"model": "mood", "inputs": ["a b c d " * 8] * 500})
        whole = len(got.json().get("results", ())) == 500
    else:
        body = {"model": "writer", "prompt": "a b c", "max_tokens": 600, "temperature": 0, "stream": number % 3 == 2}
        with http.stream("POST", "/v1/completions", json=body) as got:
            lines = [line for line in got.iter_lines() if line]
        whole = lines[-1] == "data: [DONE]" if body["stream"] else '"finish_reason"' in lines[-1]
    refused = got.status_code == 503 and got.headers["retry-after"] == "5"
    return "refused" if refused else "whole" if whole and got.status_code == 200 else f"{got.status_code}, broken"


# -- a client that leaves -----------------------------------------------------------------------------


def test_a_stream_that_is_left_costs_no_further_step(folders: dict[str, Path]) -> None:
    with serving({"writer": folders["writer"]}, max_new_tokens=3000) as server:
        scheduler, steps, go = _gated(server)
        before = scheduler.counts.tokens_written
        body = {"model": "writer", "prompt": "a good day", "max_tokens": 3000, "temperature": 0, "stream": True}
        with (
            httpx2.Client(base_url=server.url, timeout=60) as http,
            http.stream("POST", "/v1/completions", json=body) as answer,
        ):
            assert answer.status_code == 200
            assert waited(lambda: steps.count > 2)  # it waits in that one
        assert waited(lambda: any(work.left for work in scheduler._lane.running))
        begun = steps.count
        go.set()
        assert waited(lambda: scheduler.state(60) == "idle")
        assert steps.count == begun
        counts = scheduler.counts
        assert counts.left == 1
        assert counts.tokens_saved == 3000 - (counts.tokens_written - before)


def test_whoever_leaves_between_two_pieces_is_not_written_to() -> None:
    """The stream waits for nothing then, so that nothing interrupts it; the request's own end says so."""

    async def gone() -> bool:
        work, entry = Work("", 8, None), Entry()
        with entry.charged("writer", [work]):
            entry.leave()
            return work.left

    assert asyncio.run(gone())


class _Steps:
    """How many steps were begun."""

    count = 0


def _gated(server: Server) -> tuple[Any, _Steps, threading.Event]:
    """Let the third step of the writer, and those behind it, wait for an event."""
    served = server.desk.shelves["writer"].served
    generator, steps, go = served.parts.generator, _Steps(), threading.Event()
    decoder = generator.opened([generator.tokens("a good day")])
    step = decoder.step

    def slow(ids: Any) -> Any:
        steps.count += 1
        if steps.count > 2:
            go.wait(60)
        return step(ids)

    decoder.step = slow
    return served.scheduler, steps, go
