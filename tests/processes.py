"""What each process of test_distributed.py runs: ``torchrun processes.py CASES``, each case a training."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from llmasos import LLM
from llmasos.core import plugins
from llmasos.core.events import Event, Step
from llmasos.training import curves, stepper


class Stop(Exception):
    """Ends a run in the midst, in all processes at the same step."""


@contextmanager
def short_of_memory(rows: int) -> Iterator[None]:
    """Let memory run out in this process where more rows are computed at once."""
    own = stepper._forward

    def short(*given: Any) -> Any:
        forward, cache = own(*given)

        def checked(batch: Any) -> Any:
            if len(batch) > rows:
                raise MemoryError
            return forward(batch)

        return checked, cache

    stepper._forward = short
    try:
        yield
    finally:
        stepper._forward = own


def run(case: dict[str, Any]) -> None:
    """Train as a case says; ``stop_at`` breaks off after a step."""
    task = plugins.load("tasks", case["task"]).from_dict(case.get("settings", {}))

    def listen(event: Event) -> None:
        if isinstance(event, Step) and event.step == case.get("stop_at"):
            raise Stop

    is_short = "memory" in case and os.environ.get("RANK") == "1"
    try:
        with short_of_memory(case["memory"]) if is_short else nullcontext():
            LLM.from_pretrained(case["model"]).finetune(
                task, case["data"], eval_data=case["data"], output=case["output"], progress=listen, **case["options"]
            )
    except Stop:
        assert case.get("stop_at")


if __name__ == "__main__":
    curves.plot_curves = lambda *_: None
    for one in json.loads(Path(sys.argv[1]).read_text()):
        run(one)
