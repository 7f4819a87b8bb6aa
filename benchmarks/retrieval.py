"""Search over Cranfield's 1,400 abstracts: how good it is, how fast documents go in, how long a query takes.

Words, vectors and both, with MiniLM behind one server of ours; the peer is LangChain as its guides show it (its
splitter for plain text, ``OpenAIEmbeddings`` over the same server, ``InMemoryVectorStore``, ``BM25Retriever``, and
``EnsembleRetriever`` over both). How ours joins words and vectors was chosen on the queries with even places; only the
other half is scored here. Judgements are 1 (best) to 4, so the gains are 4 to 1.
"""

from __future__ import annotations

import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import child, data, harness
from .records import Column, Result, Run, goal, middle, ratio
from .serve import server

CANDIDATES = ("llmasos", "langchain")
CRANFIELD = harness.ROOT / ".." / "shared" / "data" / "cranfield"
MODES = ("words", "vectors", "hybrid")
K, DEEP = 10, 200

Search = Callable[[str, str, int], list[str]]


def main() -> None:
    """Measure, or be one of the candidates."""
    parser = harness.parser(__doc__, seeds=3)
    parser.add_argument("--cranfield", type=Path, default=CRANFIELD, help="folder of the collection")
    parser.add_argument("--url", help="where the server is, for a child")
    options = parser.parse_args()
    if options.child:
        child.report(measured(options.child, options.url, options.cranfield, options.rows, Path(options.work)))
        return
    names = harness.chosen(CANDIDATES, options.only)
    with (
        harness.workspace() as work,
        server([sys.executable, "-m", "llmasos", "serve", f"embed={data.model_folder()}", "--port"]) as port,
    ):
        rows = ("--rows", str(options.rows)) if options.rows else ()
        more = ("--url", f"http://127.0.0.1:{port}", "--cranfield", str(options.cranfield.resolve()), *rows)
        harness.run_one(harness.child("retrieval", "warm", work, *more), 0, work)
        runs = harness.measure([harness.child("retrieval", name, work, *more) for name in names], options.seeds, work)
    harness.finish(result(names, runs), options)


def measured(name: str, url: str, folder: Path, rows: int | None, work: Path) -> dict[str, Any]:
    """Index, ask, and score."""
    texts, queries, judgements = collection(folder, rows)
    if name == "warm":
        from llmasos.client import Client

        with Client(url) as client:
            client.embed([text for _, _, text in texts[:64]])
        return {}
    start = time.perf_counter()
    search = llmasos(url, texts, work) if name == "llmasos" else langchain(url, texts)
    seconds = time.perf_counter() - start
    times = []
    for query in queries.values():
        start = time.perf_counter()
        search(query, "hybrid", K)
        times.append(time.perf_counter() - start)
    scores = {mode: scored(search, queries, judgements, mode) for mode in MODES}
    return {
        "rows_per_second": len(texts) / seconds, "median_ms": 1e3 * statistics.median(times),
        "p95_ms": 1e3 * statistics.quantiles(times, n=20)[-1],
        **{f"{mode}_{metric}": value for mode in MODES for metric, value in scores[mode].items()},
    }  # fmt: skip


def collection(folder: Path, rows: int | None) -> tuple[list[tuple[str, str, str]], dict[str, str], Any]:
    """Return abstracts (id, title, text), the queries at odd places, and their judgements."""
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [(str(row["id"]), row["title"], row["text"]) for row in map(json.loads, file) if row["text"].strip()]
    kept = texts[:rows]
    known = {name for name, _, _ in kept}
    judgements: dict[str, dict[str, float]] = {}
    for row in map(json.loads, (folder / "qrels.jsonl").open(encoding="utf-8")):
        if row["relevance"] > 0 and str(row["doc_id"]) in known:
            judgements.setdefault(str(row["query_id"]), {})[str(row["doc_id"])] = 5 - row["relevance"]
    asked = [json.loads(line) for line in (folder / "queries.jsonl").open(encoding="utf-8")]
    judged = [row for row in asked if str(row["id"]) in judgements]
    queries = {str(row["id"]): row["text"] for row in judged[1::2]}
    return kept, queries, {query: judgements[query] for query in queries}


