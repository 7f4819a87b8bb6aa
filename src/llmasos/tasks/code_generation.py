"""Code: learn to write programs for a task in words, and score them by running their tests.

A chat task with one question: what is asked, and the tests that the program shall pass. Scores are pass@k, each
program run with the row's tests in ``core/sandbox.py``, which refuses where it cannot isolate it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..core import sandbox
from ..core.errors import UsageError, shown
from ._chat import ChatTask
from .base import IGNORED, Encoding, Field, Generation, Problem, Row

if TYPE_CHECKING:
    from ..data.encoding import Encoded
    from ..metrics.base import Scorer

_BLOCK = re.compile(r"```(?:\w*)[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)
_CORES = 2


@dataclass(frozen=True)
class CodeGenerationTask(ChatTask):
    """Write a Python program that passes tests.

    Args:
        tries: programs that an evaluation writes for each row, for pass@k up to that k; several are drawn at
            temperature 0.8, one is the likeliest.
        seconds: how long a program may run with its tests.

    Example:
        >>> CodeGenerationTask().problem({"prompt": "Double x.", "completion": "x *= 2", "tests": "assert"}).field
        'tests'
    """

    tag: ClassVar[str] = "code-generation"
    scores_answers: ClassVar[bool] = True
    other_data: ClassVar[str] = ""

    tries: int = 1
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise UsageError(f"tries={self.tries}", hint="at least 1")
        if not 0 < self.seconds <= 600:
            raise UsageError(f"seconds={self.seconds}", hint="above 0, at most 600")

    @property
    def fields(self) -> tuple[Field, ...]:
        """What is asked, the program, and its tests."""
        return (
            Field("prompt", ("prompt", "text", "instruction", "question"), doc="what the program shall do"),
            Field("completion", ("completion", "code", "solution", "canonical_solution", "output"), required=False,
                  answer=True, doc="a program that does it"),
            Field("tests", ("tests", "test_list"), kind="json", required=False,
                  doc="a list of Python statements that raise where the program is wrong"),
            Field("setup", ("setup", "test_setup_code"), required=False, doc="Python that runs before the tests"),
        )  # fmt: skip

    def problem(self, row: Row, *, labelled: bool = True) -> Problem | None:
        """Return the first thing that is wrong with a row, or None."""
        tests = row.get("tests")
        if tests is not None and not (isinstance(tests, list) and all(isinstance(test, str) for test in tests)):
            return Problem("tests", shown(tests), "a list of Python statements")
        return super().problem(_asked(row), labelled=labelled)

    def fitted(self, rows: Iterable[Row], tokenizer: Any = None) -> tuple[Self, list[str]]:
        """Settle the chat template (see ``ChatTask``)."""
        return super().fitted((_asked(row) for row in rows), tokenizer)

    def encode(self, rows: Sequence[Row], tokenizer: Any, max_length: int, *, labelled: bool = True) -> Encoding:
        """Render and tokenise questions with their programs (see ``ChatTask``)."""
        return super().encode([_asked(row) for row in rows], tokenizer, max_length, labelled=labelled)

    def prompt(self, row: Row, tokenizer: Any, longest: int | None = None) -> list[int]:
        """Return the tokens from which the program is written."""
        return super().prompt(_asked(row), tokenizer, longest)

    def generation(self, tokenizer: Any) -> dict[str, Any]:
        """Draw where several programs are wanted."""
        del tokenizer
        return {"temperature": 0.8} if self.tries > 1 else {}

    @property
    def answer_metrics(self) -> tuple[str, ...]:
        """The share of rows that k tries solve, for every k up to ``tries``."""
        from ..metrics.code import AT

        return tuple(f"pass@{k}" for k in AT if k <= self.tries)

    @classmethod
    def variants(cls) -> list[Self]:
        """Return the task with as many tries as have a metric."""
        from ..metrics.code import AT

        return [cls(tries=max(AT))]

    @property
    def answers_per_row(self) -> int:
        """Programs that an evaluation writes for each row."""
        return self.tries

    def answer(self, row: Row, generation: Generation) -> Generation:
        """Return the program alone: what stands in the first fenced block, or all of the text."""
        del row
        block = _BLOCK.search(generation.text)
        return replace(generation, text=block.group(1) if block else generation.text)

    def scorer(self) -> Scorer:
        """Return an empty scorer: single tokens, and pass@k of what the model writes."""
        from ..metrics.code import CodeScorer

        return CodeScorer()

    def score(self, scorer: Scorer, outputs: Any, part: Encoded, rows: Sequence[Row]) -> None:
        """Count the tokens of programs."""
        del rows
        assert part.targets is not None
        scorer.add(outputs, (part.rows, part.targets[part.targets != IGNORED]))

    def score_answers(self, scorer: Scorer, answers: Sequence[Any], rows: Sequence[Row]) -> None:
        """Run every program with the tests of its row; rows without tests count for nothing.

        Raises:
            HardwareError: programs cannot be isolated here.
        """
        from ..metrics.code import CodeScorer

        assert isinstance(scorer, CodeScorer)
        programs = [program(answer.text, row) for answer, row in zip(answers, rows, strict=True) if row.get("tests")]
        if not programs:
            return
        with ThreadPoolExecutor(_CORES) as pool:
            found = pool.map(lambda source: sandbox.run(source, seconds=self.seconds), programs)
        scorer.add_try([outcome.passed for outcome in found])

    @classmethod
    def sample(cls) -> tuple[Self, list[dict[str, Any]]]:
        """Two tiny programs, too short for tests."""
        return cls(), [{"prompt": "one", "completion": "x = 1"}, {"prompt": "two", "completion": "y = 2"}] * 12


def program(code: str, row: Row) -> str:
    """Return some code with its row's setup and tests, as one program. The setup may use what the code defines."""
    return "\n\n".join([code, row.get("setup") or "", *row["tests"]]).replace("\r\n", "\n")


def _asked(row: Row) -> dict[str, Any]:
    """Return the row as a prompt, the tests told in it, and a completion."""
    content = {name: row[name] for name in ("prompt", "completion") if row.get(name) is not None}
    tests = row.get("tests")
    if tests and isinstance(content.get("prompt"), str) and content["prompt"].strip():
        content["prompt"] += "\n\nYour code should pass these tests:\n\n" + "\n".join(tests)
    return content


PLUGIN = CodeGenerationTask
