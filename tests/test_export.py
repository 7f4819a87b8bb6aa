"""The export gate: what it refuses, what it keeps, what it says; formats themselves are in the contract."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from llmasos import LLM, LanguageModelingTask, TextClassificationTask, errors, export, golden
from llmasos.certificate import TOLERANCES, Tolerance
from llmasos.cli import main
from llmasos.core import bundle, llama, plugins
from llmasos.data.dataset import read
from llmasos.data.encoding import encode
from llmasos.engines._apart import Apart
from llmasos.exporters import _onnx as onnx
from llmasos.exporters._sensitivity import parts, ranked
from llmasos.exporters.base import KINDS, Source, Written
from llmasos.loading import load_writer
from tiny import save_tiny, save_tiny_bert
from writers import byte_tokenizer, tiny_writer

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier with its training and evaluation data beside it."""
    folder = tmp_path_factory.mktemp("export")
    _, rows = TextClassificationTask.sample()
    for name, some in (("train", rows), ("dev", rows[:16])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    LLM.from_pretrained(save_tiny_bert(folder / "base")).finetune(
        TextClassificationTask(), folder / "train.jsonl", eval_data=folder / "dev.jsonl", epochs=12, batch_size=8,
        learning_rate=3e-3, output=folder / "model", progress=False,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def artifact(tuned: Path) -> Path:
    """The classifier in ONNX; not to be changed."""
    LLM.from_pretrained(tuned / "model").export(tuned / "onnx", "onnx")
    return tuned / "onnx"


@pytest.fixture
def written(tuned: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let exports write what is already there, so that only the gate works; ``change`` changes the folder first."""

    def set_up(change: Any = lambda folder: None) -> None:
        def write(self: Any, source: Source, folder: Path, precision: str) -> Any:
            shutil.copytree(artifact / "onnx", folder / "onnx")
            change(folder)
            return Written(["onnx/model.onnx"], more={"writes": False})

        monkeypatch.setattr(onnx.OnnxFormat, "write", write)

    return set_up


def test_it_is_scored_on_the_rows_of_the_training_while_they_are_the_same(
    tuned: Path, written: Any, tmp_path: Path
) -> None:
    written()
    llm = LLM.from_pretrained(tuned / "model")
    assert llm.export(tmp_path / "a", "onnx").score.rows == 16  # type: ignore[union-attr]
    shutil.copytree(tuned / "model", tmp_path / "model")
    record = json.loads((tmp_path / "model" / "run" / "run.json").read_text())
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "a good day", "label": "praise"}\n{"text": "a bad day", "label": "complaint"}\n')
    record["asked"]["eval_data"] = str(other)
    (tmp_path / "model" / "run" / "run.json").write_text(json.dumps(record))
    assert LLM.from_pretrained(tmp_path / "model").export(tmp_path / "b", "onnx").score is None
    assert llm.export(tmp_path / "c", "onnx", data=other).score.rows == 2  # type: ignore[union-attr]


def test_the_certificate_says_what_was_found(artifact: Path) -> None:
    content = json.loads((artifact / "certificate.json").read_text())
    assert content["runtime"].startswith("float32, ONNX Runtime ")
    assert content["score"]["metric"] == "accuracy"
    assert content["score"]["agreement"] == 1.0
    assert content["score"]["is_inside"]
    assert content["golden"]["relative"] < 1e-3
    for name in ("size_bytes", "load_seconds", "open_seconds", "latency_ms", "rows_per_second", "peak_bytes"):
        assert content[name] > 0
    assert content["versions"]["onnxruntime"]
    assert set(content["files"]) == {"onnx/model.onnx"}


@pytest.mark.parametrize("target", plugins.names("exporters"))
def test_versions_are_told_by_the_names_of_distributions(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "version", lambda: "0.3")
    found = export.versions(target)
    assert found.pop("llmasos")
    assert found.pop("llama-cpp-python", None) == ("0.3" if target == "gguf" else None)
    assert found == {name: metadata.version(name) for name in found}
    requires = plugins.load("exporters", target).requires
    assert found.keys() >= {name.replace("_", "-") for name in requires if importlib.util.find_spec(name)}


def test_the_options_of_an_export_are_kept_to(
    tuned: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    calibrated: list[Any] = []
    usual = Apart.outputs

    def outputs(self: Any, batch: Any) -> Any:
        sizes.append(len(batch))
        return usual(self, batch)

    def write(self: Any, source: Source, folder: Path, precision: str) -> Written:
        calibrated.append(source.calibration)
        shutil.copytree(artifact / "onnx", folder / "onnx")
        return Written(["onnx/model.onnx"], more={"writes": False})

    monkeypatch.setattr(Apart, "outputs", outputs)
    monkeypatch.setattr(onnx.OnnxFormat, "write", write)
    llm = LLM.from_pretrained(tuned / "model")
    llm.export(tmp_path / "a", "onnx", batch_size=3, max_length=12)
    assert max(sizes) == 3
    assert json.loads((tmp_path / "a" / "golden.json").read_text())["max_length"] == 12
    with pytest.raises(errors.UsageError, match="takes at most 64 tokens"):
        llm.export(tmp_path / "b", "onnx", max_length=65)
    _, rows = TextClassificationTask.sample()
    llm.export(tmp_path / "c", "onnx", quantize="int8", calibration=rows[:5])
    llm.export(tmp_path / "d", "onnx", quantize="int8")  # those of the training
    assert [len(one) for one in calibrated[1:]] == [5, 24]


def test_golden_rows_that_no_model_could_read_are_no_proof(tmp_path: Path) -> None:
    kind = plugins.load("tasks", "text-generation")
    llm = LLM.from_pretrained(save_tiny(tmp_path / "base", kind.auto_class))
    task, _ = kind().fitted([], llm.tokenizer)
    with pytest.raises(errors.DataError, match="at most 20 tokens reads no golden row"):
        golden.make(load_writer(tmp_path / "base"), task, llm.tokenizer, 20)


def test_a_quantized_export_needs_rows_and_says_so(tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned / "model", tmp_path / "model", ignore=shutil.ignore_patterns("run"))
    with pytest.raises(errors.UsageError, match="its score must be compared") as raised:
        LLM.from_pretrained(tmp_path / "model").export(tmp_path / "out", "onnx", quantize="int8")
    assert "--data" in str(raised.value)


def test_a_score_that_drops_is_refused_with_rows_and_numbers_and_a_budget_accepts_it(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, llm = onnx.OnnxFormat.write, LLM.from_pretrained(tuned / "model")
    largest = golden.read(tuned / "model").largest  # type: ignore[union-attr]

    def shifted(self: Any, source: Source, folder: Path, precision: str) -> Any:
        model = copy.deepcopy(source.model)
        with torch.no_grad():
            model.classifier.bias[0] += 3.0 * largest
        return usual(self, replace(source, model=model), folder, precision)

    monkeypatch.setattr(onnx.OnnxFormat, "write", shifted)
    monkeypatch.setattr(onnx.OnnxFormat, "mixed", ())
    monkeypatch.setitem(TOLERANCES, "int8-dynamic", Tolerance(10.0, 1.0))  # the score alone decides
    texts = [f"a {word} day" for word in ("god", "gad", "bod", "go", "ba", "b", "g", "o", "d", "bd", "good", "bad")]
    rows = [{"text": text, "label": llm.predict(text).label} for text in texts]
    options: dict[str, Any] = {"data": rows, "quantize": "int8-dynamic"}
    with pytest.raises(errors.ParityError, match=r"accuracy falls from .* % lost where 0 % is allowed") as raised:
        llm.export(tmp_path / "out", "onnx", accept_drop=0.0, **options)
    assert "row " in raised.value.message
    assert "--accept-drop" in str(raised.value.hint)
    assert list(tmp_path.iterdir()) == []
    found = llm.export(tmp_path / "out", "onnx", accept_drop=100.0, **options)
    assert found.tolerance.drop == 100.0
    assert found.score.lost > 0.0  # type: ignore[union-attr]


def test_nothing_is_left_behind_when_it_is_interrupted(tuned: Path, written: Any, tmp_path: Path) -> None:
    def interrupt(_folder: Path) -> None:
        raise KeyboardInterrupt

    written(interrupt)
    with pytest.raises(KeyboardInterrupt):
        LLM.from_pretrained(tuned / "model").export(tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_replaced_only_when_asked_and_only_if_it_is_a_model(
    tuned: Path, written: Any, tmp_path: Path
) -> None:
    written()
    llm = LLM.from_pretrained(tuned / "model")
    llm.export(tmp_path / "out", "onnx")
    with pytest.raises(errors.UsageError, match="exists already"):
        llm.export(tmp_path / "out", "onnx")
    llm.export(tmp_path / "out", "onnx", overwrite=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(errors.UsageError, match="no model folder"):
        llm.export(tmp_path / "photos", "onnx", overwrite=True)
    assert (tmp_path / "photos" / "cat.png").exists()


def test_a_runtime_that_cannot_read_it_is_an_error_and_leaves_nothing(
    tuned: Path, written: Any, tmp_path: Path
) -> None:
    written(lambda folder: (folder / "onnx" / "model.onnx").write_bytes(b"not a graph"))
    with pytest.raises(errors.BundleError, match="ONNX Runtime cannot open"):
        LLM.from_pretrained(tuned / "model").export(tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


def edited(path: Path, change: Any) -> None:
    """Change a file of JSON."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def swapped(folder: Path) -> None:
    """Let a tokenizer take two letters for each other."""
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    both = {"a": vocab["b"], "b": vocab["a"]}
    edited(folder / "tokenizer.json", lambda content: content["model"]["vocab"].update(both))


def without_edges(folder: Path) -> None:
    """Let a tokenizer begin and end a text with nothing."""
    edited(folder / "tokenizer.json", lambda content: content.update(post_processor=None))


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that lets exports change their folder after everything was written."""
    usual = export._written

    def set_up(change: Any) -> None:
        def write(job: Any, exporter: Any, source: Source, work: Path, *more: Any) -> Any:
            content = usual(job, exporter, source, work, *more)
            change(work)
            return content

        monkeypatch.setattr(export, "_written", write)

    return set_up


@pytest.mark.parametrize("change", [swapped, without_edges])
def test_a_tokenizer_that_reads_differently_once_it_is_saved_is_refused(
    change: Any, tuned: Path, written: Any, spoilt: Any, tmp_path: Path
) -> None:
    written()
    spoilt(change)
    with pytest.raises(errors.ParityError, match="other tokens of the golden texts"):
        LLM.from_pretrained(tuned / "model").export(tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_another_template_and_a_lost_stop_token_are_refused(spoilt: Any, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    kind = plugins.load("tasks", "text-generation")
    task, rows = kind.sample()
    llm = LLM.from_pretrained(save_tiny(tmp_path / "base", kind.auto_class, max_length=160))
    llm.finetune(task, rows, epochs=1, output=tmp_path / "model", progress=False, allow_unknown=1.0)
    stops = [llm.tokenizer.sep_token_id, 7]
    llm.model.generation_config.eos_token_id = stops

    def template(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")

    def stop(folder: Path) -> None:
        edited(folder / "generation_config.json", lambda content: content.update(eos_token_id=stops[0]))

    before = sorted(tmp_path.iterdir())
    for change, wrong in ((template, "other chat template"), (stop, "end with the tokens")):
        spoilt(change)
        with pytest.raises(errors.ParityError, match=wrong):
            llm.export(tmp_path / "out", "openvino", data=rows)
        assert sorted(tmp_path.iterdir()) == before
    spoilt(lambda folder: None)
    llm.export(tmp_path / "out", "openvino", data=rows)
    stop(tmp_path / "out")
    assert main(["verify", str(tmp_path / "out")]) == 2  # the file was changed
    manifest = tmp_path / "out" / "llmasos.json"
    digest = bundle.digest(tmp_path / "out" / "generation_config.json")
    edited(manifest, lambda content: content["files"].update({"generation_config.json": digest}))
    with pytest.raises(errors.ParityError, match="end with the tokens"):
        LLM.from_pretrained(tmp_path / "out").verify()


def test_a_runtime_that_dies_is_an_error(artifact: Path) -> None:
    content = json.loads((artifact / "llmasos.json").read_text())["artifact"]
    with Apart(artifact, content, pad_id=0, output="row") as engine:
        engine._child._process.kill()
        with pytest.raises(errors.BundleError, match="died: signal 9"):
            engine.peak_bytes()


def test_its_process_has_neither_torch_nor_transformers(artifact: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from llmasos.core import plugins;"
        "import llmasos.engines._apart; folder = Path(sys.argv[1]);"
        "artifact = json.loads((folder / 'llmasos.json').read_text())['artifact'];"
        "plugins.load('engines', artifact['engine'])(folder, artifact, pad_id=0, output='row');"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(artifact)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_exported_model_only_answers(artifact: Path) -> None:
    llm = LLM.from_pretrained(artifact)
    _, rows = TextClassificationTask.sample()
    assert llm.evaluate(rows).metrics["accuracy"].value == 1.0
    with pytest.raises(errors.UsageError, match="which answers and is scored, and no more"):
        llm.finetune(TextClassificationTask(), rows)
    with pytest.raises(errors.UsageError, match="which answers and is scored, and no more"):
        llm.save(artifact.parent / "again")
    with pytest.raises(errors.UsageError, match="writes no text"):
        llm.generate("a good")
    for name, value in (("precision", "bfloat16"), ("speed", "plain"), ("device", "cuda")):
        with pytest.raises(errors.UsageError, match=rf"{name}={value}, but .* is a onnx model in float32"):
            llm.predict(rows[:1], **{name: value})


def test_verify_finds_what_was_changed(artifact: Path, tmp_path: Path) -> None:
    def changed(name: str, change: Any, *, hashed: bool = True) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(artifact, folder)
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
        if not hashed:  # as by somebody who writes the digests anew
            manifest = json.loads((folder / "llmasos.json").read_text())
            manifest["files"][name] = bundle.digest(folder / name)
            (folder / "llmasos.json").write_text(json.dumps(manifest))
        return folder

    def other_output(content: Any) -> None:
        content["examples"][1]["outputs"][0][0] += 1.0

    with pytest.raises(errors.BundleError, match=r"changed: golden.json"):
        LLM.from_pretrained(changed("golden.json", other_output)).verify()
    with pytest.raises(errors.ParityError, match="golden row 2 differs by 1"):
        LLM.from_pretrained(changed("golden.json", other_output, hashed=False)).predict("a good day")  # at first load
    with pytest.raises(errors.ParityError, match="golden row 2 differs by 1"):
        LLM.from_pretrained(changed("golden.json", other_output, hashed=False)).verify()

    def other_token(content: Any) -> None:
        content["examples"][0]["ids"][0][1] += 1

    with pytest.raises(errors.ParityError, match="golden row 1 becomes other tokens"):
        LLM.from_pretrained(changed("golden.json", other_token, hashed=False)).verify()

    def other_file(content: Any) -> None:
        content["files"]["onnx/model.onnx"] = "0" * 64

    with pytest.raises(errors.BundleError, match=r"the certificate in .* is of other files"):
        LLM.from_pretrained(changed("certificate.json", other_file, hashed=False)).verify()

    def other_special(content: Any) -> None:
        content["tokenizer"]["special_ids"]["pad_token"] = 7

    with pytest.raises(errors.ParityError, match="other special tokens"):
        LLM.from_pretrained(changed("llmasos.json", other_special)).verify()

    def other_version(content: Any) -> None:
        content["runtime"] = "float32, ONNX Runtime 1.0.0"

    found = LLM.from_pretrained(changed("certificate.json", other_version, hashed=False)).verify()
    assert found.notes[0].startswith("certified with float32, ONNX Runtime 1.0.0, this is float32, ONNX Runtime ")


def test_a_saved_model_verifies_itself(tuned: Path, tmp_path: Path) -> None:
    found = LLM.from_pretrained(tuned / "model").verify(tuned / "dev.jsonl")
    assert found.target is None
    assert found.golden.relative < 1e-3
    assert found.score is not None
    shutil.copytree(tuned / "model", tmp_path / "old")
    (tmp_path / "old" / "golden.json").unlink()
    manifest = json.loads((tmp_path / "old" / "llmasos.json").read_text())
    del manifest["files"]["golden.json"]
    (tmp_path / "old" / "llmasos.json").write_text(json.dumps(manifest))
    with pytest.raises(errors.BundleError, match="no golden rows"):
        LLM.from_pretrained(tmp_path / "old").verify()


def test_the_commands_say_what_was_found(tuned: Path, written: Any, tmp_path: Path, capsys: Any) -> None:
    written()
    out = str(tmp_path / "out")
    assert main(["export", str(tuned / "model"), "--target", "onnx", "--output", out, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["output"] == out
    assert content["command"][:2] == ["llmasos", *sys.argv[1:2]]
    assert content["score"]["agreement"] == 1.0
    assert main(["verify", out, "--data", str(tuned / "dev.jsonl")]) == 0
    assert "is what it was" in capsys.readouterr().out
    assert main(["verify", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["golden"]["relative"] < 1e-3
    written(lambda folder: (folder / "onnx" / "model.onnx").write_bytes(b""))
    assert main(["export", str(tuned / "model"), "--target", "onnx", "--output", out, "--overwrite"]) == 2
    assert main(["export", str(tuned / "model"), "--target", "paper"]) == 2
    assert "there is no 'paper' in exporters" in capsys.readouterr().err
    assert main(["verify", out]) == 0  # what was there is there


def test_a_failed_gate_ends_with_exit_code_1(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    usual = onnx.OnnxFormat.write

    def broken(self: Any, source: Source, folder: Path, precision: str) -> Any:
        model = copy.deepcopy(source.model)
        with torch.no_grad():
            model.classifier.weight.neg_()
        return usual(self, replace(source, model=model), folder, precision)

    monkeypatch.setattr(onnx.OnnxFormat, "write", broken)
    assert main(["export", str(tuned / "model"), "--target", "onnx", "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "is not the same model" in said
    assert "golden row" in said
    assert not (tmp_path / "out").exists()


WORDS = {
    "text-classification": ("classification", "分类"), "token-classification": ("tags", "标注"),
    "question-answering": ("answers", "问答"), "sentence-similarity": ("similarity", "相似度"),
    "fill-mask": ("masks", "填空"),
}  # fmt: skip
"""Task of an encoder -> what it is called in the guides."""


@pytest.mark.parametrize("page", ["export.md", "export.zh-CN.md"])
def test_the_guides_table_says_what_formats_hold(page: str) -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "guides" / page).read_text(encoding="utf-8")
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    told = {cells[0].strip("`"): [re.findall(r"`([^`]+)`", cell) for cell in cells[2:]] for cells in lines}
    formats = {name: plugins.load("exporters", name) for name in plugins.names("exporters")}
    assert told == {
        name: [list(one.precisions.get(kind, ())) for kind in KINDS[: len(told[name])]] for name, one in formats.items()
    }
    for name, one in formats.items():  # all tasks of an encoder, or those in parentheses
        (encoders,) = (cells[2] for cells in lines if cells[0] == f"`{name}`")
        named = {word for words in WORDS.values() for word in words if word in encoders}
        held = [words for tag, words in WORDS.items() if one.holds(plugins.load("tasks", tag))]
        assert len(named) == (len(held) if len(held) < len(WORDS) else 0)
        assert all(named & set(words) for words in held if named)


def test_parts_that_suffer_from_eight_bits_come_first(tuned: Path) -> None:
    model = copy.deepcopy(LLM.from_pretrained(tuned / "model").model)
    assert parts(model) == ["bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler.dense", "classifier"]
    hostile(model, 1)
    source = Source(model, TextClassificationTask(), LLM.from_pretrained(tuned / "model").tokenizer)
    before = [p.clone() for p in model.parameters()]
    assert ranked(model, [source.example()])[0] == "bert.encoder.layer.1"
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def hostile(model: Any, layer: int) -> None:
    """Let one number of a layer be so large that eight bits leave nothing of the others."""
    part = model.bert.encoder.layer[layer]
    with torch.no_grad():
        part.output.dense.weight *= 30.0
        part.intermediate.dense.weight[0] = 0.0
        part.intermediate.dense.bias[0] = 3000.0
        part.output.dense.weight[:, 0] = 1e-6


@pytest.mark.slow
def test_where_eight_bits_lose_too_much_some_parts_stay_in_float32(tuned: Path, tmp_path: Path) -> None:
    llm = LLM.from_pretrained(tuned / "model")
    hostile(llm.model, 1)
    told: list[Any] = []
    found = llm.export(
        tmp_path / "out", "onnx", quantize="int8-dynamic", data=tuned / "dev.jsonl", progress=told.append
    )
    assert found.kept == ("bert.encoder.layer.1",)
    assert any("once more, with bert.encoder.layer.1 in float32" in str(event) for event in told)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "precision"), [("onnx", "int8"), ("onnx", "int8-dynamic"), ("openvino", "int8")])
def test_what_is_kept_is_not_quantized(tuned: Path, tmp_path: Path, target: str, precision: str) -> None:
    llm, counts = LLM.from_pretrained(tuned / "model"), []
    task, rows = llm.task, read(tuned / "dev.jsonl", llm.task.fields)  # type: ignore[union-attr]
    calibration = encode(rows, task, llm.tokenizer, 64)
    for kept in (("classifier",), ("classifier", "bert.encoder.layer.1")):
        folder = tmp_path / str(len(kept))
        folder.mkdir()
        source = Source(llm.model, task, llm.tokenizer, calibration, kept)  # type: ignore[arg-type]
        written = plugins.load("exporters", target).write(source, folder, precision)
        counts.append(small(folder / written.files[0]))
    assert counts[0] - counts[1] == 6  # query, key, value, two outputs and the intermediate


@pytest.mark.slow
def test_products_of_a_calibrated_graph_are_integer_ones(tuned: Path, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    from llmasos.engines.onnxruntime import DISABLED

    llm = LLM.from_pretrained(tuned / "model")
    llm.export(tmp_path / "out", "onnx", quantize="int8", calibration=tuned / "dev.jsonl")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "seen.onnx")
    for disabled, floats in ((DISABLED, 1), ([], 7)):  # the pooler; queries, keys and values, which share an input
        onnxruntime.InferenceSession(
            str(tmp_path / "out" / "onnx" / "model_quantized.onnx"), options, ["CPUExecutionProvider"],
            disabled_optimizers=disabled,
        )  # fmt: skip
        graph = onnx.load(str(tmp_path / "seen.onnx")).graph
        weights = {one.name for one in graph.initializer if len(one.dims) == 2}
        turned = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in weights]
        assert sum(len(weight.dims) == 2 and weight.dims[0] == weight.dims[1] for weight in graph.initializer
                   if weight.name in {node.input[0] for node in turned}) == floats  # fmt: skip


@pytest.mark.slow
def test_what_a_decoder_keeps_is_not_rounded(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    exporter, counts = plugins.load("exporters", "openvino"), []
    task = plugins.load("tasks", "text-generation")()
    for kept in ((), ("model.layers.0",)):
        folder = tmp_path / str(len(kept))
        folder.mkdir()
        exporter.write(Source(tiny_writer("llama"), task, byte_tokenizer(), kept=kept), folder, "int8")
        nodes = openvino.Core().read_model(folder / "openvino_model.xml").get_ops()
        counts.append(sum(node.get_type_name() == "Constant" and str(node.get_element_type()) == "<Type: 'uint8_t'>"
                          and len(node.get_output_shape(0)) == 2 for node in nodes))  # fmt: skip
    assert counts[0] - counts[1] == 14  # query, key, value, output, gate, up and down, each with its zero points
    assert exporter.mixes("decoder", "int8")
    assert not exporter.mixes("encoder-decoder", "int8")


def small(path: Path) -> int:
    """Count the matrices of 8 bits in a graph."""
    if path.suffix == ".onnx":
        import onnx

        graph = onnx.load(str(path)).graph
        return sum(one.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8) and len(one.dims) == 2
                   for one in graph.initializer)  # fmt: skip
    import openvino

    nodes = openvino.Core().read_model(str(path)).get_ops()
    return sum(node.get_type_name() == "Constant" and str(node.get_element_type()) in ("<Type: 'int8_t'>",)
               and len(node.get_output_shape(0)) == 2 for node in nodes)  # fmt: skip


def test_an_exported_language_model_writes_and_foretells(tmp_path: Path) -> None:
    task, rows = LanguageModelingTask.sample()
    llm = LLM.from_pretrained(save_tiny(tmp_path / "base", task.auto_class, max_length=160))
    llm.finetune(
        task, rows, epochs=4, batch_size=8, learning_rate=2e-3, output=tmp_path / "model", progress=False,
        allow_unknown=1.0,
    )  # fmt: skip
    llm = LLM.from_pretrained(tmp_path / "model")
    certificate = llm.export(tmp_path / "out", "onnx", data=rows[:4])
    assert certificate.golden.written == 1.0
    artifact = LLM.from_pretrained(tmp_path / "out")
    for prompt in ("one two", "six one"):
        expected = llm.generate(prompt, max_new_tokens=12, precision="float32")
        assert artifact.generate(prompt, max_new_tokens=12).tokens == expected.tokens
    foretold = llm.predict(rows[0]["text"], precision="float32")
    assert artifact.predict(rows[0]["text"]).perplexity == pytest.approx(foretold.perplexity, rel=1e-4)
