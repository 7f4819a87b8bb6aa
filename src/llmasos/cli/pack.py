"""``llmasos pack``: write a model as one file or folder that registries of containers take."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import AsJson, show_json, show_table, size

EXAMPLES = """
llmasos pack my-model --output my-model.tar
llmasos pack my-model-onnx-int8 --output oci:layouts/my-model
"""


def run(
    model: Annotated[str, typer.Argument(metavar="DIR", help="folder of a model or of an export")],
    *,
    output: Annotated[str, typer.Option(metavar="FILE", help="NAME.tar, or oci:FOLDER")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the pack that is there")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model or an export as an OCI image layout that follows CNCF's ModelPack.

    A layer for each file; records of the run stay out. The same folder gives the same bytes.
    """
    from ..supply import packing

    pack = packing.write(model, output, overwrite=overwrite)
    total = sum(blob.size for blob in pack.layers)
    if as_json:
        show_json(
            {
                "model": model,
                "output": output,
                "digest": pack.manifest.digest,
                "files": len(pack.layers),
                "bytes": total,
            }
        )
        return
    show_table([("digest", pack.manifest.digest), ("files", f"{len(pack.layers)}, {size(total)}")])
    print(f"\npack: {output}")
