"""Training in KerasHub on JAX and TensorFlow: the same weights there and back, the same losses, named refusals.

A framework's process takes some seconds to start, so that most of these are slow. Two run always: the fine-tuning in
JAX, and ``llmasos parity`` with --json (test_cli.py).
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import tiny
from llmasos import LLM, LanguageModelingTask, TextClassificationTask
from llmasos.architectures._plain import transformers_outputs
from llmasos.cli import main
from llmasos.core.config import FinetuneConfig
from llmasos.core.events import Step
from llmasos.data.batching import gather
from llmasos.errors import MissingExtraError, TrainingError, UsageError
from llmasos.frameworks import mapping, supported
from llmasos.loading import load_config
from llmasos.training.keras import KerasStepper, _rung
from llmasos.training.prepare import prepare
from llmasos.training.request import Request
from llmasos.training.run import ready
from llmasos.training.trainer import Setup, Stepper, _batches

ROWS = [
    {"text": f"a {'good' if i % 2 else 'bad'} day{' and night' * (i % 5)}", "label": ("bad", "good")[i % 2]}
    for i in range(30)
]
TEXTS = [{"text": f"one two {word} one two {word} three" * (1 + i % 3)} for i, word in enumerate(["six", "ten"] * 8)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny BERT, Llama (of grouped heads, with a head of its own) and GPT-2, with weights that are no defaults."""
    import transformers

    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny.tiny_tokenizer()
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.cls_token_id,
               "eos_token_id": tokenizer.sep_token_id, "vocab_size": len(tokenizer)}  # fmt: skip
    configs = {
        "bert": transformers.BertConfig(
            **special, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64, layer_norm_eps=1e-6,
        ),
        "llama": transformers.LlamaConfig(
            **special, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=False,
            rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
        ),
        "gpt2": transformers.GPT2Config(
            **special, n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=48, layer_norm_epsilon=1e-3
        ),
    }  # fmt: skip
    configs["small"] = transformers.BertConfig(**{**configs["bert"].to_dict(), "num_hidden_layers": 1})
    kinds = {"bert": transformers.BertForSequenceClassification, "small": transformers.BertForSequenceClassification,
             "llama": transformers.LlamaForCausalLM, "gpt2": transformers.GPT2LMHeadModel}  # fmt: skip
    for name, config in configs.items():
        torch.manual_seed(0)
        model = kinds[name](config)
        for parameter in model.parameters():  # else biases are zero and norms one, and none could be exchanged unseen
            parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in configs}


def opened(folder: Path, framework: str, task: Any = None, rows: Any = None, **options: Any) -> tuple[Any, Setup]:
    """Return a model and its setup, as a run has them before its first step."""
    bert = folder.name == "bert"
    task = task or (TextClassificationTask() if bert else LanguageModelingTask())
    rows = rows or (ROWS if bert else TEXTS)
    defaults = {"dropout": 0.0, "batch_size": 8, "learning_rate": 1e-3, "max_steps": 4, "speed": "plain",
                "precision": "float32"}  # fmt: skip
    config = FinetuneConfig.of({**defaults, **options, "framework": framework})
    llm = LLM.from_pretrained(folder)
    config = supported.settled(config, task, load_config(folder))
    request = Request(llm.located, llm.tokenizer, None, task, rows, rows)
    events = prepare(request, config, folder=None, scratch=None)
    try:
        while True:
            next(events)
    except StopIteration as stop:
        prepared = stop.value
    model, setup, _ = ready(request, prepared, config)
    return model, setup


