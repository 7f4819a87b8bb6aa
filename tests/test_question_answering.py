"""Question answering: answers keep their places, windows join, options act, and scores are those of the scripts."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmasos import LLM, QuestionAnsweringTask
from llmasos.architectures._plain import transformers_outputs
from llmasos.cli import main
from llmasos.core.errors import DataError, TrainingError, UsageError
from llmasos.data.batching import gather, split
from llmasos.data.dataset import read
from llmasos.data.dataset import split as divide
from llmasos.data.encoding import encode, flattened
from llmasos.loading import load_model
from llmasos.metrics.answers import AnswerScorer, Gold, is_chinese, normalized, scored, segments
from tiny import save_tiny_bert, tiny_tokenizer

CONTEXT = "the old mill by the river was built in 1887 by two brothers"
ROW = {
    "question": "when was it built?",
    "context": CONTEXT,
    "answers": {"text": ["1887"], "answer_start": [CONTEXT.index("1887")]},
}
NONE = {"text": [], "answer_start": []}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def typed():
    """A tokenizer that tells question and context apart by token types, as BERT's own does."""
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


def row(context: str, answer: str = "", question: str = "which?") -> dict[str, Any]:
    answers = {"text": [answer], "answer_start": [context.index(answer)]} if answer else NONE
    return {"question": question, "context": context, "answers": answers}


def right(encoding: Any, *, null: float = 0.0) -> list[np.ndarray]:
    """Logits of a model that knows: 10 where the targets say, ``null`` at the first token of the other windows."""
    out = []
    for ids, lines in zip(encoding.ids, encoding.targets, strict=True):
        logits = np.zeros((len(ids), 2), dtype=np.float32)
        for column, place in enumerate(lines[0]):
            logits[place, column] = 10.0 if place else null
        out.append(logits)
    return out


def answer_of(task, encoding, outputs, rows):
    (answer,) = task.decode(outputs, encoding, rows)
    return answer


# -- rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["1887"], "answer_start": [39]},
        [{"text": "1887", "answer_start": 39}],
        {"text": "1887", "answer_start": 39},
        {"text": ["1887", "in 1887"], "answer_start": [39, 36], "answer_end": [43, 43]},
        [],
        NONE,
    ],
)
def test_both_layouts_of_squad_are_taken(answers):
    assert QuestionAnsweringTask().problem({**ROW, "answers": answers}) is None


@pytest.mark.parametrize(
    ("answers", "found", "expected"),
    [
        ({"text": ["1887"], "answer_start": [38]}, "answer str '1887' at 38, where the context has ' 188'", "at 39"),
        ({"text": ["The old Mill"], "answer_start": [3]}, "'The old Mill'", "nearest match: 'the old mill' at 0"),
        ({"text": ["zebra quux"], "answer_start": [3]}, "zebra", "nothing in the context is like it"),
        ({"text": ["1887"], "answer_start": [400]}, "answer_start 400", "it is at 39"),
        ({"text": ["1887"], "answer_start": [-1]}, "answer_start -1", "it is at 39"),
        ({"text": [" "], "answer_start": [3]}, "an empty answer", "some text"),
        ({"text": ["1887"], "answer_start": []}, "dict", "answer_start"),
        ({"text": ["1887"]}, "dict", "answer_start"),
        ([{"text": "1887", "answer_start": "39"}], "list", "answer_start"),
        ("1887", "str '1887'", "the text is at 39"),
        (["1887"], "list", "the text is at 39"),
    ],
)
def test_a_wrong_answer_is_shown_with_the_nearest_match(answers, found, expected):
    problem = QuestionAnsweringTask().problem({**ROW, "answers": answers})
    assert problem.field == "answers"
    assert found in problem.found
    assert expected in problem.expected


def test_of_several_places_the_nearest_to_the_wrong_one_is_named():
    problem = QuestionAnsweringTask().problem({**ROW, "answers": {"text": ["by"], "answer_start": [43]}})
    assert problem.expected.endswith("it is at 44")


def test_empty_questions_and_contexts_may_be_left_out():
    for field in ("question", "context"):
        assert QuestionAnsweringTask().problem({**ROW, field: " \n"}).drop


