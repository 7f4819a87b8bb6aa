"""LiteRT, the runtime of apps for Android: ``model.tflite``, for texts up to some fixed lengths.

LiteRT plans memory and kernels for shapes that are known beforehand, so the file holds the graph once for each of a few
lengths, as the signatures ``tokens_32``, ``tokens_64`` and so on, over the same weights; a text is padded to the next.
``int8`` stores weights in eight bits and rounds what is multiplied with them token by token, as it comes: nothing to
calibrate, and no answer depends on another row.

litert-torch converts. It pins packages that this environment cannot live with, so it may lie in one of its own, which
``LLMASOS_LITERT`` names; there ``_litert_conversion.py`` runs, on the model's folder. The runtime is a package of this
environment.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ..core import bundle
from ..core.elsewhere import Elsewhere
from ..core.errors import UsageError
from ..tasks.base import Task
from .base import Exporter, Source, Written, still

FILE = "model.tflite"
CONVERTER = Elsewhere("litert_torch", "LLMASOS_LITERT", "litert-torch", "an export to litert")
_SCRIPT = Path(__file__).with_name("_litert_conversion.py")
_SHORTEST = 32


class LiteRtFormat(Exporter):
    """Files for LiteRT."""

    target = "litert"
    engine = "litert"
    requires = ("ai_edge_litert",)
    extra = "litert"
    precisions = {"encoder": ("float32", "int8")}  # noqa: RUF012
    mixed = ("int8",)

    def check(self, task: Task, config: Any, precision: str | None) -> str:
        """Return the precision to write; see ``Exporter.check``."""
        found = super().check(task, config, precision)
        CONVERTER.folder()
        return found

    def write(self, source: Source, folder: Path, precision: str) -> Written:
        """Write ``model.tflite``.

        Raises:
            UsageError: litert-torch cannot convert this model.
        """
        asked = {
            "class": type(source.model).__name__, "lengths": lengths(source.max_length), "precision": precision,
            "inputs": list(source.example()), "vocabulary": source.model.config.vocab_size, "kept": list(source.kept),
        }  # fmt: skip
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".litert-") as scratch:
            with still():
                source.model.save_pretrained(scratch)
            bundle.write_json(Path(scratch) / "request.json", asked)
            if wrong := CONVERTER.run(_SCRIPT, [scratch, str(folder / FILE)]):
                raise UsageError(f"litert-torch cannot convert a {asked['class']}: {wrong[-1][:300]}",
                                 hint="--target onnx")  # fmt: skip
            versions = json.loads((Path(scratch) / "versions.json").read_text(encoding="utf-8"))
        by = ", ".join(f"{name} {version}" for name, version in versions.items())
        return Written([FILE], [f"converted by {by}"], {"max_length": source.max_length})


def lengths(most: int) -> list[int]:
    """Return the lengths that a file is written for: doubled from one to the next, up to the longest text."""
    found, length = [], _SHORTEST
    while length < most:
        found.append(length)
        length *= 2
    return [*found, most]


PLUGIN = LiteRtFormat()
