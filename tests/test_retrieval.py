"""A model scored as a search: queries, documents and judgements, from Python and the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from llmasos import LLM
from llmasos.cli import main
from llmasos.errors import DataError, UsageError
from tiny import save_tiny_bert

DOCUMENTS = [{"_id": str(i), "text": text} for i, text in enumerate(
    ["a red kite", "two kites in the wind", "bread and salt", "salt water", "a wind mill", "iron ore", "zinc"]
)]  # fmt: skip
QUERIES = [{"id": 1, "text": "kite"}, {"id": 2, "text": "salt"}, {"id": 3, "text": "who judged this?"}]
QRELS = [
    {"query_id": query, "doc_id": document, "relevance": relevance}
    for query, judged in {1: {0: 3, 1: 2, 4: 1, 5: -1}, 2: {2: 1, 3: 4}}.items()
    for document, relevance in judged.items()
]
EXACT = {"precision": "float32", "threads": 1}


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> LLM:
    return LLM.from_pretrained(save_tiny_bert(tmp_path_factory.mktemp("tiny") / "model"))


def gains_by_hand(llm: LLM) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and relevance of the judged queries and all documents, (queries, documents)."""
    vectors = [llm.embed([row["text"] for row in rows], **EXACT).astype(np.float64) for rows in (QUERIES, DOCUMENTS)]
    relevance = np.zeros((2, len(DOCUMENTS)))
    for row in QRELS:
        relevance[row["query_id"] - 1, row["doc_id"]] = max(0, row["relevance"])
    return (vectors[0] @ vectors[1].T)[:2], relevance


def test_a_search_is_scored_as_scikit_learn_and_the_definition_have_it(llm):
    cosines, relevance = gains_by_hand(llm)
    report = llm.evaluate(QUERIES, documents=DOCUMENTS, qrels=QRELS, **EXACT)
    first = np.argsort(-cosines, axis=1)
    hits = np.take_along_axis(relevance > 0, first, axis=1)
    assert report.rows == 2
    assert report.metrics["ndcg@10"].value == pytest.approx(ndcg_score(relevance, cosines, k=10))
    assert report.metrics["recall@10"].value == 1.0  # of seven documents
    assert report.metrics["mrr@10"].value == pytest.approx((1 / (1 + hits.argmax(axis=1))).mean())


def test_only_the_first_k_count(llm):
    padding = [{"_id": f"x{i}", "text": f"kite salt {i}"} for i in range(200)]
    report = llm.evaluate(QUERIES, documents=[*DOCUMENTS, *padding], qrels=QRELS, **EXACT)
    found = llm.embed([row["text"] for row in (*DOCUMENTS, *padding)], **EXACT)
    wanted = llm.embed([row["text"] for row in QUERIES[:2]], **EXACT)
    first = np.argsort(-(wanted @ found.T), axis=1, kind="stable")
    for k in (10, 100):
        shares = [len({0, 1, 4} & set(first[0, :k])) / 3, len({2, 3} & set(first[1, :k])) / 2]
        assert report.metrics[f"recall@{k}"].value == pytest.approx(np.mean(shares))


def test_what_is_left_out_of_a_search_is_told(llm):
    said: list = []
    documents = [*DOCUMENTS[1:], {"_id": "8", "text": " "}]
    rows = [*QRELS, {"query_id": 9, "doc_id": 1, "relevance": 1}]
    llm.evaluate(QUERIES, documents=documents, qrels=rows, allow_dropped=0.2, progress=said.append, **EXACT)
    notes = [event.text for event in said if hasattr(event, "text")]
    assert notes == [
        "1 queries have no judgement and are not scored",
        "1 judged queries are not among the queries and are not scored",
        "1 relevant documents are not there and cannot be found",
        "1 of 7 documents are empty and are not found",
    ]


@pytest.mark.parametrize(("changed", "message"), [
    ({"documents": [*DOCUMENTS, DOCUMENTS[0]]}, "row 8, field id: found 0 a second time"),
    ({"documents": [*DOCUMENTS, {"_id": "9", "text": ""}]}, "1 of 8 documents are empty, the first is 9"),
    ({"documents": [{"_id": "0", "text": None}]}, "row 1, field text: found nothing"),
    ({"qrels": [{**QRELS[0], "relevance": "much"}]}, "row 1, field relevance: found str 'much'"),
    ({"qrels": [*QRELS, {**QRELS[0], "relevance": 1}]}, "field relevance: found 1, and earlier another"),
    ({"qrels": [{**QRELS[0], "doc_id": "nowhere"}]}, "no judgement of the 1 judged queries"),
    ({"qrels": [{"query_id": 1, "doc_id": 0}]}, "no column for relevance"),
])  # fmt: skip
def test_wrong_rows_of_a_search_are_named(llm, changed, message):
    with pytest.raises(DataError, match=message) as caught:
        llm.evaluate(QUERIES, **{"documents": DOCUMENTS, "qrels": QRELS, **changed}, **EXACT)
    assert caught.value.hint


@pytest.mark.parametrize("given", [{"documents": DOCUMENTS}, {"qrels": QRELS},
                                   {"documents": DOCUMENTS, "qrels": QRELS, "columns": {"text": "t"}}])  # fmt: skip
def test_half_of_a_search_is_refused(llm, given):
    with pytest.raises(UsageError, match="a search is scored with documents and qrels"):
        llm.evaluate(QUERIES, **given)


@pytest.fixture
def files(tmp_path) -> list[str]:
    words = []
    for name, rows in {"data": QUERIES, "documents": DOCUMENTS, "qrels": QRELS}.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words += [f"--{name}", str(path)]
    return words


def test_the_command_line_scores_a_search_by_any_encoder(llm, files, capsys):
    assert main(["evaluate", str(llm.located.path), *files, "--json", "--threads", "1"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert set(metrics) == {"ndcg@10", "ndcg@100", "recall@10", "recall@100", "mrr@10"}
    assert main(["evaluate", str(llm.located.path), *files[:4]]) == 2
    assert "with documents and qrels" in capsys.readouterr().err
