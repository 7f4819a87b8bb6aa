"""Translation: targets shifted once, both lengths kept, languages told, written texts scored as sacreBLEU does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF

from llmasos import LLM, TranslationTask
from llmasos.architectures import _proof
from llmasos.architectures._plain import transformers_outputs
from llmasos.architectures.base import Snapshot, find, pack
from llmasos.core.errors import DataError, UsageError
from llmasos.data.batching import Batch, gather, split
from llmasos.data.dataset import read, stream
from llmasos.data.encoding import encode, flattened
from llmasos.metrics.texts import TranslationScorer
from llmasos.tasks.base import IGNORED, Encoding
from tiny import save_tiny, tiny_tokenizer

ROWS = [
    {"source": "one two", "target": "eins zwei"},
    {"source": "three", "target": "drei"},
    {"source": "four five six", "target": "vier fuenf sechs"},
]
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
SIZES = {"vocab_size": 50, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}  # fmt: skip


def family(name: str) -> Any:
    """A tiny random model of an encoder-decoder family."""
    import transformers

    torch.manual_seed(0)
    if name in ("T5", "MT5"):
        sizes = {"vocab_size": 50, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
        head = "ForConditionalGeneration"
    else:
        sizes, head = SIZES, "MTModel" if name == "Marian" else "ForConditionalGeneration"
    config = getattr(transformers, f"{name}Config")(**sizes, **SPECIAL)
    return getattr(transformers, f"{name}{head}")(config).eval()


def spoken(tokenizer: Any, ids: Any) -> str:
    """What ids say, without spaces and the marks of the tiny tokenizer's pieces."""
    return tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "").replace("##", "")


def random_pairs() -> Encoding:
    rng = np.random.default_rng(0)
    sources = [rng.integers(3, 50, n).astype(np.int32) for n in (5, 9, 3, 12, 7)]
    targets = [np.append(rng.integers(3, 50, n), 1).astype(np.int64) for n in (4, 10, 2, 6, 11)]
    return Encoding(sources, None, [0] * 5, targets)


def own_loss(model: Any, task: TranslationTask, batch: Batch) -> torch.Tensor:
    return task.loss(transformers_outputs(model, batch, 0, "vocabulary"), batch)


@pytest.mark.parametrize("name", ["Marian", "T5", "MT5", "Bart", "MBart", "M2M100", "Pegasus"])
def test_the_loss_and_its_gradients_are_those_of_transformers_labels(name):
    model, pairs, task = family(name), random_pairs(), TranslationTask()
    if hasattr(model, "final_logits_bias"):  # Marian's pretrained models have one
        model.final_logits_bias.normal_()
    batch = gather(flattened(pairs), np.arange(5))
    labels, ids, mask = np.full((5, 12), IGNORED), np.zeros((5, 12), dtype=int), np.zeros((5, 12), dtype=int)
    for i, (source, target) in enumerate(zip(pairs.ids, pairs.targets, strict=True)):
        labels[i, : len(target)], ids[i, : len(source)], mask[i, : len(source)] = target, source, 1
    tensors = map(torch.from_numpy, (ids, mask, labels))
    expected = model(**dict(zip(("input_ids", "attention_mask", "labels"), tensors, strict=True))).loss
    loss = own_loss(model, task, batch) / task.weight(batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for got, wanted in zip(*(torch.autograd.grad(x, trained) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=3e-6)
    with torch.no_grad():
        assert own_loss(model, task, batch).item() / task.weight(batch) == pytest.approx(expected.item(), rel=1e-5)
        parts = sum(float(own_loss(model, task, part)) for part in split(batch, 2))
        assert parts == pytest.approx(float(own_loss(model, task, batch)), rel=1e-5)


def many_pairs() -> Encoding:
    """Targets of other lengths than their sources, in several groups of attention."""
    rng = np.random.default_rng(1)
    sources = [rng.integers(3, 50, n).astype(np.int32) for n in rng.integers(2, 60, 23)]
    targets = [np.append(rng.integers(3, 50, n), 1).astype(np.int64) for n in rng.integers(1, 60, 23)]
    return Encoding(sources, None, [0] * 23, targets)


@pytest.mark.parametrize("name", ["Marian", "Bart", "MBart", "Pegasus"])
def test_sources_and_targets_run_packed_with_transformers_logits_and_gradients(name):
    model, batch = family(name), gather(flattened(many_pairs()), np.arange(23))
    architecture, _ = find(model, "vocabulary")
    assert len(pack(batch, output="vocabulary").groups) > 2
    proof = _proof.prove(model, architecture, batch, 0, "vocabulary", gradients=True)
    assert (proof.error, proof.logits < 1e-5, proof.gradients < 1e-5) == ("", True, True)
    packed = architecture.forward(model, Snapshot(torch.float32), "vocabulary")(pack(batch, output="vocabulary"))
    whole = transformers_outputs(model, batch, 0, "vocabulary")
    torch.testing.assert_close(packed.hidden, whole.hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "output"), [("T5", "vocabulary"), ("M2M100", "vocabulary"), ("Bart", "row")])
def test_what_cannot_run_packed_says_why(name, output):
    architecture, reason = find(family(name), output)
    assert architecture is None
    assert ("positions cannot begin anew" if output == "vocabulary" else "an encoder with a decoder") in reason


def test_label_smoothing_is_torchs(tmp_path):
    model, batch = family("Marian"), gather(flattened(random_pairs()), np.arange(5))
    with torch.no_grad():
        outputs = transformers_outputs(model, batch, 0, "vocabulary")
        logits = outputs.head(outputs.hidden)
        wanted = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(batch.targets), label_smoothing=0.2, reduction="sum"
        )
        assert float(TranslationTask(label_smoothing=0.2).loss(outputs, batch)) == pytest.approx(float(wanted))
        assert float(wanted) != float(TranslationTask().loss(outputs, batch))


