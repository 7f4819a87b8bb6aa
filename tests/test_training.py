"""A training through ``LLM.finetune``: what each option does, what is kept, and what accidents leave behind."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from llmasos import LLM, TextClassificationTask
from llmasos.architectures import bert
from llmasos.core import hardware
from llmasos.core.bundle import verify
from llmasos.core.config import FinetuneConfig
from llmasos.core.environment import asked_threads
from llmasos.core.events import Evaluated, Event, Finished, Note, Phase, Saved, Step
from llmasos.data.batching import Batch
from llmasos.data.encoding import Encoded
from llmasos.errors import DataError, HardwareError, TrainingError, UsageError
from llmasos.training import curves, stepper, trainer
from llmasos.training.run import default_learning_rate
from tiny import save_tiny_bert, tiny_tokenizer

TASK, ROWS = TextClassificationTask.sample()
EASY = [{"text": ("ab", "yz")[i % 2] * (2 + i % 5), "label": ("praise", "complaint")[i % 2]} for i in range(24)]
FLIPPED = [{**row, "label": ("complaint", "praise")[i % 2]} for i, row in enumerate(EASY)]
"""Validation rows that contradict EASY: the more is learned, the lower the score."""

# Three quick and exact steps; tests say what they change.
BASE: dict[str, Any] = {
    "eval_data": ROWS, "epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "warmup": 0.0, "schedule": "constant",
    "weight_decay": 0.0, "dropout": 0.0, "precision": "float32", "threads": 1,
}  # fmt: skip
LEARNS: dict[str, Any] = {"data": EASY, "eval_data": EASY, "epochs": 5, "learning_rate": 1.5e-2, "seed": 1}
OVERFITS: dict[str, Any] = {**LEARNS, "eval_data": FLIPPED}


@dataclass
class Outcome:
    llm: LLM
    run: Any
    events: list[Event]

    @property
    def steps(self) -> list[Step]:
        return [event for event in self.events if isinstance(event, Step)]

    @property
    def evaluations(self) -> list[Evaluated]:
        return [event for event in self.events if isinstance(event, Evaluated)]

    @property
    def rates(self) -> list[float]:
        return [event.learning_rate for event in self.steps]

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.run.path / "run" / "run.json").read_text())

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return weights_of(self.llm)


Train = Callable[..., Outcome]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def train(model: Path) -> Train:
    """Train the tiny model on the sample with BASE's options, changed as told; equal runs are made once."""
    done: dict[str, Outcome] = {}

    def go(task: Any = TASK, data: Any = ROWS, *, fresh: bool = False, **options: Any) -> Outcome:
        key = repr((task, data, sorted(options.items())))
        if fresh or type(task) is not TextClassificationTask or options.keys() & {"output", "listener", "ref"}:
            return new(task, data, **options)
        if key not in done:
            done[key] = new(task, data, **options)
        return done[key]

    def new(
        task: Any, data: Any, *, listener: Any = None, ref: Path = model, draw: bool = False, **options: Any
    ) -> Outcome:
        llm, events = LLM.from_pretrained(ref), []

        def listen(event: Event) -> None:
            events.append(event)
            if listener:
                listener(event)

        with pytest.MonkeyPatch.context() as patch:
            if not draw:  # two thirds of so short a run's time; ``base`` draws
                patch.setattr(curves, "plot_curves", lambda *_: None)
            return Outcome(llm, llm.finetune(task, data, progress=listen, **{**BASE, **options}), events)

    return go


@pytest.fixture(scope="module")
def base(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run that others are compared with."""
    return train(output=tmp_path_factory.mktemp("base") / "out", draw=True)


def weights_of(llm: LLM) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in llm.model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- one seed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", ["auto", "plain"])
def test_the_same_seed_gives_identical_weights_and_another_seed_others(train, speed):
    options = {"speed": speed, "dropout": 0.1, "augment": 0.1}
    first = train(**options, fresh=True).weights
    torch.rand(7)  # what other code draws in between changes nothing
    assert equal(first, train(**options, fresh=True).weights)
    assert not equal(first, train(**options, seed=1).weights)


def test_a_run_repeats_from_its_record(train):
    done = train(dropout=0.1, eval_data=None, max_length=32)
    again = LLM.from_pretrained(done.record["base"]["ref"])
    again.finetune(TextClassificationTask.from_dict(done.record["task"]), ROWS, progress=False, **done.record["config"])
    assert equal(done.weights, weights_of(again))


# -- equal ways to compute ------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", ["auto", "plain"])
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_give_the_weights_of_the_whole_batch(train, speed, size):
    # unequal weights of rows, so that a mean over micro-batches in place of the step's would show
    task = TextClassificationTask(class_weights={"praise": 5.0, "complaint": 0.5}, label_smoothing=0.1)
    whole = train(task, speed=speed)
    parts = train(task, speed=speed, micro_batch_size=size)
    # each of three steps moves a weight by about 1e-3; only the order of float32 sums may differ
    assert gap(whole.weights, parts.weights) < 2e-5
    assert [e.loss for e in parts.steps] == pytest.approx([e.loss for e in whole.steps], rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 1.0}, {"weight_decay": 1.0, "layer_decay": 0.5}])
def test_the_fast_path_trains_the_weights_that_transformers_would(train, options, monkeypatch):
    fast = train(epochs=3, **options)
    plain = train(epochs=3, speed="plain", fresh=True, **options)
    assert fast.record["config"]["speed"] == "packed"
    # nine steps move a weight by about 9e-3; where a gradient is zero but for rounding, Adam enlarges the rounding
    assert gap(fast.weights, plain.weights) < 1e-4
    assert [e.loss for e in fast.steps] == pytest.approx([e.loss for e in plain.steps], rel=1e-4)


PAIRS = [{"text": row["text"], "text_pair": f"said on day {i}", "label": row["label"]} for i, row in enumerate(ROWS)]


def test_memory_of_the_data_is_given_back_during_a_run(train, monkeypatch):
    given: list[int] = []
    monkeypatch.setattr(Encoded, "forget", lambda data: given.append(len(data)))
    monkeypatch.setattr(trainer, "_FORGET", 2)
    train(epochs=2, max_steps=5, speed="plain", fresh=True)  # which does not look for the tokens that occur
    assert len(given) == 4  # twice in training; and once unknown tokens were counted in the rows of each side


@pytest.fixture(scope="module")
def pair_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokenizer that tells the texts of a pair apart, as BERT's own does."""
    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("pairs") / "model"))
    names = ["input_ids", "token_type_ids", "attention_mask"]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_input_names": names}))
    return folder


