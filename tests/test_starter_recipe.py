"""The conversations of ``recipes/starter_chat``: every row is valid and honest, and typing them anew keeps them."""

import random
import re

import pytest
from recipes.starter_chat import talks

ROWS = talks.conversations((*talks.OPENERS, *talks.PAIRS))


def same(text: str) -> str:
    """What is left of a question when typing does not matter."""
    return re.sub(r"[\W_]+", "", text.lower())


def test_questions_and_answers_take_turns_and_none_is_empty():
    assert len(ROWS) > 1000
    for row in ROWS:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2), row
        for message in row["messages"]:
            assert set(message) == {"role", "content"}, row
            assert message["content"] == message["content"].strip() != "", row
            assert len(message["content"]) <= 150, row


def test_no_question_has_two_answers():
    answers: dict[str, str] = {}
    for row in [*ROWS, *talks.sums()]:
        question, answer = (message["content"] for message in row["messages"][:2])
        assert answers.setdefault(same(question), answer) == answer, question


@pytest.mark.parametrize(
    "question",
    ["Who are you?", "What are you?", "Are you smart?", "Are you an AI?", "你是谁？", "你聪明吗？", "你是人类吗？"],
)
def test_it_says_of_itself_that_it_is_small(question):
    (answer,) = [row["messages"][1]["content"] for row in ROWS if row["messages"][0]["content"] == question]
    assert re.search("toy|small|tiny|玩具|很小", answer)


def test_the_sums_are_right_and_each_is_there_in_three_ways():
    rows, worked = talks.sums(), 0
    assert len(rows) == 2 * 3 * 11 * 11
    for row in rows:
        question, answer = (message["content"] for message in row["messages"])
        if found := re.fullmatch(r"(\d+)(?: plus |加)(\d+)(?: is |等于)(\d+)[.。]", answer):
            left, right, result = map(int, found.groups())
            assert left + right == result
        elif found := re.fullmatch(r"(\d+)(?: minus |减)(\d+)(?: is |等于)(\d+)[.。]", answer):
            left, right, result = map(int, found.groups())
            assert left - right == result
        else:
            assert re.fullmatch(rf"[{talks.NUMERALS}]+[加减][{talks.NUMERALS}]+等于几？", question)
            continue
        worked += 1
    assert worked == len(rows) * 2 // 3
    assert [talks.numeral(number) for number in (0, 9, 10, 11, 20)] == ["零", "九", "十", "十一", "二十"]


def test_another_typing_keeps_the_words_and_the_answers():
    rng, short = random.Random(1), [(a.lower(), b.lower()) for a, b in talks._SHORT]

    def words(text):
        for long, abbreviated in short:  # a row may itself be written in the short form
            text = text.lower().replace(abbreviated, long)
        return same(text)

    for row in ROWS:
        for old, new in zip(row["messages"], talks.typed(row, rng)["messages"], strict=True):
            if old["role"] == "assistant":
                assert new == old
            elif not re.search("[加减]|plus|minus", old["content"]):  # sums are asked in other words too
                assert words(new["content"]) == words(old["content"])


def test_typing_varies_and_the_seed_decides_it():
    def ways(text, seed):
        rng = random.Random(seed)
        return {talks.retyped(text, rng) for _ in range(200)}

    assert {"Hello!", "hello", "hello!", "hello?"} <= ways("Hello!", 0)
    assert {"你好，世界", "你好,世界！", "你好，世界。"} <= ways("你好，世界", 0)
    assert {"2+3", "2 + 3", "what is 2+3", "how much is 2 plus 3?", "what's 2 plus 3"} <= ways("What is 2 plus 3?", 0)
    assert {"二加三", "二加三是多少？", "二加三等于多少"} <= ways("二加三等于几？", 0)
    assert ways("Hello!", 3) == ways("Hello!", 3)


def test_what_is_held_out_is_not_practised():
    rows = talks.conversations(talks.PAIRS)
    known, held_out = talks.split(rows, 0.05, random.Random(0))
    assert (len(known), len(held_out)) == (len(rows) - len(held_out), round(0.05 * len(rows)))
    assert not {str(row) for row in held_out} & {str(row) for row in known}
    assert (known, held_out) == talks.split(rows, 0.05, random.Random(0))


def test_practice_has_every_conversation_as_often_as_told_and_some_follow_others():
    rows = talks.practice(ROWS[:5], 4, 1, random.Random(0))
    answers = [message["content"] for row in rows for message in row["messages"] if message["role"] == "assistant"]
    for row in [*ROWS[:5] * 4, *talks.sums()]:
        for message in row["messages"][1::2]:
            answers.remove(message["content"])
    assert answers == []
    assert {len(row["messages"]) for row in rows} >= {2, 4, 6}
    assert rows == talks.practice(ROWS[:5], 4, 1, random.Random(0))


def test_answers_count_where_they_are_word_for_word():
    rows = [talks.said("Hello!", "Hi."), talks.said("Bye!", "Bye.")]
    assert talks.answered(rows, lambda questions: [f"{question[:2]}. " for question in questions]) == 0.0
    assert talks.answered(rows, lambda _questions: ["Hi. ", "Go."]) == 0.5