def test_the_targets_are_the_target_text_and_its_end():
    tokenizer = tiny_tokenizer()
    encoding = TranslationTask().encode(ROWS, tokenizer, 64)
    texts = [spoken(tokenizer, ids) for ids in encoding.targets]
    assert texts == [row["target"].replace(" ", "") for row in ROWS]
    assert {int(ids[-1]) for ids in encoding.targets} == {tokenizer.sep_token_id}


def test_a_target_is_not_begun_by_the_token_that_ends_it(tmp_path):
    from transformers import AutoTokenizer

    from llmasos.scratch import train_tokenizer

    path = train_tokenizer(["eins zwei drei"] * 3, 260, output=tmp_path / "tokenizer").path
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id
    (ids,) = TranslationTask().encode(ROWS[:1], tokenizer, 64).targets
    assert ids[0] != tokenizer.eos_token_id
    assert ids[-1] == tokenizer.eos_token_id


def test_sources_and_targets_that_are_too_long_are_counted():
    tokenizer, task = tiny_tokenizer(), TranslationTask()
    whole, short = (task.encode(ROWS, tokenizer, length) for length in (64, 9))
    lengths = [
        sum(len(a) + len(b) for a, b in zip(encoding.ids, encoding.targets, strict=True)) for encoding in (whole, short)
    ]
    assert sum(whole.truncated) == 0
    assert sum(short.truncated) == lengths[0] - lengths[1] > 0
    assert short.truncated[1] == 0
    assert max(len(ids) for ids in [*short.ids, *short.targets]) == 9
    assert {int(ids[-1]) for ids in short.targets} == {tokenizer.sep_token_id}


# -- languages and columns ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"en": "a dog", "de": "ein Hund"},
        {"id": 7, "translation": {"en": "a dog", "de": "ein Hund"}},
        {"source": "a dog", "target": "ein Hund"},
        ("a dog", "ein Hund"),
    ],
)
def test_rows_are_found_by_language_by_name_and_nested(row, tmp_path):
    fields = TranslationTask(source_language="en", target_language="de").fields
    assert read([row], fields).rows([0]) == [{"source": "a dog", "target": "ein Hund"}]
    assert list(stream(iter([row]), fields)) == [{"source": "a dog"}]
    if isinstance(row, dict):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        assert read(path, fields).rows([0]) == [{"source": "a dog", "target": "ein Hund"}]


def test_a_column_that_is_missing_is_named():
    with pytest.raises(DataError, match="no column for target") as error:
        read([{"en": "a dog", "fr": "un chien"}], TranslationTask(source_language="en", target_language="de").fields)
    assert "columns found: en, fr" in error.value.message


PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz", "▁a"]


def nllb() -> Any:
    from transformers import NllbTokenizer

    return NllbTokenizer(vocab={piece: i for i, piece in enumerate(PIECES)}, merges=[("▁", "a")])


def mbart(name: str) -> Any:
    import transformers

    return getattr(transformers, f"{name}Tokenizer")(vocab=[(piece, -float(i)) for i, piece in enumerate(PIECES)])