def test_the_fast_path_trains_pairs_as_transformers_would(train, pair_model, monkeypatch):
    assert "token_type_ids" in LLM.from_pretrained(pair_model).tokenizer("a", "b")
    options = {"data": PAIRS, "eval_data": PAIRS, "ref": pair_model}
    fast, plain = (train(**options, speed=speed) for speed in ("auto", "plain"))
    assert fast.record["config"]["speed"] == "packed"
    assert gap(fast.weights, plain.weights) < 1e-4


# -- every option ---------------------------------------------------------------------------------------

EFFECTS: dict[str, Callable[..., None]] = {}


ELSEWHERE = {"trainable", "activation_cache", "adapter", "adapter_rank", "adapter_alpha", "adapter_dropout",
             "adapter_targets", "base_precision", "checkpoint_steps", "checkpoint_minutes", "keep_checkpoints",
             "report_to", "framework", "backend", "within"}  # fmt: skip
"""Options whose checks are in test_freezing.py, test_activations.py, test_adapters.py, test_resume.py,
test_reporters.py, test_frameworks.py, test_distributed.py and test_deadline.py."""


def option(check: Callable[..., None]) -> Callable[..., None]:
    """Enter the check of an option; it must fail if the option is ignored."""
    EFFECTS[check.__name__.removeprefix("check_")] = check
    return check


@option
def check_epochs(train: Train, base: Outcome) -> None:
    assert (base.run.steps, train(epochs=2).run.steps, train(epochs=0.5).run.steps) == (3, 6, 2)


@option
def check_batch_size(train: Train, base: Outcome) -> None:
    assert [step.rows for step in base.steps] == [8, 8, 8]
    assert [step.rows for step in train(batch_size=10).steps] in ([10, 10, 4], [10, 4, 10], [4, 10, 10])


@option
def check_learning_rate(train: Train, base: Outcome) -> None:
    other = train(learning_rate=5e-4)
    assert (base.rates, other.rates) == ([1e-3] * 3, [5e-4] * 3)
    assert not equal(base.weights, other.weights)
    chosen = train(learning_rate=None)
    assert chosen.rates == [default_learning_rate(chosen.llm.model)] * 3 != base.rates


@option
def check_schedule(train: Train, base: Outcome) -> None:
    done = [i / 6 for i in range(6)]
    assert train(epochs=2, schedule="linear").rates == pytest.approx([1e-3 * (1 - x) for x in done])
    wave = [0.5e-3 * (1 + math.cos(math.pi * x)) for x in done]
    assert train(epochs=2, schedule="cosine").rates == pytest.approx(wave)
    assert train(epochs=2, schedule="constant").rates == [1e-3] * 6


@option
def check_warmup(train: Train, base: Outcome) -> None:
    assert train(epochs=2, warmup=0.5).rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


@option
def check_weight_decay(train: Train, base: Outcome) -> None:
    start = train(max_steps=1, learning_rate=1e-30).weights
    free, decayed = (train(max_steps=1, weight_decay=wd).weights for wd in (0.0, 10.0))
    for name, weight in start.items():  # AdamW: decay is apart from the gradient's step, and on matrices only
        expected = -1e-3 * 10.0 * weight if weight.ndim > 1 else torch.zeros_like(weight)
        torch.testing.assert_close(decayed[name] - free[name], expected, atol=1e-7, rtol=0, msg=name)


@option
def check_layer_decay(train: Train, base: Outcome) -> None:
    start = train(max_steps=1, learning_rate=1e-30).weights
    full, scaled = (train(max_steps=1, layer_decay=ld).weights for ld in (1.0, 0.5))
    for name, weight in start.items():
        factor = 0.125 if "embeddings" in name else 0.25 if "layer.0" in name else 0.5 if "layer.1" in name else 1.0
        expected = factor * (full[name] - weight)
        torch.testing.assert_close(scaled[name] - weight, expected, atol=2e-7, rtol=0, msg=name)


