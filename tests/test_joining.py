"""Requests that come and go at any step: what is written to each is what is written to it alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmasos import LLM
from llmasos.core.config import GenerateConfig
from llmasos.decoders._prefixes import Prefixes
from llmasos.generation.generator import Generator
from llmasos.generation.loop import Request, Running
from llmasos.generation.pieces import Done
from tiny import save_tiny

KINDS = ("own", "plain")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("joining") / "m", "AutoModelForCausalLM", max_length=1024)


@pytest.fixture(params=KINDS)
def generator(folder: Path, request: Any) -> Generator:
    """A model that writes by its own decode step, or by transformers' forward."""
    speed = "auto" if request.param == "own" else "plain"
    return LLM.from_pretrained(folder)._generator(GenerateConfig(precision="float32", speed=speed))


def asked(generator: Generator, count: int, **options: Any) -> list[Request]:
    """Make requests of many lengths, some of which draw."""
    draw, out = random.Random(0), []
    for number in range(count):
        prompt = [draw.randrange(5, 25) for _ in range(draw.choice((1, 2, 7, 40, 90)))]
        drawn = {"temperature": 0.8, "seed": number} if number % 3 == 2 else {}
        config = GenerateConfig(max_new_tokens=draw.randrange(1, 60), **drawn, **options)
        (request,) = generator.requests([prompt], config)
        request.index = number
        out.append(request)
    return out


def written(running: Running, waiting: Iterator[Request], arrivals: random.Random) -> dict[int, Any]:
    """Let requests join now and then, until all have ended."""
    found: dict[int, Any] = {}
    rest = list(waiting)
    while rest or running.going:
        if rest and (not running.going or arrivals.random() < 0.4):
            size = arrivals.randrange(1, 4)
            running.join(rest[:size])
            rest = rest[size:]
        found |= {one.number: one.generation for one in running.step() if isinstance(one, Done)}
    return found


def test_answers_do_not_depend_on_when_others_come_and_go(generator: Generator) -> None:
    alone: dict[int, Any] = {}
    for request in asked(generator, 24):
        running = Running(generator.decoder([request]))
        alone |= written(running, iter([request]), random.Random(0))
    for seed in (1, 2):
        running = Running(generator.decoder(asked(generator, 1)))
        found = written(running, iter(asked(generator, 24)), random.Random(seed))
        assert {number: one.tokens for number, one in found.items()} == {n: one.tokens for n, one in alone.items()}
    assert len({tuple(one.tokens) for one in alone.values()}) > 12  # the models do not all write the same


def test_each_request_keeps_its_own_rules_beside_others(generator: Generator) -> None:
    prompt = [7, 8, 9, 10]
    ways = [{}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.7}, {"temperature": 1.0, "top_k": 1}]
    configs = [GenerateConfig(max_new_tokens=20, **way) for way in ways]
    alone = [generator.answers([prompt], config)[0].tokens for config in configs]
    requests = [generator.requests([prompt], config)[0] for config in configs]
    for number, request in enumerate(requests):
        request.index = number
    running = Running(generator.decoder(requests))
    found = written(running, iter(requests), random.Random(5))
    assert [found[number].tokens for number in range(len(ways))] == alone
    assert alone[0] != alone[1] != alone[2]
    assert alone[0] == alone[3]


def test_one_that_was_given_up_leaves_without_an_answer_and_others_go_on(generator: Generator) -> None:
    alone = generator.answers([[5, 6, 7]], GenerateConfig(max_new_tokens=12))[0].tokens
    first, second = (generator.requests([ids], GenerateConfig(max_new_tokens=12))[0] for ids in ([5, 6, 7], [9, 9]))
    first.index, second.index = 0, 1
    running = Running(generator.decoder([first, second]))
    running.join([first, second])
    list(running.step())
    second.finish_reason = "left"
    found: dict[int, Any] = {}
    while running.going:
        found |= {one.number: one.generation for one in running.step() if isinstance(one, Done)}
    assert {number: one.tokens for number, one in found.items()} == {0: alone}


