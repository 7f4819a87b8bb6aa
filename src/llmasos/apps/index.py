"""An index of documents: by the words in them, by their meaning, and by both.

What is embedded is embedded once: a document that has not changed is left as it is. Documents are stored as soon as
their vectors are there, whole, so that an indexing that is broken off goes on where it was. An index belongs to the
embedding model that made it. It keeps the vector of a fixed sentence, and a model that gives another one is refused:
vectors of two models have nothing to do with each other, and a search over both would find anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np

from ..core.errors import DataError, TooLongError, UsageError
from ..loaders.base import Document
from ..stores.base import Entry, Hit, Passage, Store, Vectors, open_store
from .splitting import split

if TYPE_CHECKING:
    from ..client import Client
    from ..metrics.base import Report

Mode = Literal["hybrid", "words", "vectors"]
MODES: tuple[Mode, ...] = ("hybrid", "words", "vectors")

_PROBE = "The quick brown fox jumps over the lazy dog, and thinks about it."
_SAME = 0.9  # cosine; a model in another precision stays above 0.98, another model is anywhere near 0
_DEPTH = 200  # passages of each kind of search that a mixed one looks at
_ABSENT = -3.0  # standard score of a passage that one kind of search has not among them
_BATCH, _AT_ONCE = 128, 4  # texts of a request, and requests at once


class Added(NamedTuple):
    """What became of documents that were added."""

    new: int
    unchanged: int
    replaced: int
    passages: int


@dataclass(frozen=True)
class Found:
    """A passage that fits a query.

    ``score`` orders the passages of one search: of words it is BM25, of vectors the cosine, of both the mean of their
    standard scores. The ranks say at which place, from 1, each kind of search has it, and ``cosine`` how near its
    meaning is, 1 at most; None where that kind of search does not have it.
    """

    passage: Passage
    score: float
    words_rank: int | None = None
    vectors_rank: int | None = None
    cosine: float | None = None


class Index:
    """An open index; ``Index.open`` gives one. A context manager, and usable from several threads."""

    def __init__(self, store: Store, client: Client | None, model: str | None, **splitting: int) -> None:
        self._store, self._client, self._splitting = store, client, splitting
        self._facts = store.facts()
        self._width = int(self._facts.get("width", 0))
        self._model = model or self._facts.get("embedding_model") or None
        self._proven = False

    @classmethod
    def open(
        cls, place: str, client: Client | None = None, *, embedding_model: str | None = None, max_chars: int = 1000,
        overlap: int = 0,
    ) -> Self:  # fmt: skip
        """Open an index, or make an empty one.

        Args:
            place: a file such as ``my.db``, or ``postgresql://...``.
            client: asked by ``client.embed``. Without one an index has words alone.
            embedding_model: the name of the model at the endpoint; if None, the one that made the
                index, the first that the endpoint says embeds, or its first. Name it where there are several.
            max_chars, overlap: how documents are split, see ``split``.

        Raises:
            UsageError: there is something else at that place.
            MissingExtraError: a package is missing.
        """
        return cls(open_store(str(place)), client, embedding_model, max_chars=max_chars, overlap=overlap)

    # -- keeping ------------------------------------------------------------------------------------

    def add(self, documents: Iterable[Document], *, progress: Callable[[int], None] | None = None) -> Added:
        """Index documents; those with the id of one that is there replace it, unless nothing has changed.

        Args:
            documents: read as they are needed, so that they may be more than fit into memory.
            progress: called with the number of documents done, each time some are stored.

        Raises:
            DataError: two documents have one id.
            UsageError: the index was made with another embedding model.
        """
        known = self._store.fingerprints()
        counts = {"new": 0, "unchanged": 0, "replaced": 0, "passages": 0}
        seen: set[str] = set()

        def changed() -> Iterator[Document]:
            for document in documents:
                if document.id in seen:
                    raise DataError(f"two documents have the id {document.id!r}", hint="give each an id of its own")
                seen.add(document.id)
                before = known.get(document.id)
                kind = "new" if before is None else "unchanged" if before == self._fingerprint(document) else "replaced"
                counts[kind] += 1
                if kind != "unchanged":
                    yield document

        for entries in self._made(changed()):
            self._store.put(entries)
            counts["passages"] += sum(len(entry.passages) for entry in entries)
            if progress is not None:
                progress(sum(counts[name] for name in ("new", "unchanged", "replaced")))
        return Added(**counts)

    def remove(self, source: str) -> int:
        """Remove the documents of a source, or the one with this id; return how many."""
        return self._store.remove(source)

    @property
    def ids(self) -> set[str]:
        """The ids of the documents that are there."""
        return set(self._store.fingerprints())

    @property
    def size(self) -> tuple[int, int]:
        """How many documents and passages there are."""
        return self._store.size()

    @property
    def embedding_model(self) -> str | None:
        """The name of the model that made the vectors; None where there are none, or the endpoint's first made them."""
        return self._facts.get("embedding_model") or None

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- finding ------------------------------------------------------------------------------------

    def search(self, query: str, k: int = 5, mode: Mode | None = None) -> list[Found]:
        """Find the passages that fit a query, best first.

        Args:
            query: a question, or words.
            k: how many.
            mode: by "words" (BM25), by "vectors" (cosine), or "hybrid": by both. Hybrid if None; words where the index
                has no vectors.

        Raises:
            UsageError: the mode is none, the index has no vectors for it, or was made with another embedding model.
        """
        mode = mode or ("hybrid" if self._width and self._client is not None else "words")
        if mode not in MODES:
            raise UsageError(f"{mode!r} is no way to search", hint=f"one of {', '.join(MODES)}")
        depth = max(k, _DEPTH) if mode == "hybrid" else k
        words = self._store.by_words(query, depth) if mode != "vectors" else []
        vectors = self._by_meaning(query, depth) if mode != "words" else []
        found = fused(words, vectors)[:k] if mode == "hybrid" else (words or vectors)
        ranks = [{hit.number: place for place, hit in enumerate(hits, 1)} for hits in (words, vectors)]
        cosines = dict(vectors)
        passages = self._store.passages([hit.number for hit in found])  # one may have been removed in the meantime
        return [
            Found(passages[one], score, ranks[0].get(one), ranks[1].get(one), cosines.get(one))
            for one, score in found
            if one in passages
        ]

    def evaluate(
        self, queries: Mapping[str, str], qrels: Mapping[str, Mapping[str, float]], *, mode: Mode | None = None,
        cutoffs: Sequence[int] = (10, 100),
    ) -> Report:  # fmt: skip
        """Score searches for documents against judgements: ndcg@k, recall@k and mrr@10, with intervals.

        Args:
            queries: id -> query.
            qrels: id of a query -> id of a document -> how relevant it is; 0 or less for not at all.
            mode: as ``search`` has it.
            cutoffs: the k of the scores.
        """
        from ..metrics.retrieval import retrieval_report

        most = max(cutoffs)
        found = {query: self._documents(text, most, mode) for query, text in queries.items() if query in qrels}
        return retrieval_report(found, qrels, cutoffs=cutoffs)

    def _documents(self, query: str, k: int, mode: Mode | None) -> list[str]:
        """Return the ids of the k documents whose best passages fit best."""
        many = k
        while True:
            found = self.search(query, many, mode)
            names = list(dict.fromkeys(one.passage.document for one in found))
            if len(names) >= k or len(found) < many:
                return names[:k]
            many *= 2

    def _by_meaning(self, query: str, k: int) -> list[Hit]:
        if self._client is None or not self._width:
            lacks = "was made without an embedding model" if self._client else "was opened without a client"
            raise UsageError(f"the index {lacks}, so it can be searched by words alone",
                             hint='mode="words", or Index.open(place, client)')  # fmt: skip
        self._prove()
        return self._store.by_vector(self._embedded([query])[0], k)

    # -- inner --------------------------------------------------------------------------------------

    def _fingerprint(self, document: Document) -> str:
        told = [document.text, document.source, document.title, document.page, self._splitting]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _prove(self) -> None:
        """Compare the model with the one that made the index; note it where the index is new."""
        if self._proven:
            return
        if self._facts and bool(self._width) != (self._client is not None):
            with_ = "with" if self._width else "without"
            raise UsageError(f"the index was made {with_} an embedding model, and is added to otherwise",
                             hint="open it as it was made, or take another place")  # fmt: skip
        if self._client is not None and self._model is None:
            self._model = next((one.id for one in self._client.models() if one.embeds), None)
        probe = self._embedded([_PROBE])[0] if self._client is not None else None
        if not self._facts:
            self._width = 0 if probe is None else len(probe)
            told = "" if probe is None else base64.b64encode(probe.tobytes()).decode()
            self._store.begin({"embedding_model": self._model or "", "probe": told}, self._width)
            self._facts = self._store.facts()
        elif probe is not None:
            kept = np.frombuffer(base64.b64decode(self._facts["probe"]), dtype="<f4")
            if len(kept) != len(probe) or float(kept @ probe) < _SAME:
                made_by, here = self.embedding_model or "that came first", self._model or "that comes first now"
                raise UsageError(
                    f"the index was made with the embedding model {made_by}, and {here} gives other vectors",
                    hint="name the model that made it (embedding_model=), or add the documents to a new index",
                )
        self._proven = True

    def _embedded(self, texts: list[str]) -> Vectors:
        """Return vectors of length 1."""
        assert self._client is not None
        named: dict[str, Any] = {"model": self._model} if self._model else {}
        vectors = np.asarray(self._client.embed(texts, **named), dtype="<f4")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype="<f4")

    def _made(self, documents: Iterable[Document]) -> Iterator[list[Entry]]:
        """Split and embed documents, some requests at a time, and yield them in their order as they are done."""
        waiting: list[Future[list[Entry]]] = []
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                for group in self._grouped(documents):
                    self._prove()
                    waiting.append(pool.submit(self._entries, group))
                    if len(waiting) > _AT_ONCE:
                        yield waiting.pop(0).result()
                for future in waiting:
                    yield future.result()
            finally:
                for future in waiting:
                    future.cancel()

    def _grouped(self, documents: Iterable[Document]) -> Iterator[list[Document]]:
        """Yield documents together that make about one request."""
        group: list[Document] = []
        size = 0
        for document in documents:
            group.append(document)
            size += 1 + len(document.text) // self._splitting["max_chars"]
            if size >= _BATCH:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _entries(self, documents: Sequence[Document]) -> list[Entry]:
        parts = [split(document, **self._splitting) for document in documents]
        passages = list(chain.from_iterable(parts))
        made = iter(self._vectors(passages) if self._width else [[(one, None)] for one in passages])
        entries = []
        for document, part in zip(documents, parts, strict=True):
            pairs = list(chain.from_iterable(islice(made, len(part))))
            vectors = np.stack([vector for _, vector in pairs]) if self._width and pairs else None
            about = (document.id, document.source or document.id, self._fingerprint(document))
            entries.append(Entry(*about, [one for one, _ in pairs], vectors))
        return entries

    def _vectors(self, passages: list[Passage]) -> list[list[tuple[Passage, Any]]]:
        """Return each passage with its vector; one that the model finds too long as its halves."""
        made: list[list[tuple[Passage, Any]]] = []
        for start in range(0, len(passages), _BATCH):
            some = passages[start : start + _BATCH]
            try:
                vectors = self._embedded([one.searched for one in some])
                made += [[(one, vector)] for one, vector in zip(some, vectors, strict=True)]
            except TooLongError:
                if len(some) == 1:
                    made.append(list(chain.from_iterable(self._vectors(_halves(some[0])))))
                else:
                    middle = len(some) // 2
                    made += self._vectors(some[:middle]) + self._vectors(some[middle:])
        return made


