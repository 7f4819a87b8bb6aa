"""The desk with LLMasOS."""

from __future__ import annotations

from typing import Any

from llmasos.apps import Index, answer, load
from llmasos.client import Client

PEOPLE = ("technical_problem", "feedback")


class Desk:
    def __init__(self, url: str, folder: str) -> None:
        self.client = Client(url)
        self.index = Index.open(":memory:", self.client, embedding_model="embed")
        self.index.add(load(folder).documents)

    def reply(self, text: str) -> dict[str, Any]:
        intent = self.client.classify(text, model="intents").label
        if intent in PEOPLE or self.index.search(text, k=1, mode="vectors")[0].score < 0.35:
            return {"intent": intent, "escalate": True}
        answered = answer(self.client, self.index, text, model="chat", k=3, mode="vectors", max_tokens=40)
        return {"intent": intent, "escalate": False, "text": answered.text,
                "passages": [found.passage.heading for found in answered.passages],
                "cited": [cited.passage.heading for cited in answered.citations]}  # fmt: skip
