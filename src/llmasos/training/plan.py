"""What a run will do and cost, before it runs: choices with their reasons, and measured predictions.

The same preparation and the same first steps as the run itself are timed here, the longest batch
first, on this machine and these rows; the model that took them is thrown away. Seconds per step are
fitted as a constant plus a share per token, which is what a step over packed rows costs.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..architectures.base import pack
from ..core import hardware
from ..core.config import FinetuneConfig, asked_threads
from ..core.errors import UsageError
from ..core.events import Event, Note, Phase
from ..data.batching import Batch, gather
from ..evaluation import evaluate, referenced
from ..frameworks.supported import FRAMEWORKS
from ..loading import load_config, longest_input
from ..saving import write_weights
from ..tasks.base import Task
from .activations import size_of, with_cache
from .adapters import summary
from .prepare import Prepared, prepare
from .run import _noting, ready
from .setup import Setup
from .stepper import Stepper
from .trainer import evaluation_steps

if TYPE_CHECKING:
    from ..data.encoding import Encoded
    from ..sources.base import Located

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
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON types."""
        return asdict(self)


def plan(
    located: Located,
    tokenizer: Any,
    known: Task | None,
    task: Task,
    data: Any,
    eval_data: Any,
    *,
    columns: Mapping[str, str] | None,
    config: FinetuneConfig,
) -> Generator[Event, None, Plan]:
    """Prepare, load, and measure a few steps. Arguments are those of ``run.finetune``."""
    if config.framework in FRAMEWORKS:
        raise UsageError(f"a plan measures torch, not framework={config.framework}", hint="leave framework out")
    hardware.set_threads(config.threads)
    hardware.reset_peak()
    notes: list[str] = []
    phases: dict[str, float] = {}
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        prepared: Prepared = yield from _noting(
            prepare(
                task.suited(load_config(located.path)), data, eval_data, columns=columns, tokenizer=tokenizer,
                limit=longest_input(located.path, tokenizer), config=config,
                folder=Path(scratch), scratch=Path(scratch) / "arrays", most=SAMPLE,
            ),
            notes,
        )  # fmt: skip
        phases["prepare"] = (time.perf_counter() - clock) * prepared.scale
        clock = time.perf_counter()
        yield Phase("load")
        model, setup, said = ready(located, tokenizer, known, prepared, config)
        notes += said
        phases["load"] = time.perf_counter() - clock
        yield Phase("measure")
        setup, seconds = _with_reference(model, setup, prepared)
        phases |= {"reference": seconds} if seconds else {}
        setup, cache = with_cache(model, setup, Path(scratch), prepared.scale)
        phases["train"], growth = training_seconds(model, setup, prepared)
        phases["evaluate"] = evaluation_seconds(model, setup, prepared)
        clock = time.perf_counter()
        write_weights(model, Path(scratch))
        saves = max(1, len(evaluation_steps(setup)))
        phases["save"] = (time.perf_counter() - clock) * saves + FINISH
        memory = hardware.peak_resident_memory() + growth
        stored = (p for p in model.parameters() if p.requires_grad or config.adapter == "none")
        weights = sum(p.numel() * 4 for p in stored)
        tokenizer_files = sum(file.stat().st_size for file in located.path.glob("*token*"))
        arrays = prepared.scale * (prepared.train.ids.nbytes + _RECORD * len(prepared.train))
        disk = weights * min(2, saves) + tokenizer_files + _CURVES + int(arrays)
        disk += int(prepared.scale * size_of(setup, setup.activations.prefix)) if setup.activations else 0
        available = hardware.memory_available() + hardware.resident_memory()
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
        steps=_steps(setup, prepared),
        seconds=sum(phases.values()),
        memory_bytes=memory,
        disk_bytes=disk,
        phases=phases,
        choices=_choices(model, setup, prepared, cache),
        notes=notes,
    )


_RECORD, _CURVES = 200, 250_000  # bytes of a row in arrays and ledgers; of curves.png and the other records
_KEPT = 100  # shapes whose products a CPU keeps: oneDNN's cache has 1024 places, a shape takes about ten
FINISH = 1.5  # seconds for the report's intervals, the curves and the records


def _steps(setup: Setup, prepared: Prepared) -> int:
    steps = math.ceil(setup.config.epochs * _epoch(setup, prepared))
    return min(steps, setup.config.max_steps or steps)


def _epoch(setup: Setup, prepared: Prepared) -> int:
    """Return the steps of one epoch."""
    return math.ceil(len(prepared.train) * prepared.scale / setup.config.batch_size)


