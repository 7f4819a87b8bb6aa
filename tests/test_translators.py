"""Translators as two graphs: what they write, step by step, is what transformers writes to the last token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmasos import TranslationTask
from llmasos.core import plugins
from llmasos.decoders._plain import start_of
from llmasos.engines._writing import author_of as steps_of
from llmasos.exporters.base import Source
from llmasos.golden import author_of
from writers import END, byte_tokenizer, tiny_writer

pytestmark = pytest.mark.slow

KINDS = ("marian", "bart", "mbart", "t5")
FORMATS = {"onnx": "onnxscript", "openvino": "openvino"}
"""Target -> what it needs."""
TEXTS = ["Once upon a time", "Hi", "The quick brown fox jumps over it", "你好", "a", "Hi there"]


@pytest.fixture(scope="module", params=[(target, kind) for target in FORMATS for kind in KINDS], ids="-".join)
def both(request, tmp_path_factory):
    """Return a tiny random model, and the engine of what was written from it."""
    target, kind = request.param
    pytest.importorskip(FORMATS[target], reason=f"needs llmasos[{target}]")
    exporter, model = plugins.load("exporters", target), tiny_writer(kind)
    folder = tmp_path_factory.mktemp(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    written = exporter.write(Source(model, TranslationTask(), byte_tokenizer()), folder, "float32")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert written.more == {"writes": True, "start": start_of(model)}
    artifact = {"files": written.files, "precision": "float32", **written.more}
    options = {"pad_id": model.config.pad_token_id, "output": "vocabulary", "threads": 1}
    return model, plugins.load("engines", exporter.engine)(folder, artifact, **options)


def prompts():
    return [[*byte_tokenizer()(text)["input_ids"], END] for text in TEXTS]


@pytest.mark.parametrize("start", [None, 65])
def test_greedy_tokens_and_their_probabilities_are_those_of_transformers(both, start):
    model, engine = both
    with torch.no_grad():
        found = author_of(model).written(prompts(), 12, [END], start=start)
    answers = [one.tokens for one in found]
    assert steps_of(engine).greedy(prompts(), 12, [END], start=start) == answers
    assert [steps_of(engine).greedy([one], 12, [END], start=start)[0] for one in prompts()] == answers
    for here, wanted in zip(steps_of(engine).forced(prompts(), answers, start=start), found, strict=True):
        np.testing.assert_allclose(here, wanted.scores, atol=1e-4)


def test_rows_are_chosen_with_all_that_they_have_read_and_written(both):
    _, engine = both
    rows, token = np.asarray([4, 0, 0, 2]), np.asarray([70, 71, 72, 73, 74, 75])
    engine.start = None
    engine.begin(prompts(), 8)
    engine.step(token)
    wanted = engine.step(token)
    engine.begin(prompts(), 8)
    engine.step(token)
    engine.select(rows)
    np.testing.assert_allclose(engine.step(token[rows]), wanted[rows], atol=1e-5)


def test_nobody_joins_a_translation_that_is_under_way(both):
    _, engine = both
    assert not engine.joins


def test_openvino_rounds_the_weights_of_both_graphs_and_writes_nearly_the_same(tmp_path):
    openvino = pytest.importorskip("openvino", reason="needs llmasos[openvino]")
    exporter, model = plugins.load("exporters", "openvino"), tiny_writer("marian")
    written = exporter.write(Source(model, TranslationTask(), byte_tokenizer()), tmp_path, "int8")
    for name in (file for file in written.files if file.endswith(".xml")):
        kinds = [op.get_element_type().to_string() for op in openvino.Core().read_model(tmp_path / name).get_ops()
                 if op.get_type_name() == "Constant"]  # fmt: skip
        assert "u8" in kinds
    artifact = {"files": written.files, "precision": "int8", **written.more}
    engine = plugins.load("engines", "openvino")(tmp_path, artifact, pad_id=model.config.pad_token_id,
                                                 output="vocabulary", threads=1)  # fmt: skip
    with torch.no_grad():
        found = author_of(model).written(prompts(), 12, [END])
    near = steps_of(engine).forced(prompts(), [one.tokens for one in found])
    differences = [np.abs(here - one.scores)[:, 0].max() for here, one in zip(near, found, strict=True)]
    assert 1e-5 < max(differences) < 0.2
