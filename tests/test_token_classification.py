"""Token classification: words in and words out, whatever the tokenizer and however long the text."""

from __future__ import annotations

import itertools
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmasos import LLM, TokenClassificationTask
from llmasos.cli import main
from llmasos.data.dataset import read, stream
from llmasos.data.encoding import encode, usable_rows
from llmasos.errors import DataError, UsageError
from llmasos.metrics.entities import EntityScorer, spans_of
from llmasos.tasks._words import Pieces, joined, split_words, windows
from llmasos.tasks.base import IGNORED
from tiny import save_tiny_bert, tiny_tokenizer

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TASK = TokenClassificationTask(labels=TAGS)
QUICK = {"threads": 1, "precision": "float32", "progress": False}
LONG = {"tokens": ["ida", "met", "tom", "in", "oslo", "."] * 9, "tags": ["B-PER", "O", "B-PER", "O", "B-LOC", "O"] * 9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model that has learned the sample, and long texts of the same words."""
    base = save_tiny_bert(tmp_path_factory.mktemp("base") / "model")
    task, rows = TokenClassificationTask.sample()
    model = LLM.from_pretrained(base)
    model.finetune(task, [*rows, LONG], eval_data=rows, epochs=20, batch_size=8, learning_rate=3e-3,
                   dropout=0.0, **QUICK)  # fmt: skip
    return model.save(tmp_path_factory.mktemp("tuned") / "model")


@pytest.fixture(scope="module")
def model(folder) -> LLM:
    return LLM.from_pretrained(folder)


def asked(task: TokenClassificationTask, row: dict[str, Any], max_length: int = 64) -> list[str | None]:
    """Return the tag that each token of the first window is taught."""
    labels, (targets, *_) = list(task.labels or ()), task.encode([row], tiny_tokenizer(), max_length).targets
    return [None if t == IGNORED else labels[t % len(labels)] for t in targets]


# -- words and pieces -------------------------------------------------------------------------------------


def test_words_are_cut_into_the_pieces_that_transformers_cuts_them_into():
    tokenizer, words = tiny_tokenizer(), ["Ida", "doesn't", "live", "in", "3rd-street", "."]
    (pieces,) = Pieces(tokenizer).of([words])
    expected = tokenizer(words, is_split_into_words=True)
    assert [101 if i is None else i for i in expected.word_ids()[1:-1]] == [
        i for i, part in enumerate(pieces) for _ in part
    ]
    assert np.concatenate(pieces).tolist() == expected["input_ids"][1:-1]


def test_a_byte_level_tokenizer_sees_words_with_the_space_before_them():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {piece: i for i, piece in enumerate(["<s>", "Ġ", "a", "b", "Ġa", "Ġb"])}
    raw = Tokenizer(models.BPE(vocab, [("Ġ", "a"), ("Ġ", "b")]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<s>")
    (pieces,) = Pieces(tokenizer).of([["a", "b"]])
    assert [tokenizer.convert_ids_to_tokens(part.tolist()) for part in pieces] == [["Ġa"], ["Ġb"]]


def test_text_is_split_without_a_tokenizer_in_any_script():
    for text, words in {
        "Ida's trip, 3.5 km": ["Ida", "'", "s", "trip", ",", "3", ".", "5", "km"],
        "她住在北京。": list("她住在北京。"),
        "हिन्दी में नमस्ते।": ["हिन्दी", "में", "नमस्ते", "।"],
        "cafe\u0301 na\u200bive 👍🏽": ["cafe\u0301", "na", "ive", "👍🏽"],
    }.items():
        assert [text[a:b] for a, b in split_words(text)] == words


def test_words_are_joined_with_spaces_but_in_chinese():
    assert joined(["住", "在", "Oslo", "。"])[0] == "住在 Oslo 。"
    text, places = joined(["ida", "lives"])
    assert [text[a:b] for a, b in places] == ["ida", "lives"]


def test_the_first_piece_of_a_word_is_taught_its_tag():
    row = {"tokens": ["ida", "lives"], "tags": ["B-PER", "O"]}
    assert asked(TASK, row) == [None, "B-PER", None, None, "O", None, None, None, None, None]


def test_all_pieces_are_taught_if_asked_and_go_on_inside_the_entity(model):
    task = TokenClassificationTask(labels=TAGS, label_all_subwords=True)
    row = {"tokens": ["ida", "ok"], "tags": ["B-PER", "O"]}
    assert asked(task, row) == [None, "B-PER", "I-PER", "I-PER", "O", "O", None]
    data = encode(read([row], task.fields), task, tiny_tokenizer(), 64)
    scorer = task.scorer()
    task.score(scorer, [np.zeros((7, 5), np.float32)], data, [])
    assert scorer.report().rows == 1
    assert scorer.values()["token_accuracy"] == 0.5  # of two words, not of five pieces


def test_a_word_of_which_the_tokenizer_leaves_nothing_is_answered_too(model):
    answer = model.predict({"tokens": ["ask", "\u200d", "ida"]}, threads=1)
    assert [word.text for word in answer.words] == ["ask", "\u200d", "ida"]


# -- windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [[1] * 50, [3] * 20, [1, 1, 1, 8, 1, 1, 8, 2, 8, 8], [8], [2, 5, 1, 7, 3, 3, 6, 1] * 5]
)
def test_every_word_is_asked_in_one_window_that_shows_it(sizes):
    found = windows(sizes, 8, 4)
    assert [word for w in found for word in range(w.first, w.last)] == list(range(len(sizes)))
    for window in found:
        assert sum(sizes[window.start : window.stop]) <= 8
        assert window.start <= window.first <= window.last <= window.stop


def test_a_word_is_asked_where_most_is_seen_around_it():
    one, two, *_ = windows([1] * 20, 8, 4)
    assert (one.stop, two.start) == (8, 4)  # four words are in both: each window is asked for its half of them
    assert (one.last, two.first) == (6, 6)


def test_the_stride_says_how_much_windows_share():
    rows = [{"tokens": list("abcdefghij" * 6)}]
    counts = [len(TokenClassificationTask(labels=TAGS, stride=stride).encode(rows, tiny_tokenizer(), 22,
              labelled=False).ids) for stride in (0, 5, 10)]  # fmt: skip
    assert counts == [3, 4, 5]


def test_a_long_text_is_read_to_its_end_and_nothing_is_cut(model):
    answer = model.predict(LONG, threads=1, allow_truncated=0.0)
    assert [word.text for word in answer.words] == LONG["tokens"]
    assert answer.tags[-6:] == LONG["tags"][-6:]


def test_a_word_longer_than_a_window_is_counted_as_cut():
    encoding = TASK.encode([{"tokens": ["a", "b" * 30]}], tiny_tokenizer(), 22, labelled=False)
    assert encoding.truncated == [10]
    assert sum(int((t != IGNORED).sum()) for t in encoding.targets) == 2


# -- answers ----------------------------------------------------------------------------------------------


def test_entities_of_a_string_say_where_they_are_in_it(model):
    text = "in new york ask  ida"
    answer = model.predict(text, threads=1)
    assert [(e.label, e.text) for e in answer.entities] == [("LOC", "new york"), ("PER", "ida")]
    for entity in answer.entities:
        assert text[entity.start : entity.end] == entity.text
        words = answer.words[entity.start_word : entity.end_word]
        assert entity.score == pytest.approx(np.mean([word.score for word in words]))
    assert str(answer).startswith("LOC: new york (")


def test_the_packed_forward_gives_the_answers_of_transformers_also_in_windows(model):
    rows = [{"tokens": LONG["tokens"]}, {"tokens": ["in", "rome", "ask", "ida"]}]
    packed, plain = (model.predict(rows, threads=1, precision="float32", speed=s) for s in ("auto", "plain"))
    for one, other in zip(packed, plain, strict=True):
        assert one.tags == other.tags
        assert [w.score for w in one.words] == pytest.approx([w.score for w in other.words], abs=1e-4)


def test_a_row_of_words_is_one_row_under_any_of_its_names(model):
    answer = model.predict({"words": ["ask", "ida"]}, threads=1)
    assert answer.text == "ask ida"
    assert len(model.predict({"tokens": [["ask", "ida"], ["in", "rome"]]}, threads=1)) == 2


def test_the_tags_given_are_the_most_probable_of_all_that_are_well_formed():
    rng = np.random.default_rng(0)
    for _ in range(30):
        scores = np.log(rng.dirichlet(np.ones(5), size=4))
        sequences = [s for s in itertools.product(range(5), repeat=4) if well_formed([TAGS[i] for i in s])]
        best = max(sequences, key=lambda s: sum(scores[i, tag] for i, tag in enumerate(s)))
        assert TASK._best(scores).tolist() == list(best)


def well_formed(tags: list[str]) -> bool:
    return all(b[:2] != "I-" or a[2:] == b[2:] for a, b in itertools.pairwise(["O", *tags]))


def test_the_loss_is_the_cross_entropy_over_the_words_asked():
    import torch

    from llmasos.data.batching import gather

    data = encode(read([{"tokens": ["ida", "ok"], "tags": ["B-PER", "O"]}], TASK.fields), TASK, tiny_tokenizer(), 64)
    logits = np.random.default_rng(0).normal(size=(7, 5))
    batch = gather(data, np.arange(1))
    expected = sum(-logits[i, t] + np.log(np.exp(logits[i]).sum()) for i, t in ((1, 1), (4, 0)))
    assert float(TASK.loss(torch.from_numpy(logits), batch)) == pytest.approx(expected, rel=1e-12)
    assert TASK.weight(batch) == 2.0


# -- scores -----------------------------------------------------------------------------------------------


def random_tags(rng: np.random.Generator, rows: int) -> list[list[str]]:
    return [[TAGS[i] for i in rng.integers(5, size=rng.integers(1, 12))] for _ in range(rows)]


def test_scores_are_those_of_seqeval():
    from seqeval.metrics import accuracy_score, classification_report

    rng = np.random.default_rng(0)
    wanted = random_tags(rng, 300)
    given = [[tag if rng.random() < 0.7 else TAGS[rng.integers(5)] for tag in row] for row in wanted]
    scorer = EntityScorer(["PER", "LOC"])
    for start in range(0, 300, 70):
        scorer.add(given[start : start + 70], wanted[start : start + 70])
    report, expected = scorer.report(samples=100), classification_report(wanted, given, output_dict=True)
    for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert report.metrics[ours].value == pytest.approx(expected["micro avg"][theirs], abs=1e-12)
        for label in ("PER", "LOC"):
            assert report.per_class[label][ours].value == pytest.approx(expected[label][theirs], abs=1e-12)
    assert report.metrics["f1_macro"].value == pytest.approx(expected["macro avg"]["f1-score"], abs=1e-12)
    assert report.metrics["token_accuracy"].value == pytest.approx(accuracy_score(wanted, given), abs=1e-12)
    assert report.per_class["PER"]["support"] == expected["PER"]["support"]


def test_an_evaluation_is_what_seqeval_says_of_the_answers_to_whole_texts(model):
    from seqeval.metrics import f1_score, recall_score

    rows = [LONG, *TokenClassificationTask.sample()[1], {"tokens": ["ask", "oslo"], "tags": ["O", "B-LOC"]}]
    report = model.evaluate(rows, threads=1, allow_truncated=0.0)
    answers = [answer.tags for answer in model.predict([{"tokens": row["tokens"]} for row in rows], threads=1)]
    wanted = [row["tags"] for row in rows]
    assert sum(scores["support"] for scores in report.per_class.values()) == sum(len(spans_of(t)) for t in wanted)
    assert report.metrics["f1"].value == pytest.approx(f1_score(wanted, answers), abs=1e-12)
    assert report.metrics["recall"].value == pytest.approx(recall_score(wanted, answers), abs=1e-12)


def test_the_baseline_finds_nothing():
    scorer = EntityScorer(["PER"])
    scorer.add([["B-PER", "O", "O"]], [["B-PER", "I-PER", "O"]])
    assert scorer.baseline() == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "f1_macro": 0.0,
                                 "token_accuracy": pytest.approx(1 / 3)}  # fmt: skip


def test_intervals_are_over_rows_and_hold_the_value_also_with_many_rows():
    rng = np.random.default_rng(1)
    scorer, found = EntityScorer(["PER"]), (["B-PER"], ["O"])
    scorer.add([found[int(rng.random() < 0.2)] for _ in range(12_000)], [["B-PER"]] * 12_000)
    value, low, high = scorer.report().metrics["recall"]
    assert value == pytest.approx(0.8, abs=0.02)
    deviation = (0.8 * 0.2 / 12_000) ** 0.5
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.2)


# -- rows -------------------------------------------------------------------------------------------------

TEXT = "Ida lives in New York."


@pytest.mark.parametrize(
    ("row", "field", "found"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "tags", "1 tags"),
        ({"tokens": ["a"], "tags": None}, "tags", "nothing"),
        ({"tokens": ["a"], "tags": ["B-ORG"]}, "tags", "'B-ORG' at word 1"),
        ({"tokens": ["a"], "tags": ["PER"]}, "tags", "'PER' at word 1"),
        ({"tokens": ["a"], "tags": [7]}, "tags", "7 at word 1"),
        ({"tokens": ["a"], "tags": [None]}, "tags", "None at word 1"),
        ({"tokens": ["a", "bo"], "tags": ["O", "I-PER"]}, "tags", "'I-PER' at word 2 (str 'bo') after 'O'"),
        ({"tokens": ["a", "b"], "tags": ["B-LOC", "I-PER"]}, "tags", "'I-PER' at word 2 (str 'b') after 'B-LOC'"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "tokens", "str '' as word 2"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, "tokens", "int 3 as word 2"),
        ({"tokens": [], "tags": []}, "tokens", "no words"),
        ({"tags": ["O"]}, "tokens", "nothing"),
        ({"text": " "}, "text", "an empty text"),
        ({"text": TEXT, "spans": None}, "spans", "nothing"),
        ({"text": TEXT, "spans": [[0, 3, "PER"]]}, "spans", "list"),
        ({"text": TEXT, "spans": [{"start": 3, "end": 3, "label": "PER"}]}, "spans", "dict"),
        ({"text": TEXT, "spans": [{"start": 0, "end": 3}]}, "spans", "dict"),
        ({"text": TEXT, "spans": [{"start": 13, "end": 40, "label": "LOC"}]}, "spans", "13 to 40"),
        ({"text": TEXT, "spans": [{"start": 13, "end": 19, "label": "LOC"}]}, "spans", "13 to 19 (str 'New Yo')"),
        ({"text": TEXT, "spans": [{"start": 0, "end": 4, "label": "PER"}]}, "spans", "0 to 4 (str 'Ida ')"),
        ({"text": TEXT, "spans": [{"start": 0, "end": 3, "label": "ORG"}]}, "spans", "the label 'ORG'"),
        ({"text": TEXT, "spans": [{"start": 4, "end": 9, "label": "PER", "text": "Ida"}]}, "spans", "should be 'Ida'"),
        ({"text": TEXT, "spans": [{"start": 0, "end": 9, "label": "PER"}, {"start": 4, "end": 9, "label": "LOC"}]},
         "spans", "4 to 9 (str 'lives'), overlapping"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_by_field_and_place(row, field, found):
    problem = TASK.problem(row)
    assert problem.field == field
    assert found in problem.found
    assert problem.expected


def test_a_span_beside_the_borders_of_words_is_told_the_nearest():
    problem = TASK.problem({"text": TEXT, "spans": [{"start": 13, "end": 19, "label": "LOC"}]})
    assert "13 to 21 (str 'New York')" in problem.expected


def test_a_span_of_two_words_needs_a_tag_for_the_second():
    task = TokenClassificationTask(labels=["O", "B-LOC"])
    problem = task.problem({"text": TEXT, "spans": [{"start": 13, "end": 21, "label": "LOC"}]})
    assert problem.expected == "one of the tags O, B-LOC; I-LOC is not among them (did you mean 'B-LOC'?)"
    assert task.problem({"text": TEXT, "spans": [{"start": 13, "end": 16, "label": "LOC"}]}) is None


def test_wrong_tags_stop_a_run_with_row_and_word():
    rows = [{"tokens": ["a", "bo"], "tags": ["O", "O"]}, {"tokens": ["a", "bo"], "tags": ["O", "I-PER"]}]
    with pytest.raises(DataError, match=r"row 2, field tags: found 'I-PER' at word 2 .* expected 'B-PER'"):
        list(usable_rows(read(rows, TASK.fields), TASK))


def test_iob1_is_turned_into_iob2():
    task = TokenClassificationTask(labels=TAGS, scheme="IOB1")
    row = {"tokens": list("abcd"), "tags": ["I-PER", "I-PER", "B-PER", "I-LOC"]}
    assert task.problem(row) is None
    assert asked(task, row)[1:-1] == ["B-PER", "I-PER", "B-PER", "B-LOC"]


def test_raw_tags_are_taken_as_they_are_and_equal_neighbours_are_one_entity():
    rows = [{"tokens": list("abcd"), "tags": ["DET", "NOUN", "NOUN", "O"]}]
    task, _ = TokenClassificationTask(scheme="raw").fitted(rows)
    assert task.labels == ("O", "DET", "NOUN")
    assert asked(task, rows[0])[1:-1] == rows[0]["tags"]
    scorer = task.scorer()
    scorer.add([task._iob([1, 2, 2, 0])], [task._iob([1, 2, 2, 0])])
    assert {k: v["support"] for k, v in scorer.report(10).per_class.items()} == {"DET": 1, "NOUN": 1}


def test_numbered_tags_are_places_among_the_labels():
    row = {"tokens": ["ida", "k"], "ner_tags": [1, 0]}
    data = read([row], TASK.fields)
    assert asked(TASK, next(data.batches())[0])[1] == "B-PER"
    problem = TokenClassificationTask().problem({"tokens": ["a"], "tags": [1]})
    assert "labels=[...]" in problem.expected


def test_tags_are_found_in_the_data_with_all_that_their_types_need():
    task, notes = TokenClassificationTask().fitted([{"tokens": ["ida", "is"], "tags": ["B-PER", "O"]}])
    assert task.labels == ("O", "B-PER", "I-PER")
    assert notes == ["1 types found in the data: PER"]
    _, notes = TASK.fitted([{"tokens": ["ida", "is"], "tags": ["B-PER", "O"]}])
    assert notes == ["no training row has an entity of type LOC"]


@pytest.mark.parametrize(("scheme", "tag"), [("IOB2", "O"), ("raw", "NOUN")])
def test_data_with_one_tag_alone_is_refused(scheme, tag):
    with pytest.raises(DataError, match=f"every word of the data has the tag '{tag}'"):
        TokenClassificationTask(scheme=scheme).fitted([{"tokens": ["ida"], "tags": [tag]}])


@pytest.mark.parametrize("key", ["label", "type"])
def test_spans_of_a_text_are_tags_of_its_words(key):
    text = "她住在北京, near Rome"
    spans = [{"start": 3, "end": 5, key: "LOC"}, {"start": 12, "end": 16, key: "LOC"}]
    row = {"text": text, "spans": spans}
    assert TASK.problem(row) is None
    tags = [tag for tag in asked(TASK, row) if tag]
    assert tags == ["O", "O", "O", "B-LOC", "I-LOC", "O", "O", "B-LOC"]


def test_words_in_one_string_are_parted_by_spaces():
    row = {"tokens": "ida lives", "tags": "B-PER O"}
    assert TASK.problem(row) is None
    assert asked(TASK, row) == asked(TASK, {"tokens": ["ida", "lives"], "tags": ["B-PER", "O"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["B-PER", "I-PER"]}, "there is no 'O'"),
        ({"labels": ["O", "I-PER"]}, "'I-PER' has no B-"),
        ({"labels": ["O", "PER"]}, "'PER' is no IOB tag"),
        ({"labels": ["O", "O"]}, "named twice"),
        ({"labels": ["O"]}, "labels="),
        ({"scheme": "IOB"}, "scheme='IOB'"),
        ({"stride": -1}, "stride=-1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        TokenClassificationTask(**options)


def test_a_table_without_words_or_texts_is_refused():
    with pytest.raises(DataError, match="no column that the task reads; columns found: foo"):
        read({"foo": ["a"]}, TASK.fields)


# -- files ------------------------------------------------------------------------------------------------

CONLL = "-DOCSTART- -X- O\n\n# id = 7\nIda NNP B-PER\nran VBD O\n\n\nNew York\tNNP\tB-LOC\n"


@pytest.mark.parametrize("ending", ["conll", "bio", "iob2"])
def test_a_conll_file_has_a_word_a_line_and_its_tag_in_the_last_column(tmp_path, ending):
    path = tmp_path / f"train.{ending}"
    path.write_text(CONLL)
    data = read(path, TASK.fields)
    assert next(data.batches()) == [
        {"tokens": ["Ida", "ran"], "tags": ["B-PER", "O"]},
        {"tokens": ["New York"], "tags": ["B-LOC"]},
    ]
    assert data.where(1) == f"train.{ending}, row 2 (line 8)"


def test_a_conll_file_of_words_alone_is_enough_to_predict(tmp_path):
    (tmp_path / "new.conll").write_text("Ida\nran\n\nTom\n")
    assert list(stream(tmp_path / "new.conll", TASK.fields)) == [{"tokens": ["Ida", "ran"]}, {"tokens": ["Tom"]}]


@pytest.mark.parametrize(
    ("content", "message"),
    [("Ida B-PER\nran\n", "line 2: found 1 columns, expected 2 as before"), ("\n\n", "no line has a word")],
)
def test_a_broken_conll_file_is_refused_with_the_line(tmp_path, content, message):
    (tmp_path / "bad.conll").write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "bad.conll", TASK.fields)


# -- the shell --------------------------------------------------------------------------------------------


@pytest.fixture
def shell(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> str:
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out  # type: ignore[no-any-return]

    return call


def test_finetune_evaluate_and_predict_work_from_the_shell(shell, folder, tmp_path):
    _, rows = TokenClassificationTask.sample()
    lines = ["".join(f"{word} {tag}\n" for word, tag in zip(r["tokens"], r["tags"], strict=True)) for r in rows]
    Path("train.conll").write_text("\n".join(lines))
    said = shell("finetune", folder, "--task", "token-classification", "--data", "train.conll", "--output", "new",
                 "--max-steps", 2, "--stride", 8, "--threads", 1)  # fmt: skip
    assert "token_accuracy" in said
    assert LLM.from_pretrained("new").task.stride == 8
    report = json.loads(shell("evaluate", "new", "--data", "train.conll", "--json", "--threads", 1))
    assert report["metrics"]["f1"]["value"] > 0.9
    assert "PER" in shell("evaluate", "new", "--data", "train.conll", "--threads", 1)
    (answer,) = json.loads(shell("predict", "new", "ask ida", "--json", "--threads", 1))["predictions"]
    assert [(e["label"], e["text"]) for e in answer["entities"]] == [("PER", "ida")]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_answers_go_to_a_file(shell, folder, name):
    Path("new.jsonl").write_text('{"tokens": ["ask", "ida"]}\n{"tokens": ["in", "rome"]}\n')
    summary = json.loads(shell("predict", folder, "--data", "new.jsonl", "--output", name, "--json", "--threads", 1))
    assert (summary["rows"], "labels" in summary) == (2, False)
    assert "PER" in Path(name).read_text()


def test_on_a_terminal_the_entities_are_readable(shell, folder, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert re.match(r"PER: ida \(\d\.\d+\)  ask ida\n", shell("predict", folder, "ask ida", "--threads", 1))


# -- real data --------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("name", ["wnut17", "wikiann_en", "msra_ner_zh"])
def test_real_rows_are_read_without_a_loss(shared_data, name):
    data = read(shared_data / name / "validation.jsonl", TASK.fields)
    rows = [row for batch in data.batches() for row in batch][:300]
    task, _ = TokenClassificationTask().fitted(rows)
    with warnings.catch_warnings():
        encoded = encode(read(rows, task.fields), task, tiny_tokenizer(), 64)
    assert int((encoded.targets != IGNORED).sum()) == sum(len(row["tokens"]) for row in rows)


@pytest.mark.data
def test_real_spans_lie_on_the_borders_of_words(shared_data):
    data = read(shared_data / "pii_synth" / "v2.jsonl", TASK.fields)
    task = TokenClassificationTask()
    assert [p for batch in data.batches() for row in batch if (p := task.problem(row)) and not p.drop] == []