@option
def check_gradient_clip(train: Train, base: Outcome) -> None:
    start = train(max_steps=1, learning_rate=1e-30).weights
    clipped, free = train(gradient_clip=1e-12), train(gradient_clip=0.0)
    # Adam does not see a gradient's scale until it falls below its epsilon, 1e-8: then steps become tiny
    assert gap(clipped.weights, start) < 1e-6 < 5e-4 < gap(free.weights, start)
    assert clipped.steps[0].gradient_norm == free.steps[0].gradient_norm  # what is told is the norm before clipping


@option
def check_dropout(train: Train, base: Outcome) -> None:
    for speed in ("auto", "plain"):
        half = train(dropout=0.5, speed=speed)
        assert half.steps[0].loss != pytest.approx(base.steps[0].loss, rel=1e-4)
        assert half.llm.model.config.hidden_dropout_prob == 0.5
    assert train(dropout=None).llm.model.config.hidden_dropout_prob == 0.1  # the model's own


@option
def check_augment(train: Train, base: Outcome) -> None:
    assert train(augment=0.5).steps[0].loss != base.steps[0].loss
    assert not equal(train(augment=0.5).weights, base.weights)


@option
def check_max_length(train: Train, base: Outcome) -> None:
    cut = train(max_length=8, allow_truncated=1.0)
    assert (base.run.ledger["truncated"], cut.run.ledger["truncated"]) == (0, 24)
    assert cut.record["max_length"] == 8
    with pytest.raises(UsageError, match="at most 64 tokens"):
        train(max_length=65)


@option
def check_max_steps(train: Train, base: Outcome) -> None:
    assert (train(max_steps=2).run.steps, train(max_steps=9).run.steps) == (2, 3)


@option
def check_micro_batch_size(train: Train, base: Outcome) -> None:
    sizes: list[int] = []

    class Counted(TextClassificationTask):
        def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
            if outputs.requires_grad:
                sizes.append(len(outputs))
            return super().loss(outputs, batch)

    train(Counted(), max_steps=1, micro_batch_size=3,
          listener=lambda e: sizes.clear() if e == Phase("train", 1) else None)  # fmt: skip
    assert sizes == [3, 3, 2]


@option
def check_evaluations(train: Train, base: Outcome) -> None:
    assert [event.step for event in base.evaluations] == [3]
    assert [event.step for event in train(evaluations=3).evaluations] == [1, 2, 3]
    assert [event.step for event in train(epochs=2, batch_size=4, evaluations=2).evaluations] == [3, 6, 9, 12]


@option
def check_metric(train: Train, base: Outcome) -> None:
    assert (base.evaluations[0].metric, train(metric="mcc").evaluations[0].metric) == ("accuracy", "mcc")
    with pytest.raises(UsageError, match="did you mean 'f1_macro'"):
        train(metric="f1_makro")


@option
def check_patience(train: Train, base: Outcome) -> None:
    for patience in (1, 3):
        stopped = train(**OVERFITS, evaluations=3, patience=patience)
        assert stopped.run.reason == "early stopping"
        assert stopped.run.steps == stopped.run.best_step + patience < 15


@option
def check_eval_split(train: Train, base: Outcome) -> None:
    split = train(eval_data=None, eval_split=0.25)
    assert (split.run.report.rows, split.run.ledger["rows"]) == (6, 18)
    none = train(eval_data=None, eval_split=0.0)
    assert (none.run.report, none.run.metrics, none.evaluations, none.run.ledger["rows"]) == (None, {}, [], 24)


@option
def check_allow_truncated(train: Train, base: Outcome) -> None:
    with pytest.raises(DataError, match="24 of 24 rows"):
        train(max_length=8, allow_truncated=0.99)
    done = train(max_length=8, allow_truncated=1.0)
    assert any("24 of 24 training rows cut to 8 tokens" in note for note in done.run.notes)


@option
def check_allow_dropped(train: Train, base: Outcome) -> None:
    data = [*ROWS, {"text": " ", "label": "praise"}]
    with pytest.raises(DataError, match="1 of 25 rows"):
        train(data=data, allow_dropped=0.03)
    done = train(data=data, allow_dropped=0.04)
    assert (done.run.ledger["dropped"], done.run.ledger["kept"]) == (1, 24)
    assert any("left out: an empty text" in note for note in done.run.notes)


@option
def check_allow_unknown(train: Train, base: Outcome) -> None:
    data = [*ROWS, {"text": "我 我 我 我 我 我 我 我", "label": "praise"}]
    with pytest.raises(DataError, match=r"no token for .* allowed are 0%"):
        train(data=data, allow_unknown=0.0)
    assert any("no token for" in note for note in train(data=data).run.notes)


@option
def check_precision(train: Train, base: Outcome) -> None:
    for speed in ("auto", "plain"):
        low = train(precision="bfloat16", speed=speed)
        assert low.record["config"]["precision"] == "bfloat16"
        # eight bits of a number: the loss is near the exact one, and never equal to it
        assert low.steps[0].loss == pytest.approx(base.steps[0].loss, rel=0.05)
        assert low.steps[0].loss != pytest.approx(base.steps[0].loss, rel=1e-6)
        assert {value.dtype for value in low.weights.values()} == {torch.float32}