def fused(words: Sequence[Hit], vectors: Sequence[Hit]) -> list[Hit]:
    """Join two rankings: by the mean of the standard scores that a passage has in both.

    A standard score is how many standard deviations a score is above the mean of its ranking, so that BM25 and cosines
    of any model can be added. On half of Cranfield's queries this was better than reciprocal ranks (Cormack et al.
    2009) and other sums, at equal weights; see docs/benchmarks.md for the other half.
    """
    scores = [_standard(words), _standard(vectors)]
    joined = {number: sum(one.get(number, _ABSENT) for one in scores) / 2 for one in scores for number in one}
    return [Hit(number, score) for number, score in sorted(joined.items(), key=lambda one: -one[1])]


def _standard(hits: Sequence[Hit]) -> dict[int, float]:
    given = np.asarray([hit.score for hit in hits])
    spread = given.std() if len(given) > 1 else 0.0
    standard = (given - given.mean()) / spread if spread > 0 else np.zeros(len(given))
    return {hit.number: max(float(one), _ABSENT) for hit, one in zip(hits, standard, strict=True)}


def _halves(passage: Passage) -> list[Passage]:
    """Cut a passage in two, near its middle.

    Raises:
        TooLongError: there is nothing left to cut.
    """
    document = Document(passage.document, passage.text, passage.source, passage.title, passage.page)
    most = max(len(passage.text) // 2 + 1, 20)
    if len(passage.text) <= most:
        raise TooLongError(f"the embedding model takes no {len(passage.text)} characters", hint="another model")
    return [replace(one, heading=passage.heading, start=one.start + passage.start, end=one.end + passage.start)
            for one in split(document, max_chars=most)]  # fmt: skip