def test_a_wrong_row_of_a_file_is_named_with_its_line(tmp_path, tokenizer):
    wrong = {**ROW, "answers": {"text": ["1888"], "answer_start": [39]}}
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, (ROW, wrong, ROW))))
    task = QuestionAnsweringTask()
    with pytest.raises(DataError, match=r"row 2 \(line 2\), field answers: .*1888.*where the context has '1887'"):
        encode(read(tmp_path / "qa.jsonl", task.fields), task, tokenizer, 64)


NESTED = {
    "version": "1.1",
    "data": [
        {"title": "Mills", "paragraphs": [{"context": CONTEXT, "qas": [
            {"id": "1", "question": "when was it built?", "answers": [{"text": "1887", "answer_start": 39}]},
            {"id": "2", "question": "who?", "answers": [], "is_impossible": True},
        ]}]},
    ],
}  # fmt: skip


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("order", [1, -1])
def test_files_of_squad_itself_give_a_row_for_each_question(tmp_path, indent, order):
    (tmp_path / "dev.json").write_text(json.dumps(dict(list(NESTED.items())[::order]), indent=indent))
    task = QuestionAnsweringTask()
    rows = read(tmp_path / "dev.json", task.fields).rows([0, 1])
    assert [r["question"] for r in rows] == ["when was it built?", "who?"]
    assert {r["context"] for r in rows} == {CONTEXT}
    assert [r["answers"] for r in rows] == [[{"text": "1887", "answer_start": 39}], []]
    assert [task.problem(r) for r in rows] == [None, None]


def test_rows_under_data_are_rows(tmp_path):
    (tmp_path / "dev.json").write_text(json.dumps({"data": [ROW, ROW]}))
    assert len(read(tmp_path / "dev.json", QuestionAnsweringTask().fields)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"data": [{"paragraphs": [{"context": "x"}]}]}), r"data\[0\]\.paragraphs\[0\]\.qas is nothing"),
        (json.dumps({"data": [{"paragraphs": ["x"]}]}), r"data\[0\]\.paragraphs is str 'x'"),
        (json.dumps(NESTED)[:-1], "line 1: not JSON"),
    ],
)
def test_a_damaged_file_of_squad_is_named_with_the_place(tmp_path, content, message):
    (tmp_path / "dev.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "dev.json", QuestionAnsweringTask().fields)


def test_lines_with_a_column_named_data_stay_lines(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps({"data": [{"a": 1}], **ROW})] * 3))
    assert len(read(tmp_path / "rows.jsonl", QuestionAnsweringTask().fields)) == 3


def test_questions_without_an_answer_are_wrong_where_each_has_one():
    assert QuestionAnsweringTask(unanswerable=False).problem({**ROW, "answers": NONE}).found == "no answer"
    assert QuestionAnsweringTask(unanswerable=True).problem({**ROW, "answers": NONE}) is None