def stepped(stepper: Stepper | KerasStepper, setup: Setup) -> list[tuple[float, float]]:
    """Return loss and gradient's norm of each step of a run."""
    seen = []
    for step, rows in enumerate(_batches(setup, 0)):
        seen.append(stepper.compute(gather(setup.train, rows), step))
        stepper.update(step)
    return seen


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def compare(folder: Path, framework: str, **options: Any) -> None:
    """Hold a few steps against torch's, and before them the weights there and back and the logits."""
    model, setup = opened(folder, framework, **options)
    stepper = KerasStepper(model, setup)
    try:
        start = weights(model)
        for parameter in model.parameters():
            parameter.data.zero_()
        stepper.write_back()
        assert all(torch.equal(start[name], value) for name, value in weights(model).items())
        batch = gather(setup.train, np.arange(6))
        with torch.no_grad():
            wanted = transformers_outputs(model.eval(), batch, setup.pad_id, setup.task.output)
        assert torch.allclose(stepper.logits(batch), wanted, atol=2e-5, rtol=2e-5)  # a GELU by tanh: 3e-4
        found = stepped(stepper, setup)
    finally:
        stepper.release()
    reference, setup = opened(folder, "torch", **options)
    plain = Stepper(reference, setup)
    wanted = stepped(plain, setup)
    plain.release()
    assert np.asarray(found) == pytest.approx(np.asarray(wanted), rel=1e-4)
    # four steps of 1e-3; where a gradient is zero but for rounding, as a key's bias has it, Adam enlarges the rounding
    ours, theirs = ({n: w for n, w in weights(m).items() if "key.bias" not in n and "c_attn.bias" not in n}
                    for m in (model, reference))  # fmt: skip
    assert farthest(ours, theirs) < 1e-4
    assert farthest(ours, start) > 1e-3


# -- a run --------------------------------------------------------------------------------------------------


def test_a_run_in_jax_is_the_run_in_torch_and_its_folder_opens_as_any(models, tmp_path):
    seen: dict[str, list[float]] = {}
    runs = {}
    # short: all are filled up to the longest, and JAX compiles one shape
    rows = [{"text": f"a {'good' if i % 2 else 'bad'} day {i}", "label": ("bad", "good")[i % 2]} for i in range(24)]
    for framework in ("torch", "jax"):
        events: list[Any] = []
        llm = LLM.from_pretrained(models["small"])
        runs[framework] = llm.finetune(
            TextClassificationTask(), rows, eval_data=rows, output=tmp_path / framework, progress=events.append,
            framework=framework, dropout=0.0, epochs=3, batch_size=8, max_steps=3, learning_rate=1e-3, speed="plain",
            precision="float32", layer_decay=0.8, weight_decay=0.5, gradient_clip=0.5, schedule="cosine", augment=0.1,
        )  # fmt: skip
        seen[framework] = [event.loss for event in events if isinstance(event, Step)]
    assert len(seen["jax"]) == 3
    assert seen["jax"] == pytest.approx(seen["torch"], rel=1e-5)
    assert runs["jax"].metrics == pytest.approx(runs["torch"].metrics, rel=1e-5)
    record = json.loads((tmp_path / "jax/run/run.json").read_text())
    assert record["forward"] == "KerasHub's, on jax"
    assert record["versions"].keys() >= {"keras", "keras-hub", "jax"}
    texts = [row["text"] for row in rows[:6]]
    ours, theirs = ([a.score for a in LLM.from_pretrained(tmp_path / name).predict(texts, precision="float32")]
                    for name in ("jax", "torch"))  # fmt: skip
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours != pytest.approx([a.score for a in _untrained(models["small"]).predict(texts)], abs=1e-3)


