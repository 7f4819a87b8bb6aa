"""Engines of the server: which is taken, what is exported for it once, and those that batch requests by themselves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest

from llmasos import LLM, TextClassificationTask, conversion
from llmasos.core import errors, plugins
from llmasos.core.config import ExportConfig, GenerateConfig
from llmasos.engines.base import Choice, News
from llmasos.exporters.base import KINDS, Written
from llmasos.generation.loop import Request, Running
from llmasos.generation.schema import SchemaError
from llmasos.serving import facts
from llmasos.serving.facts import ENGINES, Chosen, Fact, Way
from llmasos.serving.start import of_each
from served import Server, serving
from tiny import save_tiny, save_tiny_bert

pytest.importorskip("fastapi")
TEXTS = ["a good day", "bad", "what is this", "no no no", "abc " * 10]


# -- which engine is taken ----------------------------------------------------------------------------


def test_every_kind_of_model_has_an_engine_that_needs_nothing_more() -> None:
    for kind in KINDS:
        for precision in ("float32", "bfloat16"):
            last = [fact for fact in facts.FACTS if fact.kind == kind and precision in fact.precisions][-1]
            assert ENGINES[last.engine].own
        assert facts.chosen(kind, "float32").engine in ENGINES


def test_every_engine_is_there_and_runs_what_its_format_holds() -> None:
    for name, way in ENGINES.items():
        assert name in plugins.names("engines")
        assert any(way.runs(kind) for kind in KINDS)
        if way.exporter is not None and not way.batches:
            assert way.exporter.engine == name


def test_the_first_fact_whose_packages_are_here_is_taken_and_better_ones_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = (Fact("encoder", "far", "twice as fast"), Fact("encoder", "near", "as fast", ("bfloat16",)),
             Fact("encoder", facts.OWN, "always there"))  # fmt: skip
    ways = {**ENGINES, "far": Way(requires=("no_such_package",), extra="far"), "near": Way()}
    monkeypatch.setattr(facts, "FACTS", lines)
    monkeypatch.setattr(facts, "ENGINES", ways)
    found = facts.chosen("encoder", "bfloat16")
    assert (found.engine, found.why) == ("near", "as fast")
    assert found.better == ("better with far (twice as fast), which lacks here: pip install 'llmasos[far]'",)
    assert facts.chosen("encoder", "float32").engine == facts.OWN
    assert "pip install 'llmasos[far]'" in str(facts.chosen("encoder", "float32"))
    assert facts.chosen("encoder", "bfloat16", "cuda") == Chosen(
        facts.OWN, "it computes on cuda, and the facts are of processors"
    )


@pytest.mark.parametrize(
    ("engine", "quantize", "said"),
    [
        ("openvno", None, "did you mean 'openvino'"),
        ("torch", "int8", "quantize=int8 does nothing"),
        (None, "int8", "without an engine"),
        ("auto", "int8", "without an engine"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_opened(
    engine: str | None, quantize: str | None, said: str
) -> None:
    with pytest.raises(errors.UsageError, match=said):
        facts.check(engine, quantize)


def test_a_missing_package_is_told_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "ENGINES", {**ENGINES, "far": Way(requires=("no_such_package",), extra="far")})
    with pytest.raises(errors.MissingExtraError, match="far") as caught:
        facts.check("far", None)
    assert caught.value.hint == "pip install 'llmasos[far]'"
    monkeypatch.setattr(facts, "ENGINES", {**ENGINES, "far": Way(program="no-such-program")})
    with pytest.raises(errors.UsageError, match="the program no-such-program"):
        facts.check("far", None)


# -- exported once ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    folder = tmp_path_factory.mktemp("engines")
    rows = [{"text": "a good day", "label": "praise"}, {"text": "bad", "label": "complaint"}] * 8
    LLM.from_pretrained(save_tiny_bert(folder / "base")).finetune(
        TextClassificationTask(), rows, eval_data=rows, epochs=1, output=folder / "mood", progress=False
    )
    return folder / "mood"


def classified(server: Server) -> list[Any]:
    return [one["scores"] for one in server.http.post("/v1/classify", json={"inputs": TEXTS}).json()["results"]]


def test_a_model_is_exported_once_and_answers_the_same(
    mood: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path))
    expected = [one.scores for one in LLM.from_pretrained(mood).predict(TEXTS, precision="float32")]
    exporter = plugins.load("exporters", "openvino")
    conversion.exported(LLM.from_pretrained(mood), exporter, "float32")
    monkeypatch.setattr(conversion, "_apart", lambda *_: pytest.fail("it was exported again"))
    for _ in range(2):
        with serving({"mood": mood}, engine="openvino") as server:
            for one, other in zip(classified(server), expected, strict=True):
                assert one == pytest.approx(other, abs=1e-4)
            (about,) = server.http.get("/v1/models").json()["data"]
            assert about["engine"] == "openvino"
            assert "OpenVINO" in server.desk.shelves["mood"].served.parts.engine.how
    assert len(list((tmp_path / "exports").iterdir())) == 1


def test_what_cannot_be_exported_says_why(mood: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path))
    exporter = plugins.load("exporters", "openvino")
    with pytest.raises(errors.UsageError, match="openvino has no 'int3' for text-classification"):
        conversion.exported(LLM.from_pretrained(mood), exporter, "int3")


def test_another_model_is_another_export(mood: Path, tmp_path: Path) -> None:
    import shutil

    exporter = plugins.load("exporters", "openvino")
    shutil.copytree(mood, tmp_path / "other")
    key = conversion._key(LLM.from_pretrained(mood), exporter, "float32")
    assert conversion._key(LLM.from_pretrained(tmp_path / "other"), exporter, "float32") == key
    assert conversion._key(LLM.from_pretrained(mood), exporter, "bfloat16") != key
    (tmp_path / "other" / "tokenizer_config.json").write_text(
        json.dumps(json.loads((mood / "tokenizer_config.json").read_text()) | {"model_max_length": 32})
    )
    assert conversion._key(LLM.from_pretrained(tmp_path / "other"), exporter, "float32") != key


@pytest.mark.slow
def test_what_the_gate_refuses_is_an_error_if_asked_for_and_torch_if_not(
    mood: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path))
    exporter = plugins.load("exporters", "openvino")
    written, right = [], type(exporter).write

    def wrong(source: Any, folder: Path, precision: str) -> Written:
        written.append(precision)
        with_other = LLM.from_pretrained(mood).model
        with_other.classifier.bias.data += 3.0
        return right(exporter, type(source)(with_other, source.task, source.tokenizer), folder, precision)

    def here(model: Any, exporter: Any, precision: str, folder: Path) -> None:
        list(conversion.exporting(model, folder, exporter.target, ExportConfig(quantize=precision)))

    monkeypatch.setattr(exporter, "write", wrong, raising=False)
    monkeypatch.setattr(conversion, "_apart", here)
    monkeypatch.setattr(facts, "FACTS", (Fact("encoder", "openvino", "faster"), *facts.FACTS))
    options = {"precision": "float32", "speed": "auto", "device": "auto", "threads": 1}
    for _ in range(2):  # the second time it is known, and not tried again
        parts = LLM.from_pretrained(mood)._parts({**options, "engine": "auto"})
        assert parts.about["engine"] == "torch"
        assert "openvino was refused: the openvino model in float32 is not the same model" in parts.about["engine_why"]
    assert len(written) == 1
    with pytest.raises(errors.ParityError, match="not the same model"):
        LLM.from_pretrained(mood)._parts({**options, "engine": "openvino"})
    assert len(written) == 2


def test_a_model_that_was_tuned_in_memory_has_no_files_to_export(mood: Path) -> None:
    tuned = LLM.from_pretrained(mood)
    tuned._tuned = True
    with pytest.raises(errors.UsageError, match="this one was tuned in memory"):
        tuned._parts({"engine": "openvino", "precision": "float32"})


@pytest.mark.slow
def test_an_export_is_served_by_an_engine_that_reads_it_and_by_no_other(mood: Path, tmp_path: Path) -> None:
    LLM.from_pretrained(mood).export(tmp_path / "exported", "openvino")
    options = {"precision": "auto", "speed": "auto", "device": "auto", "threads": 1}
    for engine in (None, "auto", "openvino"):
        parts = LLM.from_pretrained(tmp_path / "exported")._parts({**options, "engine": engine})
        assert parts.about["engine"] == "openvino"
    with pytest.raises(errors.UsageError, match="is a openvino model in float32, which torch does not run"):
        LLM.from_pretrained(tmp_path / "exported")._parts({**options, "engine": "torch"})
    with pytest.raises(errors.UsageError, match="has no int8"):
        LLM.from_pretrained(tmp_path / "exported")._parts({**options, "engine": "openvino", "quantize": "int8"})


def test_an_engine_that_holds_no_such_model_is_refused(mood: Path) -> None:
    pytest.importorskip("ctranslate2")
    with pytest.raises(errors.UsageError, match="ctranslate2 runs no encoder model"):
        LLM.from_pretrained(mood)._parts({"engine": "ctranslate2", "precision": "float32"})


# -- engines that batch by themselves -----------------------------------------------------------------


class Beside:
    """Such an engine, made of this project's own loop; it can be told to die."""

    batches: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset({"temperature", "top_k"})
    how = "float32, of the tests"
    opened: ClassVar[list[Beside]] = []
    outside: ClassVar[int] = 300 << 20

    def __init__(
        self, folder: Path, artifact: Mapping[str, Any], *, threads: int | None, rows: int, tokens: int
    ) -> None:
        assert artifact["writes"]
        self.rows, self.closed, self.dies, self.most = rows, False, False, 0
        self._generator = LLM.from_pretrained(folder)._generator(GenerateConfig(precision="float32", threads=threads))
        self._requests: dict[int, Request] = {}
        self._told: dict[int, int] = {}
        self._running: Running | None = None
        self.opened.append(self)

    def join(self, number: int, prompt: Sequence[int], choice: Choice) -> None:
        config = GenerateConfig(max_new_tokens=choice.most, temperature=choice.temperature, top_k=choice.top_k)
        (request,) = self._generator.requests([prompt], config)
        request.index = number
        request.random.manual_seed(choice.seed)
        if self._running is None or not self._running.going:
            self._running = Running(self._generator.decoder([request]))
        self._running.join([request])
        self._requests[number], self._told[number] = request, 0
        self.most = max(self.most, len(self._requests))

    def step(self) -> list[News]:
        if self.dies:
            self.dies, self._requests, self._running = False, {}, None
            raise errors.UnavailableError("the engine died", retry_after=1)
        if self._running is None or not self._running.going:
            return []
        for _ in self._running.step():
            pass
        out = []
        for number, request in list(self._requests.items()):
            new = request.tokens[self._told[number] :]
            self._told[number] += len(new)
            out.append(News(number, new, request.finish_reason))
            if request.finish_reason:
                del self._requests[number]
        return out

    def drop(self, number: int) -> None:
        self._requests.pop(number).finish_reason = "left"

    def bytes_outside(self) -> int:
        return self.outside

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("batching") / "writer", "AutoModelForCausalLM", max_length=2048)


