"""``llmasos tasks``: list what a model can be tuned for, and the fields of its data."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

from ..core import plugins
from .options import argument_lines, options_of
from .output import AsJson, show_json, show_table

if TYPE_CHECKING:
    from ..tasks.base import Task

_TABLES = "rows in .jsonl, .json, .csv, .tsv or .parquet, each also .gz"

EXAMPLES = """
llmasos tasks
llmasos tasks --json
"""


def run(*, as_json: AsJson = False) -> None:
    """List what a model can be tuned for, the fields of its data, its metrics and the options of each."""
    tasks = [_described(name) for name in plugins.names("tasks")]
    if as_json:
        show_json({"tasks": tasks})
        return
    for task in tasks:
        print(f"{task['name']}: {task['doc']}\n")
        show_table([("field", "", "what", "columns found by themselves"), *map(_field_row, task["fields"])])
        print(f"\ndata: {task['data']}")
        print(f"metrics: {', '.join(task['metrics'])} (the best model is picked by {task['default_metric']})\n")
        show_table([("option", "what"), *task["options"].items()])
        print()


def _described(name: str) -> dict[str, Any]:
    task = plugins.load("tasks", name)
    lines = argument_lines(task)
    return {
        "name": name,
        "doc": (inspect.getdoc(task) or "").partition("\n")[0],
        "fields": [dataclasses.asdict(field) for field in task().fields],
        "data": f"{_TABLES}; {task.other_data}" if task.other_data else _TABLES,
        "metrics": list(dict.fromkeys(name for one in task.variants() for name in _metrics(one))),
        "default_metric": task().default_metric,
        "options": {field.name: lines.get(field.name, "") for field in options_of(task)},
    }


def _metrics(task: Task) -> tuple[str, ...]:
    return (*task.metric_names, *task.answer_metrics)


def _field_row(field: dict[str, Any]) -> tuple[str, ...]:
    aliases = field["aliases"]
    shown = ", ".join(aliases[:5]) + (", ..." if len(aliases) > 5 else "")
    return field["name"], "" if field["required"] else "optional", field["doc"], shown