def _untrained(folder: Path) -> LLM:
    llm = LLM.from_pretrained(folder)
    llm.task = TextClassificationTask(labels=["bad", "good"])
    return llm


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(models, tmp_path, framework):
    class Stop(Exception):
        pass

    def stop(event: Any) -> None:
        if isinstance(event, Step) and event.step == 4:
            raise Stop

    def run(name: str, listen: Any = False) -> None:
        LLM.from_pretrained(models["small"]).finetune(
            TextClassificationTask(), ROWS, eval_data=ROWS, output=tmp_path / name, progress=listen, seed=3,
            framework=framework, dropout=0.2, batch_size=8, micro_batch_size=4, max_steps=6, learning_rate=1e-3,
            checkpoint_steps=2, allow_truncated=1.0,
        )  # fmt: skip

    run("whole")
    with pytest.raises(Stop):
        run("stopped", stop)
    assert (tmp_path / "stopped.unfinished" / "checkpoints").is_dir()
    run("stopped")
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(np.array_equal(whole[name], stopped[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_weights_come_back_bit_by_bit_and_steps_are_those_of_torch(models, name, framework):
    compare(models[name], framework, gradient_clip=0.5, weight_decay=0.5, layer_decay=0.8)


@pytest.mark.slow
def test_micro_batches_leave_the_step_as_it_is(models):
    compare(models["bert"], "jax", micro_batch_size=3)


@pytest.mark.slow
@pytest.mark.parametrize("task", [
    TextClassificationTask(class_weights={"bad": 3.0, "good": 0.5}, label_smoothing=0.2),
    TextClassificationTask(multi_label=True, class_weights={"bad": 3.0, "good": 0.5}),
])  # fmt: skip
def test_every_loss_of_text_classification_is_torchs(models, task):
    rows = [{**row, "label": [row["label"]] if i % 3 else ["bad", "good"]} for i, row in enumerate(ROWS)]
    compare(models["bert"], "jax", task=task, rows=rows if task.multi_label else ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["jax", "tensorflow"])
def test_dropout_is_drawn_from_the_seed(models, framework):
    def losses(**options: Any) -> list[float]:
        model, setup = opened(models["bert"], framework, **options)
        stepper = KerasStepper(model, setup)
        try:
            return [loss for loss, _ in stepped(stepper, setup)]
        finally:
            stepper.release()

    once, again, without = losses(dropout=0.3), losses(dropout=0.3), losses()
    assert once == again
    assert once != pytest.approx(without, rel=1e-3)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_nothing_unlearned_is_kept(models, tmp_path):
    def kill(event: Any) -> None:
        if isinstance(event, Step) and event.step == 2:
            for child in _children():
                os.kill(child, signal.SIGKILL)

    llm = LLM.from_pretrained(models["bert"])
    with pytest.raises(TrainingError, match="the process of jax ended: signal 9") as error:
        llm.finetune(TextClassificationTask(), ROWS, eval_data=ROWS, output=tmp_path / "out", progress=kill,
                     framework="jax", dropout=0.0, batch_size=8)  # fmt: skip
    assert "framework=torch" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def _children() -> list[int]:
    import psutil

    return [process.pid for process in psutil.Process().children() if "frameworks.child" in " ".join(process.cmdline())]


@pytest.mark.slow
def test_parity_fails_beyond_its_tolerance(models, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    words = ["parity", str(models["bert"]), "--data", str(tmp_path / "rows.jsonl"), "--steps", "2", "--batch-size", "8"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.split()[:3] == ["torch", "jax", "tensorflow"]
    assert "within the tolerance" in out
    assert main([*words, "--frameworks", "jax", "--tolerance", "0"]) == 1
    assert "BEYOND the tolerance of 0" in capsys.readouterr().out


# -- without a process --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("turned", "shape"), [(False, (6, 12)), (True, (12, 6))])
def test_a_tensor_is_cut_and_turned_there_and_back(turned, shape):
    pair = mapping.Pair("fused", ("a", "b", "c"), turned)
    tensor = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values = mapping.to_keras(pair, tensor, dict.fromkeys("abc", (6, 2, 2)))
    flat = tensor.T if turned else tensor
    assert [np.array_equal(values[name].reshape(6, 4), flat[:, i * 4 : i * 4 + 4]) for i, name in enumerate("abc")]
    assert np.array_equal(mapping.to_torch(pair, values, shape), tensor)


def test_every_tensor_of_a_model_has_one_line_in_the_table(models):
    from safetensors import safe_open

    for folder in models.values():
        with safe_open(folder / "model.safetensors", "np") as file:
            names = sorted(file.keys())
        variables = [
            variable for pair in mapping.pairs(load_config(folder).model_type, names) for variable in pair.variables
        ]
        assert len(set(variables)) == len(variables) >= len(names)


def test_batches_come_in_few_lengths():
    assert sorted({_rung(length) for length in range(1, 257)}) == [16, 24, 32, 48, 64, 96, 128, 192, 256]
    assert all(length <= _rung(length) < 2 * max(length, 16) for length in range(1, 257))


@pytest.mark.parametrize(("options", "named"), [
    ({"adapter": "lora"}, "adapter=lora"),
    ({"trainable": "head"}, "trainable=head"),
    ({"precision": "bfloat16"}, "precision=bfloat16"),
    ({"device": "cuda"}, "device=cuda"),
])  # fmt: skip
def test_an_option_that_cannot_be_honoured_is_refused_by_name(models, tmp_path, options, named):
    with pytest.raises(UsageError, match=f"framework=jax cannot honour {named}") as error:
        LLM.from_pretrained(models["bert"]).finetune(
            TextClassificationTask(), ROWS, output=tmp_path / "out", framework="jax", **options
        )
    assert "trainable=all" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_other_tasks_and_architectures_are_refused_with_what_is_supported(models):
    from llmasos import TokenClassificationTask

    known = "text-classification with bert; language-modeling with llama or gpt2"
    bert, llama = (load_config(models[name]) for name in ("bert", "llama"))
    config = FinetuneConfig(framework="tensorflow")
    with pytest.raises(UsageError, match=f"cannot do token-classification\nhint: it can do {known}"):
        supported.settled(config, TokenClassificationTask(), bert)
    with pytest.raises(UsageError, match=f"text-classification with a llama model\nhint: it can do {known}"):
        supported.settled(config, TextClassificationTask(), llama)


@pytest.mark.parametrize(("name", "change", "said"), [
    ("bert", {"hidden_act": "swish"}, "hidden_act='swish'"),
    ("bert", {"attention_probs_dropout_prob": 0.3}, r"dropouts of 0.1, 0.3(.|\n)*dropout=0.1 sets all"),
    ("llama", {"attention_bias": True}, "attention_bias=True"),
    ("llama", {"head_dim": 16}, "head_dim=16"),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
])  # fmt: skip
def test_a_configuration_that_kerashub_cannot_be_is_refused_by_name(models, name, change, said):
    config = load_config(models[name])
    for key, value in change.items():
        setattr(config, key, value)
    task = TextClassificationTask() if name == "bert" else LanguageModelingTask()
    with pytest.raises(UsageError, match=said):
        supported.settled(FinetuneConfig(framework="jax"), task, config)


def test_dropout_in_a_llama_is_refused(models):
    with pytest.raises(UsageError, match=r"cannot honour dropout=0\.2 in a llama model"):
        supported.settled(
            FinetuneConfig(framework="jax", dropout=0.2), LanguageModelingTask(), load_config(models["llama"])
        )


def test_torch_settles_nothing_and_a_framework_settles_where_and_how(models):
    config, bert = FinetuneConfig(), load_config(models["bert"])
    assert supported.settled(config, TextClassificationTask(), bert) is config
    config = replace(config, framework="jax")
    expected = replace(config, device="cpu", precision="float32", speed="buckets")
    assert supported.settled(config, TextClassificationTask(), bert) == expected


def test_a_missing_framework_is_named_with_its_pip_line(models, monkeypatch):
    monkeypatch.setattr(supported, "find_spec", lambda name: None if name == "jax" else name)
    with pytest.raises(MissingExtraError, match=r"pip install 'llmasos\[jax\]'"):
        supported.settled(FinetuneConfig(framework="jax"), TextClassificationTask(), load_config(models["bert"]))


def test_a_plan_refuses_what_it_does_not_measure(models):
    with pytest.raises(UsageError, match="a plan measures torch, not framework=jax"):
        LLM.from_pretrained(models["bert"]).plan(TextClassificationTask(), ROWS, framework="jax")


def test_parity_names_an_unknown_framework(capsys):
    assert main(["parity", "model", "--data", "rows.jsonl", "--frameworks", "jacks"]) == 2
    assert "there is no 'jacks'" in capsys.readouterr().err