@pytest.mark.parametrize(
    "options",
    [
        {"unanswerable": "yes"},
        {"stride": -1},
        {"n_best": 0},
        {"max_answer_length": 0},
        {"null_threshold": math.nan},
        {"score_by": "letters"},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        QuestionAnsweringTask(**options)


def test_a_hugging_face_dataset_keeps_its_nested_answers():
    from datasets import Dataset

    table = Dataset.from_list([{"id": "1", **ROW}, {"id": "2", **ROW, "answers": NONE}])
    rows = read(table, QuestionAnsweringTask().fields).rows([0, 1])
    assert [r["answers"] for r in rows] == [ROW["answers"], NONE]


def test_a_row_is_also_a_pair_of_question_and_context():
    task = QuestionAnsweringTask()
    rows = read([("when?", CONTEXT)], task.fields, labelled=False).rows([0])
    assert rows == [{"question": "when?", "context": CONTEXT}]


def test_rows_set_aside_share_no_context_with_those_left():
    rows = [row(f"text {i // 3} says {i // 3}", question=f"q{i}") for i in range(30)]
    dataset = read(rows, QuestionAnsweringTask().fields)
    for seed in (0, 1):
        left, held = divide(dataset, 0.2, seed, QuestionAnsweringTask.undivided)
        contexts = [{r["context"] for r in part.rows(range(len(part)))} for part in (left, held)]
        assert not contexts[0] & contexts[1]
        assert (len(left), len(held)) == (24, 6)
    one = read([row("the same text", question=f"q{i}") for i in range(10)], QuestionAnsweringTask().fields)
    assert [len(part) for part in divide(one, 0.2, 0, "context")] == [8, 2]


def test_augmenting_is_refused_where_targets_are_places(folder):
    with pytest.raises(UsageError, match=r"augment=0\.1 moves tokens"):
        LLM.from_pretrained(folder).finetune(QuestionAnsweringTask(), [ROW] * 4, augment=0.1, progress=False)


# -- what is learned from the rows -------------------------------------------------------------------------


def test_whether_questions_may_have_no_answer_is_inferred(tokenizer):
    task, notes = QuestionAnsweringTask().fitted([ROW, {**ROW, "answers": NONE}], tokenizer)
    assert (task.unanswerable, notes) == (True, ["1 of 2 questions have no answer in their context"])
    assert QuestionAnsweringTask().fitted([ROW], tokenizer)[0].unanswerable is False
    assert QuestionAnsweringTask(unanswerable=True).fitted([ROW], tokenizer)[0].unanswerable is True


def test_the_longest_training_answer_can_be_given(tokenizer):
    long = "x" * 45
    assert QuestionAnsweringTask().fitted([ROW, row(f"an {long}", long)], tokenizer)[0].max_answer_length == 45
    assert QuestionAnsweringTask().fitted([ROW], tokenizer)[0].max_answer_length == 30
    task, notes = QuestionAnsweringTask(max_answer_length=7).fitted([row(f"an {long}", long)], tokenizer)
    assert task.max_answer_length == 7
    assert notes == ["the longest answer has 45 tokens: max_answer_length=7 rules it out"]


def test_chinese_answers_are_scored_by_characters():
    chinese = row("长江全长约6300公里。", "约6300公里")
    assert is_chinese("约6300公里") is False  # four digits, three characters
    assert QuestionAnsweringTask().fitted([ROW, chinese])[0].score_by == "words"
    task, notes = QuestionAnsweringTask().fitted([row("长江在中国。", "中国")])
    assert task.score_by == task.scorer().by == "characters"
    assert "characters" in notes[0]
    assert QuestionAnsweringTask(score_by="words").fitted([row("长江在中国。", "中国")])[0].scorer().by == "words"


def test_data_without_any_answer_is_refused():
    with pytest.raises(DataError, match="no question has an answer"):
        QuestionAnsweringTask().fitted([{**ROW, "answers": NONE}])


# -- windows ----------------------------------------------------------------------------------------------


def test_windows_hold_the_question_and_together_the_whole_context(typed):
    encoding = QuestionAnsweringTask(stride=3).encode([ROW], typed, 40)
    assert len(encoding.ids) == 3
    question = typed(ROW["question"])["input_ids"]  # [CLS] question [SEP]
    seen = set()
    for ids, types, lines in zip(encoding.ids, encoding.types, encoding.targets, strict=True):
        assert len(ids) <= 40
        assert ids[: len(question)].tolist() == question
        assert types.tolist() == [0] * len(question) + [1] * (len(ids) - len(question))
        seen |= set(map(tuple, lines[3:].tolist()))
    assert seen == {(i, i + 1) for i, sign in enumerate(CONTEXT) if sign != " "}
    assert encoding.truncated == [0]
    assert encoding.rows == [0, 0, 0]


def test_neighbouring_windows_overlap_by_the_stride(tokenizer):
    for stride, shared in ((0, 0), (5, 5), (500, 10)):  # at most half of the 20 places that the question leaves
        one, two = QuestionAnsweringTask(stride=stride).encode([ROW], tokenizer, 38).targets[:2]
        assert len({*map(tuple, one[3:])} & {*map(tuple, two[3:])}) == shared


def test_a_context_that_fits_is_one_window_like_the_tokenizers_own(typed):
    encoding = QuestionAnsweringTask().encode([ROW], typed, 512)
    (ids,), (types,) = encoding.ids, encoding.types
    own = typed(ROW["question"], CONTEXT)
    assert (ids.tolist(), types.tolist()) == (own["input_ids"], own["token_type_ids"])


def test_targets_are_in_the_windows_that_hold_the_answer_and_null_in_the_others(tokenizer):
    encoding = QuestionAnsweringTask(stride=8).encode([ROW], tokenizer, 38)
    found = []
    for lines in encoding.targets:
        (start, end), first = lines[0].tolist(), lines[1, 1]
        if start:
            found.append((lines[3 + start - first, 0], lines[3 + end - first, 1]))
        else:
            assert end == 0
            inside = [39 <= a < 43 for a, _ in lines[3:].tolist()]
            assert not all(inside)
            assert sum(inside) < 4
    assert set(found) == {(39, 43)}


def test_a_question_too_long_for_the_model_is_cut_and_counted(tokenizer):
    long = {**ROW, "question": "why " * 40}
    encoding = QuestionAnsweringTask().encode([long], tokenizer, 64)
    assert encoding.truncated == [120 - (64 - 3 - 16)]  # a window keeps 16 places for the context
    assert max(map(len, encoding.ids)) == 64
    task, _ = QuestionAnsweringTask().fitted([ROW], tokenizer)
    with pytest.raises(DataError, match=r"1 of 2 rows .* would be cut"):
        encode(read([long, ROW], task.fields), task, tokenizer, 64)


def test_an_answer_that_no_window_holds_is_counted_as_cut(tokenizer):
    encoding = QuestionAnsweringTask(stride=0).encode([row("x" * 40, "x" * 30)], tokenizer, 24)
    assert encoding.truncated == [30 - 15]
    assert [lines[0].tolist() for lines in encoding.targets] == [[0, 0]] * 3


def test_a_length_without_room_for_a_context_is_refused(tokenizer):
    with pytest.raises(UsageError, match="max_length=4"):
        QuestionAnsweringTask().encode([ROW], tokenizer, 4)


def test_an_answer_without_tokens_is_named_with_its_row(tokenizer):
    odd = row("one \u200b two", "\u200b")
    task = QuestionAnsweringTask()
    with pytest.raises(DataError, match=r"row 2, field answers: .*no token"):
        encode(read([ROW, odd], task.fields), task, tokenizer, 64)


# -- answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("Das Café in Zürich öffnet um 8 Uhr.", "Café in Zürich"),
        ("Cafe\u0301 noir, decomposed", "Cafe\u0301 noir"),
        ("黑豹队的防守只丢了 308分，排名第六。", "308分"),
        ("长江全长约6300公里。", "长江"),
        ("we met 😀 and 👨‍👩‍👧 there 🎉", "👨‍👩‍👧"),
        ("😀😀 after smileys", "after"),
        ("İstanbul’da", "İstanbul"),
        ("tabs\tand\nlines  here", "and\nlines"),
    ],
)
def test_answers_are_cut_out_exactly_whatever_the_script(tokenizer, context, answer):
    task = QuestionAnsweringTask()
    for padding in ("", "é中😀 " * 20):
        one = row(padding + context, answer)
        encoding = task.encode([one], tokenizer, 48)
        given = answer_of(task, encoding, right(encoding), [one])
        start = one["context"].index(answer)
        assert (given.answer, given.start, given.end) == (answer, start, start + len(answer))
        assert one["context"][given.start : given.end] == answer


