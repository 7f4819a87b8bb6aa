"""The sample data that ships: sizes, balance, fields, and nothing in it twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

SAMPLES = Path(__file__).resolve().parents[1] / "src" / "llmasos" / "samples"
LABELS = {
    "account_access",
    "billing",
    "cancellation",
    "delivery",
    "feedback",
    "product_question",
    "refund",
    "technical_problem",
}
ROWS = {"en": 336, "zh": 224}

both_languages = pytest.mark.parametrize("language", sorted(ROWS))


def rows(language: str) -> list[dict[str, str]]:
    lines = (SAMPLES / f"support_{language}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def new_messages(language: str) -> list[str]:
    return (SAMPLES / f"new_messages_{language}.txt").read_text(encoding="utf-8").splitlines()


def normal(text: str) -> str:
    """Lower case, letters and digits only: what two copies of a text share."""
    return "".join(character for character in text.lower() if character.isalnum())


@both_languages
def test_every_row_has_a_text_and_a_known_label(language: str) -> None:
    for row in rows(language):
        assert row.keys() == {"text", "label"}
        assert row["text"] == row["text"].strip() != ""
        assert row["label"] in LABELS


@both_languages
def test_the_file_has_the_promised_rows(language: str) -> None:
    assert len(rows(language)) == ROWS[language]
    assert f"`support_{language}.jsonl` | {ROWS[language]} " in (SAMPLES / "README.md").read_text(encoding="utf-8")


@both_languages
def test_labels_are_balanced_within_a_fifth(language: str) -> None:
    counts = Counter(row["label"] for row in rows(language))
    mean = ROWS[language] / len(LABELS)
    assert counts.keys() == LABELS
    assert all(0.8 * mean <= count <= 1.2 * mean for count in counts.values())


@both_languages
def test_no_text_occurs_twice(language: str) -> None:
    texts = Counter(normal(row["text"]) for row in rows(language))
    assert [text for text, count in texts.items() if count > 1] == []


@both_languages
def test_new_messages_are_six_and_in_no_training_row(language: str) -> None:
    known = {normal(row["text"]) for row in rows(language)}
    new = new_messages(language)
    assert len(new) == len({normal(text) for text in new}) == 6
    assert known.isdisjoint(normal(text) for text in new)


@both_languages
def test_labels_are_mixed_along_the_file(language: str) -> None:
    """A reader who takes the first rows only must still meet every label."""
    assert {row["label"] for row in rows(language)[:64]} == LABELS


def test_english_messages_vary_in_length() -> None:
    lengths = [len(row["text"].split()) for row in rows("en")]
    assert min(lengths) >= 2
    assert max(lengths) <= 45
    assert sum(n <= 6 for n in lengths) > 15
    assert sum(n >= 25 for n in lengths) > 15
