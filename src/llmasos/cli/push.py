"""``llmasos push``: send a model to a registry of containers, or to a bucket."""

from __future__ import annotations

from typing import Annotated

import typer

from ..core.errors import UsageError
from ..core.storage import is_url
from .output import AsJson, say, show_json, show_table, size

EXAMPLES = """
llmasos push my-model ghcr.io/me/my-model:1
llmasos push my-model-onnx-int8 localhost:5000/my-model:onnx-int8
llmasos push my-model s3://bucket/my-model
"""


def run(
    model: Annotated[str, typer.Argument(metavar="DIR", help="folder of a model or of an export")],
    reference: Annotated[str, typer.Argument(metavar="REGISTRY/NAME:TAG", help="or a URL: where it goes")],
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the model at that URL")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a model or an export to a registry of containers, as CNCF's ModelPack, or its folder to a URL.

    What the registry has is not sent again, and the tag is there when all of it is. LLMASOS_REGISTRY_USER and
    LLMASOS_REGISTRY_PASSWORD log in, or what docker login wrote into its config.json. To a URL (s3://, az://, gs://)
    the folder goes as it is, with the records of its run and the credentials that the cloud's own tools use.
    """
    if is_url(reference):
        from ..supply import folders

        say(f"sending {model}")
        files, size_bytes = folders.send(model, reference, overwrite=overwrite)
        if as_json:
            show_json({"model": model, "reference": reference, "files": len(files), "bytes": size_bytes})
            return
        show_table([("files", f"{len(files)}, {size(size_bytes)}")])
        print(f"\npushed: {reference}")
        return
    if overwrite:
        raise UsageError("--overwrite for a registry", hint="leave it out: a tag is always moved")
    from ..supply import packing
    from ..supply.registry import Registry

    with Registry(reference) as registry:
        pack = packing.make(model)
        say(f"sending {model}")
        digest = registry.push(pack)
    total = sum(blob.size for blob in pack.layers)
    if as_json:
        show_json({"model": model, "reference": reference, "digest": digest, "files": len(pack.layers), "bytes": total})
        return
    show_table([("digest", digest), ("files", f"{len(pack.layers)}, {size(total)}")])
    print(f"\npushed: {reference}")
