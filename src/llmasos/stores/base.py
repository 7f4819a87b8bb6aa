"""What a store is: passages with their words and vectors, found again by either.

A store keeps; it splits no text, asks no model and mixes no rankings (``apps/index.py`` does). Whole documents go in or
none: a program that dies in the middle leaves what was there, and each document that was put before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..core import plugins
from ..core.errors import UsageError

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Passage:
    """A part of a document: ``text`` is ``[start:end]`` of the document's.

    ``document`` is the document's id; source, title and page are the document's; ``heading`` is where in it the
    passage stands ("Returns › How long do I have?").
    """

    text: str
    document: str
    source: str = ""
    title: str = ""
    heading: str = ""
    page: int | None = None
    start: int = 0
    end: int = 0

    @property
    def searched(self) -> str:
        """What the passage is found by: its text, and the title and heading that it does not begin with itself."""
        above = [one for one in (self.title, self.heading) if one and one.lower() not in self.text.lower()]
        return "\n".join([*dict.fromkeys(above), self.text])


class Entry(NamedTuple):
    """A document as it is stored: its fingerprint, its passages, and their vectors (passages, width), if any."""

    document: str
    source: str
    fingerprint: str
    passages: Sequence[Passage]
    vectors: Vectors | None


class Hit(NamedTuple):
    """A passage's number in its store, and how well it fits: more is better, within one search."""

    number: int
    score: float


class Store(Protocol):
    """An open store. All may be called from any thread."""

    def facts(self) -> dict[str, str]:
        """Return what was noted when the store was made; empty for a new one."""

    def begin(self, facts: Mapping[str, str], width: int) -> None:
        """Make a new store ready for vectors of this width (0 for none), and note facts about it."""

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of each document."""

    def put(self, entries: Iterable[Entry]) -> None:
        """Store documents, in place of those with the same ids; all of them or none."""

    def remove(self, source: str) -> int:
        """Remove the documents of a source, or the one with this id; return how many."""

    def by_words(self, query: str, k: int) -> list[Hit]:
        """Find the k passages that fit best by their words (BM25)."""

    def by_vector(self, vector: Vectors, k: int) -> list[Hit]:
        """Find the k passages whose vectors are nearest by cosine."""

    def passages(self, numbers: Sequence[int]) -> dict[int, Passage]:
        """Return passages by their numbers; those that are gone are left out."""

    def size(self) -> tuple[int, int]:
        """Return how many documents and passages there are."""

    def close(self) -> None:
        """Let go of files and connections."""


class Kind(Protocol):
    """A kind of store: what a file in this folder offers as its ``PLUGIN``."""

    order: int
    """Kinds with lower numbers are asked first; the widest form of place comes last."""

    def matches(self, place: str) -> bool:
        """Say whether a place has this kind's form; opens nothing."""

    def open(self, place: str) -> Store:
        """Open the store at a place, or make an empty one.

        Raises:
            UsageError: there is something else.
            MissingExtraError: a package is missing.
            RemoteError: it cannot be reached.
        """


def open_store(place: str) -> Store:
    """Open the store at a place, whatever its kind. See ``Kind.open`` for errors."""
    kinds: list[Kind] = [plugins.load("stores", name) for name in plugins.names("stores")]
    for kind in sorted(kinds, key=lambda kind: kind.order):
        if kind.matches(place):
            return kind.open(place)
    raise UsageError(f"{place!r} is not a place for an index", hint="give a file such as my.db, or postgresql://...")