def test_a_tokenizer_of_languages_is_told_both():
    tokenizer = nllb()
    task = TranslationTask(source_language="eng_Latn", target_language="deu_Latn")
    encoding = task.encode([{"source": "a dog", "target": "ein hund"}], tokenizer, 32)
    code = tokenizer.convert_tokens_to_ids
    assert (encoding.ids[0][0], encoding.targets[0][0]) == (code("eng_Latn"), code("deu_Latn"))
    assert encoding.targets[0][-1] == tokenizer.eos_token_id
    assert task.generation(tokenizer) == {"first_token": code("deu_Latn")}
    assert task.prompt({"source": "a dog"}, tokenizer) == encoding.ids[0].tolist()


# tokenizer, model, languages, and how answers begin: the language is asked for first, or it is what is started from
MULTILINGUAL = {
    "NLLB": (nllb, "M2M100", ("eng_Latn", "deu_Latn"), "forced_bos_token_id"),
    "mBART": (lambda: mbart("MBart"), "MBart", ("en_XX", "de_DE"), "decoder_start_token_id"),
    "mBART-50": (lambda: mbart("MBart50"), "MBart", ("en_XX", "de_DE"), "forced_bos_token_id"),
}
LETTERS = [{"source": f"a {x} {y}", "target": f"{y}{x}"} for x in "abcd" for y in "efgh"]


@pytest.fixture(scope="module", params=MULTILINGUAL)
def multilingual(request, tmp_path_factory):
    """A tiny model of several languages, trained for some steps, saved and opened again."""
    import transformers

    tokenizer, name, languages, begun = MULTILINGUAL[request.param]
    tokenizer, folder = tokenizer(), tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **SIZES | {"vocab_size": len(tokenizer)}, max_position_embeddings=64, init_std=0.3,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    getattr(transformers, f"{name}ForConditionalGeneration")(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    task = TranslationTask(source_language=languages[0], target_language=languages[1])
    LLM.from_pretrained(folder / "base").finetune(
        task, LETTERS, epochs=12, batch_size=4, learning_rate=1e-2, dropout=0.0, threads=1, precision="float32",
        progress=False, output=folder / "tuned",
    )  # fmt: skip
    return folder / "tuned", task, begun


def test_a_decoder_of_languages_reads_its_targets_shifted_once(multilingual):
    llm, task = LLM.from_pretrained(multilingual[0]), multilingual[1]
    encoding = task.encode(LETTERS[:3], llm.tokenizer, 32)
    language = llm.tokenizer.convert_tokens_to_ids(task.target_language)
    read = []
    model = llm.model
    model.get_decoder().register_forward_pre_hook(
        lambda _module, _inputs, more: read.append(more["input_ids"]), with_kwargs=True
    )
    transformers_outputs(model, gather(flattened(encoding), np.arange(3)), 1, "vocabulary")
    for ids, target in zip(read[0].tolist(), encoding.targets, strict=True):
        end, *text = (2, language, *target[1:-1]) if target[0] == language else (language, *target[:-1])
        assert ids[: len(target)] == [end, *text]
        assert target.tolist() == [*text, 2 if target[0] == language else language]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_translator_of_languages_writes_what_transformers_writes(multilingual, beams):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder, task, begun = multilingual
    llm, model = LLM.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    own = AutoTokenizer.from_pretrained(folder, src_lang=task.source_language, tgt_lang=task.target_language)
    language = own.convert_tokens_to_ids(task.target_language)
    sources = [row["source"] for row in LETTERS[::4]]
    answers = llm.predict(sources, num_beams=beams, max_new_tokens=10, precision="float32", threads=1)
    for source, answer in zip(sources, answers, strict=True):
        ids = own(source, return_tensors="pt")
        (row,) = model.generate(
            ids["input_ids"], attention_mask=ids["attention_mask"], do_sample=False, num_beams=beams,
            max_new_tokens=10, **{begun: language},
        ).tolist()  # fmt: skip
        assert answer.text == own.decode(row, skip_special_tokens=True).strip()
        assert language in row[:2]
    assert any(answer.text for answer in answers)


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        ({"source_language": "eng_Latn"}, "needs a target_language"),
        ({"source_language": "eng_Latn", "target_language": "deu_Lat"}, "'deu_Lat' is no language"),
        ({"source_language": "de", "target_language": "de"}, "both 'de'"),
    ],
)
def test_languages_that_cannot_be_are_refused(languages, message):
    with pytest.raises(UsageError, match=message) as error:
        TranslationTask(**languages).encode([{"source": "a", "target": "b"}], nllb(), 32)
    assert error.value.hint
    assert "deu_Latn" in error.value.hint or "deu_Lat" not in message


