"""Ways to compute the same training: each is tried, compared with the plain way, and taken by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from llmasos import LLM, LanguageModelingTask, TextClassificationTask
from llmasos.core import hardware
from llmasos.core.config import FinetuneConfig
from llmasos.errors import UsageError
from llmasos.training import candidates as candidates_module
from llmasos.training import curves
from llmasos.training.candidates import Candidate
from tiny import save_tiny, save_tiny_bert

TASK, ROWS = TextClassificationTask.sample()
BASE: dict[str, Any] = {"epochs": 2, "batch_size": 8, "threads": 1, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "plot_curves", lambda *_: None)
    monkeypatch.setattr(candidates_module, "_SECONDS", 0.0)
    monkeypatch.setattr(hardware, "bf16_speedup", lambda *_: 1.0)


def tried(model: Path, **options: Any) -> dict[str, Candidate]:
    plan = LLM.from_pretrained(model).plan(TASK, ROWS, **{**BASE, **options})
    return {one.name + (f"/{one.micro_batch_size}" if one.micro_batch_size else ""): one for one in plan.candidates}


def record(run: Any) -> dict[str, Any]:
    return json.loads((run.path / "run" / "run.json").read_text())


def test_a_plan_tries_the_ways_and_takes_one(model):
    found = tried(model)
    names = ["plain", "bf16", "buckets", "buckets,bf16", "packed", "packed,bf16", "buckets,compile"]
    assert [name for name in found if "/" not in name] == names
    assert [one.name for one in found.values() if "/" in one.name] == []
    assert {name.partition("/")[2] for name in found if "/" in name} == {"4"}
    measured = [one for one in found.values() if one.seconds is not None]
    assert len(measured) == 7
    assert all(one.seconds > 0 and one.memory_bytes >= 0 and one.gain > 0 for one in measured)
    assert found["plain"].gain == 1.0
    (best,) = [one for one in found.values() if one.chosen]
    assert best.seconds <= min(one.seconds for one in measured) * candidates_module.MARGIN
    assert found["buckets,compile"].verdict.startswith("not tried")


def test_every_way_was_compared_with_the_plain_one(model):
    found = tried(model, micro_batch_size=None)
    for name, one in found.items():
        if one.seconds is None or name == "plain":
            continue
        assert one.loss_difference <= 2e-2
        assert one.gradient_difference <= (5e-2 if "bf16" in name else 1e-4)
    assert found["packed,bf16"].gradient_difference > found["packed"].gradient_difference
    assert "near-equal length" in found["buckets"].verdict
    assert found["packed"].verdict == "equal"


def test_a_way_that_differs_is_not_measured_and_not_taken(model, monkeypatch):
    own = candidates_module._Trials._gradient

    def wrong(self: Any, way: Any) -> Any:
        loss, gradients = own(self, way)
        if way.architecture is not None:
            gradients["classifier.weight"] *= 1.5
        return loss, gradients

    monkeypatch.setattr(candidates_module._Trials, "_gradient", wrong)
    found = tried(model, precision="float32")
    assert found["packed"].seconds is None
    assert found["packed"].verdict.startswith("differs")
    assert not found["packed"].chosen


def test_a_way_that_fails_is_named_and_the_others_go_on(model, monkeypatch):
    own = candidates_module.training_seconds

    def broken(model: Any, way: Any, *others: Any) -> Any:
        if way.buckets:
            raise RuntimeError("no such kernel")
        return own(model, way, *others)

    monkeypatch.setattr(candidates_module, "training_seconds", broken)
    found = tried(model, precision="float32")
    assert found["buckets"].verdict == "fails: RuntimeError: no such kernel"
    assert sum(one.chosen for one in found.values()) == 1


def test_bfloat16_is_not_tried_where_its_products_are_slower(model, monkeypatch):
    monkeypatch.setattr(hardware, "bf16_speedup", lambda *_: 0.1)
    found = tried(model)
    assert found["bf16"].seconds is None
    assert found["bf16"].verdict == "not tried: measured: bfloat16 products run at 0.1x the speed of float32"
    assert "packed,bf16" not in found


def test_a_precision_that_is_asked_for_is_the_only_one(model):
    assert not any("bf16" in name for name in tried(model, precision="float32"))
    assert all("bf16" in one.name for one in tried(model, precision="bfloat16").values() if one.seconds)


def test_outputs_of_frozen_layers_are_a_way_of_their_own(model):
    found = tried(model, trainable="head", dropout=0.0, precision="float32")
    assert found["packed,cache"].seconds is not None
    dropping = tried(model, trainable="head", dropout=0.1, precision="float32")
    assert "drop out" in dropping["packed,cache"].verdict
    assert "cache" not in "".join(tried(model))


def test_a_named_way_is_planned_without_trying_others(model):
    assert tried(model, speed="packed") == {}


def test_what_was_measured_is_what_the_run_does_and_says(model, tmp_path, monkeypatch):
    order = iter([5.0, 7.0, 3.0, 3.5, 1.0, 6.0, 0.5])
    own = candidates_module.training_seconds

    def timed(*given: Any) -> Any:
        return own(*given)._replace(seconds=next(order))

    monkeypatch.setattr(candidates_module, "training_seconds", timed)
    llm = LLM.from_pretrained(model)
    run = llm.finetune(TASK, ROWS, output=tmp_path / "out", progress=False, speed="measure", **BASE)
    config = record(run)["config"]
    assert (config["speed"], config["micro_batch_size"], config["precision"]) == ("packed", 4, "float32")
    said = [note for note in run.notes if note.startswith("measured")]
    assert said == ["measured: --speed packed --micro-batch-size 4 is taken, 10.00 times as fast as plain"]
    named = LLM.from_pretrained(model)
    named.finetune(TASK, ROWS, progress=False, speed="packed", micro_batch_size=4, **BASE)
    ours, theirs = llm.model.state_dict(), named.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_nothing_is_decided_again_by_rule_after_it_was_measured(model, monkeypatch):
    seconds, own = iter([9.0, 8.0, 1.0, 3.0, 5.0]), candidates_module.training_seconds  # the cache is slower
    monkeypatch.setattr(
        candidates_module, "training_seconds", lambda *given: own(*given)._replace(seconds=next(seconds))
    )
    options = {**BASE, "precision": "float32", "dropout": 0.0, "trainable": "head"}
    run = LLM.from_pretrained(model).finetune(TASK, ROWS, progress=False, speed="measure", **options)
    assert record(run)["config"]["speed"] == "packed"


@pytest.mark.parametrize(("seconds", "taken"), [([2.0, 2.9, 2.05, 3.0], "packed"), ([2.0, 2.9, 2.2, 3.0], "plain")])
def test_the_rule_stands_where_nothing_is_ahead_by_more_than_chance(model, monkeypatch, seconds, taken):
    order, own = iter(seconds), candidates_module.training_seconds
    monkeypatch.setattr(candidates_module, "training_seconds", lambda *given: own(*given)._replace(seconds=next(order)))
    (chosen,) = (one for one in tried(model, precision="float32").values() if one.chosen)
    assert (chosen.name, chosen.micro_batch_size) == (taken, None)


def test_where_nothing_can_be_measured_the_rule_stands_and_it_is_said(model, monkeypatch):
    def broken(*_: Any) -> Any:
        raise RuntimeError("no kernel at all")

    monkeypatch.setattr(candidates_module._Trials, "_gradient", broken)
    run = LLM.from_pretrained(model).finetune(TASK, ROWS, progress=False, speed="measure", **BASE)
    assert record(run)["config"]["speed"].startswith("packed")
    assert any(note.startswith("nothing could be measured: fails: RuntimeError: no kernel") for note in run.notes)


WAYS = {
    "plain": "plain", "buckets": "buckets", "packed": "packed", "bf16": "bf16", "packed,bf16": "packed,bf16",
    "bf16, packed": "packed,bf16",
}  # fmt: skip


@pytest.mark.parametrize("speed", WAYS)
def test_a_named_way_is_the_one_that_computes(model, speed, monkeypatch):
    calls = []
    own = BertForSequenceClassification.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            calls.append(torch.is_autocast_enabled("cpu"))
        return own(self, *args, **kwargs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", forward)
    run = LLM.from_pretrained(model).finetune(TASK, ROWS, progress=False, speed=speed, **BASE)
    assert record(run)["config"]["speed"] == WAYS[speed]
    assert record(run)["config"]["precision"] == ("bfloat16" if "bf16" in speed else "float32")
    if "packed" in speed:
        assert calls == []
    else:
        assert set(calls) == {"bf16" in speed}


def test_rows_come_in_buckets_only_where_that_is_named(model):
    llm = LLM.from_pretrained(model)
    runs = {
        speed: llm.from_pretrained(model).finetune(TASK, ROWS, progress=False, speed=speed, dropout=0.0, **BASE)
        for speed in ("plain", "buckets", "bf16", "packed")
    }
    losses = {}
    for speed, run in runs.items():
        lines = (run.path / "run" / "metrics.jsonl").read_text().splitlines()
        losses[speed] = [event["loss"] for event in map(json.loads, lines) if "learning_rate" in event]
    assert np.allclose(losses["plain"], losses["packed"], rtol=1e-3)
    assert np.allclose(losses["plain"], losses["bf16"], rtol=0.05)
    assert not np.allclose(losses["plain"], losses["buckets"], rtol=1e-3)


def test_a_way_that_cannot_be_had_is_an_error(tmp_path, model):
    tiny = save_tiny(tmp_path / "llama", "AutoModelForCausalLM")
    llm, texts = LLM.from_pretrained(tiny), [{"text": row["text"]} for row in ROWS]
    with pytest.raises(UsageError, match="speed=buckets,compile, but what reads a vocabulary"):
        llm.finetune(LanguageModelingTask(), texts, progress=False, speed="buckets,compile", **BASE)
    with pytest.raises(UsageError, match="speed=packed,cache, but no row is seen twice"):
        LLM.from_pretrained(model).finetune(
            TASK, ROWS, progress=False, speed="packed,cache", trainable="head", **{**BASE, "epochs": 1}
        )


@pytest.mark.parametrize(("options", "words"), [
    ({"speed": "warp"}, "there is no 'warp'"),
    ({"speed": "packed,buckets"}, "packed rows need no buckets"),
    ({"speed": "packed,compile"}, "packed rows need no compile"),
    ({"speed": "bf16", "precision": "float32"}, "precision=float32"),
    ({"speed": "packed,cache"}, "no layer is frozen"),
    ({"speed": "packed,cache", "trainable": "head", "activation_cache": "off"}, "activation_cache=off"),
    ({"speed": "buckets,cache", "trainable": "head"}, "cache needs packed"),
])  # fmt: skip
def test_names_that_do_not_go_together_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        FinetuneConfig.of(options)


def test_outputs_are_kept_only_where_that_is_named_or_left_open(model):
    options = {**BASE, "trainable": "head", "dropout": 0.0, "precision": "float32"}
    for speed, kept in (("auto", True), ("packed,cache", True), ("packed", False)):
        run = LLM.from_pretrained(model).finetune(TASK, ROWS, progress=False, speed=speed, **options)
        assert ("cache" in record(run)["config"]["speed"]) == kept


@pytest.mark.slow
def test_a_compiled_forward_trains_the_same(model):
    options = {**BASE, "dropout": 0.0, "precision": "float32"}
    plain, compiled = (LLM.from_pretrained(model) for _ in range(2))
    plain.finetune(TASK, ROWS, progress=False, speed="buckets", **options)
    torch._dynamo.utils.counters.clear()
    run = compiled.finetune(TASK, ROWS, progress=False, speed="buckets,compile", **options)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert record(run)["config"]["speed"] == "buckets,compile"
    ours, theirs = compiled.model.state_dict(), plain.model.state_dict()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)
