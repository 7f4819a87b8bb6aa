"""When a person takes over, what the customer is told of it, and the tickets. No model decides this alone."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from llmasos.client import Classification

SURE = 0.4
"""How certain of an intent the classifier must be."""
BY_HAND = {"cancellation"}
"""Intents that a person has to carry out."""
PERSON = re.compile(r"\b(human|a person|real person|someone|colleague|manager)\b|人工|真人|找人|经理", re.IGNORECASE)
ANGRY = re.compile(
    r"\b(furious|unacceptable|disgrace\w*|ridiculous|scam|lawyer|never again)\b|!!|！！|投诉|骗子|律师|太过分|垃圾",
    re.IGNORECASE,
)
REASONS = {
    "person": ("You asked for a person.", "您想找真人客服。"),
    "angry": ("We have let you down; a person should answer that.", "让您失望了，应该由真人来答复。"),
    "unknown": ("The answer is not in our questions and answers.", "常见问题里没有答案。"),
    "unsure": ("We are not certain what you need.", "我们不确定您需要什么。"),
    "by_hand": ("A colleague has to carry this out.", "这件事需要同事来办理。"),
}


def reason(message: str, intent: Classification | None, has_answer: bool, language: str) -> str | None:
    """Return why a person takes over, in the customer's language; None where the answer will do."""
    why = _why(message, intent, has_answer)
    return None if why is None else REASONS[why][language == "zh"]


class Tickets:
    """What persons have to do: a line of JSON for each ticket."""

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, Lock()

    def add(self, message: str, why: str) -> int:
        """Write a ticket; return its number."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        with self._lock, self._file.open("a+", encoding="utf-8") as file:
            file.seek(0)
            number = sum(1 for _ in file) + 1
            content = {"number": number, "at": at, "reason": why, "message": message}
            file.write(json.dumps(content, ensure_ascii=False) + "\n")
        return number


def _why(message: str, intent: Classification | None, has_answer: bool) -> str | None:
    if PERSON.search(message):
        return "person"
    if ANGRY.search(message):
        return "angry"
    if not has_answer:
        return "unknown"
    if intent is None:
        return None
    if intent.label in BY_HAND:
        return "by_hand"
    return "unsure" if intent.score < SURE else None
