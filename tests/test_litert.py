"""LiteRT: the runtime pads texts to the file's lengths, and litert-torch, where it is, converts the same model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from llmasos import LLM, TextClassificationTask
from llmasos.core.config import PredictConfig
from llmasos.data.batching import Batch
from llmasos.errors import BundleError, LLMasOSError, MissingExtraError, ParityError, UsageError
from llmasos.exporters.litert import CONVERTER, lengths
from llmasos.exporters.litert import PLUGIN as FORMAT
from tiny import save_tiny_bert

pytest.importorskip("ai_edge_litert", reason="needs llmasos[litert]")

TABLE = np.arange(400, dtype=np.float32).reshape(200, 2) + 1


def _absent() -> str:
    try:
        CONVERTER.folder()
    except LLMasOSError as error:
        return f"needs litert-torch: {error.hint}"
    return ""


converts = pytest.mark.skipif(bool(_absent()), reason=_absent())
"""Tests that convert: an environment that has litert-torch is named by LLMASOS_LITERT."""


def save_sums(path, sizes, output):
    """Write a LiteRT model that finds each token in TABLE, nothing for padding; for "row" it adds them up."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as t

    whole, real, code, kind = t.TensorType.INT32, t.TensorType.FLOAT32, t.BuiltinOperator, t.BuiltinOptions
    steps = [  # what is computed, of what, with which options
        (code.GATHER, ("table", "input_ids"), "found", kind.GatherOptions, t.GatherOptionsT()),
        (code.CAST, ("attention_mask",), "inside", kind.CastOptions, t.CastOptionsT()),
        (code.EXPAND_DIMS, ("inside", "axis"), "mask", kind.ExpandDimsOptions, t.ExpandDimsOptionsT()),
        (code.MUL, ("found", "mask"), "known", kind.MulOptions, t.MulOptionsT()),
        (code.SUM, ("known", "one"), "sum", kind.ReducerOptions, t.ReducerOptionsT()),
    ]
    steps = steps if output == "row" else steps[:-1]
    constants = {"table": TABLE, "axis": np.asarray(2, dtype=np.int32), "one": np.asarray([1], dtype=np.int32)}
    model = t.ModelT()
    model.version, model.subgraphs, model.signatureDefs, model.buffers = 3, [], [], [t.BufferT()]
    model.operatorCodes = [_made(t.OperatorCodeT, builtinCode=one[0], deprecatedBuiltinCode=one[0]) for one in steps]
    for values in constants.values():
        model.buffers.append(_made(t.BufferT, data=np.frombuffer(values.tobytes(), dtype=np.uint8)))
    for number, size in enumerate(sizes):
        tensors = {
            "input_ids": ((1, size), whole), "attention_mask": ((1, size), whole), "table": (TABLE.shape, real),
            "axis": ((), whole), "one": ((1,), whole), "found": ((1, size, 2), real), "inside": ((1, size), real),
            "mask": ((1, size, 1), real), "known": ((1, size, 2), real), "sum": ((1, 2), real),
        }  # fmt: skip
        at = {name: place for place, name in enumerate(tensors)}
        given, answer = ("input_ids", "attention_mask"), at[steps[-1][2]]
        model.subgraphs.append(_made(
            t.SubGraphT, inputs=[at[name] for name in given], outputs=[answer],
            tensors=[
                _made(t.TensorT, name=name, shape=list(shape), type=kind, buffer=[*constants].index(name) + 1
                      if name in constants else 0)
                for name, (shape, kind) in tensors.items()
            ],
            operators=[
                _made(t.OperatorT, opcodeIndex=place, inputs=[at[name] for name in takes], outputs=[at[gives]],
                      builtinOptionsType=options, builtinOptions=content)
                for place, (_, takes, gives, options, content) in enumerate(steps)
            ],
        ))  # fmt: skip
        model.signatureDefs.append(_made(
            t.SignatureDefT, signatureKey=f"tokens_{size}", subgraphIndex=number,
            inputs=[_made(t.TensorMapT, name=name, tensorIndex=at[name]) for name in given],
            outputs=[_made(t.TensorMapT, name="logits", tensorIndex=answer)],
        ))  # fmt: skip
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())


def _made(kind, **fields):
    found = kind()
    vars(found).update(fields)
    return found


def opened(folder, sizes, output):
    from llmasos.engines.litert import PLUGIN as Engine

    save_sums(folder / "model.tflite", sizes, output)
    return Engine(folder, ARTIFACT, pad_id=9, output=output, threads=1)


ARTIFACT = {"files": ["model.tflite"], "precision": "float32", "engine": "litert"}


def batch(*rows):
    lengths = np.asarray([len(row) for row in rows], dtype=np.int32)
    return Batch(np.concatenate(rows).astype(np.int32), None, lengths, np.arange(len(rows)))