@pytest.mark.data
@pytest.mark.parametrize("language", ["en", "zh", "de"])
def test_the_answers_of_xquad_are_cut_out_exactly(shared_data, tokenizer, language):
    task = QuestionAnsweringTask(max_answer_length=400)
    lines = (shared_data / "xquad" / f"{language}.jsonl").read_text(encoding="utf-8").splitlines()[:100]
    rows = [json.loads(line) for line in lines]
    encoding = task.encode(rows, tokenizer, 256)
    assert len(encoding.ids) > len(rows)
    answers = task.decode(right(encoding), encoding, rows)
    assert [answer.answer for answer in answers] == [row["answers"]["text"][0].strip() for row in rows]


def test_windows_join_to_what_one_pass_over_the_whole_gives(tokenizer):
    task = QuestionAnsweringTask(n_best=5, unanswerable=True, max_answer_length=8, stride=8)
    outputs, answers = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32), []
    for longest in (512, 40):
        encoding = task.encode([ROW], tokenizer, longest)
        logits = []
        for ids, lines in zip(encoding.ids, encoding.targets, strict=True):
            one = np.zeros((len(ids), 2), dtype=np.float32)
            (first, start), tokens = (lines[1, 1], lines[2, 0]), len(lines) - 3
            one[first : first + tokens] = outputs[start : start + tokens]  # each token has the same in any window
            logits.append(one)
        answers.append(answer_of(task, encoding, logits, [ROW]))
    assert len(encoding.ids) > 1
    assert answers[0] == answers[1]


