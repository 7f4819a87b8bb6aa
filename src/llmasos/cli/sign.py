"""``llmasos sign``: write a model's bill of materials and its signature."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..core.errors import UsageError
from .output import AsJson, show_json, show_table

EXAMPLES = """
llmasos sign my-model --new-key my-key.pem
llmasos sign my-model-onnx-int8 --key my-key.pem
"""


def run(
    model: Annotated[
        str | None, typer.Argument(metavar="DIR", help="folder of a model or of an export", show_default=False)
    ] = None,
    *,
    key: Annotated[str | None, typer.Option(metavar="FILE", help="your private key, PEM")] = None,
    new_key: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="make a private key first, with the public one beside it (.pub.pem)"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sign a model or an export, so that others can tell that it is yours and whole.

    Writes bom.cdx.json, what the model was made from and with (CycloneDX), and model.sig, an OpenSSF model signature
    over every file but the records of the run. llmasos verify DIR --key PUBLIC checks it before anything is opened.
    LLMASOS_KEY_PASSWORD encrypts a new key, and opens an encrypted one.
    """
    if (key is None) == (new_key is None):
        raise UsageError("no key given" if key is None else "two keys given", hint="--key FILE, or --new-key FILE")
    if model is None and new_key is None:
        raise UsageError("no model given", hint="llmasos sign DIR --key FILE")
    from ..supply import signing

    rows: list[tuple[str, str]] = []
    said: dict[str, Any] = {"model": model}
    if new_key is not None:
        made = signing.new_keys(new_key)
        key = str(made.private)
        said |= {"private_key": key, "public_key": str(made.public)}
        rows += [("private key", f"{made.private} (keep it to yourself)"), ("public key", str(made.public))]
    if model is not None:
        signed = signing.sign(model, str(key))
        said |= {"signature": str(signed.signature), "files": list(signed.files)}
        rows += [("signature", str(signed.signature)), ("signed", f"{len(signed.files)} files")]
    show_json(said) if as_json else show_table(rows)
