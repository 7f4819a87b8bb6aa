"""Every input row is accounted for, and the counts add up."""

import json

import numpy as np

from llmasos.data.ledger import Ledger


def filled(texts, labels=None, cut=None, dropped=None, **options):
    ledger = Ledger(**options)
    for start in range(0, len(texts), 3):  # in several parts, as encode does
        part = slice(start, start + 3)
        ledger.add(
            np.arange(start, min(start + 3, len(texts))) + 1,
            [(text,) for text in texts[part]],
            (labels or [None] * len(texts))[part],
            (cut or [0] * len(texts))[part],
            (dropped or [None] * len(texts))[part],
        )
    return ledger


def test_counts_add_up_with_reasons_and_examples():
    ledger = filled(["a", "b", "", "c", " "], cut=[0, 7, 0, 2, 0], dropped=[None, None, "an empty text", None, "blank"])
    summary = ledger.summary()
    assert summary["rows"] == 5 == summary["kept"] + summary["dropped"]
    assert (summary["kept"], summary["truncated"], summary["tokens_cut"], summary["dropped"]) == (3, 2, 9, 2)
    assert summary["reasons"] == {"an empty text": 1, "blank": 1}
    assert summary["examples"]["truncated"] == [2, 4]
    assert json.loads(json.dumps(summary)) == summary


def test_the_first_of_equal_texts_is_the_original():
    summary = filled(["x", "a", "b", " a\n", "c", "a"], labels=[1, 1, 1, 1, 1, 0]).summary()
    assert summary["duplicates"] == 2
    assert summary["examples"]["duplicates"] == [4, 6]
    assert summary["contradictory"] == 1
    assert summary["examples"]["contradictory"] == [6]


def test_pairs_are_equal_only_if_both_texts_are():
    ledger = Ledger()
    ledger.add(np.arange(1, 4), [("a", "b"), ("b", "a"), ("a", "b ")], [0] * 3, [0] * 3, [None] * 3)
    assert ledger.summary()["examples"]["duplicates"] == [3]


def test_lists_of_labels_contradict_only_if_their_sets_differ():
    ledger = filled(["t", "t", "t"], labels=[["a", "b"], ["b", "a"], ["a"]])
    assert ledger.summary()["contradictory"] == 1


def test_dropped_rows_are_no_duplicates():
    assert filled(["", "", ""], dropped=["an empty text"] * 3).summary()["duplicates"] == 0


def test_rows_that_are_also_in_the_evaluation_data_are_marked():
    evaluation = filled(["b", "z", "a"], dropped=[None, None, "some reason"])
    summary = filled(["a", "b ", "c"], evaluation=evaluation).summary()
    assert summary["in_evaluation_data"] == 1
    assert summary["examples"]["in_evaluation_data"] == [2]


def test_the_file_has_one_object_for_each_row(tmp_path):
    path = tmp_path / "run" / "ledger.jsonl"
    evaluation = filled(["long"])
    texts, reasons = ["a", "long", "", "a"], [None, None, "an empty text", None]
    filled(texts, [0, 0, 0, 1], [0, 5, 0, 0], reasons, path=path, evaluation=evaluation).close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"row": 1, "status": "kept"},
        {"row": 2, "status": "truncated", "tokens_cut": 5, "in_evaluation_data": True},
        {"row": 3, "status": "dropped", "why": "an empty text"},
        {"row": 4, "status": "kept", "duplicate_of": 1, "contradictory": True},
    ]


def test_many_rows_are_compared_exactly_enough():
    numbers = np.random.default_rng(0).integers(0, 5000, 20_000)
    summary = filled([f"text {n}" for n in numbers]).summary()
    assert summary["duplicates"] == 20_000 - len(set(numbers.tolist()))


def test_an_empty_ledger_has_a_summary():
    assert Ledger().summary()["rows"] == 0
