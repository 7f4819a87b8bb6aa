"""A model's bill of materials: what it was made from and with, as CycloneDX 1.6 in ``bom.cdx.json``.

The model is a component of type machine-learning-model; its base model is an ancestor, the data it learned are
components known by their fingerprints, each file is one with its SHA-256, and so is each package that made it. The
library has no model cards yet, which are the standard's place for task, architecture and metrics: they are added to
what it writes, and its own validator holds the result in the tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..core import bundle
from ..core.errors import MissingExtraError

BILL = "bom.cdx.json"
SIGNATURE = "model.sig"


def write(folder: Path) -> Path:
    """Write ``bom.cdx.json`` into a model's folder.

    Raises:
        BundleError: this is no model, or files of it were changed since it was saved.
    """
    return bundle.write_json(folder / BILL, make(folder))


def make(folder: Path) -> dict[str, Any]:
    """Return the bill of materials of a model's folder, as JSON types.

    Raises:
        BundleError: as for ``write``.
        MissingExtraError: cyclonedx-python-lib is not installed.
    """
    try:
        from cyclonedx.model import HashAlgorithm, HashType, Property
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType, Pedigree
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        raise MissingExtraError("a bill of materials", install="'llmasos[sign]'") from error
    bundle.verify(folder)
    manifest = bundle.read_manifest(folder) or {}
    base, data, artifact = (manifest.get(name) or {} for name in ("base", "data", "artifact"))
    bom = Bom()
    bom.metadata.tools.components.add(Component(name="llmasos", version=__version__, type=ComponentType.APPLICATION))
    ancestors = [Component(
        name=str(base["ref"]), version=base.get("revision"), type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="base-model", properties=[Property(name="llmasos:source", value=str(base.get("source")))],
    )] if base else []  # fmt: skip
    words = {"made_by": manifest.get("made_by"), **{k: artifact.get(k) for k in ("target", "engine", "precision")}}
    bom.metadata.component = Component(
        name=folder.resolve().name, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref="model",
        pedigree=Pedigree(ancestors=ancestors) if ancestors else None,
        properties=[Property(name=f"llmasos:{k}", value=str(v)) for k, v in words.items() if v is not None],
    )  # fmt: skip
    for name, value in data.items():
        bom.components.add(Component(
            name=f"{name} data", type=ComponentType.DATA, bom_ref=f"data-{name}",
            properties=[Property(name=f"llmasos:{k}", value=str(v)) for k, v in (value or {}).items()],
        ))  # fmt: skip
    for name in files(folder):
        bom.components.add(Component(
            name=name, type=ComponentType.FILE, bom_ref=f"file-{name}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=bundle.digest(folder / name))],
        ))  # fmt: skip
    for name, version in sorted(_versions(folder).items()):
        bom.components.add(Component(name=name, version=version, type=ComponentType.LIBRARY, bom_ref=f"package-{name}"))
    bom.register_dependency(bom.metadata.component, bom.components)
    content: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    content["metadata"]["component"]["modelCard"] = _card(folder, manifest)
    return content


def files(folder: Path) -> list[str]:
    """Return the names of a model's files: all but records of the run, the bill and the signature."""
    manifest = [bundle.MANIFEST] if (folder / bundle.MANIFEST).is_file() else []
    return [*(name for name in bundle.files_of(folder) if name not in (BILL, SIGNATURE)), *manifest]


def _card(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the standard's model card: task, architecture, data, and metrics with their 95 % intervals."""
    parameters: dict[str, Any] = {"architectureFamily": "transformer"}
    config = folder / "config.json"
    if config.is_file():
        parameters["modelArchitecture"] = str(json.loads(config.read_text(encoding="utf-8")).get("model_type"))
    if task := manifest.get("task"):
        parameters["task"] = task["tag"]
    if data := manifest.get("data"):
        parameters["datasets"] = [{"ref": f"data-{name}"} for name in data]
    card: dict[str, Any] = {"modelParameters": parameters}
    if metrics := (manifest.get("report") or {}).get("metrics"):
        card["quantitativeAnalysis"] = {"performanceMetrics": [
            {"type": name, "value": f"{found['value']:.6g}",
             "confidenceInterval": {"lowerBound": f"{found['low']:.6g}", "upperBound": f"{found['high']:.6g}"}}
            for name, found in metrics.items() if None not in (found["value"], found["low"], found["high"])
        ]}  # fmt: skip
    return card


def _versions(folder: Path) -> dict[str, str]:
    """Return the versions of what trained the model, and of what exported it, where they are known."""
    found: dict[str, str] = {}
    for name in (f"{bundle.RUN}/run.json", "certificate.json"):
        if (folder / name).is_file():
            found |= json.loads((folder / name).read_text(encoding="utf-8")).get("versions") or {}
    return {name: str(version) for name, version in found.items()}
