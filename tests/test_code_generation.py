from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from llmasos import CodeGenerationTask
from llmasos.core import sandbox
from llmasos.core.errors import HardwareError, UsageError
from llmasos.metrics.code import CodeScorer, pass_at
from llmasos.tasks.base import Generation
from llmasos.tasks.code_generation import program

isolated = pytest.mark.skipif(
    sys.platform != "linux" or bool(sandbox._problem()), reason="this system grants no namespaces"
)
MBPP = Path(__file__).resolve().parents[2] / "shared" / "data" / "mbpp"
ROW = {"prompt": "Double x.", "completion": "def f(x):\n    return 2 * x", "tests": ["assert f(2) == 4"]}


def written(text: str) -> Generation:
    return Generation(text, [1], "stop", 3)


def tried(task, texts, rows) -> CodeScorer:
    scorer = task.scorer()
    task.score_answers(scorer, [task.answer(row, written(text)) for row, text in zip(rows, texts)], rows)
    return scorer


def test_pass_at_k_is_the_share_of_draws_without_replacement_in_which_one_passes():
    for tries, passed, k in [(5, 2, 1), (5, 2, 3), (5, 4, 2), (4, 0, 2), (3, 3, 3)]:
        outcomes = [True] * passed + [False] * (tries - passed)
        expected = np.mean([any(draw) for draw in itertools.combinations(outcomes, k)])
        assert pass_at(np.array([passed]), tries, k)[0] == pytest.approx(expected)


def test_tries_are_summed_and_pass_at_10_needs_10_of_them():
    scorer = CodeScorer()
    scorer.add_try([True, False])
    assert scorer._each().keys() == {"pass@1"}
    for _ in range(9):
        scorer.add_try([False, False])
    assert {name: float(each.mean()) for name, each in scorer._each().items()} == pytest.approx(
        {"pass@1": 0.05, "pass@10": 0.5}
    )


@isolated
def test_a_right_program_passes_and_a_wrong_one_does_not():
    scorer = tried(CodeGenerationTask(), [ROW["completion"], "def f(x): return x"], [ROW, ROW])
    assert scorer._each()["pass@1"].tolist() == [1.0, 0.0]


@isolated
def test_the_setup_runs_before_the_tests_and_after_the_program():
    row = {**ROW, "setup": "two = f(1)"}
    assert tried(CodeGenerationTask(), ["f = lambda x: two * x if x > 1 else 2"], [row])._each()["pass@1"].tolist() == [
        1.0
    ]


@isolated
def test_seconds_end_a_program_that_does_not_end():
    scorer = tried(CodeGenerationTask(seconds=1), ["while True: pass"], [ROW])
    assert scorer._each()["pass@1"].tolist() == [0.0]


def test_without_isolation_nothing_is_scored(monkeypatch):
    monkeypatch.setattr(sandbox, "_problem", lambda: "no namespaces")
    with pytest.raises(HardwareError, match="cannot be isolated"):
        tried(CodeGenerationTask(), ["pass"], [ROW])


@pytest.mark.parametrize("text", ["Sure:\n```python\nx = 1\n```\nDone.", "```\nx = 1\n```", "```py\r\nx = 1\n"])
def test_an_answer_is_what_stands_in_the_first_fence(text):
    assert CodeGenerationTask().answer(ROW, written(text)).text == "x = 1\n"
    assert CodeGenerationTask().answer(ROW, written("x = 1")).text == "x = 1"


def test_the_tests_are_told_in_the_prompt():
    from llmasos.tasks.code_generation import _asked

    assert "assert f(2) == 4" in _asked(ROW)["prompt"]
    assert _asked({**ROW, "tests": None})["prompt"] == "Double x."


def test_tests_that_are_no_list_are_named():
    assert CodeGenerationTask().problem({**ROW, "tests": "assert"}).field == "tests"
    assert CodeGenerationTask().problem(ROW) is None


def test_several_tries_are_drawn_and_one_is_the_likeliest():
    assert CodeGenerationTask().generation(None) == {}
    assert CodeGenerationTask(tries=10).generation(None) == {"temperature": 0.8}
    assert CodeGenerationTask(tries=10).answers_per_row == 10


@pytest.mark.parametrize("option", [{"tries": 0}, {"seconds": 0}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(UsageError):
        CodeGenerationTask(**option)


@isolated
@pytest.mark.data
@pytest.mark.skipif(not MBPP.is_dir(), reason="the shared data sets are absent")
def test_reference_solutions_of_mbpp_pass_and_empty_ones_do_not():
    rows = [json.loads(line) for line in (MBPP / "validation.jsonl").read_text(encoding="utf-8").splitlines()][:20]
    for row in rows:
        asked = {"tests": row["test_list"], "setup": row["test_setup_code"]}
        assert sandbox.run(program(row["code"], asked)).passed, row["task_id"]
        assert not sandbox.run(program("", asked)).passed
