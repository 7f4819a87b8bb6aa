"""How a model will run on a device: what is counted, what follows from it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from llmasos import LLM, devices, sizing
from llmasos.cli import main
from llmasos.core import hardware
from llmasos.core.errors import UsageError
from llmasos.devices import Device
from tiny import save_tiny, save_tiny_bert

SLOW = Device("slow", "a slow one", 1e9, 0.5, 1e9, {"float32": 1e9, "int8": 4e9}, ("a test",))
SHAPE = sizing.Shape(1_000_000, 500_000, 2, 32, 64, 4, 2, 8, 100, False)


@pytest.mark.parametrize("device", devices.TABLE, ids=lambda device: device.name)
def test_every_device_has_sound_numbers_and_their_sources(device):
    assert all(source.count(", ") >= 1 and any(year in source for year in map(str, range(2015, 2030)))
               for source in device.sources)  # fmt: skip
    assert 1e9 < device.memory < 1e12
    assert 0.3 < device.usable < 1.0
    assert 1e9 < device.bandwidth < 1e13
    assert device.rates["float32"] == min(device.rates.values())
    assert devices.find(device.name) is device
    assert all(devices.find(alias) is device for alias in device.aliases)


@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"])
def test_weights_are_counted_from_the_configuration_alone(tmp_path, kind):
    save = save_tiny_bert if kind == "AutoModel" else lambda folder: save_tiny(folder, kind)
    folder = save(tmp_path / "model")
    if kind == "AutoModel":
        from llmasos.tasks.text_classification import TextClassificationTask

        task, model = TextClassificationTask(num_labels=2), transformers.AutoModel.from_pretrained(folder)
        extra = 2 * 32 + 2
    else:
        task, model, extra = None, getattr(transformers, kind).from_pretrained(folder), 0
    shape = sizing.shape_of(folder, task)
    assert shape.parameters == sum(weight.numel() for weight in model.parameters()) + extra
    tables = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    products = sum(w.numel() for w in model.parameters() if w.ndim > 1 and id(w) not in tables)
    head = model.get_output_embeddings() if task is None else None
    products += head.weight.numel() if head is not None and id(head.weight) in tables else 0
    assert shape.products == products + (64 if extra else 0)
    assert (shape.layers, shape.width, shape.heads, shape.writes) == (2, 32, 2, task is None)


def test_a_row_takes_its_arithmetic_or_its_bytes():
    found = sizing.estimate(SHAPE, SLOW, "float32", length=10)
    operations = 10 * (2 * 500_000 + 4 * 2 * 4 * 8 * 10)
    assert (found.bound, found.bound_by) == (pytest.approx(1e9 / operations), "compute")
    assert found.expected == pytest.approx(sizing.SHARES["rows"] * found.bound)
    fast = sizing.estimate(SHAPE, SLOW, "int8", length=10)
    assert (fast.bound / found.bound, fast.computed_in) == (pytest.approx(4.0), "int8")
    assert sizing.estimate(SHAPE, SLOW, "bfloat16", length=10).computed_in == "float32"


def test_a_token_takes_reading_the_weights_and_what_it_looks_back_on():
    writer = replace(SHAPE, writes=True)
    quick = Device("quick", "", 1e9, 0.5, 1e9, {"float32": 1e15}, ("a test",))
    found = sizing.estimate(writer, quick, "float32", length=1000)
    cache = 2 * 2 * 2 * 8 * 1000 * 4
    assert (found.bound, found.bound_by, found.unit) == (pytest.approx(1e9 / (2e6 + cache)), "memory", "tokens")
    assert found.first_seconds == pytest.approx(2e6 / 1e9)
    assert sizing.estimate(writer, quick, "float32", length=1000, batch_size=4).bound > 2.9 * found.bound


def test_a_small_step_on_a_card_takes_the_launches_of_its_kernels():
    card = replace(SLOW, launch=1e-3)
    few, many = (sizing.estimate(SHAPE, card, "float32", length=10, batch_size=batch) for batch in (1, 100))
    launching = sizing.KERNELS * SHAPE.layers * 1e-3
    assert (few.expected, few.bound_by) == (pytest.approx(1 / launching), "launches")
    assert few.expected == pytest.approx(few.share * few.bound)
    assert (many.share, many.bound_by) == (sizing.SHARES["rows"], "compute")
    assert sizing.estimate(SHAPE, SLOW, "float32", length=10).bound_by == "compute"


def test_what_does_not_fit_would_in_another_precision():
    large = replace(SHAPE, parameters=120_000_000)
    found = sizing.estimate(large, SLOW, "float32", length=10)
    assert (found.fits, found.would_fit) == (False, ("float16", "bfloat16", "int8", "int8-dynamic", "int4"))
    assert sizing.estimate(large, SLOW, "float16", length=10).fits
    assert not sizing.estimate(SHAPE, SLOW, "float32", length=10, peak_bytes=6e8).fits  # what the gate measured


def test_an_export_has_its_own_precision_and_size(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x" * 77)
    manifest = {"artifact": {"target": "onnx", "engine": "onnxruntime", "precision": "int8", "files": ["model.onnx"]}}
    assert sizing.stored(tmp_path, manifest, "auto") == ("int8", 77.0)
    assert sizing.stored(tmp_path, {}, "int4") == ("int4", None)
    with pytest.raises(UsageError, match="precision=float32, but this is a onnx model in int8"):
        sizing.stored(tmp_path, manifest, "float32")
    with pytest.raises(UsageError, match="precision='int5'"):
        sizing.stored(tmp_path, {}, "int5")


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("sizing") / "writer", "AutoModelForCausalLM")


def test_the_command_line_tells_and_its_exit_code_says_whether_it_fits(writer, capsys, monkeypatch):
    assert main(["plan", str(writer), "--device", "pixel-8", "--max-length", "32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["fits"], found["unit"], found["length"], found["device"]) == (True, "tokens", 32, "pixel-8")
    assert main(["plan", str(writer), "--device", "t4"]) == 0
    assert "it fits on g4dn.xlarge" in capsys.readouterr().out
    monkeypatch.setattr(devices, "TABLE", (SLOW,))
    monkeypatch.setattr(sizing, "RUNTIME", 6e8)
    assert main(["plan", str(writer), "--device", "slow"]) == 1
    assert "it does not fit on slow, in no precision" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "told"), [
    (["--device", "pixle-8"], "did you mean 'pixel-8'?"),
    (["--device", "pixel-8", "--epochs", "2"], "--epochs says nothing"),
    (["--device", "pixel-8", "--max-length", "65"], "takes at most 64 tokens"),
    (["--device", "cpu"], "no data given"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(writer, capsys, words, told):
    assert main(["plan", str(writer), *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["rows", "tokens"])
def test_this_machine_is_measured_and_runs_the_model(writer, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(hardware, "matmul_peak", lambda *_, **__: 1e11)
    monkeypatch.setattr(hardware, "memory_bandwidth", lambda *_, **__: 1e10)
    folder = writer
    if kind == "rows":
        from llmasos import TextClassificationTask

        model = LLM.from_pretrained(save_tiny_bert(tmp_path / "base"))
        rows = [{"text": f"{word} {i}", "label": word} for i in range(8) for word in ("good", "bad")]
        model.finetune(TextClassificationTask(), rows, max_steps=1, output=tmp_path / "mine", progress=False)
        folder = tmp_path / "mine"
    found = LLM.from_pretrained(folder).size_up("this-machine", max_length=32)
    assert (found.device, found.unit) == ("this-machine", kind)
    assert found.measured is None or found.measured > 0
    assert kind == "tokens" or found.measured is not None
