"""Only what ``trainable`` names is trained."""

from __future__ import annotations

import pytest
import torch

from llmasos import LLM, TextClassificationTask
from llmasos.core.config import FinetuneConfig
from llmasos.core.errors import UsageError
from llmasos.loading import load_model
from llmasos.training.freezing import freeze
from test_interface import build
from tiny import save_tiny_bert

TASK, ROWS = TextClassificationTask.sample()
QUICK = {"epochs": 2, "batch_size": 8, "threads": 1, "progress": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_bert(tmp_path_factory.mktemp("base") / "model")


def moved(model, task, base):
    """Return the names of the parameters that a training changed."""
    before = dict(load_model(base, task).model.named_parameters())
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("speed", ["auto", "plain"])
@pytest.mark.parametrize(
    ("trainable", "parts"),
    [
        ("head", ("bert.pooler", "classifier")),
        ("last-1", ("bert.pooler", "classifier", "bert.encoder.layer.1")),
        ("last-2", ("bert.pooler", "classifier", "bert.encoder.layer")),
    ],
)
def test_the_rest_stays_as_it_was(base, trainable, parts, speed):
    llm = LLM.from_pretrained(base)
    run = llm.finetune(TASK, ROWS, eval_data=ROWS, trainable=trainable, speed=speed, **QUICK)
    names = moved(llm.model, llm.task, base)
    assert names
    assert all(name.startswith(parts) for name in names)
    assert all(any(name.startswith(part) for name in names) for part in parts)
    assert any("parameters are trained" in note for note in run.notes)


def test_all_trains_the_embeddings_too_also_after_a_run_that_froze_them(base):
    llm = LLM.from_pretrained(base)
    llm.finetune(TASK, ROWS, eval_data=ROWS, trainable="head", **QUICK)
    llm.finetune(TASK, ROWS, eval_data=ROWS, **QUICK)
    assert "bert.embeddings.LayerNorm.weight" in moved(llm.model, llm.task, base)


def test_a_decoder_trains_its_final_norm_with_its_last_layer():
    class Written:
        output, tag = "vocabulary", "text-generation"

    model = build("llama", "next")
    freeze(model, Written(), FinetuneConfig(trainable="last-1"))
    trained = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert {"model.norm", "lm_head", "model.layers.1.mlp.up_proj"} <= trained
    assert not any("layers.0" in name or "embed" in name for name in trained)


@pytest.mark.parametrize(
    ("option", "message"),
    [({"trainable": "most"}, "trainable='most'"), ({"trainable": "last-0"}, "trainable='last-0'"),
     ({"trainable": "head", "adapter": "lora"}, "both say what is trained")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(option, message):
    with pytest.raises(UsageError, match=message):
        FinetuneConfig.of(option)


def test_more_layers_than_there_are_is_refused(base):
    with pytest.raises(UsageError, match="last-3, but the model has 2 layers"):
        LLM.from_pretrained(base).finetune(TASK, ROWS, trainable="last-3", **QUICK)


def test_a_model_without_a_head_says_so():
    class Embedded:
        output, tag = "embedding", "sentence-similarity"

    with pytest.raises(UsageError, match="has no head for sentence-similarity"):
        freeze(build("bert", "embedding"), Embedded(), FinetuneConfig(trainable="head"))
