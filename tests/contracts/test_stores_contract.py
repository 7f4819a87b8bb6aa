"""What every store promises, wherever it keeps things.

A store takes part through a function ``place_<name>`` here (dashes as underscores), which returns a new, empty place.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmasos.core import plugins
from llmasos.core.errors import LLMasOSError
from llmasos.stores.base import Entry, Hit, Passage, Store, open_store
from postgres import new_place

NAMES = plugins.names("stores")
TEXTS = (
    "Parcels are sent on Monday.",
    "We are running a shop for running shoes.",
    "客服可以在七天内退货。",
    "水很冷。",
)


def place_sqlite(folder: Path) -> str:
    pytest.importorskip("apsw")
    pytest.importorskip("sqlite_vec")
    return str(folder / "index.db")


def place_postgres(folder: Path) -> str:
    return new_place(folder)


@pytest.fixture(params=NAMES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    made = globals().get(f"place_{request.param.replace('-', '_')}")
    if made is None:
        pytest.skip(f"no place_{request.param} in this file")
    return made(tmp_path)


@pytest.fixture
def store(place: str) -> Iterator[Store]:
    opened = open_store(place)
    yield opened
    opened.close()


def vectors(*places: int) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[list(places)]


def entry(document: str, *texts: str, fingerprint: str = "1", places: tuple[int, ...] | None = None) -> Entry:
    passages = [
        Passage(text, document, "file.md", "Title", "Part › Chapter", 3, at, at + len(text))
        for at, text in enumerate(texts)
    ]
    return Entry(document, "file.md", fingerprint, passages, None if places is None else vectors(*places))


@pytest.fixture
def filled(store: Store) -> Store:
    store.begin({"made": "by a test"}, 4)
    store.put([entry("one", *TEXTS[:2], places=(0, 1)), entry("two", *TEXTS[2:], places=(2, 3))])
    return store


def texts(store: Store, hits: list[Hit]) -> list[str]:
    passages = store.passages([hit.number for hit in hits])
    return [passages[hit.number].text for hit in hits]


def found(store: Store, query: str, k: int = 9) -> list[str]:
    return texts(store, store.by_words(query, k))


def near(store: Store, vector: np.ndarray, k: int = 9) -> list[str]:
    return texts(store, store.by_vector(vector, k))


def test_a_new_store_is_empty(store):
    assert store.facts() == {}
    assert (store.size(), store.fingerprints(), store.by_words("x", 3), store.passages([])) == ((0, 0), {}, [], {})


def test_what_was_put_is_there_when_it_is_opened_again(filled, place):
    filled.close()
    again = open_store(place)
    try:
        assert again.facts() == {"made": "by a test", "width": "4"}
        assert (again.size(), again.fingerprints()) == ((2, 4), {"one": "1", "two": "1"})
        assert found(again, "parcels") == [TEXTS[0]]
        assert near(again, vectors(2)[0], 1) == [TEXTS[2]]
    finally:
        again.close()


def test_a_passage_comes_back_as_it_was(filled):
    (hit,) = filled.by_words("parcels", 1)
    assert filled.passages([hit.number, 99]) == {hit.number: entry("one", TEXTS[0]).passages[0]}


@pytest.mark.parametrize(
    ("query", "best"),
    [("a parcel that was SENT", 0), ("runs", 1), ("退货", 2), ("怎么退货？", 2), ("水", 3), ("冷", 3)],
)
def test_words_are_found_by_their_stems_and_chinese_by_pairs(filled, query, best):
    assert found(filled, query)[0] == TEXTS[best]


@pytest.mark.parametrize("query", ["", "?!", '" OR *', "nowhere", "text:", "'; DROP TABLE passages", "NEAR(", "的确"])
def test_a_query_without_a_known_word_finds_nothing(filled, query):
    assert found(filled, query) == []
    assert filled.size() == (2, 4)


def test_titles_and_headings_are_searched(filled):
    assert len(found(filled, "chapter")) == 4


def test_words_that_are_rare_and_frequent_in_a_passage_count_most(store):
    store.begin({}, 0)
    others = [f"{color} {animal}" for color in ("blue", "green") for animal in ("dog", "fox", "cat", "hen")]
    store.put([entry("one", "red cat and a long tail of other words", "red dog", "red red fox", *others)])
    assert found(store, "red fox")[0] == "red red fox"
    scores = [hit.score for hit in store.by_words("red fox", 9)]
    assert scores == sorted(scores, reverse=True)
    assert all(score > 0 for score in scores)


def test_vectors_are_found_by_cosine_whatever_their_length(filled):
    hits = filled.by_vector(np.asarray([0, 20, 10, 0], np.float32), 2)
    assert texts(filled, hits) == [TEXTS[1], TEXTS[2]]
    assert [hit.score for hit in hits] == pytest.approx([20 / 500**0.5, 10 / 500**0.5], abs=1e-5)


def test_k_is_kept(filled):
    assert [len(filled.by_vector(vectors(0)[0], k)) for k in (0, 1, 3, 5000)] == [0, 1, 3, 4]
    assert [len(filled.by_words("chapter", k)) for k in (0, 1, 3)] == [0, 1, 3]


def test_a_document_is_replaced_whole(filled):
    filled.put([entry("one", "Letters only.", fingerprint="2", places=(0,))])
    assert (filled.size(), filled.fingerprints()) == ((2, 3), {"one": "2", "two": "1"})
    assert found(filled, "parcels shoes") == []
    assert near(filled, vectors(0)[0], 9) == ["Letters only.", *near(filled, vectors(0)[0], 9)[1:]]
    assert len(near(filled, vectors(0)[0])) == 3


def test_a_source_or_a_document_is_removed(filled):
    assert filled.remove("nothing") == 0
    assert filled.remove("two") == 1
    assert found(filled, "退货") == []
    assert filled.remove("file.md") == 1
    assert (filled.size(), near(filled, vectors(0)[0])) == ((0, 0), [])


def test_what_fails_in_the_middle_leaves_what_was_there(filled):
    def broken() -> Iterator[Entry]:
        yield entry("three", "New words.", places=(0,))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled.put(broken())
    assert (filled.size(), found(filled, "new"), filled.fingerprints()) == ((2, 4), [], {"one": "1", "two": "1"})
    filled.put([entry("three", "New words.", places=(0,))])
    assert found(filled, "new") == ["New words."]


def test_a_store_without_vectors_finds_words(store):
    store.begin({}, 0)
    store.put([entry("one", *TEXTS)])
    assert found(store, "parcel") == [TEXTS[0]]
    assert store.remove("one") == 1


def test_threads_share_a_store(filled):
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for _ in range(10):
                filled.put([entry(f"t{number}", f"Thread {number}.", places=(number % 4,))])
                assert TEXTS[0] in found(filled, "parcels")
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert filled.size() == (6, 8)


@pytest.mark.parametrize("name", NAMES)
def test_a_store_has_its_own_place_in_the_order(name):
    orders = [plugins.load("stores", other).order for other in NAMES]
    assert orders.count(plugins.load("stores", name).order) == 1


def test_a_place_of_no_kind_is_refused():
    with pytest.raises(LLMasOSError, match="not a place"):
        open_store("mysql://there")


@pytest.mark.parametrize("name", NAMES)
def test_loading_a_store_imports_no_heavy_library(name):
    code = (
        f"import sys; from llmasos.core import plugins; plugins.load('stores', {name!r});"
        "sys.exit(any(heavy in sys.modules for heavy in ('torch', 'apsw', 'psycopg')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
