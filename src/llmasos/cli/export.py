"""``llmasos export``: write a model in another format, and prove that it is the same model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core import plugins
from ..core.config import ExportConfig
from ..core.storage import is_url
from ..progress import render
from .options import Columns, check, config_flags, parse_columns, with_flags
from .output import AsJson, say, show_json, show_table

EXAMPLES = """
llmasos export my-model --target onnx
llmasos export my-model --target onnx --quantize int8 --data dev.jsonl --calibration train.jsonl
llmasos export my-model --target openvino --quantize bfloat16 --data dev.jsonl --output my-model-fast
llmasos export my-model --target onnx --quantize int8-dynamic --data dev.jsonl --accept-drop 0.5
llmasos export my-model --target web --data dev.jsonl --output my-page
"""


@with_flags(*config_flags(ExportConfig))
def run(
    model: Annotated[str, typer.Argument(metavar="DIR", help="folder of a tuned model")],
    *,
    target: Annotated[str, typer.Option(metavar="FORMAT", help=f"the format: {', '.join(plugins.names('exporters'))}")],
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="labelled data, on which the score is compared")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="FILE", help="rows on which int8 finds the ranges of its numbers")
    ] = None,
    columns: Columns = None,
    output: Annotated[
        str | None, typer.Option(metavar="DIR", help="folder for the artifact, or a URL; beside the model if not given")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is in that folder")] = False,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Export a model, and prove that it is the same model.

    What was written is run by its own runtime, in a process of its own: on the model's golden rows, and on labelled
    data where it is given. If its tokens, outputs or score are not those of the model, nothing is written. What was
    found is kept in certificate.json, and llmasos verify finds it again.
    """
    check(options, ExportConfig)
    mapping = parse_columns(columns)
    from ..llm import LLM

    say(f"loading {model}")
    parts = (Path(model).name, target, options.get("quantize"))
    beside = Path(Path(model).name if is_url(model) else model)
    path = output or str(beside.with_name("-".join(filter(None, parts))))
    with render(plain=as_json) as draw:
        found = LLM.from_pretrained(model).export(
            path, target, data=data, calibration=calibration, columns=mapping, overwrite=overwrite, progress=draw,
            command=["llmasos", *sys.argv[1:]], **options,
        )  # fmt: skip
    if as_json:
        show_json({"model": model, "output": str(found.path), **found.as_dict()})
        return
    rows = [("runtime", found.runtime)]
    if found.kept:
        rows.append(("kept in float32", ", ".join(found.kept)))
    apart = found.golden
    if apart.written is not None:
        rows.append(("golden answers", f"{apart.written:.0%} the same to the last token"))
    rows.append(("golden rows", f"largest difference {apart.largest:.2g}, {apart.relative:.2%} of the largest output"))
    if score := found.score:
        before, after = score.model, score.artifact
        rows += [
            (f"{score.metric}, model", f"{before.value:.4f} ({before.low:.4f} to {before.high:.4f})"),
            (f"{score.metric}, artifact", f"{after.value:.4f} ({after.low:.4f} to {after.high:.4f})"),
            (f"on {score.rows:,} rows", f"outputs {score.relative:.2%} apart"),
        ]
        if score.agreement is not None:
            rows.append(("answered alike", f"{score.agreement:.2%} of them"))
    rows += [
        ("size", f"{found.size_bytes / 1e6:,.1f} MB"),
        ("load", f"{found.load_seconds:.2f} s from the start of a process, {found.open_seconds:.2f} s in the runtime"),
        ("one row alone" if apart.written is None else "a token", f"{found.latency_ms:.1f} ms"),
        *([("rows", f"{found.rows_per_second:,.0f} a second")] if found.rows_per_second else []),
        ("memory", f"{found.peak_bytes / 1e6:,.0f} MB at most"),
    ]
    show_table(rows)
    print(f"\nmodel: {found.path}")
