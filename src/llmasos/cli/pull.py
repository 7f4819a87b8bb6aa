"""``llmasos pull``: get a model from a registry of containers, out of a pack, or from a bucket."""

from __future__ import annotations

from typing import Annotated

import typer

from ..core.storage import is_url
from .output import AsJson, say, show_json, show_table, size

EXAMPLES = """
llmasos pull ghcr.io/me/my-model:1 --output my-model --key my-key.pub.pem
llmasos pull my-model.tar --output my-model
llmasos pull oci:layouts/my-model --output my-model
llmasos pull s3://bucket/my-model --output my-model
"""


def run(
    reference: Annotated[str, typer.Argument(metavar="REGISTRY/NAME:TAG", help="or a URL, NAME.tar or oci:FOLDER")],
    *,
    output: Annotated[str, typer.Option(metavar="DIR", help="folder for the model")],
    key: Annotated[
        str | None, typer.Option(metavar="FILE", help="public key that the model must be signed with")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the model in that folder")] = False,
    as_json: AsJson = False,
) -> None:
    """Get a model from a registry of containers, out of a pack on disk, or from a URL (s3://, az://, gs://).

    Every byte is checked against its digest; the folder takes its name when it is whole, safe to open, and with --key
    when its signature is right.
    """
    say(f"getting {reference}")
    signed = f"with the other half of {key}" if key else "not asked for (--key)"
    if is_url(reference):
        from ..supply import folders

        files, size_bytes = folders.bring(reference, output, key=key, overwrite=overwrite)
        if as_json:
            show_json({"reference": reference, "output": output, "files": list(files), "bytes": size_bytes,
                       "signed": key is not None})  # fmt: skip
            return
        show_table([("files", f"{len(files)}, {size(size_bytes)}"), ("signature", signed)])
        print(f"\nmodel: {output}")
        return
    from ..supply import packing
    from ..supply.registry import Registry

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
    show_table([("digest", found.digest), ("files", str(len(found.files))), ("signature", signed)])
    print(f"\nmodel: {found.path}")
