"""``llmasos pull``: get a model from a registry of containers, or out of a pack."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import AsJson, say, show_json, show_table

EXAMPLES = """
llmasos pull ghcr.io/me/my-model:1 --output my-model --key my-key.pub.pem
llmasos pull my-model.tar --output my-model
llmasos pull oci:layouts/my-model --output my-model
"""


def run(
    reference: Annotated[
        str, typer.Argument(metavar="REGISTRY/NAME:TAG", help="or NAME.tar, or oci:FOLDER: what llmasos pack wrote")
    ],
    *,
    output: Annotated[str, typer.Option(metavar="DIR", help="folder for the model")],
    key: Annotated[
        str | None, typer.Option(metavar="FILE", help="public key that the model must be signed with")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the model in that folder")] = False,
    as_json: AsJson = False,
) -> None:
    """Get a model from a registry of containers, or out of a pack on disk.

    Every byte is checked against its digest; the folder takes its name when it is whole, safe to open, and with --key
    when its signature is right.
    """
    from ..supply import packing
    from ..supply.registry import Registry

    say(f"getting {reference}")
    with packing.opened(reference) as pack:
        if pack is not None:
            found = packing.unpack(pack, output, key=key, overwrite=overwrite)
        else:
            with Registry(reference) as registry:
                found = packing.unpack(registry, output, key=key, overwrite=overwrite)
    if as_json:
        show_json({"reference": reference, "output": str(found.path), "digest": found.digest,
                   "files": list(found.files), "signed": found.signed})  # fmt: skip
        return
    signed = f"with the other half of {key}" if key else "not asked for (--key)"
    show_table([("digest", found.digest), ("files", str(len(found.files))), ("signature", signed)])
    print(f"\nmodel: {found.path}")
