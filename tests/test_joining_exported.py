"""Requests that join others in a model in ONNX: what is written to each is what is written to it alone."""

from __future__ import annotations

import random

import pytest

from llmasos.core import plugins
from llmasos.core.config import GenerateConfig
from llmasos.decoders._exported import Exported
from llmasos.generation.generator import Generator
from llmasos.generation.loop import Running
from llmasos.generation.pieces import Done
from test_joining import asked, written
from tiny import save_tiny

pytestmark = pytest.mark.slow  # an export


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    pytest.importorskip("onnxscript")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmasos.engines.onnxruntime import OnnxRuntimeWriter
    from llmasos.exporters.base import Source

    folder = save_tiny(tmp_path_factory.mktemp("joining") / "m", "AutoModelForCausalLM", max_length=1024)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = plugins.load("tasks", "text-generation")()
    files = plugins.load("exporters", "onnx").write(Source(model, task, tokenizer), folder, "float32").files
    writer = OnnxRuntimeWriter(folder, {"files": files, "precision": "float32"}, pad_id=0, output="vocabulary",
                               threads=1)  # fmt: skip
    return Generator(model, tokenizer, 1024, decoder=Exported(writer, ""))


def test_answers_do_not_depend_on_when_others_come_and_go(generator: Generator) -> None:
    alone: dict[int, list[int]] = {}
    for request in asked(generator, 24):
        running = Running(generator.decoder([request]))
        alone |= {n: one.tokens for n, one in written(running, iter([request]), random.Random(0)).items()}
    for seed in (1, 2):
        running = Running(generator.decoder([]))
        found = written(running, iter(asked(generator, 24)), random.Random(seed))
        assert {number: one.tokens for number, one in found.items()} == alone
    assert len({tuple(tokens) for tokens in alone.values()}) > 12


def test_they_join_while_others_are_written_to(generator: Generator) -> None:
    first, second = asked(generator, 2)
    first, second = (generator.requests([one.prompt], GenerateConfig(max_new_tokens=12))[0] for one in (first, second))
    first.index, second.index = 0, 1
    running, ended = Running(generator.decoder([])), []
    running.join([first])
    for step in range(20):
        if step == 4:
            assert running.joins
            assert running.going == 1
            running.join([second])
            assert running.going == 2
        ended += [(step, one.number) for one in running.step() if isinstance(one, Done)]
    assert ended == [(11, 0), (15, 1)]


def test_long_service_keeps_arrays_small(generator: Generator) -> None:
    """What has ended leaves no room behind: a stream of short requests beside each other never grows the arrays."""
    decoder = generator.decoder([])
    running, widest = Running(decoder), 0
    for number in range(40):
        (request,) = generator.requests([[5 + number % 20, 6, 7]], GenerateConfig(max_new_tokens=10))
        running.join([request])
        for _ in range(4):
            list(running.step())
        widest = max(widest, decoder._stepper._mask.shape[1])  # type: ignore[attr-defined]
    assert widest < 64  # 160 steps were made
