"""What each target renders of one deployment, as golden files; ``python tests/golden_targets.py`` writes them anew."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from llmasos.core import plugins
from llmasos.targets.base import Deployment

FOLDER = Path(__file__).parent / "golden" / "targets"
EDGES: dict[str, dict[str, Any]] = {
    "small": {},
    "large": {"replicas": 2, "max_replicas": 8, "gpu": 1, "weights": "inside", "region": "eu-central-1"},
}
"""Two deployments: what one gets by saying nothing, and one that scales, on CUDA, with the weights inside."""
MODES: dict[str, dict[str, dict[str, str]]] = {"kserve": {"knative": {"mode": "knative"}}}
"""Settings of a target that make something else of it."""
NEEDED = {"sagemaker": {"role": "arn:aws:iam::123456789012:role/serve", "bucket": "s3://models"}}


def deployment(target: str, settings: dict[str, str] | None = None, **changed: Any) -> Deployment:
    """Return a deployment of a small model, with what is given changed."""
    own = plugins.load("targets", target).settings.of({**NEEDED.get(target, {}), **(settings or {})})
    plain = Deployment(
        name="mine", model="/home/me/mine", size=90_000_000, version="1.2.3", image="llmasos:1.2.3", replicas=1,
        max_replicas=1, cpus=2.0, memory=1_770_000_000, gpu=0, port=8000, region=None, instance=None, engine=None,
        quantize=None, precision="auto", keys_secret="mine-keys", weights="outside", extra="", own=own,
    )  # fmt: skip
    return replace(plain, **changed)


def save_light(folder: Path) -> Path:
    """Write a model of which nothing is computed, without torch; return its folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    save_file({"weight": np.zeros(10, np.float32)}, folder / "model.safetensors")
    return folder


def rendered(target: str, edge: str) -> dict[str, str]:
    """Return the files of a target, the dashboard but for its first line."""
    plugin, changed = plugins.load("targets", target), EDGES.get(edge, {})
    settings = MODES.get(target, {}).get(edge)
    d = deployment(target, settings, **{name: value for name, value in changed.items() if name in plugin.takes})
    files = {**plugin.render(d), "steps.txt": "".join(f"{step}\n" for step in plugin.steps(d, "OUT"))}
    if "grafana/llmasos.json" in files:
        files["grafana/llmasos.json"] = files["grafana/llmasos.json"][:20]
    return files


def cases() -> list[tuple[str, str]]:
    """Return the targets, each with the names of what is rendered of it."""
    return [(target, edge) for target in plugins.names("targets") for edge in (*EDGES, *MODES.get(target, {}))]


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    for target, edge in cases():
        for name, text in rendered(target, edge).items():
            path = FOLDER / target / edge / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
