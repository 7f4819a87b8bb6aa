"""``llmasos tokenizer``: learn a tokenizer from texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import UsageError
from .options import Columns, parse_columns
from .output import AsJson, say, show_json, show_table

EXAMPLES = """
llmasos tokenizer train --data book.txt --vocab-size 4096 --output my-tokenizer
llmasos tokenizer train --data a.jsonl --data b.txt --vocab-size 8192 --chat-template chatml --output my-tokenizer
llmasos tokenizer train --data notes.txt --vocab-size 8192 --masked --output my-encoder-tokenizer
"""


def run(
    action: Annotated[str, typer.Argument(metavar="train", help="what to do; there is one action")],
    *,
    data: Annotated[list[str], typer.Option(metavar="FILE", help="texts, once for each file: .txt, .jsonl, ...")],
    output: Annotated[str, typer.Option(metavar="DIR", help="folder for the tokenizer")],
    vocab_size: Annotated[int, typer.Option(metavar="INTEGER", help="tokens, bytes and special ones included")] = 8192,
    columns: Columns = None,
    chat_template: Annotated[
        str | None, typer.Option(metavar="chatml|FILE", help="how messages become text: chatml, or a Jinja file")
    ] = None,
    special_token: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="a token that is never cut; once for each")
    ] = None,
    masked: Annotated[bool, typer.Option("--masked", help="with [CLS], [SEP] and [MASK], for encoders")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the tokenizer in that folder")] = False,
    as_json: AsJson = False,
) -> None:
    """Learn a byte-level BPE tokenizer from texts: it can write any text of any language.

    The folder goes with `llmasos create`, which makes a model for it.
    """
    if action != "train":
        raise UsageError(f"there is no action {action!r}", hint="llmasos tokenizer train")
    from ..scratch import CHATML, train_tokenizer

    template = chat_template
    if template is not None and template != CHATML:
        if not Path(template).is_file():
            raise UsageError(f"no such template: {template}", hint="chatml, or the path of a Jinja file")
        template = Path(template).read_text(encoding="utf-8")
    say(f"learning {vocab_size:,} tokens")
    made = train_tokenizer(
        [Path(name) for name in data], vocab_size, output=output, columns=parse_columns(columns),
        chat_template=template, special_tokens=special_token or (), masked=masked, overwrite=overwrite,
    )  # fmt: skip
    if as_json:
        show_json({"output": str(made.path), "vocab_size": made.size, "bytes_per_token": made.bytes_per_token})
        return
    show_table([("tokens", f"{made.size:,}"), ("bytes for each token of the texts", f"{made.bytes_per_token:.2f}")])
    print(f"\ntokenizer: {made.path}")