def test_long_service_moves_rows_and_keeps_arrays_small(generator: Generator) -> None:
    """What has ended leaves no room behind: a stream of short requests beside each other never grows the arrays."""
    decoder = generator.decoder(asked(generator, 1))
    running, largest = Running(decoder), 0
    config = GenerateConfig(max_new_tokens=10)
    for number in range(120):
        (request,) = generator.requests([[5 + number % 20, 6, 7]], config)
        running.join([request])
        for _ in range(4):
            list(running.step())
        cache: Any = decoder.cache  # type: ignore[attr-defined]
        largest = max(largest, cache[0].shape[2] if isinstance(cache, list) else cache.layers[0].keys.shape[2])
    assert largest < 320  # 480 steps were made


def test_what_cannot_be_joined_says_so(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "t5", "AutoModelForSeq2SeqLM")
    generator = LLM.from_pretrained(folder)._generator(GenerateConfig(precision="float32"))
    (request,) = generator.requests([[5, 6, 7]], GenerateConfig(max_new_tokens=8))
    running = Running(generator.decoder([request]))
    assert running.joins  # nothing is under way
    running.join([request])
    assert not running.joins


# -- beginnings that were read before -----------------------------------------------------------------


def salted(generator: Generator, prompt: list[int], salt: str | None) -> Request:
    (request,) = generator.requests([prompt], GenerateConfig(max_new_tokens=12))
    request.salt = salt
    return request


def test_a_known_beginning_is_not_read_again_and_changes_nothing(folder: Path) -> None:
    generator = LLM.from_pretrained(folder)._generator(GenerateConfig(precision="float32"))
    draw = random.Random(1)
    common = [draw.randrange(5, 25) for _ in range(100)]
    prompts = [[*common, *[draw.randrange(5, 25) for _ in range(n)]] for n in (1, 5, 30, 70)] + [
        common[:96],
        common[:97],
    ]
    alone = [generator.answers([prompt], GenerateConfig(max_new_tokens=12))[0].tokens for prompt in prompts]
    decoder = generator.decoder([salted(generator, prompts[0], "a")])
    decoder.prefixes = Prefixes(1000)
    running = Running(decoder)
    requests = [salted(generator, prompt, "a") for prompt in prompts]
    for number, request in enumerate(requests):
        request.index = number
    found = written(running, iter(requests), random.Random(3))
    assert [found[number].tokens for number in range(len(prompts))] == alone
    assert decoder.prefixes.reused >= 3 * 96  # the first ones may have joined together
    again = decoder.prefixes.reused
    running.join([salted(generator, common[:96], "a")])
    assert decoder.prefixes.reused == again + 64  # a last block would have left nothing to read


def test_another_salt_or_none_shares_nothing(folder: Path) -> None:
    generator = LLM.from_pretrained(folder)._generator(GenerateConfig(precision="float32"))
    prompt = [5 + i % 20 for i in range(80)]
    decoder = generator.decoder([salted(generator, prompt, "a")])
    decoder.prefixes = Prefixes(1000)
    for salt, reused in (("a", 0), ("b", 0), (None, 0), ("a", 64)):
        before = decoder.prefixes.reused
        Running(decoder).join([salted(generator, prompt, salt)])
        assert decoder.prefixes.reused - before == reused
    assert decoder.prefixes.tokens == 128


def test_the_beginnings_that_were_not_used_for_longest_are_forgotten(folder: Path) -> None:
    generator = LLM.from_pretrained(folder)._generator(GenerateConfig(precision="float32"))
    decoder = generator.decoder([salted(generator, [5] * 40, "a")])
    decoder.prefixes = Prefixes(64)
    for token in (5, 6, 7):
        Running(decoder).join([salted(generator, [token] * 40, "a")])
    assert decoder.prefixes.tokens == 64
    for token, reused in ((7, 32), (5, 0)):
        before = decoder.prefixes.reused
        Running(decoder).join([salted(generator, [token] * 40, "a")])
        assert decoder.prefixes.reused - before == reused