@option
def check_speed(train: Train, base: Outcome) -> None:
    def broken(self: Any, *_: Any) -> Any:
        raise AssertionError("the packed forward was asked for")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(bert.PLUGIN), "forward", broken)
        assert train(speed="plain").record["config"]["speed"] == "plain"
        fallen = train(speed="auto")  # a packed forward that fails ends nothing: transformers' own is used, and said
        assert fallen.record["config"]["speed"] == "buckets"
        (why,) = (note for note in fallen.run.notes if "the packed forward was asked for" in note)
        assert (fallen.record["forward"], base.record["forward"]) == (why, "packed forward of architectures/bert")


@option
def check_device(train: Train, base: Outcome) -> None:
    assert {p.device.type for p in train(device="cpu").llm.model.parameters()} == {"cpu"}
    with pytest.raises(UsageError, match="not a device"):
        train(device="abacus")
    with pytest.raises(HardwareError, match="not on this machine"):
        train(device="cuda:63")


@option
def check_seed(train: Train, base: Outcome) -> None:
    other = train(seed=1)
    assert not equal(other.weights, base.weights)
    assert (base.record["seed"], other.record["seed"]) == (0, 1)


@option
def check_on_non_finite(train: Train, base: Outcome) -> None:
    options = {"batch_size": 5, "data": POISON_ROWS}
    with pytest.raises(TrainingError, match="the loss is nan at step 3"):
        train(POISONED, **options)
    done = train(POISONED, **options, on_non_finite="skip")
    (note,) = (note for note in done.run.notes if "The step is skipped" in note)
    assert "the loss is nan at step 3; its rows: <list>, row 25" in note
    assert [step.learning_rate > 0.0 for step in done.steps] == [True, True, False, True, True]
    assert all(bool(value.isfinite().all()) for value in done.weights.values())
    with pytest.raises(TrainingError, match=r"the loss is nan at step 10;.*\(10 steps in a row\)"):
        train(POISONED, POISON_ROWS, batch_size=25, epochs=20, on_non_finite="skip")


@option
def check_threads(train: Train, base: Outcome) -> None:
    seen: list[int] = []
    for threads in (1, 2, None):
        train(threads=threads, max_steps=1, listener=lambda e: seen.append(torch.get_num_threads())
              if isinstance(e, Step) else None)  # fmt: skip
    assert seen == [1, 2, asked_threads() or hardware.physical_cores()]


@pytest.mark.parametrize("name", EFFECTS)
def test_every_option_has_its_effect(name, train, base):
    EFFECTS[name](train, base)


def test_the_table_of_effects_names_options_only():
    assert EFFECTS.keys() | ELSEWHERE == {item.name for item in fields(FinetuneConfig)}


def test_a_learning_rate_of_zero_is_refused_or_obeyed(train):
    try:
        rates = train(learning_rate=0.0).rates
    except UsageError:
        return
    assert rates == [0.0] * 3


def test_augment_works_on_pairs_too(train, pair_model):
    options = {"data": PAIRS, "eval_data": PAIRS, "ref": pair_model}
    assert train(**options, augment=0.5).steps[0].loss != train(**options).steps[0].loss


# -- what is kept ---------------------------------------------------------------------------------------


def test_the_best_model_is_kept_not_the_last(train, tmp_path):
    done = train(**OVERFITS, output=tmp_path / "out")
    scores = [event.metrics["accuracy"] for event in done.evaluations]
    assert (scores[0], scores[-1]) == (0.5, 0.0)  # or this test proves nothing
    assert (done.run.best_step, done.run.metrics) == (3, done.evaluations[0].metrics)
    saved = LLM.from_pretrained(tmp_path / "out")
    for llm in (saved, done.llm):
        assert llm.evaluate(FLIPPED, precision="float32").metrics["accuracy"].value == 0.5
    assert equal(weights_of(saved), done.weights)
    assert equal(done.weights, train(**{**OVERFITS, "epochs": 1}).weights)


def test_of_equal_scores_the_lower_loss_wins(train):
    falling, rising = train(**LEARNS), train(**{**OVERFITS, "epochs": 2})
    for done, best in ((falling, -1), (rising, 0)):
        last = done.evaluations[-2:]
        assert last[0].metrics["accuracy"] == last[1].metrics["accuracy"]  # or this test proves nothing
        assert done.run.best_step == last[best].step


def test_overfitting_is_noted_with_what_to_do(train):
    done = train(**OVERFITS)
    notes = [event for event in done.events if isinstance(event, Note) and "overfits" in event.text]
    assert [note.level for note in notes] == ["warning"]
    assert "the training loss fell" in notes[0].text
    assert notes[0].text in done.run.notes
    assert notes[0].text in done.record["notes"]


def test_a_run_that_learns_is_not_called_overfitted(train):
    done = train(**LEARNS)
    assert done.run.metrics["accuracy"] == 1.0
    assert not [note for note in done.run.notes if "overfits" in note or "not learned" in note]


def test_a_second_training_goes_on_from_the_first(train):
    done, events = train(**LEARNS, fresh=True), []
    first = done.weights
    done.llm.finetune(TASK, progress=events.append, **{**BASE, **LEARNS, "learning_rate": 1e-30})
    assert gap(first, done.weights) < 1e-9
    assert next(e.loss for e in events if isinstance(e, Step)) < 0.5 * done.steps[0].loss


# -- records --------------------------------------------------------------------------------------------


