"""ExecuTorch's programs: what the contract of formats does not ask of every one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmasos import LLM, errors
from llmasos.core import plugins
from llmasos.engines._apart import Apart
from llmasos.engines._writing import Writing
from llmasos.golden import author_of
from tiny import save_tiny_bert
from writers import byte_tokenizer, tiny_writer

pytest.importorskip("executorch", reason="needs executorch")

from llmasos.exporters import _executorch_graph as graph
from llmasos.exporters.base import Source

ROWS = [{"text": f"a {word} day {i}", "label": word} for i in range(12) for word in ("good", "bad")]
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = tmp_path_factory.mktemp("labels")
    llm = LLM.from_pretrained(save_tiny_bert(folder / "base", max_length=96))
    task = plugins.load("tasks", "text-classification")()
    llm.finetune(task, ROWS, epochs=30, batch_size=8, learning_rate=5e-3, output=folder / "model", progress=False)
    return llm


def test_what_is_kept_is_not_rounded() -> None:
    model = tiny_writer("llama")
    before = {name: module.weight.clone() for name, module in model.named_modules() if hasattr(module, "weight")}
    graph.quantize(model, ("model.layers.0", "model.embed_tokens"), "int8", 32)
    kept = model.get_submodule("model.layers.0.mlp.down_proj")
    assert torch.equal(kept.weight, before["model.layers.0.mlp.down_proj"])
    assert isinstance(model.get_submodule("model.embed_tokens"), torch.nn.Embedding)
    rounded = model.get_submodule("model.layers.1.mlp.down_proj").weight.dequantize()
    assert not torch.equal(rounded, before["model.layers.1.mlp.down_proj"])
    torch.testing.assert_close(rounded, before["model.layers.1.mlp.down_proj"], atol=0.02, rtol=0)


def test_a_table_of_eight_bits_gives_its_rows_again() -> None:
    model, ids = tiny_writer("llama"), torch.arange(259)[None]
    wanted = model.model.embed_tokens(ids).detach()
    graph.quantize(model, (), "int8", 32)
    found = model.model.embed_tokens(ids)
    assert (found - wanted).abs().amax() <= wanted.abs().amax() / 127 / 2 * 1.01


def test_four_bits_need_widths_that_groups_divide(tmp_path: Path) -> None:
    exporter = plugins.load("exporters", "executorch")
    model = torch.nn.Sequential(torch.nn.Linear(24, 24))
    with pytest.raises(errors.UsageError, match="groups of 32"):
        exporter.grouped(model, "int4")
    assert exporter.grouped(torch.nn.Sequential(torch.nn.Linear(192, 24)), "int4") == 64


@slow
def test_int8_is_smaller_and_says_what_the_model_needs(model: LLM, tmp_path: Path) -> None:
    sizes = {}
    for precision in ("float32", "int8"):
        found = model.export(tmp_path / precision, "executorch", quantize=precision, data=ROWS)
        assert found.precision == precision
        assert found.model_bytes is not None
        assert 0 < found.model_bytes < found.peak_bytes
        assert found.score is not None
        sizes[precision] = found.size_bytes
    assert sizes["int8"] < sizes["float32"]
    answers = LLM.from_pretrained(tmp_path / "int8").predict(["a good day", "a bad day 3"])
    assert [one.label for one in answers] == ["good", "bad"]


@slow
def test_threads_and_a_text_that_is_too_long(model: LLM, tmp_path: Path) -> None:
    model.export(tmp_path / "out", "executorch")
    artifact = LLM.from_pretrained(tmp_path / "out")
    assert artifact.predict("a good day", threads=1).label == "good"
    cut = artifact.predict("a good day " * 40, allow_truncated=1.0, progress=lambda event: None)
    assert cut.label in ("good", "bad")
    assert json.loads((tmp_path / "out" / "llmasos.json").read_text())["artifact"]["longest"] == 96


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a tiny decoder, and its program's engine."""
    folder, model = tmp_path_factory.mktemp("writer"), tiny_writer("llama")
    task = plugins.load("tasks", "text-generation")()
    source = Source(model, task, byte_tokenizer())
    written = plugins.load("exporters", "executorch").write(source, folder, "float32")
    artifact = {"engine": "executorch", "precision": "float32", "files": written.files, **written.more}
    with Apart(folder, artifact, pad_id=0, output="vocabulary", likeliest=0) as engine:
        yield model, engine


@slow
def test_a_decoder_writes_what_transformers_writes(writer: Any) -> None:
    model, engine = writer
    prompts = [[5, 80, 33], list(range(40, 100)), [7]]
    wanted = author_of(model).greedy(prompts, 20, [256])
    assert Writing(engine).greedy(prompts, 20, [256]) == wanted
    assert [Writing(engine).greedy([prompt], 20, [256])[0] for prompt in prompts] == wanted


@slow
def test_rows_that_are_chosen_twice_go_on_as_one_would(writer: Any) -> None:
    _, engine = writer
    engine.begin([[5, 80, 33], [9, 9]], 8)
    engine.select(np.asarray([1, 1, 0]))
    apart = engine.step(np.asarray([4, 4, 4]))
    np.testing.assert_allclose(apart[0], apart[1], atol=1e-4)
    engine.begin([[9, 9, 4]], 8)
    alone = engine.begin([[9, 9, 4]], 8)
    np.testing.assert_allclose(apart[:1], alone, atol=1e-4)


@slow
def test_more_tokens_than_a_program_keeps_are_refused(writer: Any) -> None:
    _, engine = writer
    engine.begin([[5] * 128], 1)
    with pytest.raises(errors.BundleError, match="this program keeps 128 tokens"):
        engine.step(np.asarray([4]))
