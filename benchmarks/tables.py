"""Turn results/*.json into tables: for the terminal, and for docs/benchmarks.md between its markers.

`python -m benchmarks.tables` rewrites what stands between `<!-- table:NAME -->` and `<!-- end:NAME -->`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from .harness import RESULTS, ROOT
from .records import Column, Result, middle, ratio, values

PAGE = ROOT / "docs" / "benchmarks.md"


def cells(result: Result) -> list[list[str]]:
    """Return the table as text cells, headings first."""
    first, *others = result.columns
    head = [result.name, f"{first.label} (spread)"]
    head += [f"against {result.baseline}"] if result.baseline else []
    return [head + [column.label for column in others], *(_line(result, name) for name in result.candidates)]


def text(result: Result) -> str:
    """Return the table, goals and notes for a terminal."""
    table = cells(result)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [result.title, ""]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
    lines += ["", *(f"{_verdict(goal.met):8} {goal.text}: {goal.reached}" for goal in result.goals)]
    return "\n".join([*lines, *result.notes])


def markdown(result: Result) -> str:
    """Return the table, goals, notes and circumstances as Markdown."""
    head, *rows = cells(result)
    lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)]), *(_row(row) for row in rows), ""]
    if result.goals:
        lines += [_row(["goal", "reached", ""]), _row(["---"] * 3)]
        lines += [*(_row([goal.text, goal.reached, _verdict(goal.met)]) for goal in result.goals), ""]
    lines += [f"- {note}" for note in result.notes]
    return "\n".join([*lines, f"- {circumstances(result)}"])


def circumstances(result: Result) -> str:
    """Return when, on what and with what a result was measured, in one line."""
    about, machine = result.about, result.about["machine"]
    load = ", ".join(f"{number:.1f}" for pair in about["load"] for number in pair[:: len(pair) - 1 or 1])
    packages = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"`{about['command']}`, {about['date'][:10]}, {len(about['seeds'])} rounds; {machine['processor']}, "
        f"{machine['cores']} cores ({', '.join(machine['instructions'])}), {machine['memory_gb']} GB, "
        f"{machine['system']}, Python {machine['python']}; {packages}; load average {load}; "
        f"raw: [results/{result.name}.json](../benchmarks/results/{result.name}.json)"
    )


def update(page: Path = PAGE, results: Path = RESULTS) -> list[str]:
    """Rewrite the tables of a page from the results there are; return the names of those rewritten."""
    content, done = page.read_text(encoding="utf-8"), []
    for path in sorted(results.glob("*.json")):
        if path.name.endswith(".partial.json"):
            continue
        result = Result.from_dict(json.loads(path.read_text(encoding="utf-8")))
        if between := _between(content, result.name):
            content = f"{content[: between.start()]}{markdown(result)}\n{content[between.end() :]}"
            done.append(result.name)
    page.write_text(content, encoding="utf-8")
    return done


def _between(page: str, name: str) -> re.Match[str] | None:
    return re.search(rf"(?<=<!-- table:{name} -->\n).*?(?=<!-- end:{name} -->)", page, re.DOTALL)


def _line(result: Result, name: str) -> list[str]:
    first, *others = result.columns
    numbers = values(result.runs, name, first.key)
    if not numbers:
        width = 1 + bool(result.baseline) + len(others)
        return [name, _reason(result, name), *[""] * (width - 1)]
    spread = f"{min(numbers):.{first.digits}f}–{max(numbers):.{first.digits}f}"
    line = [name, f"{_shown(result, name, first)} ({spread})"]
    if result.baseline:
        times = ratio(result.runs, name, result.baseline, first.key, result.better)
        line.append("" if times is None else f"{times:.2f}x")
    return line + [_shown(result, name, column) for column in others]


def _shown(result: Result, name: str, column: Column) -> str:
    number = middle(result.runs, name, column.key, column.statistic)
    return "" if number is None else f"{number:.{column.digits}f}"


def _reason(result: Result, name: str) -> str:
    for run in result.runs:
        if run.candidate == name and (run.missing or run.error):
            return why(run.missing) if run.missing else "failed"
    return "not measured"


def why(missing: str) -> str:
    """Say why a candidate has no numbers: a package's name, or a sentence."""
    return f"not {'measured' if ' ' in missing else 'installed'}: {missing}"


def _verdict(met: bool | None) -> str:
    return {True: "met", False: "missed", None: "open"}[met]


def _row(row: list[str]) -> str:
    return f"| {' | '.join(row)} |"


if __name__ == "__main__":
    print("\n".join(f"{name}: rewritten" for name in update()))