# -- templates and decoders --------------------------------------------------------------------------


def test_a_template_goes_around_the_source_and_is_never_cut():
    tokenizer = tiny_tokenizer()
    task = TranslationTask(template="say: {source} !")
    encoding = task.encode([{"source": "one two three four", "target": "x"}], tokenizer, 14)
    text = spoken(tokenizer, encoding.ids[0])
    assert text.startswith("say:o")
    assert text.endswith("!")
    assert encoding.truncated[0] > 0


def test_a_template_without_a_source_is_refused():
    with pytest.raises(UsageError, match="template"):
        TranslationTask(template="translate:")


def test_t5_s_own_prefix_is_taken_from_its_configuration():
    from transformers import T5Config

    own = {"translation_en_to_de": {"prefix": "translate English to German: "}}
    task = TranslationTask(source_language="en", target_language="de").suited(T5Config(task_specific_params=own))
    assert task.template == "translate English to German: {source}"
    assert not task.decoder_only


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama") / "model", "AutoModelForCausalLM")


def test_a_decoder_alone_is_asked_for_the_target_after_a_prompt(llama):
    from transformers import AutoModelForCausalLM, LlamaConfig

    task, tokenizer = TranslationTask(target_language="de").suited(LlamaConfig()), tiny_tokenizer()
    assert task.decoder_only
    assert task.auto_class == "AutoModelForCausalLM"
    encoding = task.encode(ROWS[:1], tokenizer, 64)
    prompt = task.prompt(ROWS[0], tokenizer)
    target = [*tokenizer("eins zwei", add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]
    assert encoding.ids[0].tolist() == [*prompt, *target[:-1]]
    assert encoding.targets[0].tolist() == [IGNORED] * (len(prompt) - 1) + target
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    ids = torch.tensor([[*prompt, *target]])
    labels = torch.tensor([[IGNORED] * len(prompt) + target])
    batch = gather(flattened(encoding), np.arange(1))
    with torch.no_grad():
        loss = own_loss(model, task, batch) / task.weight(batch)
        assert float(loss) == pytest.approx(float(model(input_ids=ids, labels=labels).loss), rel=1e-5)


def test_a_chat_model_is_asked_in_its_own_template():
    from transformers import LlamaConfig

    task, tokenizer = TranslationTask(template="say {source}").suited(LlamaConfig()), tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}({{ m['role'] }}) {{ m['content'] }} {% endfor %}="
    prompt = task.prompt(ROWS[0], tokenizer)
    assert tokenizer.decode(prompt).replace(" ", "").replace("##", "") == "(user)sayonetwo="
    encoding = task.encode(ROWS[:1], tokenizer, 64)
    ids, targets = encoding.ids[0], encoding.targets[0]
    assert ids[: len(prompt)].tolist() == prompt
    assert (targets != IGNORED).sum() == len(ids) - len(prompt) + 1


def test_a_prompt_and_target_that_are_too_long_together_are_counted():
    from transformers import LlamaConfig

    task, tokenizer = TranslationTask(template="t: {source} =").suited(LlamaConfig()), tiny_tokenizer()
    whole, short = (task.encode(ROWS, tokenizer, length) for length in (64, 24))
    assert [len(a) - len(b) for a, b in zip(whole.ids, short.ids, strict=True)] == short.truncated
    assert max(short.truncated) > 0
    assert max(map(len, short.ids)) == 24
    assert {int(ids[-1]) for ids in short.targets} == {tokenizer.sep_token_id}


def test_a_decoder_learns_to_translate_by_prompt(llama):
    task = TranslationTask(template="{source}=")
    rows = [{"source": word, "target": digit} for word, digit in (("one", "1"), ("two", "2"), ("six", "6"))] * 4
    model = LLM.from_pretrained(llama)
    run = model.finetune(task, rows, eval_data=rows, epochs=20, learning_rate=1e-2, batch_size=8, threads=1,
                         precision="float32", progress=False)  # fmt: skip
    assert model.task.decoder_only
    assert run.metrics["loss"] < 0.6 * run.report.baseline["loss"]
    assert model.predict("six", threads=1).text == "6"


# -- rows that teach nothing -------------------------------------------------------------------------


def test_sources_that_are_their_targets_are_refused():
    same = [{"source": "a", "target": "a"}] * 2 + ROWS[:1]
    with pytest.raises(DataError, match="the same text in 2 of 3 rows"):
        TranslationTask().fitted(same)
    _, notes = TranslationTask().fitted([*ROWS, *same[:1]])
    assert "1 of 4" in notes[0]


