"""What the export gate found of an artifact, as ``certificate.json`` keeps it, and what each precision may change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .core.errors import BundleError
from .golden import Difference
from .metrics.base import Interval

CERTIFICATE = "certificate.json"


@dataclass(frozen=True)
class Tolerance:
    """What a precision may change.

    ``outputs``: the largest difference of an output, as a share of the largest; ``drop``: of the score, in percent.
    """

    outputs: float
    drop: float


TOLERANCES = {
    "float32": Tolerance(1e-3, 0.1),
    "float16": Tolerance(2e-2, 0.5),
    "bfloat16": Tolerance(1e-1, 0.5),
    "int8": Tolerance(0.4, 1.0),
    "int8-dynamic": Tolerance(0.5, 1.0),
    "int4": Tolerance(0.6, 2.0),
    "f16": Tolerance(2e-2, 0.5),
    "q8_0": Tolerance(0.1, 1.0),
    "q4_k": Tolerance(0.6, 2.0),
}
"""float32 rounds to 1e-7, and sums over thousands of products lose three or four digits of it; the others are the step
of the format times what twelve layers make of it, by experience. They catch what is broken; the score decides."""


@dataclass(frozen=True)
class Score:
    """What labelled rows say: the metric of the model and of the artifact, with 95 % intervals.

    ``lost`` is in percent of the model's value, negative where the artifact is better; ``agreement`` the share of the
    rows that both answer alike, None where no answers were written; ``difference`` the largest of an output, and
    ``relative`` its share of the largest. ``fingerprint`` is that of the rows.
    """

    metric: str
    rows: int
    fingerprint: str
    model: Interval
    artifact: Interval
    lost: float
    agreement: float | None
    difference: float
    relative: float

    @property
    def is_inside(self) -> bool:
        """Whether the artifact's value lies in the interval of the model's."""
        return self.model.low <= self.artifact.value <= self.model.high


@dataclass(frozen=True)
class Certificate:
    """What the gate found, as ``certificate.json`` holds it. Times and memory are of this machine.

    ``latency_ms`` is the median for one golden row alone, or for a token that is written; ``rows_per_second`` is on the
    labelled rows in batches; ``open_seconds`` is the runtime's part of ``load_seconds``, from the start of a process.
    """

    target: str
    precision: str
    runtime: str
    tolerance: Tolerance
    golden: Difference
    score: Score | None
    size_bytes: int
    load_seconds: float
    open_seconds: float
    latency_ms: float
    rows_per_second: float | None
    peak_bytes: int
    kept: tuple[str, ...]
    notes: tuple[str, ...]
    files: dict[str, str]
    versions: dict[str, str]
    machine: dict[str, Any]
    command: list[str]
    path: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        content = asdict(self)
        del content["path"]
        if self.score is not None:
            both = {name: getattr(self.score, name)._asdict() for name in ("model", "artifact")}
            content["score"] |= both | {"is_inside": self.score.is_inside}
        return content


def read(folder: Path) -> Mapping[str, Any]:
    """Read the certificate of an artifact.

    Raises:
        BundleError: it has none, or a damaged one.
    """
    path = folder / CERTIFICATE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = {"target", "precision", "files", "golden", "score", "tolerance"} - content.keys()
    except FileNotFoundError as error:
        raise BundleError(f"{folder} has no {CERTIFICATE}", hint="export the model again") from error
    except (ValueError, AttributeError) as error:
        raise BundleError(f"{path} is damaged: {error}", hint="export the model again") from error
    if missing:
        raise BundleError(f"{path} lacks {', '.join(sorted(missing))}", hint="export the model again")
    return content  # type: ignore[no-any-return]
