"""How long a start takes: `import llmasos` and `llmasos --help` as whole processes, beside bare Python."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from . import harness
from .harness import Candidate
from .records import Column, Result, Run, goal, middle

COMMANDS = {
    "python_pass": (sys.executable, "-c", "pass"),
    "import_llmasos": (sys.executable, "-c", "import llmasos"),
    "llmasos_help": (str(Path(sys.executable).with_name("llmasos")), "--help"),
}


def main() -> None:
    """Time the three commands, 15 rounds after one that only warms the disk cache."""
    options = harness.parser(__doc__, seeds=15).parse_args()
    names = harness.chosen(list(COMMANDS), options.only)
    candidates = [Candidate(name, COMMANDS[name]) for name in names]
    with harness.workspace() as work:
        harness.measure(candidates, 1, work)
        runs = with_milliseconds(harness.measure(candidates, options.seeds, work))
    whole, extra = (middle(runs, "import_llmasos", key) for key in ("milliseconds", "over_python"))
    shown = middle(runs, "llmasos_help", "milliseconds")
    result = Result(
        name="start",
        title="Start, whole processes",
        columns=[Column("milliseconds", "ms", 1), Column("over_python", "ms over bare python", 1)],
        candidates=names,
        runs=runs,
        goals=[
            goal("import llmasos within 60 ms, whole process", whole, 60, least=False, shown="{:.0f} ms"),
            goal("import llmasos within 60 ms, over bare python", extra, 60, least=False, shown="{:.0f} ms"),
            goal("llmasos --help within 250 ms, whole process", shown, 250, least=False, shown="{:.0f} ms"),
        ],
    )
    harness.finish(result, options)


def with_milliseconds(runs: list[Run]) -> list[Run]:
    """Add each run's milliseconds, and those over bare Python in the same round."""
    bare = {run.seed: run.values["process_seconds"] for run in runs if run.candidate == "python_pass"}
    out = []
    for run in runs:
        seconds = run.values["process_seconds"]
        more = {"over_python": (seconds - bare[run.seed]) * 1e3} if run.seed in bare else {}
        out.append(run if run.error else replace(run, values={**run.values, "milliseconds": seconds * 1e3, **more}))
    return out


if __name__ == "__main__":
    main()
