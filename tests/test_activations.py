"""The activation cache: frozen layers run once a row, and the training is the one without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmasos import LLM, LanguageModelingTask, SentenceSimilarityTask, TextClassificationTask
from llmasos.architectures import bert
from llmasos.core import hardware
from llmasos.core.config import FinetuneConfig
from llmasos.core.events import Step
from llmasos.errors import UsageError
from llmasos.training import curves
from llmasos.training.optimizer import Parameters
from tiny import save_tiny, save_tiny_bert

WORDS = ("a", "bad", "good", "day", "very")
ROWS = [{"text": " ".join(WORDS[(i * k) % 5] for k in range(1, 3 + i % 9)), "label": "ny"[i % 2]} for i in range(24)]
OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 7, "learning_rate": 1e-2, "dropout": 0.0, "threads": 1,
                           "precision": "float32"}  # fmt: skip
TASKS = {"bert": TextClassificationTask, "llama": LanguageModelingTask}


class Stop(Exception):
    """Ends a run in the midst, as a crash does."""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "plot_curves", lambda *_: None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"bert": save_tiny_bert(folder / "bert"), "llama": save_tiny(folder / "llama", "AutoModelForCausalLM")}


def tune(model: Path, task: Any, *, stop_at: int | None = None, **options: Any) -> tuple[Any, list[float], Any]:
    """Return the model's weights, the losses and the run."""
    losses: list[float] = []

    def listen(event: Any) -> None:
        if isinstance(event, Step):
            losses.append(event.loss)
            if event.step == stop_at:
                raise Stop

    llm = LLM.from_pretrained(model)
    run = llm.finetune(task, ROWS, eval_split=0.0, progress=listen, **{**OPTIONS, **options})
    return dict(llm.model.named_parameters()), losses, run


def said(run: Any) -> str:
    (note,) = [note for note in run.notes if "activation cache" in note]
    return note


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the rows of each pass of a training through a BERT's frozen layers."""
    rows: list[int] = []
    whole = bert._BertForward.below

    def below(self: Any, pack: Any, dropout: Any = None) -> torch.Tensor:
        if isinstance(self.weights, Parameters):
            rows.append(len(pack.lengths))
        return whole(self, pack, dropout)

    monkeypatch.setattr(bert._BertForward, "below", below)
    return rows


