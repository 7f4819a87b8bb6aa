"""CTranslate2: what it writes is what transformers writes, greedily and with beams, and what is not is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from llmasos import LLM, TranslationTask
from llmasos.engines.base import Search
from llmasos.errors import BundleError, MissingExtraError, ParityError, UsageError
from llmasos.exporters.base import Source
from llmasos.golden import author_of
from tiny import tiny_tokenizer
from writers import END, START, byte_tokenizer, tiny_writer

ctranslate2 = pytest.importorskip("ctranslate2", reason="needs llmasos[ctranslate2]")

KINDS = ("marian", "bart", "mbart", "m2m100", "t5", "pegasus", "mt5")
TEXTS = ["Once upon a time", "Hi", "The quick brown fox jumps over it", "你好", "a", "Hi there"]
NUMBERS = {"one": "1", "two": "2", "six": "6", "ten": "10"}
ROWS = [
    {"source": f"{a} {b}", "target": f"{NUMBERS[a]} + {NUMBERS[b]} + {NUMBERS[a]}"} for a in NUMBERS for b in NUMBERS
]


def writer(kind):
    import transformers as t

    if kind in ("pegasus", "mt5"):
        torch.manual_seed(0)
        common = {"vocab_size": 259, "eos_token_id": END, "pad_token_id": 257, "decoder_start_token_id": 257}
        if kind == "mt5":
            config = t.MT5Config(**common, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
            model = t.MT5ForConditionalGeneration(config)
        else:
            sides = {f"{s}_{n}": v for s in ("encoder", "decoder") for n, v in (("layers", 2), ("attention_heads", 2))}
            config = t.PegasusConfig(**common, d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, **sides)
            model = t.PegasusForConditionalGeneration(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1 and parameter.requires_grad:
                    parameter.normal_(0.0, 0.25)
        return model.eval()
    return tiny_writer(kind)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a tiny random model of a kind, and the engine of what was written from it."""
    from llmasos.engines.ctranslate2 import PLUGIN as Engine
    from llmasos.exporters.ctranslate2 import PLUGIN as FORMAT

    made = {}

    def export(kind, precision="float32"):
        if (kind, precision) not in made:
            model, folder = writer(kind), tmp_path_factory.mktemp(kind)
            before = {name: value.clone() for name, value in model.state_dict().items()}
            config = model.config.to_dict()
            source = Source(model, TranslationTask(), byte_tokenizer())
            FORMAT.check(source.task, model.config, precision)
            files = FORMAT.write(source, folder, precision).files
            assert model.config.to_dict() == config
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            made[kind, precision] = model, Engine(folder, {"files": files, "precision": precision}, threads=1)
        return made[kind, precision]

    return export


def prompts():
    return [[*byte_tokenizer()(text)["input_ids"], END] for text in TEXTS]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_and_their_probabilities_are_those_of_transformers(exported, kind):
    model, engine = exported(kind)
    with torch.no_grad():
        found = author_of(model).written(prompts(), 12, [END], first=model.generation_config.forced_bos_token_id)
    answers = [one.tokens for one in found]
    first = model.generation_config.forced_bos_token_id
    assert engine.greedy(prompts(), 12, [END], first=first) == answers
    for here, wanted in zip(engine.forced(prompts(), answers), found, strict=True):
        np.testing.assert_allclose(here[:, 0], wanted.scores[:, 0], atol=1e-4)
        np.testing.assert_array_equal(here[:, 1], wanted.scores[:, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_beams_find_what_transformers_finds_when_both_stop_at_the_first_full_set(exported, kind):
    model, engine = exported(kind)
    expected = []
    for prompt in prompts():
        row = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), num_beams=4,
            max_new_tokens=12, do_sample=False, early_stopping=True, forced_eos_token_id=None,
        )[0, 1:].tolist()  # fmt: skip
        expected.append(row[: row.index(END)] if END in row else row)
    search = Search(12, (END,), first=model.generation_config.forced_bos_token_id, beams=4, early_stopping=True)
    assert [one.tokens for one in engine.search(prompts(), search)] == expected


