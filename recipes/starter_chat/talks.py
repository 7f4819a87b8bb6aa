"""What ``starter-chat`` is told: the conversations of this folder, sums, and the ways in which people type them.

All draws come from the generator that is passed in, so that the same seed gives the same rows.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OPENERS = ("openers_en.jsonl", "openers_zh.jsonl")  # greetings and small talk, typed first; all are learned
PAIRS = ("pairs_en.jsonl", "pairs_zh.jsonl")  # simple facts, words, stories and tips; some are held out
LARGEST = 10
NUMERALS = "零一二三四五六七八九十"

Talk = dict[str, Any]

_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_END = re.compile(r"[.!?。！？]+$")
_SUM = re.compile(r"What is (\d+) (plus|minus) (\d+)\?")
_SUM_ZH = re.compile(rf"([\d{NUMERALS}]+[加减][\d{NUMERALS}]+)等于几？")
_SHORT = (("I am", "I'm"), ("What is", "What's"), ("do not", "don't"), ("cannot", "can't"), ("Let us", "Let's"))
_WIDE = (("，", ","), ("：", ":"), ("“", '"'), ("”", '"'))


def conversations(names: Sequence[str]) -> list[Talk]:
    """Return the rows of these files of the folder."""
    return [json.loads(line) for name in names for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def split(rows: Sequence[Talk], share: float, rng: random.Random) -> tuple[list[Talk], list[Talk]]:
    """Return the rows in an order of their own, in two parts, the second of which has this share."""
    drawn = rng.sample(rows, len(rows))
    count = round(len(drawn) * share)
    return drawn[count:], drawn[:count]


def sums() -> list[Talk]:
    """Return the sums of two numbers from 0 to 10 and what undoes them, in English and twice in Chinese."""
    numbers = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    plus = [row for a, b in numbers for row in asked(a, b, a + b, "plus", "加")]
    return plus + [row for a, b in numbers for row in asked(a + b, b, a, "minus", "减")]


def asked(left: int, right: int, result: int, english: str, chinese: str) -> list[Talk]:
    """Return a sum as rows: ``What is 2 plus 3?``, ``2加3等于几？`` and ``二加三等于几？``."""
    a, b, c = (numeral(number) for number in (left, right, result))
    return [
        said(f"What is {left} {english} {right}?", f"{left} {english} {right} is {result}."),
        said(f"{left}{chinese}{right}等于几？", f"{left}{chinese}{right}等于{result}。"),
        said(f"{a}{chinese}{b}等于几？", f"{a}{chinese}{b}等于{c}。"),
    ]


def numeral(number: int) -> str:
    """Return a number from 0 to 20 in Chinese."""
    if number <= 10:
        return NUMERALS[number]
    return {20: "二十"}.get(number, f"十{NUMERALS[number % 10]}")


def said(question: str, answer: str) -> Talk:
    """Return a conversation of one question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def typed(talk: Talk, rng: random.Random) -> Talk:
    """Return the conversation with its questions typed in another way; the answers stay."""
    messages = [
        {**message, "content": retyped(message["content"], rng)} if message["role"] == "user" else message
        for message in talk["messages"]
    ]
    return {"messages": messages}


def retyped(text: str, rng: random.Random) -> str:
    """Return a question in small letters, in short forms, as a sum in signs or in words, with another end or none."""
    text = _sum_retyped(text, rng)
    chinese = bool(_CHINESE.search(text))
    for long, short in _WIDE if chinese else _SHORT:
        if rng.random() < 0.4:
            text = text.replace(long, short).replace(long.lower(), short.lower())
    if rng.random() < 0.5:
        text = text.lower()
    if chinese and rng.random() < 0.5:
        text = text.replace(" ", "")  # between Chinese and Latin letters
    if rng.random() < 0.6:
        text = _END.sub("", text) + rng.choice(
            ("", "", "？", "?", "！", "!", "。") if chinese else ("", "", "?", "!", ".")
        )
    return text


def _sum_retyped(text: str, rng: random.Random) -> str:
    """Return a sum of ``sums`` in one of the ways in which it is asked, any other text as it is."""
    if found := _SUM.fullmatch(text):
        left, word, right = found.groups()
        sign = "+" if word == "plus" else "-"
        short = f"{left}{sign}{right}"
        words = [text, f"How much is {left} {word} {right}?", f"{left} {word} {right}"]
        return rng.choice([text, *words, f"What is {short}?", short, f"{left} {sign} {right}", f"{short}="])
    if found := _SUM_ZH.fullmatch(text):
        return found.group(1) + rng.choice(("等于几？", "等于几？", "等于多少？", "是多少？", ""))
    return text


def practice(talks: Sequence[Talk], passes: int, sum_passes: int, rng: random.Random) -> list[Talk]:
    """Return what is learned, each conversation as often as ``passes``, newly typed, some of them in a row.

    One conversation after another teaches to answer what was said last, whatever was said before.
    """
    rows = [*(list(talks) * passes), *(sums() * sum_passes)]
    rng.shuffle(rows)
    retold, rows = [], [typed(row, rng) for row in rows]
    while rows:
        count = rng.choice((1, 1, 1, 1, 2, 3))
        retold.append({"messages": [message for row in rows[-count:] for message in row["messages"]]})
        del rows[-count:]
    return retold


def answered(talks: Sequence[Talk], write: Callable[[list[str]], list[str]]) -> float:
    """Return the share of first questions to which ``write`` gives exactly the answer that was learned."""
    written = write([talk["messages"][0]["content"] for talk in talks])
    right = [talk["messages"][1]["content"] == text.strip() for talk, text in zip(talks, written, strict=True)]
    return sum(right) / len(right)