def test_only_the_context_answers(tokenizer):
    task = QuestionAnsweringTask()
    encoding = task.encode([ROW], tokenizer, 512)
    (logits,) = right(encoding)
    logits[: encoding.targets[0][1, 1]] = 50.0  # [CLS], question, [SEP]
    logits[-1] = 50.0
    assert answer_of(task, encoding, [logits], [ROW]).answer == "1887"


def test_an_answer_never_ends_before_it_starts(tokenizer):
    encoding = QuestionAnsweringTask().encode([ROW], tokenizer, 512)
    (logits,) = right(encoding)
    logits = logits[:, ::-1]  # the end of 1887 is now where it starts
    given = answer_of(QuestionAnsweringTask(n_best=50), encoding, [logits], [ROW])
    assert all(span.start < span.end for span in given.n_best)


def test_probabilities_of_all_passages_and_no_answer_sum_to_one(tokenizer):
    one = row("ab cd ef", "cd")
    for unanswerable in (False, True):
        task = QuestionAnsweringTask(n_best=1000, unanswerable=unanswerable)
        encoding = task.encode([one], tokenizer, 16)
        outputs = [np.random.default_rng(i).normal(size=(len(ids), 2)) for i, ids in enumerate(encoding.ids)]
        given = answer_of(task, encoding, outputs, [one])
        total = sum(span.score for span in given.n_best) + (given.no_answer_score or 0.0)
        assert total == pytest.approx(1.0)
        assert (given.no_answer_score is None) is not unanswerable
    (start, end), span = outputs[0].T, given.n_best[0]
    places = {(0, 0), *((i, j) for i in range(8, len(start) - 1) for j in range(i, len(start) - 1))}
    assert len(outputs) == 1
    sums = sum(math.exp(start[i] + end[j]) for i, j in places)
    best = max(math.exp(start[i] + end[j]) for i, j in places - {(0, 0)})
    assert span.score == pytest.approx(best / sums)


def test_n_best_lists_different_passages_best_first(tokenizer):
    encoding = QuestionAnsweringTask().encode([ROW], tokenizer, 40)
    outputs = right(encoding)
    one, several = (answer_of(QuestionAnsweringTask(n_best=n), encoding, outputs, [ROW]) for n in (1, 4))
    assert len(one.n_best) == 1
    assert len({(span.start, span.end) for span in several.n_best}) == 4
    scores = [span.score for span in several.n_best]
    assert scores == sorted(scores, reverse=True)
    assert several.n_best[0].answer == several.answer == one.answer == "1887"
    assert several.as_dict()["n_best"][0] == {"answer": "1887", "score": one.score, "start": 39, "end": 43}