@pytest.mark.parametrize("kind", ["marian", "t5"])
@pytest.mark.parametrize("beams", [1, 4])
def test_a_prompt_alone_gets_the_tokens_that_it_gets_in_a_batch(exported, kind, beams):
    _, engine = exported(kind, "int8")
    search = Search(12, (END,), beams=beams)
    together = engine.search(prompts(), search)
    assert [engine.search([prompt], search)[0] for prompt in prompts()] == together
    scores = engine.forced(prompts(), [one.tokens for one in together])
    for prompt, one, wanted in zip(prompts(), together, scores, strict=True):
        np.testing.assert_allclose(engine.forced([prompt], [one.tokens])[0], wanted, atol=1e-5)


@pytest.mark.parametrize(
    "rules",
    [{"no_repeat": 2}, {"least": 8}, {"never": ((70,), (65, 66))}, {"forced_end": END}, {"repetition_penalty": 1.5}],
    ids=lambda rules: next(iter(rules)),
)
def test_the_models_own_settings_hold(exported, rules):
    model, engine = exported("t5")
    own = {"no_repeat": "no_repeat_ngram_size", "never": "bad_words_ids", "forced_end": "forced_eos_token_id",
           "repetition_penalty": "repetition_penalty"}  # fmt: skip
    asked = {own[name]: value for name, value in rules.items() if name in own}
    asked = {name: [list(one) for one in value] if isinstance(value, tuple) else value for name, value in asked.items()}
    if "least" in rules:
        asked = {"min_length": rules["least"] + 1}
    expected = []
    for prompt in prompts():
        row = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, **asked)[0, 1:].tolist()
        expected.append(row[: row.index(END)] if END in row else row)
    assert [one.tokens for one in engine.search(prompts(), Search(12, (END,), **rules))] == expected


