"""How every verb speaks: tables and one JSON document on standard output, talk on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import DataError, LLMasOSError

if TYPE_CHECKING:
    from ..metrics.base import Report

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document on standard output")]

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it (128 + SIGINT)."""


def say(text: str) -> None:
    """Write a line of talk to standard error."""
    print(text, file=sys.stderr, flush=True)


def show_json(document: Mapping[str, Any]) -> None:
    """Print the one JSON document of a verb."""
    print(json.dumps(_finite(document), ensure_ascii=False, indent=2, default=str, allow_nan=False))


def show_table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), out: Callable[[str], None] = print) -> None:
    """Print aligned columns (wide characters count twice); ``right`` names those aligned to the right.

    On a terminal the last column is broken to fit; elsewhere a row is a line.
    """
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    start = sum(widths[:-1]) + 2 * len(widths[:-1])
    for row in rows:
        *first, last = row
        pieces = _broken(last, start) if len(widths) - 1 not in right else [last]
        for line in ([*first, pieces[0]], *([""] * len(first) + [piece] for piece in pieces[1:])):
            gaps = [" " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
            cells = [gap + cell if i in right else cell + gap for i, (cell, gap) in enumerate(zip(line, gaps))]
            out("  ".join(cells).rstrip())


def _broken(text: str, start: int) -> list[str]:
    """Break a text into lines that fit between a column of the terminal and its edge."""
    import shutil
    import textwrap

    room = shutil.get_terminal_size().columns - start
    if room < 20 or not (sys.stdout.isatty() and sys.stderr.isatty()):
        return [text]
    return textwrap.wrap(text, room, break_long_words=False) or [""]


def show_report(report: Report, *, names: Sequence[str] = (), classes: int = 20, confusion: int = 10) -> None:
    """Print an evaluation: metrics with intervals and baseline, then classes and confusions if not too many."""
    rows = [("metric", "value", "95 % interval", "baseline")]
    for name, (value, low, high) in report.metrics.items():
        if not names or name in names:
            baseline = report.baseline.get(name)
            rows.append(
                (name, f"{value:.4f}", f"{low:.4f} to {high:.4f}", "" if baseline is None else f"{baseline:.4f}")
            )
    show_table(rows, right=(1, 2, 3))
    if names:
        return
    for name, signature in report.signatures.items():
        print(f"{name}: {signature}")
    if report.per_class:
        _show_classes(report, classes)
    if report.confusion is not None and len(report.confusion.labels) <= confusion:
        print("\nactual (down), predicted (across)")
        header = ("", *report.confusion.labels)
        lines = zip(report.confusion.labels, report.confusion.matrix, strict=True)
        show_table([header, *((label, *map(str, counts)) for label, counts in lines)], right=range(1, len(header)))


def _show_classes(report: Report, most: int) -> None:
    print()
    scores = sorted(report.per_class.items(), key=lambda item: item[1]["f1"].value)
    rows: list[tuple[str, ...]] = [("label", "precision", "recall", "f1", "rows")]
    for label, score in scores[:most]:
        rows.append((label, *(f"{score[k].value:.4f}" for k in ("precision", "recall", "f1")), f"{score['support']:,}"))
    show_table(rows, right=(1, 2, 3, 4))
    if len(scores) > most:
        print(f"(the {most} labels with the lowest f1 of {len(scores)}; all with --json)")


def full_path(path: str) -> str:
    """Return a path as other machines know it; a URL as it is."""
    from ..data.shards import absolute

    return absolute(path)


def size(count: float) -> str:
    """Word a number of bytes: ``"1.4 GB"``."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def fail(error: BaseException, *, as_json: bool) -> int:
    """Word an error in one or a few lines, without a traceback, and return the exit code."""
    content: dict[str, Any] = {"type": type(error).__name__}
    if isinstance(error, LLMasOSError):
        content |= {"message": error.message, "hint": error.hint}
        if isinstance(error, DataError):
            content |= {"problems": error.problems, "count": error.count}
        text, code = f"error: {error}", error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        text, code = f"interrupted; {str(error) or 'nothing was saved'}", INTERRUPTED
        content |= {"type": "Interrupted", "message": text, "hint": None}
    else:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        hint = "run again with --debug, and report what it shows"
        content |= {"message": f"unexpected {message}", "hint": hint}
        text, code = f"error: unexpected {message}\nhint: {hint}", 1
    if as_json:
        show_json({"error": content})
    else:
        say(text)
    return code


def _finite(value: Any) -> Any:
    """Return the value with numbers that JSON does not know replaced by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
