"""What a run will do and cost, before it runs: choices with their reasons, and measured predictions.

The same preparation and the same first steps as the run itself are timed here, the longest batch
first, on this machine and these rows; the model that took them is thrown away. Seconds per step are
fitted as a constant plus a share per token, which is what a step over packed rows costs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core import hardware
from ..core.config import FinetuneConfig
from ..core.environment import asked_threads
from ..core.errors import UsageError
from ..core.events import Event, Note, Phase
from ..frameworks.supported import FRAMEWORKS
from ..saving import write_weights
from .activations import size_of, with_cache
from .adapters import summary
from .candidates import Candidate, fastest
from .prepare import Prepared, prepare
from .request import Request
from .run import _noting, ready
from .setup import Setup
from .timing import FINISH, evaluation_seconds, steps_planned, training_seconds, with_reference
from .trainer import evaluation_steps

if TYPE_CHECKING:
    pass

SAMPLE = 20_000
"""Rows that are tokenised for a plan; of more, a random sample stands for all."""
BUDGET = 8.0
"""Seconds that the measured steps may take, once the first few are done."""
_MEASURED = 16  # steps to measure at most


@dataclass(frozen=True)
class Choice:
    """One decision: what was chosen and why."""

    name: str
    value: str
    why: str


@dataclass(frozen=True)
class Plan:
    """What ``finetune`` will do and cost.

    ``tokens`` are those of one epoch; ``seconds`` the whole call, ``phases`` its parts;
    ``memory_bytes`` the peak resident memory of the process; ``disk_bytes`` what is written at most.
    """

    rows: int
    evaluation_rows: int
    tokens: int
    longest: int
    steps: int
    seconds: float
    memory_bytes: int
    disk_bytes: int
    phases: dict[str, float]
    choices: list[Choice]
    candidates: list[Candidate] = field(default_factory=list)
    """Ways to compute the same, as they were tried; none where ``speed`` names one."""
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON types."""
        return asdict(self)


def plan(request: Request, config: FinetuneConfig) -> Generator[Event, None, Plan]:
    """Prepare, load, and measure a few steps. Arguments are those of ``run.finetune``."""
    if config.framework in FRAMEWORKS:
        raise UsageError(f"a plan measures torch, not framework={config.framework}", hint="leave framework out")
    hardware.set_threads(config.threads)
    hardware.free_memory()
    hardware.reset_peak()
    notes: list[str] = []
    phases: dict[str, float] = {}
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        request = request.suited()
        prepared: Prepared = yield from _noting(
            prepare(request, config, folder=Path(scratch), scratch=Path(scratch) / "arrays", most=SAMPLE), notes
        )
        phases["prepare"] = (time.perf_counter() - clock) * prepared.scale
        clock = time.perf_counter()
        yield Phase("load")
        model, setup, said = ready(request, prepared, config)
        notes += said
        phases["load"] = time.perf_counter() - clock
        yield Phase("measure")
        setup, seconds = with_reference(model, setup, prepared)
        phases |= {"reference": seconds} if seconds else {}
        tried: list[Candidate] = []
        if config.speed == "measure":
            clock = time.perf_counter()
            setup, tried = yield from fastest(model, setup, prepared, Path(scratch))
            phases["measure"] = time.perf_counter() - clock
        setup, cache = with_cache(model, setup, Path(scratch), prepared.scale)
        timed = training_seconds(model, setup, prepared)
        phases["train"] = timed.seconds + (timed.first if setup.compiled else 0.0)
        phases["evaluate"] = evaluation_seconds(model, setup, prepared)
        clock = time.perf_counter()
        write_weights(model, Path(scratch))
        saves = max(1, len(evaluation_steps(setup)))
        phases["save"] = (time.perf_counter() - clock) * saves + FINISH
        memory = hardware.peak_resident_memory() + timed.growth
        stored = (p for p in model.parameters() if p.requires_grad or config.adapter == "none")
        weights = sum(p.numel() * 4 for p in stored)
        tokenizer_files = sum(file.stat().st_size for file in request.located.path.glob("*token*"))
        arrays = prepared.scale * (prepared.train.ids.nbytes + _RECORD * len(prepared.train))
        disk = weights * min(2, saves) + tokenizer_files + _CURVES + int(arrays)
        disk += int(prepared.scale * size_of(setup, setup.activations.prefix)) if setup.activations else 0
        available = hardware.memory_available() + hardware.resident_memory()
        if config.speed == "auto" and not setup.backend.needs_own_modules:  # last, for their memory is not the run's
            _, tried = yield from fastest(model, setup, prepared, Path(scratch))
    if memory > available:
        notes.append(
            f"needs {memory / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are free: lower micro_batch_size"
        )
        yield Note(notes[-1], "warning")
    return Plan(
        rows=round(len(prepared.train) * prepared.scale),
        evaluation_rows=0
        if prepared.evaluation is None
        else round(len(prepared.evaluation) * prepared.evaluation_scale),
        tokens=round(prepared.train.tokens * prepared.scale),
        longest=int(prepared.train.lengths.max()),
        steps=steps_planned(setup, prepared),
        seconds=sum(phases.values()),
        memory_bytes=memory,
        disk_bytes=disk,
        phases=phases,
        choices=_choices(model, setup, prepared, cache),
        candidates=tried,
        notes=notes,
    )


