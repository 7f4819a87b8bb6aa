"""The same training twice: by the trainer that people use for it, and by LLMasOS; what all such benchmarks share.

Same model, rows, epochs, batch size and learning rate, which falls linearly without warm-up; no weight decay,
gradient norm clipped at 1.0. The clock covers reading, tokenising, training, evaluation and saving; it starts
when the libraries are imported. The quality is that of the saved folder, found by one function for all.
"""

from __future__ import annotations

import gzip
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from . import child, data, harness, machine
from .records import Column, Goal, Result, Run, goal, middle, ratio

# Documented flags that help on a processor. Not among them: torch_compile (the many shapes made it lose by
# far), dataloader workers (they take a core from the two that train), optim (the default is the fused AdamW).
BEST: dict[str, Any] = {
    "bf16": machine.has_bf16(),  # without bf16 units the flag makes a processor slower
    "train_sampling_strategy": "group_by_length",
    "per_device_eval_batch_size": 64,
    "use_cpu": True,
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class Job:
    """What a candidate is given."""

    name: str
    train: Path
    validation: Path
    output: Path
    seed: int

    @property
    def best(self) -> bool:
        """Whether the peer may use its best flags."""
        return self.name.endswith("_best")

    @property
    def work(self) -> Path:
        """The folder that all candidates share."""
        return self.train.parent


@dataclass(frozen=True)
class Contest:
    """One comparison.

    ``peer``: the first part of its candidates' names; ``peer_name``: what people call it. ``tolerance``: how far the
    mean quality may fall short, in the units of ``shown``, which turns a difference in quality into words.
    """

    name: str
    title: str
    source: Path
    train_peer: Callable[[Job], dict[str, Any]]
    train_ours: Callable[[Job], dict[str, Any]]
    quality_of: Callable[[Job], float]
    quality: str
    peer: str = "trainer"
    peer_name: str = "Trainer"
    better: str = "higher"
    tolerance: float = 1.0
    scale: float = 100.0
    unit: str = "points"
    best: dict[str, Any] = field(default_factory=lambda: BEST)
    seeds: int = 3
    rows: int | None = None
    unpack: Callable[[Path, Path, int | None], None] | None = None
    prepare: Callable[[Path], None] | None = None

    @property
    def candidates(self) -> tuple[str, ...]:
        """The peer twice, and LLMasOS twice."""
        return (f"{self.peer}_defaults", f"{self.peer}_best", "llmasos_plain", "llmasos")

    def main(self, about: str | None) -> None:
        """Measure the candidates, or be one of them."""
        parser = harness.parser(about, seeds=self.seeds)
        parser.add_argument("--data", type=Path, default=self.source, help="folder with its train and validation rows")
        options = parser.parse_args()
        if options.child:
            child.report(self._work(options.child, Path(options.work), options.seed))
            return
        names = harness.chosen(self.candidates, options.only)
        with harness.workspace() as work:
            (self.unpack or unpack)(options.data, work, options.rows or self.rows)
            if self.prepare:
                self.prepare(work)
            runs = harness.measure([harness.child(self.name, name, work) for name in names], options.seeds, work)
        harness.finish(self._result(runs, names), options)

    def _work(self, name: str, work: Path, seed: int) -> dict[str, Any]:
        """Do one candidate's work in this process."""
        train, validation = (work / f"{split}.jsonl" for split in data.SPLITS)
        job = Job(name, train, validation, work / f"model-{name}-{seed}", seed)
        timed = (self.train_ours if name.startswith("llmasos") else self.train_peer)(job)
        return {**timed, "quality": self.quality_of(job)}

    def _result(self, runs: list[Run], names: Sequence[str]) -> Result:
        return Result(
            name=self.name,
            title=self.title,
            columns=[
                Column("seconds", "seconds", 1),
                Column("quality", f"{self.quality} (mean)", 4, "mean"),
                Column("train_seconds", "training loop, s", 1),
                Column("import_seconds", "imports, s", 1),
            ],
            candidates=list(names),
            runs=runs,
            baseline=f"{self.peer}_defaults",
            goals=self._goals(runs),
            notes=[f"{self.peer}_best: {', '.join(f'{key}={value!r}' for key, value in self.best.items())}"],
        )

    def _goals(self, runs: list[Run]) -> list[Goal]:
        defaults, best = (ratio(runs, "llmasos", f"{self.peer}_{name}", "seconds") for name in ("defaults", "best"))
        ours, theirs = (middle(runs, name, "quality", "mean") for name in ("llmasos", f"{self.peer}_defaults"))
        sign = 1 if self.better == "higher" else -1
        gap = None if ours is None or theirs is None else sign * self.scale * (ours - theirs)
        return [
            goal(f"at least 2x faster than {self.peer_name} with its defaults", defaults, 2, shown="{:.2f}x"),
            goal(f"at least 1.3x faster than {self.peer_name} with its best flags", best, 1.3, shown="{:.2f}x"),
            goal(
                f"mean {self.quality} at most {self.tolerance:g} {self.unit} worse than {self.peer_name}'s",
                gap, -self.tolerance, shown="{:+.2f} " + self.unit,
            ),
        ]  # fmt: skip


def unpack(source: Path, work: Path, rows: int | None) -> None:
    """Copy the first rows of both splits to the work folder, unpacked where they are packed."""
    for split in data.SPLITS:
        path = next((p for p in (source / f"{split}.jsonl", source / f"{split}.jsonl.gz") if p.exists()), None)
        if path is None:
            raise SystemExit(f"no {source / split}.jsonl\nhint: --data names a folder with train and validation rows")
        opened = gzip.open if path.suffix == ".gz" else open
        with (
            opened(path, "rt", encoding="utf-8") as lines,
            (work / f"{split}.jsonl").open("w", encoding="utf-8") as out,
        ):
            out.writelines(islice(lines, rows))


def arguments(job: Job, *, epochs: int, batch: int, rate: float, best: dict[str, Any] = BEST) -> dict[str, Any]:
    """Return what every trainer of transformers' kind is told."""
    return {
        "output_dir": str(job.output.with_suffix(".trainer")),
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch,
        "learning_rate": rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": job.seed,
        **(best if job.best else {}),
    }


def run(loop: Any, laps: child.Laps, save: Callable[[], Any]) -> dict[str, float]:
    """Train, evaluate once and save, with the clock running."""
    loop.train()
    laps.lap("train")
    loop.evaluate()
    laps.lap("evaluate")
    save()
    laps.lap("save")
    return laps.values()


def llmasos(
    job: Job, task: Callable[[], Any], *, epochs: int, batch: int, rate: float, model: Any = data.MODEL,
    modules: Sequence[str] = (), **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train with this project as its guides show. ``modules`` are what the peer's import brings along."""
    start = time.perf_counter()
    for module in ("datasets", "transformers.modeling_utils", *modules):
        importlib.import_module(module)
    from transformers import AutoTokenizer

    from llmasos import LLM

    imports = time.perf_counter() - start
    del AutoTokenizer
    phases = child.Phases()
    LLM.from_pretrained(model).finetune(
        task(),
        job.train,
        eval_data=job.validation,
        output=job.output,
        progress=phases,
        epochs=float(epochs),
        batch_size=batch,
        learning_rate=rate,
        schedule="linear",
        warmup=0.0,
        weight_decay=0.0,
        gradient_clip=1.0,
        seed=job.seed,
        speed="buckets" if job.name == "llmasos_plain" else "auto",
        **more,
    )
    return {**phases.values(), "import_seconds": imports}