@pytest.mark.parametrize("field", ["source", "target"])
def test_empty_and_wrong_rows_are_named(field):
    task = TranslationTask()
    assert task.problem({**ROWS[0], field: "  "}).drop
    assert task.problem({**ROWS[0], field: 3}).field == field


# -- scores of written texts -------------------------------------------------------------------------

WRITTEN = ["Ein Hund läuft im Park .", "Zwei Männer", "Das ist ein großes rotes Haus."]
WANTED = ["Ein Hund rennt im Park.", "Zwei Männer sitzen auf einer Bank.", "Das ist ein großes, rotes Haus."]


def scored(written: list[str], wanted: list[str], language: str | None = None) -> TranslationScorer:
    scorer = TranslationScorer(language)
    scorer.add([np.asarray([[1.0, 0.0]])] * len(written), (list(range(len(written))), np.arange(len(written))))
    for text, reference in zip(written, wanted, strict=True):
        scorer.add_texts([text], [[reference]], ["source"])
    return scorer


def test_bleu_and_chrf_are_sacrebleus_with_signature():
    report = scored(WRITTEN, WANTED, "de").report(samples=200)
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        assert report.metrics[name].value == pytest.approx(metric.corpus_score(WRITTEN, [WANTED]).score)
        assert report.signatures[name] == str(metric.get_signature())
        assert report.metrics[name].low < report.metrics[name].value <= report.metrics[name].high
    assert "tok:13a" in report.signatures["bleu"]
    assert report.baseline["bleu"] < report.metrics["bleu"].value


@pytest.mark.parametrize("language", ["zh", "zho_Hans", "zh_CN", None])
def test_chinese_is_cut_into_characters(language):
    written, wanted = ["狗在公园里奔跑。", "他喜欢喝茶。"], ["狗在公园里跑。", "他很喜欢喝茶。"]
    report = scored(written, wanted, language).report(samples=10)
    assert report.metrics["bleu"].value == pytest.approx(BLEU(tokenize="zh").corpus_score(written, [wanted]).score)
    assert "tok:zh" in report.signatures["bleu"]


def test_a_tiny_model_translates_and_is_scored(tmp_path):
    task, rows = TranslationTask.sample()
    model = LLM.from_pretrained(save_tiny(tmp_path / "model", task.auto_class))
    model.finetune(task, rows, eval_data=rows, epochs=15, learning_rate=1e-2, batch_size=4, dropout=0.0, threads=1,
                   precision="float32", output=tmp_path / "tuned", progress=False)  # fmt: skip
    tuned = LLM.from_pretrained(tmp_path / "tuned")
    answer = tuned.predict("ten", threads=1)
    assert answer.text.replace(" ", "").replace("##", "") == "10"
    assert answer.finish_reason == "stop"
    report = tuned.evaluate(rows, threads=1)
    assert report.metrics["chrf"].value > report.baseline["chrf"]
    assert set(report.metrics) == {*task.metric_names, *task.answer_metrics}


def test_batches_are_near_equal_in_source_and_target():
    task, tokenizer = TranslationTask(), tiny_tokenizer()
    rows = [{"source": "a" * n, "target": "b" * m} for n, m in ((3, 20), (20, 3), (4, 4), (19, 19))]
    data = encode(read(rows, task.fields), task, tokenizer, 64)
    assert np.argsort(-data.sizes).tolist() == [3, 0, 1, 2] or np.argsort(-data.sizes).tolist() == [0, 1, 3, 2]


@pytest.mark.data
@pytest.mark.parametrize(("folder", "target", "cut"), [("multi30k", "de", "13a"), ("tatoeba_en_zh", "zh", "zh")])
def test_real_pairs_are_found_by_their_languages_and_scored_as_sacrebleu_does(shared_data, folder, target, cut):
    task = TranslationTask(source_language="en", target_language=target)
    rows = read(shared_data / folder / "validation.jsonl", task.fields)
    assert rows.columns == {"source": "en", "target": target}
    wanted = [row["target"] for row in rows.rows(range(300))]
    written = [text[: 2 * len(text) // 3] for text in wanted]
    report = scored(written, wanted, target).report(samples=50)
    expected = BLEU(tokenize=cut).corpus_score(written, [wanted]).score
    assert report.metrics["bleu"].value == pytest.approx(expected)
    assert report.metrics["chrf"].value == pytest.approx(CHRF().corpus_score(written, [wanted]).score)