def test_no_answer_is_given_above_the_threshold_only(tokenizer):
    encoding = QuestionAnsweringTask().encode([ROW], tokenizer, 512)
    (logits,) = right(encoding)
    logits[0] = 12.0  # 24 for no answer, 20 for the passage
    options = [{"unanswerable": False}, {"unanswerable": True}, {"unanswerable": True, "null_threshold": 4.5}]
    given = [answer_of(QuestionAnsweringTask(**option), encoding, [logits], [ROW]) for option in options]
    assert [answer.answer for answer in given] == ["1887", "", "1887"]
    assert (given[1].start, given[1].end, given[1].score) == (None, None, given[1].no_answer_score)
    assert given[1].score > 0.9 > 0.1 > given[2].score


def test_there_is_no_answer_only_if_no_window_has_one(tokenizer):
    task = QuestionAnsweringTask(unanswerable=True)
    encoding = task.encode([ROW], tokenizer, 40)
    outputs = right(encoding, null=9.0)
    assert len(outputs) > 2
    assert answer_of(task, encoding, outputs, [ROW]).answer == "1887"
    empty = {**ROW, "answers": NONE}
    encoding = task.encode([empty], tokenizer, 40)
    assert answer_of(task, encoding, right(encoding, null=9.0), [empty]).answer == ""


def test_no_answer_is_longer_than_allowed(tokenizer):
    encoding = QuestionAnsweringTask().encode([ROW], tokenizer, 512)
    outputs = right(encoding)
    for longest, answer in ((4, "1887"), (3, "188"), (1, "1")):
        task = QuestionAnsweringTask(max_answer_length=longest)
        assert len(answer_of(task, encoding, outputs, [ROW]).answer) == len(answer)


def test_answers_keep_no_white_space_around_them(tokenizer):
    encoding = QuestionAnsweringTask().encode([ROW], tokenizer, 512)
    first, last = encoding.targets[0][0] - encoding.targets[0][1, 1]
    encoding.targets[0][3 + first, 0] -= 1  # some tokenizers give the space before a word to it
    encoding.targets[0][3 + last, 1] += 1
    given = answer_of(QuestionAnsweringTask(), encoding, right(encoding), [ROW])
    assert (given.answer, given.start, given.end) == ("1887", 39, 43)


def test_a_context_without_tokens_has_no_answer(tokenizer):
    blank = {"question": "what?", "context": "\u200b\u200b"}
    for task in (QuestionAnsweringTask(), QuestionAnsweringTask(unanswerable=True)):
        encoding = task.encode([blank], tokenizer, 64, labelled=False)
        given = answer_of(task, encoding, [np.ones((len(encoding.ids[0]), 2))], [blank])
        assert (given.answer, given.start, given.n_best) == ("", None, ())
        assert given.score == (given.no_answer_score or 0.0)


def test_outputs_that_are_no_numbers_are_an_error_and_no_answer(tokenizer):
    encoding = QuestionAnsweringTask().encode([ROW], tokenizer, 512)
    (logits,) = right(encoding)
    logits[9] = np.nan
    with pytest.raises(TrainingError, match="not finite"):
        QuestionAnsweringTask().decode([logits], encoding, [ROW])


# -- loss -------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_of_both_cross_entropies_over_each_window(tokenizer):
    task = QuestionAnsweringTask()
    encoding = task.encode([ROW, row("a short one", "short")], tokenizer, 40)
    batch = gather(flattened(encoding), np.arange(len(encoding.ids)))
    logits = np.random.default_rng(1).normal(size=(batch.tokens, 2))
    wanted = 0.0
    for place, (start, stop) in enumerate(zip(batch.offsets, batch.offsets[1:], strict=False)):
        for column in (0, 1):
            power = np.exp(logits[start:stop, column])
            at = encoding.targets[batch.rows[place]][0, column]
            wanted -= math.log(power[at] / power.sum()) / 2
    assert float(task.loss(torch.from_numpy(logits), batch)) == pytest.approx(wanted, rel=1e-12)
    assert task.weight(batch) == len(encoding.ids)
    parts = split(batch, 2)
    assert len(parts) > 1
    assert sum(task.weight(part) for part in parts) == task.weight(batch)