@pytest.fixture(scope="module")
def server(writer: Path) -> Iterator[Server]:
    load = plugins.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facts, "ENGINES", {**ENGINES, "beside": Way(batches=True, kinds=("decoder",))})
        patch.setattr(plugins, "load", lambda kind, name: Beside if name == "beside" else load(kind, name))
        models = {"writer": writer, "plain": writer}
        with serving(models, engine=["beside", "plain=torch"], max_streams=8) as running:
            yield running
    assert Beside.opened[-1].closed


def test_each_model_has_the_engine_that_it_was_given(server: Server) -> None:
    listed = {one["id"]: one["engine"] for one in server.http.get("/v1/models").json()["data"]}
    assert listed == {"writer": "beside", "plain": "torch"}


def test_an_option_for_each_model_goes_before_the_one_for_all() -> None:
    assert of_each("engine", None, ["a", "b"]) == {"a": None, "b": None}
    assert of_each("engine", "torch", ["a", "b"]) == {"a": "torch", "b": "torch"}
    assert of_each("engine", "b=openvino, torch", ["a", "b", "c"]) == {"a": "torch", "b": "openvino", "c": "torch"}
    for text, said in (("B=torch", "there is no model 'B'"), ("=torch", "there is no model ''"),
                       ("torch,auto", "the engine is both torch and auto"),
                       ("a=torch,a=auto", "the engine of a is both torch and auto")):  # fmt: skip
        with pytest.raises(errors.UsageError, match=said):
            of_each("engine", text, ["a", "b"])