def test_a_row_is_padded_to_the_next_length_and_the_padding_counts_for_nothing(tmp_path):
    engine = opened(tmp_path, (8, 4), "row")
    rows = [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5], [1, 2, 3, 4], [7]]
    np.testing.assert_allclose(engine.outputs(batch(*rows)), [TABLE[row].sum(0) for row in rows])
    assert sorted(engine._runners) == [4, 8]
    assert engine.how.startswith("float32, LiteRT ")


def test_outputs_along_the_tokens_come_without_the_padding(tmp_path):
    engine = opened(tmp_path, (4, 8), "token")
    rows = [[1, 2, 3, 4, 5], [3, 2], [6]]
    np.testing.assert_allclose(engine.outputs(batch(*rows)), TABLE[np.concatenate(rows)])
    assert engine.names == ["attention_mask", "input_ids"]


def test_a_text_that_is_longer_than_the_longest_length_is_refused(tmp_path):
    with pytest.raises(UsageError, match="a text of 5 tokens, and this model was exported for at most 4"):
        opened(tmp_path, (2, 4), "row").outputs(batch([1, 2, 3, 4, 5]))


def test_a_damaged_file_and_one_of_another_kind_are_told(tmp_path):
    from llmasos.engines.litert import PLUGIN as Engine

    opened(tmp_path, (4,), "row")
    whole = (tmp_path / "model.tflite").read_bytes()
    for damaged in (b"nothing", whole[: len(whole) // 2]):
        (tmp_path / "model.tflite").write_bytes(damaged)
        with pytest.raises(BundleError, match="LiteRT cannot open"):
            Engine(tmp_path, ARTIFACT, pad_id=0, output="row", threads=1)
    (tmp_path / "model.tflite").write_bytes(whole.replace(b"tokens_4", b"serves_4"))
    with pytest.raises(BundleError, match="no signature tokens_N"):
        Engine(tmp_path, ARTIFACT, pad_id=0, output="row", threads=1)


def test_lengths_double_up_to_the_longest_text():
    assert lengths(512) == [32, 64, 128, 256, 512]
    assert lengths(200) == [32, 64, 128, 200]
    assert lengths(20) == [20]


def test_what_it_cannot_hold_is_refused_by_name():
    from transformers import BertConfig, LlamaConfig, T5Config

    from llmasos import ChatTask, TranslationTask

    for task, config in ((ChatTask(), LlamaConfig()), (TranslationTask(), T5Config())):
        with pytest.raises(UsageError, match=f"litert holds no {task.tag}"):
            FORMAT.check(task, config, None)
    with pytest.raises(UsageError, match="has no 'int4'"):
        FORMAT.check(TextClassificationTask(), BertConfig(), "int4")


def test_where_the_converter_is_missing_it_is_told_what_to_do(tmp_path, monkeypatch):
    from transformers import BertConfig

    monkeypatch.setenv("LLMASOS_LITERT", str(tmp_path))
    with pytest.raises(UsageError, match=r"LLMASOS_LITERT=.* has no litert_torch"):
        FORMAT.check(TextClassificationTask(), BertConfig(), None)
    monkeypatch.delenv("LLMASOS_LITERT")
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(MissingExtraError, match="LLMASOS_LITERT=an environment that has it"):
        FORMAT.check(TextClassificationTask(), BertConfig(), None)


def environment(folder):
    """Make an environment of this Python, which has litert_torch in name only."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    place = folder / "lib" / "python3.0" / "site-packages" / "litert_torch"
    place.mkdir(parents=True)
    return folder


def test_a_script_runs_by_the_python_of_its_environment_and_sees_nothing_of_this_one(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMASOS_LITERT", str(environment(tmp_path / "env")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "script.py").write_text(
        "import sys; from pathlib import Path; Path(sys.argv[1]).write_text(chr(10).join([sys.executable, *sys.path]))"
    )
    assert CONVERTER.run(tmp_path / "script.py", [str(tmp_path / "said")]) == []
    said = (tmp_path / "said").read_text().splitlines()
    assert said[0] == str(tmp_path / "env" / "bin" / "python")
    assert str(tmp_path) not in said
    (tmp_path / "script.py").write_text("raise ValueError('no such model')")
    assert CONVERTER.run(tmp_path / "script.py", [])[-1] == "ValueError: no such model"


def test_a_model_that_the_converter_does_not_know_is_told(tmp_path, monkeypatch):
    """The environment has no litert_torch but in name, so the script fails at its first line."""
    monkeypatch.setenv("LLMASOS_LITERT", str(environment(tmp_path / "env")))
    folder = save_tiny_bert(tmp_path / "base")
    _, rows = TextClassificationTask.sample()
    llm = LLM.from_pretrained(folder)
    llm.finetune(TextClassificationTask(), rows, epochs=1, threads=1, progress=False)
    with pytest.raises(UsageError, match=r"cannot convert a BertForSequenceClassification: \w+Error: "):
        llm.export(tmp_path / "out", "litert", data=rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "env"]


def test_a_file_that_is_another_model_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    """What stands in for the converter writes sums of numbers: the runtime opens them, and the gate does not."""

    def converted(self, script, words):
        save_sums(Path(words[1]), (32, 64), "row")
        (Path(words[0]) / "versions.json").write_text("{}")
        return []

    monkeypatch.setenv("LLMASOS_LITERT", str(environment(tmp_path / "env")))
    monkeypatch.setattr(type(CONVERTER), "run", converted)
    _, rows = TextClassificationTask.sample()
    llm = LLM.from_pretrained(save_tiny_bert(tmp_path / "base"))
    llm.finetune(TextClassificationTask(), rows, epochs=1, threads=1, progress=False)
    with pytest.raises(ParityError, match="the litert model in float32 is not the same model"):
        llm.export(tmp_path / "out", "litert", data=rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "env"]


def test_texts_are_cut_to_what_an_artifact_was_exported_for(tmp_path):
    llm = LLM.from_pretrained(save_tiny_bert(tmp_path / "base", max_length=64))
    llm._manifest = {"artifact": {**ARTIFACT, "target": "litert", "max_length": 48}}
    assert llm._max_length(PredictConfig()) == 48
    with pytest.raises(UsageError, match="at most 48 tokens"):
        llm._max_length(PredictConfig(max_length=64))


# -- with litert-torch --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    _, rows = TextClassificationTask.sample()
    llm = LLM.from_pretrained(save_tiny_bert(folder / "base", max_length=64))
    llm.finetune(TextClassificationTask(), rows, epochs=4, batch_size=8, learning_rate=5e-3, threads=1,
                 precision="float32", progress=False)  # fmt: skip
    return llm, rows


@converts
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_classifier_answers_as_the_model_does(tuned, tmp_path, precision):
    llm, rows = tuned
    found = llm.export(tmp_path / "out", "litert", quantize=precision, data=rows, max_length=48)
    assert "LiteRT" in found.runtime
    assert "litert-torch" in found.notes[0]
    artifact = LLM.from_pretrained(tmp_path / "out")
    wanted = llm.predict(rows, threads=1, precision="float32")
    for here, there in zip(artifact.predict(rows, threads=1), wanted, strict=True):
        assert here.label == there.label
        assert here.score == pytest.approx(there.score, abs={"float32": 1e-4, "int8": 0.05}[precision])
    artifact.verify(rows)
    with pytest.raises(UsageError, match="at most 48 tokens"):
        artifact.predict(rows, max_length=64)


@converts
@pytest.mark.slow
def test_eight_bits_are_smaller_and_what_is_kept_is_not(tuned, tmp_path):
    from dataclasses import replace

    from llmasos.exporters.base import Source

    llm, _ = tuned
    source = Source(llm.model, llm.task, llm.tokenizer, max_length=16)
    sizes = []
    for number, kept in enumerate([(), ("bert.encoder.layer.1",), ("bert.encoder.layer.1", "bert.encoder.layer.0")]):
        (tmp_path / str(number)).mkdir()
        FORMAT.write(replace(source, kept=kept), tmp_path / str(number), "int8")
        sizes.append((tmp_path / str(number) / "model.tflite").stat().st_size)
    layer = sum(p.numel() for p in llm.model.bert.encoder.layer[1].parameters() if p.ndim > 1)
    assert sizes[1] - sizes[0] > 2.5 * layer  # three bytes more for each weight; a head of 64 stays as it is anyway
    assert sizes[2] - sizes[1] > 2.5 * layer


@converts
@pytest.mark.slow
def test_a_file_that_was_broken_on_the_way_is_refused_and_nothing_is_left(tuned, tmp_path, monkeypatch):
    """A matrix of the written file is replaced by noise: it opens, and is not the model."""
    from llmasos.exporters import litert as format_

    llm, rows = tuned

    class Broken(type(FORMAT)):
        def write(self, source, folder, precision):
            written = super().write(source, folder, precision)
            weights = source.model.bert.encoder.layer[0].output.dense.weight.detach().numpy()
            whole = (folder / "model.tflite").read_bytes()
            assert whole.count(weights.tobytes()) == 1
            noise = np.random.default_rng(0).normal(size=weights.shape).astype(np.float32)
            (folder / "model.tflite").write_bytes(whole.replace(weights.tobytes(), noise.tobytes()))
            return written

    monkeypatch.setattr(format_, "PLUGIN", Broken())
    with pytest.raises(ParityError, match="the litert model in float32 is not the same model"):
        llm.export(tmp_path / "out", "litert", data=rows)
    assert list(tmp_path.iterdir()) == []