def test_the_loss_is_that_of_transformers(folder, typed):
    task = QuestionAnsweringTask()
    model = load_model(folder, task, seed=1).model.eval()
    encoding = task.encode([row("built in 1887 by two", "1887")], typed, 64)
    batch = gather(flattened(encoding), np.arange(1))
    (start, end), ids = encoding.targets[0][0], torch.from_numpy(encoding.ids[0][None].astype(np.int64))
    types = torch.from_numpy(encoding.types[0][None].astype(np.int64))
    with torch.no_grad():
        theirs = model(
            input_ids=ids, token_type_ids=types,
            start_positions=torch.tensor([int(start)]), end_positions=torch.tensor([int(end)]),
        ).loss  # fmt: skip
        ours = task.loss(transformers_outputs(model, batch, typed.pad_token_id, "token"), batch)
    assert len(encoding.ids) == 1
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


# -- scores: by hand, from the definitions of the scripts ---------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("The Mill!", ["mill"], 1.0, 1.0),  # case, ASCII punctuation and articles do not count
        ("old mill", ["the old red mill"], 0.0, 2 * (2 / 2) * (2 / 3) / (2 / 2 + 2 / 3)),
        ("a b b c", ["b b b d"], 0.0, 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),  # "a" is an article; words by count
        ("mill", ["river", "old mill", "mill"], 1.0, 1.0),  # the best of all
        ("U.S.", ["us"], 1.0, 1.0),
        ("one-two", ["one two"], 0.0, 0.0),  # punctuation goes without leaving a space
        ("“mill”", ["mill"], 0.0, 0.0),  # only ASCII punctuation goes
        ("", ["mill"], 0.0, 0.0),
        ("mill", [], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("", ["the"], 1.0, 1.0),  # a right answer of nothing but articles is none
    ],
)
def test_scores_by_words_are_those_of_squad(answer, gold, exact, f1):
    assert scored(answer, gold) == pytest.approx((exact, f1))


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("《红楼梦》", ["红楼梦"], 1.0, 1.0),
        ("红楼", ["红楼梦"], 0.0, 2 * (2 / 2) * (2 / 3) / (2 / 2 + 2 / 3)),
        ("梦红楼", ["红楼梦"], 0.0, 2 / 3),  # the longest common run, two of three, not the common characters
        ("约6300公里", ["6300公里"], 0.0, 2 * 3 / (4 + 3)),  # a number is one segment
        ("in 2018 年", ["IN 2018年"], 0.0, 1.0),  # spaces count for the exact match only
        ("长城", ["长江", "长城"], 1.0, 1.0),
        ("", ["长城"], 0.0, 0.0),
        ("长城", [], 0.0, 0.0),
        ("", [], 1.0, 1.0),
    ],
)
def test_scores_by_characters_are_those_of_cmrc(answer, gold, exact, f1):
    assert scored(answer, gold, "characters") == pytest.approx((exact, f1))


def test_texts_are_normalised_and_cut_as_the_scripts_say():
    assert normalized(" An  apple, a day;\tThe END.") == "apple day end"
    assert segments("1,000 个“Apple pie”，3.5") == ["1,000", "个", "apple", "pie", "3.5"]


def test_questions_with_and_without_an_answer_are_scored_apart_too():
    scorer = AnswerScorer()
    gold = [Gold(["old mill"], "An old mill. More."), Gold(["x"], "y"), Gold([], "c"), Gold([], "d")]
    scorer.add(["mill", "x", "", "c"], gold)
    values = scorer.values()
    assert values == pytest.approx({
        "exact_match": 2 / 4, "f1": (2 / 3 + 1 + 1 + 0) / 4,
        "has_answer_exact_match": 1 / 2, "has_answer_f1": (2 / 3 + 1) / 2, "no_answer_accuracy": 1 / 2,
    })  # fmt: skip


def test_the_baseline_is_the_better_of_no_answer_and_the_first_sentence():
    scorer = AnswerScorer()
    scorer.add(["", "", ""], [Gold(["It is a mill"], "It is a mill. Built in 3.5 years."), *[Gold([], "x")] * 2])
    assert scorer.baseline()["f1"] == pytest.approx(2 / 3)
    scorer = AnswerScorer()
    scorer.add(["", ""], [Gold(["3.5 years"], "It took 3.5 years! Yes."), Gold([], "x")])
    assert scorer.baseline()["f1"] == pytest.approx(1 / 2)
    scorer = AnswerScorer("characters")
    scorer.add([""], [Gold(["长城很长"], "长城很长。长江也长。")])
    assert scorer.baseline() == {"exact_match": 1.0, "f1": 1.0}


