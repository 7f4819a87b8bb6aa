"""A saved encoder opens without transformers, and answers as transformers does; what is not proven does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmasos import LLM
from llmasos.architectures import base
from llmasos.core import bundle
from tiny import save_tiny_bert, tiny_tokenizer

ROWS = {
    "text-classification": [{"text": "good", "label": "a"}, {"text": "bad", "label": "b"}],
    "token-classification": [{"tokens": ["a", "bc"], "tags": ["O", "B-x"]}, {"tokens": ["d"], "tags": ["O"]}],
    "question-answering": [
        {"question": "who", "context": "abc def", "answers": {"text": ["abc"], "answer_start": [0]}}
    ],
    "sentence-similarity": [{"text1": "ab", "text2": "ab", "score": 1.0}, {"text1": "ab", "text2": "z", "score": 0.0}],
}
FAMILY = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}


def save_kind(folder: Path, kind: str) -> Path:
    """Write an encoder of the family, of other sizes than the defaults."""
    import torch
    import transformers

    if kind == "bert":
        return save_tiny_bert(folder)
    tokenizer, start = tiny_tokenizer(60), FAMILY[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{start}Config")(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=64, type_vocab_size=1, pad_token_id=tokenizer.pad_token_id, initializer_range=0.3,
        layer_norm_eps=1e-4,
    )  # fmt: skip
    getattr(transformers, f"{start}Model")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tuned(folder: Path, kind: str, task: str) -> Path:
    from llmasos.core import plugins

    model = LLM.from_pretrained(save_kind(folder / "base", kind))
    model.finetune(plugins.load("tasks", task)(), ROWS[task] * 4, epochs=1, batch_size=4, eval_split=0.0)
    return Path(model.save(folder / "saved"))


def questions(task: str) -> list[dict]:
    answers = {"label", "tags", "answers", "score"}
    rows = [{name: value for name, value in row.items() if name not in answers} for row in ROWS[task]]
    return rows + [{name: value * 9 for name, value in row.items()} for row in rows]


CASES = [*((kind, "text-classification") for kind in FAMILY), *(("bert", task) for task in ROWS),
         ("roberta", "token-classification"), ("roberta", "question-answering")]  # fmt: skip


@pytest.mark.parametrize(("kind", "task"), dict.fromkeys(CASES))
def test_the_answers_are_those_of_transformers(kind, task, tmp_path):
    folder, rows = tuned(tmp_path, kind, task), questions(task)
    bare, whole = LLM.from_pretrained(folder), LLM.from_pretrained(folder)
    options = {"precision": "float32", "batch_size": 3}
    found, wanted = bare.predict(rows, **options), whole.predict(rows, **options, speed="plain")
    assert bare._model is None
    assert whole._model is not None
    for here, there in zip(found, wanted, strict=True):
        assert str(here)[:12] == str(there)[:12]
        numbers = [np.asarray(one if isinstance(one, list) else getattr(one, "score", 0.0)) for one in (here, there)]
        assert np.allclose(*numbers, atol=1e-4)
    assert dict(bare.model.named_parameters()).keys() == dict(whole.model.named_parameters()).keys()


def test_nothing_of_transformers_is_imported(tmp_path):
    folder = tuned(tmp_path, "bert", "text-classification")
    code = f"""
import sys
from llmasos import LLM
model = LLM.from_pretrained({str(folder)!r})
model.predict(["good"])
model._compared(model._parts({{}}))
assert not [name for name in sys.modules if name.split(".")[0] == "transformers"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_exported_model_is_served_without_torch(tmp_path):
    pytest.importorskip("onnxruntime")
    folder = tuned(tmp_path, "bert", "text-classification")
    LLM.from_pretrained(folder).export(tmp_path / "onnx", "onnx")
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from served import serving
from llmasos import LLM
folder = {str(tmp_path / "onnx")!r}
with serving({{"m": folder}}) as server:
    found = server.http.post("/v1/classify", json={{"inputs": "good"}}).json()
assert found["result"]["label"] == LLM.from_pretrained(folder).predict(["good"])[0].label
assert not {{name.split(".")[0] for name in sys.modules}} & {{"torch", "transformers"}}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def wrong_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["classifier.weight"] += 1.0
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def other_activation(folder: Path) -> None:
    _change(folder, hidden_act="relu")


def default_activation(folder: Path) -> None:
    _change(folder, hidden_act=None)


def other_epsilon(folder: Path) -> None:
    _change(folder, layer_norm_eps=0.5)


def no_size(folder: Path) -> None:
    _change(folder, intermediate_size=None)


def another_version(folder: Path) -> None:
    _change(folder, classifier_dropout=None)


def unknown_head(folder: Path) -> None:
    _change(folder, architectures=None)


def no_golden(folder: Path) -> None:
    (folder / "golden.json").unlink()


def said_otherwise(folder: Path) -> None:
    path = folder / bundle.MANIFEST
    content = json.loads(path.read_text())
    content["tokenizer"]["light"] = None
    path.write_text(json.dumps(content))


def _change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in content.items() if values.get(name, 0) is not None}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tuned(tmp_path_factory.mktemp("bare"), "bert", "text-classification")


BROKEN = [
    wrong_weight,
    other_activation,
    default_activation,
    other_epsilon,
    no_size,
    another_version,
    unknown_head,
    no_golden,
    said_otherwise,
]


@pytest.mark.parametrize("change", BROKEN)
def test_what_its_golden_rows_do_not_prove_is_opened_by_transformers(change, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    change(folder)
    model = LLM.from_pretrained(folder)
    if change is no_size:  # transformers has a default, which is another size
        with pytest.raises(Exception, match=r"intermediate|weights"):
            model.predict(["good"])
    else:
        assert len(model.predict(["good", "bad"])) == 2
    assert not model._light


def test_a_forward_that_is_wrong_only_side_by_side_is_not_used(saved, monkeypatch):
    group = base._group

    def opened(*arguments):
        made = group(*arguments)
        return made if made.bias is None else made._replace(bias=made.bias * 0.0 + (made.bias == 0) * 0.0)

    rows = ["a", "abcdefgh ijkl mnop", "abc", "good and bad and good"]
    wanted = LLM.from_pretrained(saved).predict(rows, speed="plain", precision="float32")
    monkeypatch.setattr(base, "_group", opened)
    model = LLM.from_pretrained(saved)
    found = model.predict(rows, precision="float32")
    assert not model._light
    assert [round(one.score, 4) for one in found] == [round(one.score, 4) for one in wanted]


def test_a_model_that_is_tuned_on_reads_with_its_own_tokenizer(saved):
    from llmasos import TextClassificationTask

    model = LLM.from_pretrained(saved)
    model.predict(["good"])
    assert model._light
    model.finetune(TextClassificationTask(), ROWS["text-classification"] * 4, epochs=1, batch_size=4, eval_split=0.0)
    assert model._reader is model.tokenizer


def test_a_layout_that_is_not_the_familys_is_none(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    assert base.bare(folder, "row") is not None
    assert base.bare(folder, "token") is None
    _change(folder, num_hidden_layers=3)
    assert base.bare(folder, "row") is None


def test_its_weights_are_no_longer_the_files(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    model, _ = base.bare(folder, "row")
    before = model.classifier.weight.sum().item()
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(bytes((folder / "model.safetensors").stat().st_size))
    assert model.classifier.weight.sum().item() == before
