"""``llmasos create``: make a model of random weights, to train from scratch."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import AsJson, show_json

EXAMPLES = """
llmasos create llama-10m --tokenizer my-tokenizer --output my-base
llmasos create path/to/config.json --tokenizer my-tokenizer --output my-base --seed 1
"""


def run(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="llama-4m, llama-10m, llama-30m, llama-100m, bert-10m, marian-7m, or a config.json of your own",
        ),
    ],
    *,
    tokenizer: Annotated[str, typer.Option(metavar="DIR", help="folder of the tokenizer, or a model that has one")],
    output: Annotated[str, typer.Option(metavar="DIR", help="folder for the model")],
    seed: Annotated[int, typer.Option(metavar="INTEGER", help="what the weights are drawn from")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the model in that folder")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a model that has learned nothing, as a folder that finetune takes.

    Then: llmasos finetune DIR --task language-modeling --data FILE, with a learning rate of about 1e-3.
    """
    from ..scratch import create

    path = create(config, tokenizer, seed=seed, output=output, overwrite=overwrite)
    if as_json:
        show_json({"output": str(path), "config": config, "seed": seed})
    else:
        print(f"model: {path}")