# -- trained, through the gate -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["marian", "t5"])
def tuned(request, tmp_path_factory):
    """A tiny translator of numbers, trained for some steps."""
    import transformers as t

    tokenizer, folder = tiny_tokenizer(), tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.sep_token_id,
           "decoder_start_token_id": tokenizer.pad_token_id, "d_model": 64}  # fmt: skip
    if request.param == "t5":
        model = t.T5ForConditionalGeneration(t.T5Config(**ids, d_kv=32, d_ff=128, num_layers=2, num_heads=2))
    else:
        sides = {f"{s}_{n}": v for s in ("encoder", "decoder")
                 for n, v in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 128))}  # fmt: skip
        model = t.MarianMTModel(t.MarianConfig(**ids, **sides, max_position_embeddings=64, init_std=0.1,
                                               forced_eos_token_id=tokenizer.sep_token_id))  # fmt: skip
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    llm = LLM.from_pretrained(folder / "base")
    llm.finetune(
        TranslationTask(), ROWS * 2, epochs=40, batch_size=8, learning_rate=5e-3, dropout=0.0, threads=1,
        precision="float32", progress=False, output=folder / "tuned",
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("precision", ["float32", "int8", "float16", "bfloat16"])
def test_an_artifact_translates_as_the_model_does(tuned, tmp_path, precision):
    llm = LLM.from_pretrained(tuned / "tuned")
    found = llm.export(tmp_path / "out", "ctranslate2", data=ROWS, quantize=precision)
    assert found.score.lost <= found.tolerance.drop
    if precision == "float32":
        assert found.golden.largest < 1e-4
    artifact = LLM.from_pretrained(tmp_path / "out")
    assert "CTranslate2" in artifact.verify(ROWS).runtime
    if precision == "int8":  # the models have learned too little to be sure of every token; the gate has decided
        return
    assert found.golden.written == 1.0
    texts = [row["source"] for row in ROWS]
    wanted = [one.text for one in llm.predict(texts, threads=1, precision="float32")]
    assert [one.text for one in artifact.predict(texts, threads=1)] == wanted
    assert artifact.predict(texts[3], threads=1).text == wanted[3]
    with_beams = [one.text for one in llm.predict(texts, threads=1, precision="float32", num_beams=4)]
    assert [one.text for one in artifact.predict(texts, threads=1, num_beams=4)] == with_beams
    scores = [one.evaluate(ROWS, threads=1, precision=kind) for one, kind in ((llm, "float32"), (artifact, "auto"))]
    assert scores[1].metrics["bleu"].value == pytest.approx(scores[0].metrics["bleu"].value)


def test_a_perturbed_export_is_refused_and_nothing_is_left(tuned, tmp_path, monkeypatch):
    from llmasos.exporters import ctranslate2 as format_

    whole = format_._spec

    def perturbed(model):
        with torch.no_grad():
            model.get_encoder().get_input_embeddings().weight.mul_(1.5)
        return whole(model)

    monkeypatch.setattr(format_, "_spec", perturbed)
    with pytest.raises(ParityError, match="is not the same model"):
        LLM.from_pretrained(tuned / "tuned").export(tmp_path / "out", "ctranslate2", data=ROWS)
    assert list(tmp_path.iterdir()) == []


def test_what_the_runtime_does_not_know_is_refused(tuned, tmp_path):
    LLM.from_pretrained(tuned / "tuned").export(tmp_path / "out", "ctranslate2")
    artifact = LLM.from_pretrained(tmp_path / "out")
    for options in ({"temperature": 0.7}, {"json_schema": {"type": "string"}}, {"stream": True}):
        with pytest.raises(UsageError, match=next(iter(options))):
            list(artifact.generate("six", threads=1, **options))
    said = artifact.generate("six ten", threads=1, logprobs=True)
    assert len(said.logprobs) == len(said.tokens)
    assert all(one <= 0.0 for one in said.logprobs)
    assert artifact.generate("six ten", threads=1, stop=["1"]).text == said.text.partition("1")[0].rstrip()


def test_what_ctranslate2_cannot_hold_is_refused_by_name():
    from llmasos import TextClassificationTask
    from llmasos.exporters.ctranslate2 import PLUGIN as FORMAT

    with pytest.raises(UsageError, match="holds no text-classification model"):
        FORMAT.check(TextClassificationTask(), tiny_writer("gpt2").config, None)
    config = tiny_writer("bart").config
    config.model_type = "led"
    with pytest.raises(UsageError, match="no model of type led") as raised:
        FORMAT.check(TranslationTask(), config, None)
    assert "marian" in raised.value.hint
    with pytest.raises(UsageError, match="int4"):
        FORMAT.check(TranslationTask(), tiny_writer("bart").config, "int4")


def test_a_damaged_model_and_another_start_are_told(exported, tmp_path):
    from llmasos.engines.ctranslate2 import PLUGIN as Engine

    (tmp_path / "ctranslate2").mkdir()
    artifact = {"files": ["ctranslate2/model.bin"], "precision": "float32"}
    with pytest.raises(BundleError, match="CTranslate2 cannot open"):
        Engine(tmp_path, artifact)
    for name, content in (("config.json", {"decoder_start_token": "a"}), ("shared_vocabulary.json", ["a"])):
        (tmp_path / "ctranslate2" / name).write_text(json.dumps(content))
    (tmp_path / "ctranslate2" / "model.bin").write_bytes(b"nothing")
    with pytest.raises(BundleError, match="CTranslate2 cannot open"):
        Engine(tmp_path, artifact)
    _, engine = exported("bart")
    with pytest.raises(UsageError, match="begins every answer from"):
        engine.greedy(prompts()[:1], 4, [END], start=START)


def test_a_missing_package_is_told_with_its_extra(monkeypatch):
    import sys

    from llmasos.engines.ctranslate2 import PLUGIN as Engine

    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(MissingExtraError, match=r"llmasos\[ctranslate2\]"):
        Engine(None, {"files": ["ctranslate2/model.bin"], "precision": "float32"})


def test_a_text_of_one_token_behind_the_end_token_is_not_taken_for_empty(exported):
    """Tokenizers of ``llmasos tokenizer train`` begin texts with the token that also ends answers."""
    _, engine, *_ = exported("marian")
    source, answer = [END, 70], [71, 72, 73]
    assert engine.forced([source], [answer])[0][:, 0].max() < 100
    alone, beside = (engine.search(prompts, Search(5, ())) for prompts in ([source], [source, [70, 71, 72]]))
    assert len(alone[0].tokens) == 5
    assert alone[0] == beside[0]