def scored(search: Search, queries: dict[str, str], judgements: Any, mode: str) -> dict[str, float]:
    """Score what is found, by the same code for all."""
    from llmasos.metrics.retrieval import retrieval_report

    found = {query: list(dict.fromkeys(search(text, mode, DEEP)))[:100] for query, text in queries.items()}
    metrics = retrieval_report(found, judgements, samples=2).metrics
    return {"ndcg": metrics["ndcg@10"].value, "recall": metrics["recall@100"].value}


def llmasos(url: str, texts: Sequence[tuple[str, str, str]], work: Path) -> Search:
    """Index in a file."""
    from llmasos.apps import Document, Index
    from llmasos.client import Client

    place = work / f"{time.time_ns()}.db"
    index = Index.open(str(place), Client(url))
    index.add(Document(name, text, title=title) for name, title, text in texts)
    return lambda query, mode, k: [one.passage.document for one in index.search(query, k, mode)]  # type: ignore[arg-type]


def langchain(url: str, texts: Sequence[tuple[str, str, str]]) -> Search:
    """Index in memory, as LangChain's guides do."""
    child.require("langchain_core", "langchain_openai", "langchain_community", "langchain_classic", "rank_bm25",
                  "langchain_text_splitters")  # fmt: skip
    from langchain_classic.retrievers import EnsembleRetriever
    from langchain_community.retrievers import BM25Retriever
    from langchain_core.documents import Document
    from langchain_core.vectorstores import InMemoryVectorStore
    from langchain_openai import OpenAIEmbeddings
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=0)
    documents = [Document(text, metadata={"id": name}) for name, _, text in texts]
    parts = splitter.split_documents(documents)
    embeddings = OpenAIEmbeddings(base_url=f"{url}/v1", api_key="none", model="embed", check_embedding_ctx_length=False)
    store = InMemoryVectorStore(embeddings)
    store.add_documents(parts)
    words = BM25Retriever.from_documents(parts)

    def search(query: str, mode: str, k: int) -> list[str]:
        words.k = k
        vectors = store.as_retriever(search_kwargs={"k": k})
        both = EnsembleRetriever(retrievers=[words, vectors], weights=[0.5, 0.5])
        chosen: Any = {"words": words, "vectors": vectors, "hybrid": both}[mode]
        return [str(one.metadata["id"]) for one in chosen.invoke(query)]

    return search


def result(names: Sequence[str], runs: list[Run]) -> Result:
    """Put the table together."""

    def ours(key: str) -> float | None:
        return middle(runs, "llmasos", key)

    def against(key: str, better: str) -> float | None:
        return ratio(runs, "llmasos", "langchain", key, better)

    hybrid = ours("hybrid_ndcg")
    return Result(
        name="retrieval",
        title="Cranfield: 1,400 abstracts, half of the queries, MiniLM behind one server",
        columns=[
            Column("hybrid_ndcg", "nDCG@10 of both", 3),
            Column("words_ndcg", "of words", 3),
            Column("vectors_ndcg", "of vectors", 3),
            Column("hybrid_recall", "recall@100 of both", 3),
            Column("words_recall", "of words", 3),
            Column("vectors_recall", "of vectors", 3),
            Column("rows_per_second", "abstracts indexed a second", 1),
            Column("median_ms", "query, ms", 1),
            Column("p95_ms", "95th percentile, ms", 1),
        ],
        candidates=list(names),
        runs=runs,
        baseline="langchain" if "langchain" in names else None,
        better="higher",
        goals=[
            *(goal(f"both at least as good as {mode} alone", hybrid and hybrid / (ours(f"{mode}_ndcg") or 1), 1.0,
                   shown="{:.2f}x") for mode in MODES[:2]),
            goal("nDCG@10 at least LangChain's", against("hybrid_ndcg", "higher"), 1.0, shown="{:.2f}x"),
            goal("indexing at least as fast", against("rows_per_second", "higher"), 1.0, shown="{:.2f}x"),
            goal("a query at least as fast", against("median_ms", "lower"), 1.0, shown="{:.2f}x"),
        ],
        notes=["milliseconds hold the embedding of the query by the server; LangChain keeps its index in memory"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