def test_the_command_takes_engines_and_formats_for_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    from llmasos.cli import main

    two = ["serve", "starter-chat", "other=starter-chat", "--port", "0"]
    assert main([*two, "--engine", "torch", "--engine", "othr=torch"]) == 2
    assert "there is no model 'othr'" in (told := capsys.readouterr().err)
    assert "did you mean 'other'" in told
    assert main([*two, "--engine", "other=torch", "--quantize", "other=int8"]) == 2
    assert "quantize=int8 does nothing with the engine torch" in capsys.readouterr().err
    assert main([*two, "--engine", "other=torch", "--quantize", "starter-chat=int8"]) == 2
    assert "quantize=int8 without an engine" in capsys.readouterr().err


def test_what_a_program_beside_this_one_holds_counts(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = server.desk.shelves["writer"]
    before = server.desk.used_bytes
    assert shelf.bytes > 300 << 20
    monkeypatch.setattr(Beside, "outside", 700 << 20)
    assert server.desk.used_bytes >= before + (350 << 20)
    line = next(
        one for one in server.http.get("/metrics").text.splitlines() if one.startswith('llmasos_model_bytes{model="w')
    )
    assert float(line.split()[1]) > 700 << 20


def completed(server: Server, prompt: str, **options: Any) -> Any:
    body = {"model": "writer", "prompt": prompt, "temperature": 0, "max_tokens": 24, **options}
    return server.http.post("/v1/completions", json=body)


def expected(writer: Path, prompt: str, **options: Any) -> Any:
    return LLM.from_pretrained(writer).generate(prompt, precision="float32", max_new_tokens=24, **options)


def test_answers_are_those_of_torch(server: Server, writer: Path) -> None:
    for text in TEXTS:
        answer = completed(server, text).json()
        wanted = expected(writer, text)
        assert answer["choices"][0]["text"] == wanted.text
        assert answer["choices"][0]["finish_reason"] == wanted.finish_reason
        assert answer["usage"]["completion_tokens"] == len(wanted.tokens)


def test_draws_are_those_of_the_seed(server: Server, writer: Path) -> None:
    drawn = [completed(server, TEXTS[0], temperature=1.5, seed=seed).json()["choices"][0]["text"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_stop_strings_end_an_answer_and_the_engine_s_work(server: Server, writer: Path) -> None:
    whole = expected(writer, TEXTS[0]).text
    stop = whole[3:5]
    answer = completed(server, TEXTS[0], stop=stop).json()["choices"][0]
    assert answer["text"] == whole[: whole.index(stop)]
    assert answer["finish_reason"] == "stop"
    until = time.monotonic() + 20  # the answer is told a moment before the engine is
    while Beside.opened[-1]._requests and time.monotonic() < until:
        time.sleep(0.01)
    assert not Beside.opened[-1]._requests


def test_pieces_come_as_they_are_written(server: Server, writer: Path) -> None:
    whole = expected(writer, TEXTS[0]).text
    body = {"model": "writer", "prompt": TEXTS[0], "temperature": 0, "max_tokens": 24, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {")]
    pieces = [json.loads(line)["choices"][0]["text"] for line in lines]
    assert "".join(pieces) == whole
    assert sum(map(bool, pieces)) > 3


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"logprobs": 2}, "logprobs"),
        ({"temperature": 1.0, "top_p": 0.5}, "top_p"),
        ({"repetition_penalty": 1.5}, "repetition_penalty"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_name(server: Server, option: dict[str, Any], named: str) -> None:
    before = server.desk.shelves["writer"].served.scheduler.counts.requests
    body = {"model": "writer", "prompt": "a", "max_tokens": 4, **option}
    answer = server.http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert named in answer.text
    assert server.desk.shelves["writer"].served.scheduler.counts.requests == before


def test_a_schema_is_refused_as_one(server: Server) -> None:
    generator = server.desk.shelves["writer"].served.parts.generator
    with pytest.raises(
        SchemaError, match=r"json_schema cannot be had from this model's engine \(float32, of the tests"
    ):
        generator.requests([[5]], GenerateConfig(), json_schema={"type": "object"})


def test_many_at_once_each_get_their_own_answer(server: Server, writer: Path) -> None:
    texts = [f"{'abcdefgh'[i % 8]} {['day', 'no', 'what'][i % 3]} " * (1 + i % 5) for i in range(24)]
    wanted = [expected(writer, text).text for text in texts]
    found: dict[int, str] = {}

    def ask(start: int) -> None:
        for i in range(start, len(texts), 12):
            body = {"model": "writer", "prompt": texts[i], "temperature": 0, "max_tokens": 24}
            answer = httpx2.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
            found[i] = answer["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(texts))] == wanted
    assert 1 < Beside.opened[-1].most <= 8


def test_when_a_client_leaves_the_engine_stops_writing_to_it(server: Server) -> None:
    counts = server.desk.shelves["writer"].served.scheduler.counts
    saved = counts.tokens_saved
    body = {"model": "writer", "prompt": "a", "temperature": 0, "max_tokens": 1500, "stream": True}
    with httpx2.Client(base_url=server.url) as http, http.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    until = time.monotonic() + 10
    while Beside.opened[-1]._requests and time.monotonic() < until:
        time.sleep(0.02)
    assert not Beside.opened[-1]._requests
    assert counts.tokens_saved > saved


def test_when_the_engine_dies_all_are_told_and_the_next_are_answered(server: Server, writer: Path) -> None:
    codes: list[int] = []

    def ask() -> None:
        body = {"model": "writer", "prompt": "a", "temperature": 0, "max_tokens": 1500}
        codes.append(httpx2.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 10
    while len(Beside.opened[-1]._requests) < 4 and time.monotonic() < until:
        time.sleep(0.005)
    Beside.opened[-1].dies = True
    for thread in threads:
        thread.join()
    assert codes == [503] * 4
    assert completed(server, TEXTS[0]).json()["choices"][0]["text"] == expected(writer, TEXTS[0]).text


def test_other_tokens_than_the_model_s_are_refused(writer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = plugins.load

    class Wrong(Beside):
        def step(self) -> list[News]:
            return [News(news.number, [token + 1 for token in news.tokens], news.reason) for news in super().step()]

    monkeypatch.setattr(facts, "ENGINES", {**ENGINES, "wrong": Way(batches=True, kinds=("decoder",))})
    monkeypatch.setattr(plugins, "load", lambda kind, name: Wrong if name == "wrong" else load(kind, name))
    options = {"precision": "float32", "speed": "auto", "device": "auto", "threads": 1, "engine": "wrong"}
    with pytest.raises(errors.ParityError, match="golden answers are other tokens by float32, of the tests"):
        LLM.from_pretrained(writer)._parts(options)
    assert Beside.opened[-1].closed


# -- OpenVINO GenAI -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_openvino_genai_writes_what_torch_does(writer: Path) -> None:
    pytest.importorskip("openvino_genai", reason="OpenVINO GenAI is not installed")
    texts = [text * n for text in TEXTS for n in (1, 3)]
    wanted = {text: expected(writer, text) for text in texts}
    exporter = ENGINES["openvino-genai"].exporter
    assert exporter is not None
    conversion.exported(LLM.from_pretrained(writer), exporter, "float32")  # so that the server opens at once
    with serving({"writer": writer}, engine="openvino-genai", max_streams=4) as server:
        found: dict[str, Any] = {}

        def ask(text: str) -> None:
            body = {"model": "writer", "prompt": text, "temperature": 0, "max_tokens": 24}
            found[text] = httpx2.post(f"{server.url}/v1/completions", json=body, timeout=60).json()["choices"][0]

        threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for text, one in wanted.items():
            assert (found[text]["text"], found[text]["finish_reason"]) == (one.text, one.finish_reason)
        drawn = [completed(server, "a", temperature=1.5, seed=seed).json()["choices"][0]["text"] for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        (least,) = completed(server, "a", temperature=1.5, min_p=1.0).json()["choices"]
        assert least["text"] == expected(writer, "a").text
        batcher = server.desk.shelves["writer"].served.parts.generator.batcher
        assert "keys and values in f32" in batcher.how
        with httpx2.Client(base_url=server.url) as http:
            body = {"model": "writer", "prompt": "a", "temperature": 0, "max_tokens": 1500, "stream": True}
            with http.stream("POST", "/v1/completions", json=body) as answer:
                next(answer.iter_lines())
        until = time.monotonic() + 10
        while batcher._under_way and time.monotonic() < until:
            time.sleep(0.02)
        assert not batcher._under_way
        assert not batcher._pipeline.has_non_finished_requests()
