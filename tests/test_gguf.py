"""GGUF: llama.cpp reads the same tokens and computes the same model, in float16, eight and four bits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from llmasos import LLM, ChatTask, LanguageModelingTask, SentenceSimilarityTask, TextClassificationTask
from llmasos.core import llama
from llmasos.errors import BundleError, LLMasOSError, MissingExtraError, ParityError, UsageError
from llmasos.exporters.gguf import PLUGIN as FORMAT
from llmasos.scratch import create, train_tokenizer
from tiny import save_tiny_bert
from writers import save_writer

pytest.importorskip("gguf", reason="needs llmasos[gguf]")


def _absent() -> str:
    try:
        llama.load()
    except LLMasOSError as error:
        return f"needs llama.cpp: {error.hint}"
    return ""


runs = pytest.mark.skipif(bool(_absent()), reason=_absent())
"""Tests that compute with llama.cpp: an environment that has it is named by LLMASOS_LLAMA_CPP."""

LLAMA = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 128, "max_position_embeddings": 128}  # fmt: skip
SHAPES = {
    "llama": {**LLAMA, "tie_word_embeddings": True},
    "llama3-rope": {**LLAMA, "model_type": "llama", "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }},
    "mistral": {**LLAMA, "sliding_window": None},
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 32},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128},
}  # fmt: skip
TEXTS = [
    {"text": f"{a} and {b} make a sum, that is what they say of numbers such as {n}."}
    for n, (a, b) in enumerate((a, b) for a in ("one", "two", "six") for b in ("four", "seven", "nine"))
]
CHATS = [
    {"messages": [{"role": "user", "content": f"what is {word}?"}, {"role": "assistant", "content": digit}]}
    for word, digit in (("one", "1"), ("two", "2"), ("six", "6"), ("nine", "9"))
]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    texts = [row["text"] for row in TEXTS * 3] + [m["content"] for row in CHATS for m in row["messages"]]
    return train_tokenizer(texts, 300, output=folder / "tokenizer", chat_template="chatml").path


@pytest.fixture(scope="module")
def tuned(words, tmp_path_factory):
    """Return the folder of a tiny language model of a kind, trained for some steps."""
    made = {}

    def folder(kind, task=None, rows=None, **shape):
        key = kind, type(task), tuple(shape)
        if key not in made:
            place, config = tmp_path_factory.mktemp(kind), {"model_type": kind, **SHAPES[kind], **shape}
            base = create(config, words, output=place / "base")
            LLM.from_pretrained(base).finetune(
                task or LanguageModelingTask(), rows or TEXTS, epochs=6, batch_size=4, learning_rate=5e-3, threads=1,
                precision="float32", progress=False, output=place / "tuned",
            )  # fmt: skip
            made[key] = place / "tuned"
        return made[key]

    return folder


@runs
@pytest.mark.parametrize("precision", ["f16", "q8_0"])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_language_model_scores_texts_as_the_model_does(tuned, tmp_path, kind, precision):
    llm = LLM.from_pretrained(tuned(kind))
    found = llm.export(tmp_path / "out", "gguf", quantize=precision, data=TEXTS)
    assert "llama.cpp" in found.runtime
    assert found.golden.relative < {"f16": 1e-2, "q8_0": 5e-2}[precision]
    artifact = LLM.from_pretrained(tmp_path / "out")
    texts = [row["text"] for row in TEXTS]
    for here, wanted in zip(artifact.predict(texts, threads=1), llm.predict(texts, threads=1), strict=True):
        assert here.loss == pytest.approx(wanted.loss, rel=3e-2)
        assert here.tokens == wanted.tokens
    assert [artifact.predict(text, threads=1) for text in texts] == artifact.predict(texts, threads=1)
    artifact.verify(TEXTS)


@runs
@pytest.mark.parametrize("precision", ["f16", "q8_0"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_a_chat_model_writes_the_same_tokens(tuned, tmp_path, kind, precision):
    llm = LLM.from_pretrained(tuned(kind, ChatTask(), CHATS * 8))
    found = llm.export(tmp_path / "out", "gguf", quantize=precision, data=CHATS)
    assert found.golden.written == 1.0
    artifact = LLM.from_pretrained(tmp_path / "out")
    how = {"max_new_tokens": 8, "threads": 1}
    prompts = [row["messages"][:1] for row in CHATS]
    wanted = [one.tokens for one in llm.generate(prompts, precision="float32", **how)]
    assert [one.tokens for one in artifact.generate(prompts, **how)] == wanted
    assert [artifact.generate(prompt, **how).tokens for prompt in prompts] == wanted
    with_beams = [one.tokens for one in llm.generate(prompts, precision="float32", num_beams=3, **how)]
    assert [one.tokens for one in artifact.generate(prompts, num_beams=3, **how)] == with_beams


@runs
def test_four_bits_are_found_by_llama_cpp(tuned, tmp_path):
    llm = LLM.from_pretrained(tuned("llama", hidden_size=256, intermediate_size=512, num_key_value_heads=4))
    small = llm.export(tmp_path / "small", "gguf", quantize="q4_k", data=TEXTS, accept_drop=20.0)
    large = llm.export(tmp_path / "large", "gguf")
    assert small.size_bytes < 0.5 * large.size_bytes
    assert {path.name for path in (tmp_path / "small").glob("model*")} == {"model.gguf"}


@runs
@pytest.mark.parametrize("precision", ["f16", "q8_0"])
@pytest.mark.parametrize("task", [SentenceSimilarityTask, TextClassificationTask])
def test_a_bert_embeds_and_classifies(tmp_path, task, precision):
    _, rows = task.sample()
    llm = LLM.from_pretrained(save_tiny_bert(tmp_path / "base"))
    llm.finetune(task(), rows, epochs=4, batch_size=8, learning_rate=5e-3, threads=1, precision="float32",
                 progress=False)  # fmt: skip
    found = llm.export(tmp_path / "out", "gguf", quantize=precision, data=rows)
    assert found.golden.relative < {"f16": 1e-2, "q8_0": 5e-2}[precision]
    artifact = LLM.from_pretrained(tmp_path / "out")
    together = artifact.predict(rows, threads=1)
    assert [artifact.predict(row, threads=1) for row in rows] == together
    for here, wanted in zip(together, llm.predict(rows, threads=1, precision="float32"), strict=True):
        assert here.score == pytest.approx(wanted.score, abs=2e-2)
        if task is TextClassificationTask:
            assert here.label == wanted.label


@runs
def test_a_perturbed_export_is_refused_and_nothing_is_left(tuned, tmp_path, monkeypatch):
    from llmasos.exporters import gguf as format_

    whole = format_._laid_out
    monkeypatch.setattr(
        format_, "_laid_out", lambda name, *more: whole(name, *more) * (1.5 if "embed_tokens" in name else 1.0)
    )
    with pytest.raises(ParityError, match="is not the same model"):
        LLM.from_pretrained(tuned("llama")).export(tmp_path / "out", "gguf", data=TEXTS)
    assert list(tmp_path.iterdir()) == []


@runs
def test_a_file_that_would_read_other_tokens_is_refused(tuned, tmp_path, monkeypatch):
    from llmasos.exporters import gguf as format_

    monkeypatch.setattr(format_, "examples", lambda source: [{"text": "Hello", "ids": [1, 2, 3]}])
    with pytest.raises(LLMasOSError, match="other tokens"):
        LLM.from_pretrained(tuned("llama")).export(tmp_path / "out", "gguf", data=TEXTS)
    assert list(tmp_path.iterdir()) == []


@runs
def test_a_damaged_file_is_told(tuned, tmp_path):
    from llmasos.engines.llama_cpp import PLUGIN as Engine

    (tmp_path / "model.gguf").write_bytes(b"nothing")
    with pytest.raises(BundleError, match=r"llama\.cpp cannot open"):
        Engine(tmp_path, {"files": ["model.gguf", "tokens.json"], "precision": "f16"}, threads=1)


# -- without llama.cpp -------------------------------------------------------------------------------


def written(folder, out, task, precision="f16"):
    """Write a model folder as GGUF; return what is in the file."""
    from gguf import GGUFReader

    from llmasos.exporters.base import Source
    from llmasos.loading import load_model, load_tokenizer

    opened = load_model(folder, task, known=None)
    tokenizer = load_tokenizer(folder)
    out.mkdir()
    FORMAT.write(Source(opened.model.eval(), task, tokenizer), out, precision)
    return opened.model, tokenizer, GGUFReader(out / "model.gguf")


def test_the_file_says_sizes_words_and_template(words, tmp_path):
    base = create({"model_type": "llama", **SHAPES["llama"]}, words, output=tmp_path / "base")
    model, tokenizer, file = written(base, tmp_path / "out", LanguageModelingTask())
    said = {name: field.contents() for name, field in file.fields.items()}
    assert said["general.architecture"] == "llama"
    assert said["llama.attention.head_count_kv"] == 2
    assert said["llama.context_length"] == 128
    assert said["tokenizer.ggml.pre"] == "smaug-bpe"
    assert said["tokenizer.ggml.add_bos_token"] is True
    assert said["tokenizer.ggml.add_eos_token"] is False
    assert said["tokenizer.ggml.bos_token_id"] == tokenizer.bos_token_id
    assert said["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert said["tokenizer.chat_template"] == tokenizer.chat_template
    assert said["tokenizer.ggml.tokens"][: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert len(said["tokenizer.ggml.tokens"]) == model.config.vocab_size
    names = {tensor.name for tensor in file.tensors}
    assert "output.weight" not in names  # one matrix for both
    assert len(names) == 2 + 2 * 9
    for one in json.loads((tmp_path / "out" / "tokens.json").read_text()):
        assert tokenizer(one["text"])["input_ids"] == one["ids"]


def test_eight_bits_are_blocks_of_32_and_what_has_no_such_rows_is_float16(words, tmp_path):
    base = create({"model_type": "llama", **LLAMA, "intermediate_size": 100}, words, output=tmp_path / "base")
    model, _, file = written(base, tmp_path / "out", LanguageModelingTask(), "q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in file.tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    import gguf

    (up,) = (tensor for tensor in file.tensors if tensor.name == "blk.0.ffn_up.weight")
    wanted = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    near = gguf.quants.dequantize(up.data, up.tensor_type)
    assert np.abs(near - wanted).max() < 0.01 * np.abs(wanted).max()


def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(tmp_path):
    base = save_writer(tmp_path / "base", "llama")
    with pytest.raises(UsageError, match=r"llama\.cpp has no such tokenizer"):
        written(base, tmp_path / "out", LanguageModelingTask())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"sliding_window": 16}, "attention over 16 tokens"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "type yarn"),
    ],
)
def test_what_llama_cpp_computes_differently_is_refused(change, what):
    from transformers import MistralConfig

    config = MistralConfig(**{**LLAMA, "sliding_window": None, **change})
    with pytest.raises(UsageError, match=what):
        FORMAT.check(LanguageModelingTask(), config, None)


def test_other_models_and_precisions_are_refused_by_name():
    from transformers import BertConfig, LlamaConfig, T5Config

    for task, config in ((LanguageModelingTask(), BertConfig()), (TextClassificationTask(), LlamaConfig())):
        with pytest.raises(UsageError, match=f"no {task.tag} model of type {config.model_type}"):
            FORMAT.check(task, config, None)
    with pytest.raises(UsageError, match="holds no"):
        FORMAT.check(ChatTask(), T5Config(), None)
    with pytest.raises(UsageError, match="q3_k"):
        FORMAT.check(LanguageModelingTask(), LlamaConfig(), "q3_k")


def test_where_llama_cpp_is_missing_it_is_told_what_to_do(tmp_path, monkeypatch):
    import sys

    from transformers import LlamaConfig

    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    monkeypatch.setenv("LLMASOS_LLAMA_CPP", str(tmp_path))
    with pytest.raises(UsageError, match=r"LLMASOS_LLAMA_CPP=.* has no llama_cpp"):
        FORMAT.check(LanguageModelingTask(), LlamaConfig(), None)
    monkeypatch.delenv("LLMASOS_LLAMA_CPP")
    monkeypatch.setattr(llama.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="LLMASOS_LLAMA_CPP"):
        llama.load()


def test_llama3_frequencies_are_those_of_transformers():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from llmasos.exporters.gguf import _llama3_factors

    config = LlamaConfig(**SHAPES["llama3-rope"])
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / _llama3_factors(config), wanted.numpy(), rtol=1e-5)
