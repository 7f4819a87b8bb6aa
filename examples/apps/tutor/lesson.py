"""A text that is learned: its sentences, where they stand, and what they answer."""

import hashlib
import re
import tempfile
from pathlib import Path
from threading import Lock
from typing import Any

from llmasos.apps import Document, Index, load
from llmasos.client import Client
from llmasos.errors import DataError, UsageError

from quiz import gaps

SENTENCE = re.compile(r"[^\s#](?:[^.!?。！？\n]|[.!?](?!\s|$)|\n(?!\s*\n))*[.!?。！？]*[”’\"')」』]*")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
NEAR = 0.25
"""How near in meaning a sentence must be to a question to be shown."""


class Lesson:
    """A text with an index of its sentences."""

    def __init__(self, text: str, title: str, client: Client, place: Path) -> None:
        self.text, self._client = text, client
        self.title = title or text.strip().partition("\n")[0][:80]
        self.sentences = [one.span() for one in SENTENCE.finditer(text) if not text[: one.start()].endswith("# ")]
        self.is_chinese = len(re.findall("[一-鿿]", text)) > len(text) / 4
        self._gaps = gaps(text, self.sentences)
        # the small model of meanings was taught English alone: Chinese is searched by words
        self._index = Index.open(str(place), None if self.is_chinese else client, embedding_model="meanings")
        self._index.add([Document(str(start), text[start:end], str(place), self._heading(start))
                         for start, end in self.sentences])  # fmt: skip

    def answers(self, question: str, *, reader: str | None) -> list[dict[str, Any]]:
        """Return the places that answer a question, the best one first; none if the text does not say."""
        found = self._index.search(question, k=4)
        starts = [int(one.passage.document) for one in found]
        places = [place for start in starts for place in self.sentences if place[0] == start]
        if reader and places:
            return self._spans(question, places, reader)
        if places and not self.is_chinese:
            pairs = [(question, self.text[start:end]) for start, end in places]
            near = self._client.similarity(pairs, model="meanings", truncate=True)
            places = [place for place, score in zip(places, near) if score >= NEAR]
        return [{"start": start, "end": end, "text": self.text[start:end]} for start, end in places[:3]]

    def _spans(self, question: str, places: list[tuple[int, int]], reader: str) -> list[dict[str, Any]]:
        rows = [{"question": question, "context": self.text[start:end]} for start, end in places]
        read = sorted(zip(places, self._client.answer(rows, model=reader)), key=lambda one: -one[1].score)
        return [{"start": start + one.start, "end": start + one.end, "text": one.answer}
                for (start, _), one in read if one.answer][:3]  # fmt: skip

    def quiz(self, number: int) -> dict[str, Any]:
        """Return a question back; after the last comes the first again."""
        if not self._gaps:
            raise DataError("there is nothing to ask about in this text", hint="bring one with a few whole sentences")
        return self._gaps[number % len(self._gaps)]._asdict()

    def close(self) -> None:
        self._index.close()

    def _heading(self, at: int) -> str:
        above = [one[1] for one in HEADING.finditer(self.text, 0, at)]
        return above[-1] if above else ""


class Lessons:
    """The texts that are open: the latest few."""

    MOST = 16

    def __init__(self, client: Client, folder: Path) -> None:
        self._client, self._folder, self._lock = client, folder, Lock()
        self._open: dict[str, Lesson] = {}

    def begin(self, text: str, title: str = "") -> dict[str, str]:
        """Open a text, unless it is; return what the page shows of it."""
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        with self._lock:
            if name not in self._open:
                while len(self._open) >= self.MOST:
                    self._open.pop(next(iter(self._open))).close()
                self._open[name] = Lesson(text, title, self._client, self._folder / f"{name}.db")
            return {"id": name, "title": self._open[name].title, "text": text}

    def known(self, name: str) -> Lesson:
        if name not in self._open:
            raise UsageError("this text is not open any more", hint="choose or paste it again")
        return self._open[name]


def title(path: Path) -> str:
    """Return the first line of a Markdown file."""
    return path.read_text(encoding="utf-8").partition("\n")[0].strip("# ")


def read(name: str, content: bytes) -> tuple[str, str]:
    """Return the text of a file, and its title."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"text{Path(name).suffix.lower()[:8]}")
        path.write_bytes(content)
        loaded = load(path)
    if not loaded.documents:
        raise DataError(f"{name} cannot be read: {loaded.skipped[0].why}", hint="a txt, md, html or pdf file")
    return "\n\n".join(one.text for one in loaded.documents), loaded.documents[0].title or Path(name).stem