def training_seconds(model: Any, setup: Setup, prepared: Prepared) -> tuple[float, int]:
    """Time real steps, the longest batch first; predict the seconds of the run, and the memory still to come.

    A CPU keeps the products that it has compiled for each shape (decision 003), and steps of changing sizes leave
    holes in the heap: what a new shape took in the measured steps is what those take that the rest of the run will
    bring. So the steps come in no order of size, as in a run: from large to small they would leave no holes.
    """
    order = setup.order(0)
    rng = np.random.default_rng(setup.config.seed)
    batches = [setup.task.noised(gather(setup.train, rows), rng) for rows in order]
    tokens = np.asarray([batch.tokens for batch in batches])
    by_size = np.argsort(-tokens, kind="stable")
    spread = by_size[np.linspace(0, len(by_size) - 1, min(_MEASURED, len(by_size))).astype(int)]
    picks = [by_size[0], *rng.permutation(spread)]
    stepper = Stepper(model, setup)
    measured: list[tuple[int, float]] = []
    again: list[tuple[int, float]] = []  # steps over rows whose states are kept
    seen: set[tuple[Any, ...]] = set()
    first = held = new = 0
    begin = time.perf_counter()
    for i, pick in enumerate(picks):
        clock = time.perf_counter()
        stepper.compute(batches[pick])
        stepper.update(0)
        if i and not (setup.activations and pick == picks[0]):  # the first step also warms up
            measured.append((int(tokens[pick]), time.perf_counter() - clock))
        if setup.activations:
            clock = time.perf_counter()
            stepper.compute(batches[pick])
            stepper.update(0)
            again.append((int(tokens[pick]), time.perf_counter() - clock))
        shapes = _shapes(batches[pick], setup)
        new, held = new + (len(shapes - seen) if i else 0), hardware.resident_memory()
        first, seen = first or held, seen | shapes
        if len(measured) >= 3 and time.perf_counter() - begin > BUDGET:
            break
    stepper.release()
    steps = _steps(setup, prepared)
    every = set().union(*(_shapes(batch, setup) for batch in batches))
    to_come = max(0, min(len(every), _KEPT) - len(seen))
    growth = max(0, held - first) // max(1, new) * to_come
    later = max(0, steps - _epoch(setup, prepared)) if again else 0
    each = float(tokens.mean())
    seconds = _fit(measured or again, steps - later, (steps - later) * each)
    return seconds + (_fit(again, later, later * each) if again else 0.0), growth


def _shapes(batch: Batch, setup: Setup) -> set[tuple[Any, ...]]:
    """Return the shapes of the products in a step."""
    if setup.architecture is None:
        return {(len(batch.lengths), int(batch.lengths.max()))}
    made = pack(batch, output=setup.task.output)
    return {(len(made.ids),), *((group.rows, group.length) for group in made.groups)}


def _fit(measured: list[tuple[int, float]], steps: int, tokens: float) -> float:
    """Least squares for seconds = a + b tokens, both at least zero; returns the sum over the run."""
    x = np.asarray([m[0] for m in measured], dtype=float)
    y = np.asarray([m[1] for m in measured])
    slope = 0.0 if np.ptp(x) == 0 else float(np.cov(x, y, bias=True)[0, 1] / x.var())
    slope = min(max(slope, 0.0), float((y / x).min()))
    constant = max(0.0, float(np.median(y - slope * x)))
    return constant * steps + slope * tokens


def _with_reference(model: Any, setup: Setup, prepared: Prepared) -> tuple[Setup, float]:
    """Let the model answer for some examples, where the task compares with it; the others are taken to be alike.

    Returns also the seconds that all would take.
    """
    if not setup.task.needs_reference:
        return setup, 0.0
    engine, few = setup.engine(model), setup.train.head(256)
    referenced(engine, setup.task, few.head(1))  # warms up, and proves the packed forward
    clock = time.perf_counter()
    answers = referenced(engine, setup.task, few).reference
    each = (time.perf_counter() - clock) / few.tokens
    assert answers is not None

    def repeated(data: Encoded) -> Encoded:
        return replace(data, reference=np.resize(answers, (len(data), *answers.shape[1:])))

    held = setup.evaluation
    tokens = setup.train.tokens * prepared.scale + (0 if held is None else held.tokens * prepared.evaluation_scale)
    held = None if held is None else repeated(held)
    return replace(setup, train=repeated(setup.train), evaluation=held), each * tokens


def evaluation_seconds(model: Any, setup: Setup, prepared: Prepared) -> float:
    """Time a part of the validation rows; predict the seconds of all evaluations of the run."""
    if setup.evaluation is None:
        return 0.0
    engine, rows = setup.engine(model), setup.evaluation_rows
    part = setup.evaluation.head(min(len(setup.evaluation), 512))
    evaluate(engine, setup.task, part.head(1), rows)  # warms up, and proves the packed forward
    clock = time.perf_counter()
    evaluate(engine, setup.task, part, rows)
    each = (time.perf_counter() - clock) / part.tokens
    return each * setup.evaluation.tokens * prepared.evaluation_scale * len(evaluation_steps(setup))


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
        Choice("torch.compile", "off", "texts differ in length: compiling each shape costs more than it gains"),
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