def test_intervals_are_those_of_resampled_rows():
    scorer, rng = AnswerScorer(), np.random.default_rng(0)
    hits = rng.random(400) < 0.3
    scorer.add(["x" if hit else "y" for hit in hits], [Gold(["x"], "x")] * 400)
    value, low, high = scorer.report().metrics["exact_match"]
    spread = 1.96 * math.sqrt(value * (1 - value) / 400)  # the normal approximation, close at 400 rows
    assert (value, low, high) == pytest.approx((hits.mean(), value - spread, value + spread), abs=0.01)


def test_a_scorer_keeps_counts_only():
    scorer = AnswerScorer()
    for _ in range(50):
        scorer.add(["old mill"] * 20, [Gold(["mill"], "mill")] * 20)
    assert scorer.report(samples=10).rows == 1000
    assert len(scorer._cells) == 1


# -- end to end -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A model trained on contexts that need windows, its run, its rows and where it is saved."""
    task, rows = QuestionAnsweringTask.sample()
    rows = [row("no news " * 9 + r["context"], *r["answers"]["text"], question="how many?") for r in rows]
    llm, output = LLM.from_pretrained(folder), tmp_path_factory.mktemp("trained") / "model"
    run = llm.finetune(task, rows, eval_data=rows, epochs=12, learning_rate=3e-3, batch_size=8, dropout=0.0,
                       evaluations=1, precision="float32", threads=1, progress=False, output=output)  # fmt: skip
    return llm, run, rows, output


def questions_of(rows):
    return [{"question": r["question"], "context": r["context"]} for r in rows]


def test_a_model_learns_to_answer_from_windows(trained):
    _, run, rows, _ = trained
    assert run.report.rows == len(rows)
    assert run.metrics["f1"] >= 0.9 > run.report.baseline["f1"]
    assert run.metrics["no_answer_accuracy"] >= 0.9


def test_an_answer_does_not_depend_on_the_rows_beside_it(trained):
    llm, _, rows, _ = trained
    for question, answer in zip(questions_of(rows[:6]), llm.predict(questions_of(rows[:6])), strict=True):
        alone = llm.predict(question)
        assert (alone.answer, alone.start) == (answer.answer, answer.start)
        assert alone.score == pytest.approx(answer.score, rel=1e-4)  # float32 in another order


def test_a_saved_model_answers_and_scores_alike(trained):
    llm, run, rows, output = trained
    again = LLM.from_pretrained(output)
    assert again.task == llm.task
    expected = [(answer.answer, answer.start) for answer in llm.predict(questions_of(rows))]
    assert [(answer.answer, answer.start) for answer in again.predict(questions_of(rows))] == expected
    assert again.evaluate(rows).metrics["f1"].value == pytest.approx(run.metrics["f1"])


def test_questions_of_a_file_are_answered_from_the_shell(trained, tmp_path, capsys):
    llm, _, rows, output = trained
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"id": 7, **one}) + "\n" for one in questions_of(rows[:4])))
    assert main(["predict", str(output), "--data", str(tmp_path / "in.jsonl")]) == 0
    given = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["answer"] for one in given] == [answer.answer for answer in llm.predict(questions_of(rows[:4]))]
    assert {"question", "context", "score", "start", "end", "no_answer_score", "n_best"} < set(given[0])


def test_a_question_alone_is_refused_with_what_is_missing(trained, capsys):
    assert main(["predict", str(trained[3]), "how many?"]) == 2
    assert "question, context" in capsys.readouterr().err
    with pytest.raises(DataError, match="no column for context"):
        trained[0].predict("how many?")


def test_the_example_runs(folder, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "examples"))
    importlib.import_module("question_answering").main(str(folder), epochs=1)
    assert "F1 on the rows themselves" in capsys.readouterr().out
