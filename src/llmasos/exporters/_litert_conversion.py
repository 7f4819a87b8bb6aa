"""Convert a model to LiteRT: run by its path, by the Python of an environment that has litert-torch.

``python -I _litert_conversion.py FOLDER FILE``: FOLDER holds the model as transformers saves it, and ``request.json``
(see ``litert.py``); FILE becomes the converted model, and ``FOLDER/versions.json`` says by what.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import litert_torch
import torch
import transformers

OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")


class Answering(torch.nn.Module):
    """A model that returns nothing but what a task reads."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the outputs by their names."""
        found = self.model(**inputs)
        return {name: found[name] for name in OUTPUTS if name in found}


def main(folder: Path, file: Path) -> None:
    """Convert."""
    asked = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    kind = getattr(transformers, asked["class"])
    model = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False).eval()
    signatures = litert_torch.Converter()
    for length in asked["lengths"]:
        signatures.add_signature(f"tokens_{length}", Answering(model).eval(), sample_kwargs=example(asked, length))
    signatures.convert().export(str(file))
    if asked["precision"] == "int8":
        quantize(file, [scope(model, name) for name in asked["kept"]])
    versions = {name: metadata.version(name) for name in ("litert-torch", "torch", "transformers")}
    (folder / "versions.json").write_text(json.dumps(versions), encoding="utf-8")


def example(asked: dict[str, Any], length: int) -> dict[str, torch.Tensor]:
    """Return the inputs of one text of a length, behind which there is padding."""
    ids = torch.arange(length)[None] % (asked["vocabulary"] - 2) + 1
    inside = torch.ones_like(ids)
    inside[0, -1] = 0  # or the trace would do without a mask
    found = {"input_ids": ids, "attention_mask": inside, "token_type_ids": torch.zeros_like(ids)}
    return {name: found[name] for name in asked["inputs"]}


def quantize(file: Path, kept: list[str]) -> None:
    """Write weights in eight bits, by output channel, but for what is kept in float32."""
    from ai_edge_quantizer import quantizer, recipe

    rules = recipe.dynamic_wi8_afp32()
    # what quantizes takes the last rule that fits
    rules += [{"regex": one, "operation": "*", "algorithm_key": "no_quantize", "op_config": {}} for one in kept]
    found = quantizer.Quantizer(str(file), rules).quantize()
    file.unlink()
    found.export_model(str(file))


def scope(model: torch.nn.Module, name: str) -> str:
    """Return what finds the operations of a module: they are named by classes and names, from the model inwards."""
    kind = type(model.get_submodule(name))
    return re.escape(f"{kind.__module__}.{kind.__qualname__}_{name.rpartition('.')[2]}") + "[/;]"


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
