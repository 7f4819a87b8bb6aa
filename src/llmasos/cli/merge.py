"""``llmasos merge``: fold an adapter into its base model, and prove that nothing was lost."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Columns, parse_columns
from .output import AsJson, say, show_json, show_table

EXAMPLES = """
llmasos merge my-adapter --output my-model
llmasos merge my-adapter --output my-model --data dev.jsonl
llmasos merge my-adapter --base path/to/base --output my-model --data dev.csv --tolerance 0.002
"""


def run(
    model: Annotated[str, typer.Argument(metavar="DIR", help="folder of an adapter")],
    *,
    output: Annotated[str, typer.Option(metavar="DIR", help="folder for the plain model")],
    data: Annotated[str | None, typer.Option(metavar="FILE", help="labelled data, to compare the metric on")] = None,
    columns: Columns = None,
    tolerance: Annotated[float, typer.Option(metavar="NUMBER", help="how much of the metric may be lost")] = 0.0,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="where the base model is, if no longer where it was")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the model in that folder")] = False,
    as_json: AsJson = False,
) -> None:
    """Fold an adapter into its base model and save a plain model.

    Its outputs are compared with those of base and adapter, and its metric too where labelled data is given. If more is
    lost than --tolerance, nothing is written.
    """
    from ..llm import LLM

    say(f"loading {model}")
    llm = LLM.from_pretrained(model, base=base)
    found = llm.merge(data, columns=parse_columns(columns), tolerance=tolerance)
    path = llm.save(output, overwrite=overwrite)
    if as_json:
        show_json({"model": model, "output": str(path), **found.as_dict()})
        return
    rows = [("largest change of an output", f"{found.largest_change:.2g} (largest output {found.largest_output:.3g})")]
    if found.before is not None and found.after is not None:
        rows.append((f"{found.metric} on {found.rows:,} rows", f"{found.before:.4f} before, {found.after:.4f} after"))
    show_table(rows)
    print(f"\nmodel: {path}")
