"""``llmasos push``: send a model to a registry of containers."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import AsJson, say, show_json, show_table, size

EXAMPLES = """
llmasos push my-model ghcr.io/me/my-model:1
llmasos push my-model-onnx-int8 localhost:5000/my-model:onnx-int8
"""


def run(
    model: Annotated[str, typer.Argument(metavar="DIR", help="folder of a model or of an export")],
    reference: Annotated[str, typer.Argument(metavar="REGISTRY/NAME:TAG", help="where it goes")],
    *,
    as_json: AsJson = False,
) -> None:
    """Send a model or an export to a registry of containers, as CNCF's ModelPack.

    What the registry has is not sent again, and the tag is there when all of it is. LLMASOS_REGISTRY_USER and
    LLMASOS_REGISTRY_PASSWORD log in, or what docker login wrote into its config.json.
    """
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