_RECORD, _CURVES = 200, 250_000  # bytes of a row in arrays and ledgers; of curves.png and the other records


def _choices(model: Any, setup: Setup, prepared: Prepared, cache: str) -> list[Choice]:
    config = setup.config
    device = hardware.pick_device(config.device)
    _, why_precision = hardware.pick_precision(config.precision, device)
    return [
        Choice("device", str(device), "the fastest that was found" if config.device == "auto" else "as asked"),
        Choice("threads", str(torch.get_num_threads()), _why_threads(config)),
        Choice("precision", setup.precision, why_precision),
        Choice("forward", "packed" if setup.architecture else "transformers", _why_forward(setup)),
        Choice("batches", *_batches(setup)),
        Choice(
            "learning_rate",
            f"{setup.learning_rate:g}",
            "as asked"
            if config.learning_rate is not None
            else f"for a model of width {getattr(model.config, 'hidden_size', '?')}",
        ),
        Choice("max_length", str(prepared.max_length), "as asked" if config.max_length else "the model's limit"),
        *([Choice("adapter", config.adapter, summary(model))] if config.adapter != "none" else []),
        *([Choice("activation_cache", "on" if setup.activations else "off", cache)] if cache else []),
        Choice("metric", setup.metric, "picks the best model on the validation rows"),
        Choice(
            "torch.compile",
            *(("on", "as asked") if setup.compiled else ("off", "not asked for: compiling takes about a minute")),
        ),
    ]


def _batches(setup: Setup) -> tuple[str, str]:
    """Return what a step reads, and why."""
    rows, lengths = f"{setup.config.batch_size} rows", setup.train.lengths.reshape(-1, setup.train.group).max(1)
    whole = 1 - lengths.mean() / lengths.max()
    if setup.architecture is not None:
        return f"{rows} drawn at random", f"no padding in the packed forward (all as long as the longest: {whole:.0%})"
    padding = 1 - lengths.sum() / sum(int(lengths[batch].max()) * len(batch) for batch in setup.order(0))
    return f"{rows} of near-equal length", f"{padding:.1%} padding instead of {whole:.0%}"


def _why_forward(setup: Setup) -> str:
    if setup.architecture is None:
        return setup.forward
    return "no work on padding or on positions nobody reads; equal logits and gradients on rows of this data"


def _why_threads(config: FinetuneConfig) -> str:
    return "as asked" if config.threads or asked_threads() else "the physical cores"
