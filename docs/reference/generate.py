"""Write cli.md and options.md from the code: ``python docs/reference/generate.py``.

``tests/test_docs.py`` holds that the pages are what this gives.
"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

from llmasos.cli import VERBS, command_of, examples_of
from llmasos.cli.options import OWN, argument_lines
from llmasos.core import plugins
from llmasos.core.config import Config, DeployConfig, FinetuneConfig, PredictConfig, TuneConfig, WriteConfig

HERE = Path(__file__).resolve().parent
MADE = "<!-- Made by docs/reference/generate.py: change the code, then run it. -->\n\n"


def cli() -> str:
    """Return the page of all verbs."""
    verbs = "".join(_verb(verb) for verb in VERBS)
    return f"""{MADE}# Command line

`llmasos VERB [OPTIONS]`. Answers go to standard output, everything else to standard error. Every verb takes:

| flag | |
|---|---|
| `--json` | print one JSON document on standard output, also when something went wrong |
| `--debug` | show the traceback of an error, and the libraries' warnings |
| `--help`, `-h` | show options and examples |

| exit code | |
|---|---|
| 0 | done |
| 1 | the work failed |
| 2 | bad usage or bad input |
| 130 | stopped with Ctrl-C |

What follows `--` is text and never a flag: `llmasos predict my-model -- "-5 degrees"`.
{verbs}"""


def options() -> str:
    """Return the page of all options."""
    own = ", ".join(f"`{name}`" for name in OWN)
    tasks = "".join(_task(name) for name in plugins.names("tasks"))
    places = "".join(_place(name) for name in plugins.names("targets"))
    return f"""{MADE}# Options

One name everywhere: `epochs=3` in Python, `--epochs 3` as a flag, `--set epochs=3`, `epochs: 3` in a recipe
(`--config recipe.yaml`). A flag wins over `--set`, which wins over the recipe, which wins over the default. An unknown
name is an error that suggests the nearest known one.

A recipe may also hold {own}.

## finetune, plan and tune

{_config(FinetuneConfig)}
## tune

{_config(TuneConfig)}
## predict and evaluate

{_config(PredictConfig)}
## generate, and predict where answers are written

{_config(WriteConfig)}
The last two are those of `predict` and `evaluate` alone.

## deploy

{_config(DeployConfig)}{places}{tasks}"""


def _verb(verb: str) -> str:
    command = command_of(verb)
    examples = "\n".join(examples_of(verb))
    parameters = [p for p in command.params if "--json" not in p.opts]
    table = "".join(f"| {_names(p)} | {_cell(p.help)}{_default(p)} |\n" for p in parameters)
    rows = f"\n| | |\n|---|---|\n{table}" if table else ""
    return f"\n## {verb}\n\n{command.help}\n\n```sh\n{examples}\n```\n{rows}"


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    flags = ", ".join(f"`{name}`" for name in parameter.opts)
    return _cell(f"{flags} `{parameter.metavar}`") if parameter.metavar else flags


def _default(parameter: Any) -> str:
    told = parameter.show_default is not False and parameter.default not in (None, False, [])
    return f" (default {parameter.default})" if told and isinstance(parameter.default, str) else ""


def _task(name: str) -> str:
    task = plugins.load("tasks", name)
    lines, hints = argument_lines(task), typing.get_type_hints(task)
    options = [
        (f.name, _kind(hints[f.name]), f"`{f.default!r}`", lines.get(f.name, "")) for f in dataclasses.fields(task)
    ]
    found = [(f.name, "yes" if f.required else "no", ", ".join(f.aliases), f.doc) for f in task().fields]
    return (
        f"\n## The task {name}\n\nArguments of `{task.__name__}`:\n\n"
        + _table(("option", "values", "default", ""), options)
        + "\nFields of its rows:\n\n"
        + _table(("field", "required", "columns found by themselves", ""), found)
    )


def _place(name: str) -> str:
    target = plugins.load("targets", name)
    own = _config(target.settings) if dataclasses.fields(target.settings) else ""
    taken = ", ".join(f"`{option}`" for option in target.takes)
    return f"\n### {name}\n\nTakes {taken}.\n" + (f"\nIts own, with `--set`:\n\n{own}" if own else "")


def _config(config: type[Config]) -> str:
    hints = typing.get_type_hints(config)
    rows = []
    for field in dataclasses.fields(config):
        about = field.metadata
        values = " ".join(f"`{word}`" for word in about["choices"]) or _kind(hints[field.name]) + _range(about)
        rows.append((field.name, values, f"`{field.default}`", about["help"]))
    return _table(("option", "values", "default", ""), rows)


def _range(about: Any) -> str:
    least, most = about["least"], about["most"]
    if least is None:
        return ""
    return f", at least {least:g}" if most is None else f", {least:g} to {most:g}"


def _kind(hint: Any) -> str:
    parts = typing.get_args(hint) if typing.get_origin(hint) is not tuple and typing.get_args(hint) else (hint,)
    words = {int: "whole number", float: "number", str: "word", bool: "True or False", type(None): "None"}
    return " or ".join(words.get(part) or _collection(part) for part in parts)


def _collection(part: Any) -> str:
    return "mapping" if "Mapping" in str(part) else "list"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *((f"`{row[0]}`", *map(_cell, row[1:])) for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("\\[", "[").replace("|", "\\|")


PAGES = {"cli.md": cli, "options.md": options}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
