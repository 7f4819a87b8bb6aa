"""The same on a GPU as on the processor: training, answers, writing. Needs CUDA; `pytest -m gpu` runs it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmasos import LLM, ChatTask, TextClassificationTask
from tiny import save_tiny_bert
from writers import save_writer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
TASK, ROWS = TextClassificationTask.sample()
EXACT = {"epochs": 2, "batch_size": 8, "dropout": 0.0, "precision": "float32", "schedule": "constant", "warmup": 0.0,
         "learning_rate": 1e-3}  # fmt: skip


@pytest.mark.parametrize("speed", ["auto", "plain"])
def test_a_training_comes_to_the_same_weights_and_answers(tmp_path, speed):
    folder = save_tiny_bert(tmp_path / "tiny")
    tuned = {}
    for device in ("cpu", "cuda"):
        tuned[device] = LLM.from_pretrained(folder)
        tuned[device].finetune(TASK, ROWS, eval_data=ROWS, device=device, speed=speed, **EXACT)
    weights = {device: llm.model.cpu().state_dict() for device, llm in tuned.items()}
    for name, weight in weights["cpu"].items():
        torch.testing.assert_close(weights["cuda"][name], weight, rtol=1e-3, atol=1e-4)
    answers = {d: llm.predict(ROWS, device=d, precision="float32") for d, llm in tuned.items()}
    assert [a.label for a in answers["cuda"]] == [a.label for a in answers["cpu"]]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_greedy_writing_gives_the_same_tokens(tmp_path, kind):
    folder = save_writer(tmp_path / kind, kind)
    prompts = ["Once upon a time", "Hi"]
    cpu, cuda = (
        LLM.from_pretrained(folder).generate(prompts, device=device, precision="float32", max_new_tokens=12)
        for device in ("cpu", "cuda")
    )
    assert [a.tokens for a in cuda] == [a.tokens for a in cpu]


def test_bfloat16_trains_on_the_packed_path(tmp_path):
    llm = LLM.from_pretrained(save_tiny_bert(tmp_path / "tiny"))
    run = llm.finetune(TASK, ROWS, eval_data=ROWS, device="cuda", **{**EXACT, "epochs": 20, "precision": "bfloat16"})
    assert run.metrics["accuracy"] > 0.9


def test_an_adapter_trains_on_a_base_of_four_bits(tmp_path):
    pytest.importorskip("bitsandbytes")
    task, rows = ChatTask.sample()
    llm = LLM.from_pretrained(save_writer(tmp_path / "llama", "llama"))
    run = llm.finetune(
        task, rows, eval_data=rows, device="cuda", adapter="lora", base_precision="4bit", epochs=30, learning_rate=1e-2,
        output=tmp_path / "adapter",
    )  # fmt: skip
    losses = [value for value in run.metrics.values() if value == value]
    assert losses
    assert LLM.from_pretrained(tmp_path / "adapter").predict(rows[:1], device="cuda")[0].text is not None


def test_arrays_arrive_whole_through_pinned_memory_that_is_used_again():
    from llmasos.core.hardware import to_device

    sent = [np.full(1_000_000, i) for i in range(50)]
    arrived = [to_device(values, "cuda") for values in sent]
    assert all(torch.equal(tensor.cpu(), torch.from_numpy(values)) for tensor, values in zip(arrived, sent))


def test_the_doctor_says_that_the_card_is_used():
    from llmasos.core import hardware

    machine = hardware.describe()
    assert machine["device"] == "cuda:0"
    assert machine["graphics"]
    assert machine["device_missing"] == []