def test_the_records_of_a_run_hold_what_happened(base):
    folder, record = base.run.path / "run", base.record
    assert record["result"]["metrics"] == base.run.metrics
    assert (record["result"]["steps"], record["result"]["reason"], record["seed"]) == (3, "done", 0)
    assert record["config"].keys() == {item.name for item in fields(FinetuneConfig)}
    assert record["config"]["max_length"] == 64
    assert record["task"]["labels"] == ["complaint", "praise"]
    assert record["versions"]["torch"] == str(torch.__version__)
    assert "peft" not in record["versions"]  # which had no part in it
    assert {name: part["rows"] for name, part in record["data"].items()} == {"train": 24, "evaluation": 24}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [event.as_dict() for event in base.events if isinstance(event, Step | Evaluated)]
    for name in ("ledger.jsonl", "ledger-evaluation.jsonl"):
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        assert [row["row"] for row in rows] == list(range(1, 25))
    png = (folder / "curves.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert (int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) == (1200, 450)


def test_a_run_without_a_packed_forward_says_once_why(train, tmp_path):
    from transformers import DebertaV2Config, DebertaV2Model

    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    tokenizer = tiny_tokenizer()
    config = DebertaV2Config(vocab_size=len(tokenizer), relative_attention=True, pos_att_type=["p2c"], **size)
    for part in (DebertaV2Model(config), tokenizer):
        part.save_pretrained(tmp_path / "deberta")
    done = train(ref=tmp_path / "deberta", max_steps=1)
    (said,) = (note for note in done.run.notes if "packed" in note)
    assert "the attention of deberta-v2 does not go through transformers' interface" in said
    assert said.endswith(done.record["forward"])
    assert said in done.record["notes"]
    assert said in [event.text for event in done.events if isinstance(event, Note)]
    plain = train(ref=tmp_path / "deberta", max_steps=1, speed="plain")
    assert (plain.record["forward"], [note for note in plain.run.notes if "packed" in note]) == ("as asked", [])


def test_a_finished_folder_holds_a_model_and_nothing_temporary(base):
    assert left_in(base.run.path.parent) == ["out"]
    assert left_in(base.run.path) == sorted(
        [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "llmasos.json",
            "golden.json",
            "run",
        ]
    )
    assert [event.path for event in base.events if isinstance(event, Saved)] == [base.run.path]
    (finished,) = [event for event in base.events if isinstance(event, Finished)]
    assert (finished.reason, finished.steps, finished.metrics) == ("done", 3, base.run.metrics)
    assert json.loads(json.dumps(base.run.as_dict()))["steps"] == 3
    saved = LLM.from_pretrained(base.run.path)
    assert equal(weights_of(saved), base.weights)
    assert saved.task == base.llm.task


def test_the_digests_in_a_finished_folder_hold(base):
    verify(base.run.path)


def test_the_saved_model_opens_in_transformers_unchanged(base):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = [row["text"] for row in ROWS]
    theirs = AutoModelForSequenceClassification.from_pretrained(base.run.path).eval()
    batch = AutoTokenizer.from_pretrained(base.run.path)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = torch.softmax(theirs(**batch).logits, -1).max(-1).values
    ours = [answer.score for answer in LLM.from_pretrained(base.run.path).predict(texts, precision="float32")]
    assert ours == pytest.approx(wanted.tolist(), abs=1e-5)
    assert theirs.config.id2label == {0: "complaint", 1: "praise"}


def test_without_an_output_the_records_go_home_and_the_model_stays_in_memory(train):
    done = train()
    home = Path(os.environ["LLMASOS_HOME"]) / "runs"
    assert (done.run.output, done.run.path.parent) == (None, home)
    assert left_in(done.run.path) == ["run"]
    assert len(done.llm.predict(["a good day", "a bad day"])) == 2


# -- outputs that are there already ---------------------------------------------------------------------


def no_work(event: Event) -> None:
    raise AssertionError(f"work began: {event}")


def test_an_existing_model_is_refused_before_any_work_and_replaced_whole_when_allowed(train, tmp_path, base):
    out = Path(shutil.copytree(base.run.path, tmp_path / "out"))
    (out / "stale.txt").write_text("old")
    with pytest.raises(UsageError, match="exists") as caught:
        train(output=out, listener=no_work)
    assert "overwrite" in caught.value.hint
    assert (out / "stale.txt").read_text() == "old"
    done = train(output=out, overwrite=True, seed=1)
    assert left_in(tmp_path) == ["out"]
    assert not (out / "stale.txt").exists()
    assert equal(weights_of(LLM.from_pretrained(out)), done.weights)


def test_a_folder_that_is_no_model_is_never_replaced(train, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a model folder"):
        train(output=out, overwrite=True, listener=no_work)
    assert (out / "thesis.txt").read_text() == "mine"
    assert left_in(tmp_path) == ["out"]


def test_a_model_can_be_tuned_onto_its_own_folder(train, tmp_path, base):
    out = Path(shutil.copytree(base.run.path, tmp_path / "out"))
    done = train(ref=out, output=out, overwrite=True)
    assert equal(weights_of(LLM.from_pretrained(out)), done.weights)
    assert not equal(done.weights, base.weights)


def test_a_tilde_is_the_home_folder(train, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    done = train(output="~/out", max_steps=1)
    assert done.run.path == tmp_path / "home" / "out"
    assert left_in(tmp_path / "here") == []
    with pytest.raises(UsageError, match="exists"):
        train(output="~/out", listener=no_work)


# -- numbers that are not finite ------------------------------------------------------------------------


class Poisoned(TextClassificationTask):
    """Rows of the third class have a loss of NaN, in training alone."""

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        loss = super().loss(outputs, batch)
        return loss * math.nan if outputs.requires_grad and bool((batch.targets == 2).any()) else loss


POISONED = Poisoned(labels=["complaint", "praise", "poison"])
POISON_ROWS = [*ROWS, {"text": "a long and poisonous day number 25", "label": "poison"}]  # longest: named first


@pytest.mark.parametrize("speed", ["auto", "plain"])
def test_a_loss_of_nan_names_step_and_row_and_keeps_the_weights_from_before(train, tmp_path, speed):
    options = {"data": POISON_ROWS, "speed": speed, "batch_size": 5, "evaluations": 1}
    events: list[Event] = []
    with pytest.raises(TrainingError) as caught:
        train(POISONED, **options, output=tmp_path / "out", listener=events.append)
    good = sum(isinstance(event, Step) for event in events)
    assert f"the loss is nan at step {good + 1}; its rows: <list>, row 25" in caught.value.message
    assert str(tmp_path / "out") in caught.value.message
    assert "learning_rate" in caught.value.hint
    assert 0 < good < 5  # or this test proves nothing
    saved, clean = LLM.from_pretrained(tmp_path / "out"), train(POISONED, **options, max_steps=good)
    assert equal(weights_of(saved), clean.weights)
    assert len(saved.predict(["a good day"])) == 1
    assert json.loads((tmp_path / "out" / "run" / "run.json").read_text())["result"]["reason"] == "stopped"


def test_after_a_loss_of_nan_the_best_evaluated_model_is_kept(train, tmp_path):
    events: list[Event] = []
    late = {"batch_size": 2, "seed": 1}  # the row comes after the first evaluation
    with pytest.raises(TrainingError):
        train(POISONED, POISON_ROWS, **late, evaluations=2, output=tmp_path / "out", listener=events.append)
    last = [event for event in events if isinstance(event, Step)][-1]
    best = [event for event in events if isinstance(event, Evaluated) and event.best][-1]
    assert best.step < last.step  # or this test proves nothing
    clean = train(POISONED, POISON_ROWS, **late, max_steps=best.step)
    assert equal(weights_of(LLM.from_pretrained(tmp_path / "out")), clean.weights)
    assert left_in(tmp_path) == ["out"]


def test_after_a_loss_of_nan_without_an_output_the_model_in_memory_has_the_weights_from_before(model):
    options = {**BASE, "batch_size": 5, "data": POISON_ROWS, "progress": False}
    llm, clean = LLM.from_pretrained(model), LLM.from_pretrained(model)
    with pytest.raises(TrainingError, match=r"at step 3.*weights from before this step are kept"):
        llm.finetune(POISONED, **options)
    clean.finetune(POISONED, **options, max_steps=2)
    assert equal(weights_of(llm), weights_of(clean))


def test_a_loss_of_nan_at_the_first_step_leaves_nothing_behind(train, tmp_path):
    with pytest.raises(TrainingError, match=r"at step 1;.*nothing had been learned yet"):
        train(POISONED, POISON_ROWS, batch_size=25, output=tmp_path / "out")
    assert left_in(tmp_path) == []


def test_outputs_that_overflow_in_an_evaluation_stop_with_the_step_and_replace_no_model(train, tmp_path, base):
    out = Path(shutil.copytree(base.run.path, tmp_path / "out"))
    before = weights_of(LLM.from_pretrained(out))
    with pytest.raises(TrainingError, match="step 1"):
        train(learning_rate=1e30, gradient_clip=0.0, max_steps=1, output=out, overwrite=True)
    assert equal(weights_of(LLM.from_pretrained(out)), before)


# -- memory that runs out -------------------------------------------------------------------------------


class Hungry(TextClassificationTask):
    """More than three rows at once do not fit."""

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        if outputs.requires_grad and len(batch) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return super().loss(outputs, batch)


@pytest.mark.parametrize("speed", ["auto", "plain"])
def test_a_step_that_does_not_fit_is_made_in_parts_with_the_same_result(train, speed):
    done = train(Hungry(), speed=speed)
    whole = train(speed=speed, fresh=True)  # the table of effects has made one whose packed forward was broken
    assert gap(done.weights, whole.weights) < 2e-5
    assert [e.loss for e in done.steps] == pytest.approx([e.loss for e in whole.steps], rel=1e-5)
    assert [note.split(" are ")[0] for note in done.run.notes if "memory is short" in note] == [
        "memory is short: 4 rows", "memory is short: 2 rows"]  # fmt: skip


def test_a_row_that_never_fits_is_named(train):
    class Starved(TextClassificationTask):
        def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
            raise MemoryError

    with pytest.raises(TrainingError, match=r"a single row needs more memory .*: <list>, row \d+, \d+ tokens"):
        train(Starved())


def test_other_errors_are_not_taken_for_a_lack_of_memory(train):
    class Broken(TextClassificationTask):
        def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        train(Broken(), speed="plain")


def test_on_a_cpu_the_memory_of_the_largest_step_is_foreseen(train, monkeypatch):
    """The system would kill instead of failing: so two small steps are measured before the first."""
    whole, peaks = train(fresh=True), iter([10_000_000, 40_000_000])
    monkeypatch.setattr(stepper.Stepper, "_activations", lambda *_: math.inf)
    monkeypatch.setattr(hardware, "peak_resident_memory", lambda: 500_000_000 + next(peaks))
    monkeypatch.setattr(hardware, "resident_memory", lambda: 500_000_000)
    monkeypatch.setattr(hardware, "memory_available", lambda: 60_000_000)
    monkeypatch.setattr(stepper, "_RESERVE", 0)
    done = train(fresh=True)
    (note,) = (note for note in done.run.notes if "the largest step would need" in note)
    assert gap(done.weights, whole.weights) < 2e-5
    assert re.search(r"[345] rows are computed at once", note)


def test_a_cpu_whose_memory_is_nearly_used_up_computes_fewer_rows_at_once(train, monkeypatch):
    whole = train(fresh=True)
    free = iter([10**10, 10**10, 10**8, *[10**10] * 99])  # of the rehearsal, then one for each step
    monkeypatch.setattr(hardware, "memory_available", lambda: next(free))
    done = train(fresh=True)
    assert [note for note in done.run.notes if "memory is short: 4 rows" in note]
    assert gap(done.weights, whole.weights) < 2e-5


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
def test_memory_that_the_system_refuses_is_understood():
    code = (
        "import resource, torch\n"
        "from llmasos.core.hardware import is_out_of_memory\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, size + 2**28))\n"
        "try:\n    torch.ones(2**28)\n"
        "except RuntimeError as error:\n    assert is_out_of_memory(error), error\n"
        "else:\n    raise SystemExit('nothing was refused')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- Ctrl-C ---------------------------------------------------------------------------------------------


def ctrl_c(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def when(is_it: Callable[[Event], bool], act: Callable[[], None] = ctrl_c) -> Callable[[Event], None]:
    """Return a listener that acts at the first event that fits."""
    fired: list[Event] = []

    def listener(event: Event) -> None:
        if not fired and is_it(event):
            fired.append(event)
            act()

    return listener


def caught_ctrl_c(call: Callable[[], Outcome]) -> tuple[Outcome | None, KeyboardInterrupt | None]:
    """Call; hold a KeyboardInterrupt with its frames, as a notebook does."""
    try:
        return call(), None
    except KeyboardInterrupt as error:
        return None, error


def assert_usable(out: Path) -> None:
    verify(out)
    assert LLM.from_pretrained(out).predict("a good day").label in ("praise", "complaint")
    assert left_in(out.parent) == ["out"]


@pytest.mark.parametrize("phase", ["read", "tokenize", "load", "train"])
def test_ctrl_c_before_the_first_step_leaves_nothing_behind(train, tmp_path, phase):
    stop = when(lambda event: isinstance(event, Phase) and event.name == phase)
    outcome, error = caught_ctrl_c(lambda: train(output=tmp_path / "out", listener=stop))
    assert outcome is None
    assert left_in(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    del error


@pytest.mark.parametrize("inside", ["problem", "encode", "head_config"])
def test_ctrl_c_in_the_midst_of_preparing_leaves_nothing_behind(train, tmp_path, monkeypatch, inside):
    class Stopped(TextClassificationTask):
        pass

    setattr(Stopped, inside, ctrl_c)
    outcome, error = caught_ctrl_c(lambda: train(Stopped(), output=tmp_path / "out"))
    assert outcome is None
    assert error is not None
    assert left_in(tmp_path) == []


def test_ctrl_c_while_training_ends_after_the_step_with_a_scored_usable_model(train, tmp_path):
    out = tmp_path / "out"
    stop = when(lambda event: isinstance(event, Step) and event.step == 4)
    done = train(epochs=100, evaluations=1, batch_size=2, output=out, listener=stop)  # 12 steps an epoch
    assert (done.run.reason, done.run.steps, done.run.best_step) == ("interrupted", 4, 4)
    assert done.run.report.rows == 24
    assert equal(weights_of(LLM.from_pretrained(out)), done.weights)
    assert_usable(out)
    assert equal(done.weights, train(epochs=100, batch_size=2, max_steps=4).weights)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_keeps_the_best_model_so_far(train, tmp_path):
    stop = when(lambda event: isinstance(event, Step) and event.step == 8)
    done = train(**OVERFITS, output=tmp_path / "out", listener=stop)
    assert (done.run.reason, done.run.steps, done.run.best_step) == ("interrupted", 8, 3)
    assert equal(weights_of(LLM.from_pretrained(tmp_path / "out")), train(**{**OVERFITS, "epochs": 1}).weights)


def test_ctrl_c_in_an_evaluation_or_while_saving_ends_with_a_usable_model(train, tmp_path):
    for phase in ("evaluate", "save"):
        out = tmp_path / phase / "out"
        stop = when(lambda event, phase=phase: isinstance(event, Phase) and event.name == phase)
        caught_ctrl_c(lambda out=out, stop=stop: train(output=out, listener=stop))
        assert_usable(out)


def test_ctrl_c_in_the_midst_of_saving_waits_until_the_model_is_safe(train, tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "plot_curves", ctrl_c)  # drawn after the last step, before the model is written
    outcome, error = caught_ctrl_c(lambda: train(output=tmp_path / "out", draw=True))
    assert outcome is None
    assert error is not None
    assert_usable(tmp_path / "out")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Impatient(TextClassificationTask):
    """Presses Ctrl-C twice in the midst of a step."""

    fuse: ClassVar[list[int]] = []

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        if outputs.requires_grad and self.fuse and not self.fuse.pop():
            ctrl_c()
            ctrl_c()
        return super().loss(outputs, batch)


def test_a_second_ctrl_c_stops_at_once_and_still_saves(train, tmp_path):
    def light() -> None:
        Impatient.fuse[:] = [0, 1, 1, 1]  # popped from the end: three good steps

    out, burn = tmp_path / "out", when(lambda event: event == Phase("train", 27), light)
    outcome, error = caught_ctrl_c(lambda: train(Impatient(), epochs=9, output=out, listener=burn))
    assert outcome is None
    assert error is not None
    assert_usable(out)
    assert equal(weights_of(LLM.from_pretrained(out)), train(epochs=1).weights)


def test_a_second_ctrl_c_while_progress_is_drawn_still_saves(train, tmp_path):
    def twice() -> None:
        ctrl_c()
        ctrl_c()

    stop = when(lambda event: isinstance(event, Step) and event.step == 3, twice)
    outcome, error = caught_ctrl_c(lambda: train(epochs=9, output=tmp_path / "out", listener=stop))
    assert outcome is None
    assert error is not None
    assert_usable(tmp_path / "out")


def test_a_listener_that_fails_leaves_the_next_run_free_to_start(train, tmp_path):
    def fail() -> None:
        raise ValueError("a listener's own fault")

    with pytest.raises(ValueError, match="own fault") as caught:
        train(output=tmp_path / "out", listener=when(lambda event: isinstance(event, Phase), fail))
    assert left_in(tmp_path) == []
    assert caught.value is not None  # its frames were alive until here


def test_ctrl_c_at_the_command_line_saves_the_best_model_and_exits_with_130(model, tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["finetune", model, "--data", "train.jsonl", "--eval-data", "train.jsonl", "--output", "out",
             "--epochs", "1000000", "--batch-size", "8", "--json"]  # fmt: skip
    run = subprocess.Popen([sys.executable, "-m", "llmasos", *map(str, words)], cwd=tmp_path, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not any((tmp_path / "out.unfinished").glob("best-*/model.safetensors")):
            assert run.poll() is None, run.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130
    assert json.loads(out)["reason"] == "interrupted"
    assert "the best model so far is in out" in err
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "train.jsonl"]
    assert LLM.from_pretrained(tmp_path / "out").predict("a good day").label in ("praise", "complaint")


# -- a full disk ----------------------------------------------------------------------------------------

FULL_DISK = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from llmasos import LLM, TextClassificationTask
from llmasos.core.bundle import digest
from llmasos.errors import LLMasOSError

task, rows = TextClassificationTask.sample()
disk, model, results = Path(sys.argv[2]), sys.argv[3], {}
options = dict(eval_data=rows, epochs=2, batch_size=8, precision="float32", progress=False)
LLM.from_pretrained(model).finetune(task, rows, output=disk / "out", **options)
before = digest(disk / "out" / "model.safetensors")
weights = (disk / "out" / "model.safetensors").stat().st_size
for moment, free in json.loads(sys.argv[4]).items():
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:  # fill the disk, then free as much as the moment leaves
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            file.truncate(file.tell() - int(free * weights) // 4096 * 4096)
    try:
        LLM.from_pretrained(model).finetune(task, rows, output=disk / "out", overwrite=True, seed=1, **options)
        error = None
    except Exception as caught:
        error = caught
    ballast.unlink()
    results[moment] = {
        "type": type(error).__name__, "message": str(error), "ours": isinstance(error, LLMasOSError),
        "old": digest(disk / "out" / "model.safetensors") == before,
        "left": sorted(path.name for path in disk.iterdir()),
    }
print(json.dumps(results))
"""
MOMENTS = {"its ledger": 0.0, "the best model so far": 0.6, "the final model": 1.6}
"""When the disk fills up -> free space, in times the size of the weights."""


@pytest.fixture(scope="module")
def full_disk(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Overwrite a model on a real, small disk that fills up at different moments."""
    folder = tmp_path_factory.mktemp("disk")
    mount = f'mount -t tmpfs -o size=4m tmpfs "{folder}"'
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*alone, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs a system that lets users mount a small disk of their own (unshare)")
    code = [sys.executable, "-c", FULL_DISK, str(Path(__file__).parent), str(folder), str(model), json.dumps(MOMENTS)]
    done = subprocess.run([*alone, "sh", "-c", f'{mount} && exec "$@"', "sh", *code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_disk_that_is_full_keeps_the_old_model_and_says_so(full_disk, moment):
    result = full_disk[moment]
    assert result["old"]
    assert result["type"] == "HardwareError", result
    assert "no space left" in result["message"]
    assert "hint: free some" in result["message"]


def test_numbers_of_an_epoch_are_those_of_its_steps(base):
    assert [step.step for step in base.steps] == [1, 2, 3]
    assert base.steps[-1].epoch == 1.0
    assert np.isfinite([step.rows_per_second for step in base.steps]).all()
    assert base.steps[-1].seconds_left == 0.0