@pytest.mark.parametrize("trainable", ["head", "last-1"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_run_with_the_cache_is_the_run_without(models, kind, trainable):
    without, expected, run = tune(models[kind], TASKS[kind](), trainable=trainable, activation_cache="off")
    weights, losses, kept = tune(models[kind], TASKS[kind](), trainable=trainable)
    assert not any("activation cache" in note for note in run.notes)
    assert "activation cache: the" in said(kept)
    assert len(losses) == 12
    assert losses == pytest.approx(expected, abs=1e-5)
    for name, value in weights.items():
        if name.endswith("key.bias"):  # softmax passes over it: its gradient is rounding, which AdamW makes large
            continue
        torch.testing.assert_close(value, without[name], atol=1e-5, rtol=1e-4)


def test_frozen_layers_see_each_row_once(models, passes):
    tune(models["bert"], TextClassificationTask(), trainable="last-1", activation_cache="off")
    assert sum(passes) == 3 * len(ROWS)
    passes.clear()
    tune(models["bert"], TextClassificationTask(), trainable="last-1")
    assert sorted(passes) == [3, 7, 7, 7]
    passes.clear()
    tune(models["bert"], TextClassificationTask(), trainable="last-1", micro_batch_size=4, epochs=5)
    assert sorted(passes) == [3, 3, 3, 3, 4, 4, 4]


@pytest.mark.parametrize("options", [{"micro_batch_size": 3}, {}, {"precision": "bfloat16"}], ids=str)
def test_pairs_of_a_joint_loss_find_their_states(models, options):
    pairs = [{"text": row["text"], "text_pair": row["text"][::-1]} for row in ROWS]
    runs = []
    for cache in ("off", "auto"):
        llm, losses = LLM.from_pretrained(models["bert"]), []
        run = llm.finetune(
            SentenceSimilarityTask(), pairs, eval_split=0.0, trainable="last-1", activation_cache=cache,
            progress=lambda event, losses=losses: losses.append(event.loss) if isinstance(event, Step) else None,
            **{**OPTIONS, **options},
        )  # fmt: skip
        runs.append(losses)
    assert "runs once a row" in said(run)
    assert len(runs[0]) == 12
    assert runs[1] == pytest.approx(runs[0], abs=2e-2 if "precision" in options else 1e-5)


@pytest.mark.parametrize(("trainable", "step"), [("last-1", 2), ("head", 6), ("last-1", 11)])
def test_a_run_that_goes_on_fills_the_cache_again_and_ends_in_the_same_bits(models, tmp_path, passes, step, trainable):
    options = {"trainable": trainable, "activation_cache": "on", "dropout": 0.2, "checkpoint_steps": 1}
    tune(models["bert"], TextClassificationTask(), output=tmp_path / "whole", **options)
    with pytest.raises(Stop):
        tune(models["bert"], TextClassificationTask(), output=tmp_path / "out", stop_at=step, **options)
    passes.clear()
    tune(models["bert"], TextClassificationTask(), output=tmp_path / "out", **options)
    assert 0 < sum(passes) <= len(ROWS)
    ends = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert ends[0] == ends[1]


def test_asked_for_it_leaves_the_dropout_of_frozen_layers_out_and_says_so(models):
    options = {"trainable": "last-1", "dropout": 0.3}
    _, losses, run = tune(models["bert"], TextClassificationTask(), activation_cache="on", **options)
    assert "the frozen layer runs once a row, without their dropout (0.3)" in said(run)
    _, whole, run = tune(models["bert"], TextClassificationTask(), **options)
    assert "the frozen layers drop out (0.3)" in said(run)
    _, none, _ = tune(models["bert"], TextClassificationTask(), trainable="last-1")
    assert losses != pytest.approx(whole, abs=1e-4)
    assert losses != pytest.approx(none, abs=1e-4)


class Noised(TextClassificationTask):
    def noised(self, batch: Any, rng: Any) -> Any:
        return batch


@pytest.mark.parametrize(("task", "options", "reason"), [
    (TextClassificationTask, {"augment": 0.1}, "augment=0.1 changes the rows at each step"),
    (TextClassificationTask, {"epochs": 1}, "no row is seen twice"),
    (TextClassificationTask, {"max_steps": 4}, "no row is seen twice"),
    (Noised, {}, "text-classification changes its rows at each step"),
    (TextClassificationTask, {"trainable": "last-2"}, "the embeddings or the first layer are trained"),
])  # fmt: skip
def test_where_it_would_differ_or_help_nobody_it_is_off_and_says_why(models, task, options, reason):
    options = {"trainable": "last-1", **options}
    _, _, run = tune(models["bert"], task(), **options)
    assert said(run) == f"no activation cache: {reason}"
    with pytest.raises(UsageError, match=f"activation_cache=on, but {reason}"):
        tune(models["bert"], task(), activation_cache="on", **options)


def test_a_forward_in_one_part_has_none(models):
    options = {"trainable": "last-1", "speed": "plain"}
    with pytest.raises(UsageError, match="activation_cache=on, but the forward of this model does not come in two"):
        tune(models["bert"], TextClassificationTask(), activation_cache="on", **options)


def test_it_keeps_to_half_of_what_is_free(models, monkeypatch):
    monkeypatch.setattr(hardware, "disk_free", lambda _: 20_000)
    _, _, run = tune(models["bert"], TextClassificationTask(), trainable="last-1")
    assert "half of what is free is the most: 2e-05 GB of disk" in said(run)
    _, _, run = tune(models["bert"], TextClassificationTask(), trainable="head")  # one state a row
    assert f"; {24 * 32 * 4 / 1e6:.3g} MB of outputs are kept" in said(run)
    monkeypatch.undo()
    monkeypatch.setattr(hardware, "memory_available", lambda: 10)
    with pytest.raises(UsageError, match="activation_cache=on, but the outputs would take"):
        tune(models["bert"], TextClassificationTask(), trainable="head", activation_cache="on")


def test_memory_that_runs_out_in_frozen_layers_halves_their_rows(models, monkeypatch):
    _, expected, _ = tune(models["bert"], TextClassificationTask(), trainable="last-1")
    whole = bert._BertForward.below

    def below(self: Any, pack: Any, dropout: Any = None) -> torch.Tensor:
        if isinstance(self.weights, Parameters) and len(pack.lengths) > 2:
            raise MemoryError
        return whole(self, pack, dropout)

    monkeypatch.setattr(bert._BertForward, "below", below)
    _, losses, _ = tune(models["bert"], TextClassificationTask(), trainable="last-1")
    assert losses == pytest.approx(expected, abs=1e-5)


def test_a_plan_tells_of_it(models):
    options = {**OPTIONS, "trainable": "last-1", "eval_split": 0.0}
    made = LLM.from_pretrained(models["bert"]).plan(TextClassificationTask(), ROWS, **options)
    (choice,) = [choice for choice in made.choices if choice.name == "activation_cache"]
    assert choice.value == "on"
    assert "runs once a row" in choice.why
    made = LLM.from_pretrained(models["bert"]).plan(TextClassificationTask(), ROWS, **{**options, "dropout": 0.1})
    (choice,) = [choice for choice in made.choices if choice.name == "activation_cache"]
    assert choice.value == "off"
    assert "drop out" in choice.why


def test_words_of_the_options():
    assert FinetuneConfig(trainable="top:2") == FinetuneConfig(trainable="top-2") == FinetuneConfig(trainable="last-2")
    with pytest.raises(UsageError, match="no layer is frozen"):
        FinetuneConfig(activation_cache="on")
    with pytest.raises(UsageError, match="activation_cache='always'"):
        FinetuneConfig.of({"activation_cache": "always"})
