"""Models that others have published: a head that tells its task answers at once, one without a task is exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from llmasos import LLM, TextClassificationTask, errors
from tiny import save_tiny, save_tiny_bert, tiny_tokenizer


def published(folder: Path, head: str, **options: Any) -> Path:
    """Save a tiny BERT with a head, as transformers does, without this project's manifest."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, **options,
    )  # fmt: skip
    getattr(transformers, head)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(folder: Path, head: str, *texts: str) -> Any:
    """Compute what transformers makes of a text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return getattr(transformers, head).from_pretrained(folder).eval()(**tokenizer(*texts, return_tensors="pt"))


@pytest.mark.parametrize("names", [{0: "bug", 1: "praise", 2: "question"}, {0: "LABEL_0", 1: "LABEL_1"}, None])
def test_a_published_classifier_answers_with_its_own_labels(tmp_path: Path, names: Any) -> None:
    head = "BertForSequenceClassification"
    options = {"id2label": names, "label2id": {v: k for k, v in names.items()}} if names else {}
    folder = published(tmp_path / "m", head, **options)
    found = LLM.from_pretrained(folder).predict("a good day", precision="float32")
    expected = logits(folder, head, "a good day").logits[0].softmax(-1)
    labels = list((names or {}).values()) if names and names[0] == "bug" else [0, 1]
    assert list(found.scores) == labels
    np.testing.assert_allclose(list(found.scores.values()), expected.numpy(), atol=1e-5)


def test_a_published_classifier_of_several_labels_at_once(tmp_path: Path) -> None:
    folder = published(tmp_path / "m", "BertForSequenceClassification", problem_type="multi_label_classification",
                       id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})  # fmt: skip
    found = LLM.from_pretrained(folder).predict("a good day", precision="float32")
    expected = logits(folder, "BertForSequenceClassification", "a good day").logits[0].sigmoid()
    np.testing.assert_allclose(list(found.scores.values()), expected.numpy(), atol=1e-5)


def test_a_regression_head_is_no_classifier(tmp_path: Path) -> None:
    folder = published(tmp_path / "m", "BertForSequenceClassification", num_labels=1, problem_type="regression")
    assert LLM.from_pretrained(folder).task is None
    with pytest.raises(errors.NotFittedError, match="no task yet"):
        LLM.from_pretrained(folder).predict("a good day")


@pytest.mark.parametrize(("tags", "scheme"), [(["O", "B-PER", "I-PER"], "IOB2"), (["noun", "verb"], "raw")])
def test_a_published_tagger_knows_its_tags(tmp_path: Path, tags: list[str], scheme: str) -> None:
    head = "BertForTokenClassification"
    names = dict(enumerate(tags))
    folder = published(tmp_path / "m", head, id2label=names, label2id={v: k for k, v in names.items()})
    llm = LLM.from_pretrained(folder)
    assert llm.task.scheme == scheme  # type: ignore[union-attr]
    found = llm.predict({"words": ["a", "b", "c"]}, precision="float32")
    best = logits(folder, head, "a b c").logits[0].argmax(-1).tolist()[1:-1]
    assert list(found.tags) == [tags[one] for one in best]


def test_a_published_reader_always_answers(tmp_path: Path) -> None:
    folder = published(tmp_path / "m", "BertForQuestionAnswering")
    found = LLM.from_pretrained(folder).predict({"question": "a b", "context": "c d e f"})
    assert found.answer
    assert found.answer in "c d e f"


def test_a_head_that_tells_too_little_and_a_damaged_configuration_leave_no_task(tmp_path: Path) -> None:
    folder = published(tmp_path / "m", "BertForMaskedLM")
    assert LLM.from_pretrained(folder).task is None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [None]}))
    assert LLM.from_pretrained(folder).task is None


def test_a_published_classifier_goes_on_learning_with_its_own_head(tmp_path: Path) -> None:
    rows = [{"text": "a good day", "label": 1}, {"text": "a bad day", "label": 0}] * 8
    folder = published(tmp_path / "m", "BertForSequenceClassification")
    before = logits(folder, "BertForSequenceClassification", "a good day").logits
    llm = LLM.from_pretrained(folder)
    llm.finetune(TextClassificationTask(), rows, eval_data=rows, epochs=1, learning_rate=1e-9, progress=False)
    llm.save(tmp_path / "tuned")
    after = logits(tmp_path / "tuned", "BertForSequenceClassification", "a good day").logits
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)


def test_an_encoder_without_a_task_is_exported_to_make_vectors(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    llm = LLM.from_pretrained(save_tiny_bert(tmp_path / "m"))
    certificate = llm.export(tmp_path / "onnx", "onnx")
    assert llm.task is None  # the model is what it was
    copy = LLM.from_pretrained(certificate.path)  # type: ignore[arg-type]
    texts = ["a good day", "no"]
    np.testing.assert_allclose(copy.embed(texts), llm.embed(texts, precision="float32"), atol=1e-5)
    assert copy.embed([]).shape == (0, 32)
    pair = copy.predict({"anchor": "a good day", "positive": "no"})
    assert pair.score == pytest.approx(float(np.prod(copy.embed(texts), axis=0).sum()), abs=1e-5)


@pytest.mark.parametrize("talks", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_decoder_without_a_task_is_exported_to_write(tmp_path: Path, talks: bool) -> None:
    pytest.importorskip("onnxruntime")
    folder = save_tiny(tmp_path / "m", "AutoModelForCausalLM")
    if talks:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        each, at_end = "{{ m.role }} {{ m.content }} ", "{% if add_generation_prompt %}a {% endif %}"
        tokenizer.chat_template = "{% for m in messages %}" + each + "{% endfor %}" + at_end
        tokenizer.save_pretrained(folder)
    llm = LLM.from_pretrained(folder)
    certificate = llm.export(tmp_path / "onnx", "onnx")
    copy = LLM.from_pretrained(certificate.path)  # type: ignore[arg-type]
    assert copy.task.tag == "text-generation"  # type: ignore[union-attr]
    assert bool(llm.tokenizer.chat_template) == talks  # the model is what it was
    asked = {"max_new_tokens": 8}
    assert copy.generate("a b c", **asked).tokens == llm.generate("a b c", precision="float32", **asked).tokens


def test_an_exported_classifier_makes_no_vectors_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = published(tmp_path / "m", "BertForSequenceClassification")
    certificate = LLM.from_pretrained(folder).export(tmp_path / "onnx", "onnx")
    with pytest.raises(errors.UsageError, match="makes no vectors"):
        LLM.from_pretrained(certificate.path).embed("a good day")  # type: ignore[arg-type]


def test_an_encoder_with_a_decoder_needs_a_task_first(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", "AutoModelForSeq2SeqLM")
    with pytest.raises(errors.NotFittedError, match="finetune it first"):
        LLM.from_pretrained(folder).export(tmp_path / "out", "ctranslate2")
