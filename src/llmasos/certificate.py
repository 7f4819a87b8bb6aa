"""What the export gate found of an artifact, as ``certificate.json`` keeps it, and what each precision may change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import golden
from .core import bundle
from .core.errors import BundleError, ParityError
from .golden import Difference
from .metrics.base import Interval
from .tasks.base import Task

if TYPE_CHECKING:
    from .engines.base import Author, Engine

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
    ``model_bytes`` is the part of ``peak_bytes`` that is the model's and not its runtime's, where the engine tells.
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
    model_bytes: int | None
    kept: tuple[str, ...]
    notes: tuple[str, ...]
    files: dict[str, str]
    versions: dict[str, str]
    machine: dict[str, Any]
    command: list[str]
    path: str | Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        content = asdict(self)
        del content["path"]
        if self.score is not None:
            both = {name: getattr(self.score, name)._asdict() for name in ("model", "artifact")}
            content["score"] |= both | {"is_inside": self.score.is_inside}
        return content


def check_golden(
    folder: Path, engine: Engine | Author, task: Task, tokenizer: Any, precision: str, limit: Tolerance | None = None
) -> Difference:
    """Run the golden rows of a folder, as whatever opens an exported model does first.

    Args:
        folder: the model's, or the artifact's.
        engine: what runs it; an ``Author`` where it writes.
        task, tokenizer: its own.
        precision: its number format.
        limit: what may be different; by precision if None.

    Raises:
        BundleError: it has no golden rows.
        ParityError: they give something else here.
    """
    kept, limit = golden.read(folder), limit or TOLERANCES[precision]
    if kept is None:
        raise BundleError(f"{folder} has no golden rows to compare with", hint="save or export it with this version")
    found = golden.compare(kept, engine, task, tokenizer)
    if wrong := golden_faults(found, precision, limit):
        raise ParityError(
            f"on this machine {'; '.join(wrong)}",
            hint="another version of the runtime, or export the model again on this machine",
        )
    return found


def golden_faults(found: Difference, precision: str, limit: Tolerance) -> list[str]:
    """Say what is wrong with what golden rows gave."""
    faults = []
    if found.written is not None and found.written < 1.0 and precision == "float32":
        faults.append(f"{1.0 - found.written:.0%} of the golden answers are other tokens")
    if not found.relative <= limit.outputs:
        faults.append(
            f"an output of golden row {found.example + 1} differs by {found.largest:.3g}, {found.relative:.1%} of the "
            f"largest; {precision} allows {limit.outputs:.1%}"
        )
    return faults


def read(folder: Path) -> Mapping[str, Any]:
    """Read the certificate of an artifact.

    Raises:
        BundleError: it has none, a damaged one, or that of other files.
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
    files = (bundle.read_manifest(folder) or {}).get("files", {})
    if wrong := [name for name, value in content["files"].items() if files.get(name) != value]:
        raise BundleError(f"the certificate in {folder} is of other files: {', '.join(wrong)}",
                          hint="export the model again")  # fmt: skip
    return content  # type: ignore[no-any-return]
