"""``llmasos verify``: check that a model or an artifact is what it was where it was made."""

from __future__ import annotations

from typing import Annotated

import typer

from ..progress import render
from .options import Columns, parse_columns
from .output import AsJson, say, show_json, show_table

EXAMPLES = """
llmasos verify my-model
llmasos verify my-model-onnx-int8 --data dev.jsonl
llmasos verify my-model --key my-key.pub.pem
"""


def run(
    model: Annotated[str, typer.Argument(metavar="DIR", help="folder of a model or of an export")],
    *,
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="labelled data: that of the export must score the same")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="FILE", help="public key: the signature is checked before anything is opened")
    ] = None,
    columns: Columns = None,
    as_json: AsJson = False,
) -> None:
    """Check a model or an export from its files alone.

    No file may be changed, the tokenizer must read as it did, and the golden rows must give what they gave, on this
    machine and with this version of the runtime. With --key it must also be signed with the other half of that key,
    and no file may have been added.
    """
    signed = None
    if key is not None:
        from ..supply import signing

        say(f"checking the signature of {model}")
        signed = signing.verify(model, key)
    from ..llm import LLM

    say(f"loading {model}")
    with render(plain=as_json) as draw:
        found = LLM.from_pretrained(model).verify(data, columns=parse_columns(columns), progress=draw)
    if as_json:
        show_json(found.as_dict() | {"signed": signed and {"key": key, "files": list(signed.files)}})
        return
    apart = found.golden
    rows = [
        *([("signature", f"of {key}, over {len(signed.files)} files")] if signed else []),
        ("files", f"{found.files} as they were written"),
        ("runtime", found.runtime),
        ("golden rows", f"largest difference {apart.largest:.2g}, {apart.relative:.2%} of the largest output"),
    ]
    if found.score is not None:
        rows.append((str(found.metric), f"{found.score.value:.4f} ({found.score.low:.4f} to {found.score.high:.4f})"))
    if found.certified is not None:
        same = ", of other rows" if found.score is not None and not found.same_rows else ""
        rows.append((f"{found.metric}, certified", f"{found.certified:.4f}{same}"))
    show_table(rows)
    print(f"\n{found.path} is what it was")
