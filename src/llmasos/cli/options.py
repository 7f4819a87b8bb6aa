"""Flags made from dataclasses: what a configuration or a task declares is what ``--help`` shows.

There is no second list. Flags arrive here as words; the dataclass converts and checks them, so that
flag, ``--set``, recipe and Python keyword are held to the same rules in the same words. Of these the
first that sets an option wins; the dataclass's default comes last.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core import bundle, plugins
from ..core.config import Config, FinetuneConfig, WriteConfig, parse_settings, read_recipe
from ..core.errors import BundleError, UsageError, did_you_mean

if TYPE_CHECKING:
    from ..tasks.base import Task

Columns = Annotated[
    list[str] | None,
    typer.Option("--columns", metavar="FIELD=COLUMN", help="which column holds a field, once per field: text=review"),
]
Recipe = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML recipe: one `option: value` a line", show_default=False),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="set an option by name; wins over the recipe")
]


@dataclass(frozen=True)
class Job:
    """A fine-tuning or its plan, settled from flags, ``--set`` and the recipe."""

    model: str
    task: Task
    data: str
    revision: str | None = None
    eval_data: str | None = None
    output: str | None = None
    columns: dict[str, str] | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


DEFAULT_TASK = "text-classification"
"""What a model is tuned for if nothing is said: what most begin with."""

OWN = tuple(field.name for field in dataclasses.fields(Job) if field.name != "options")
"""What a recipe may hold besides the options of the configuration and of the task."""


def with_flags(*flags: inspect.Parameter) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Replace a verb's ``**options`` by these flags; the verb receives those that were given."""

    def decorate(verb: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(verb, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        names = {p.name for p in own}

        @functools.wraps(verb)
        def call(**values: Any) -> Any:
            return verb(**{k: v for k, v in values.items() if k in names or v is not None})

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + list(flags)
        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        return call

    return decorate


def job_flags() -> list[inspect.Parameter]:
    """Make the flags that say what is tuned, on what: MODEL, --task, --data and so on."""
    places = "a Hub name, a folder, a URL such as s3://..., pkg:NAME of an installed package, or starter-chat"
    argument = typer.Argument(metavar="MODEL", help=places, show_default=False)
    model = inspect.Parameter(
        "model", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, argument]
    )
    tasks = plugins.names("tasks")
    return [
        model,
        _flag(
            "task",
            str,
            f"what the model is tuned for (default {DEFAULT_TASK}); with --help, only its options",
            "|".join(tasks),
        ),
        _flag(
            "data",
            str,
            "training data: .jsonl, .json, .csv, .tsv, .parquet, .txt or CoNLL, each also .gz; or a folder, a "
            "glob or a URL of such files",
            "FILE",
        ),
        _flag("eval_data", str, "validation data; a part of the training data if not given", "FILE"),
        inspect.Parameter("columns", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Columns),
        _flag("revision", str, "the model's revision on the Hub", "TEXT"),
    ]


def config_flags(
    config: type[Config], *, without: Sequence[str] = (), panel: str = "Options of the run"
) -> list[inspect.Parameter]:
    """Make one flag for each field of a configuration, but for those that do nothing to the verb."""
    hints = typing.get_type_hints(config)
    out = []
    for field in (field for field in dataclasses.fields(config) if field.name not in without):
        default = "" if field.default is None else f" (default {field.default})"
        metavar = "|".join(field.metadata["choices"]) or _metavar(hints[field.name])
        kind, more = (list[str], "; once for each") if field.metadata["several"] else (str, "")
        out.append(_flag(field.name, kind, field.metadata["help"] + more + default, metavar, panel))
    return out


def writing_flags(config: type[Config]) -> list[inspect.Parameter]:
    """Make the flags of ``WriteConfig`` beside those of a configuration that has some of them already."""
    return config_flags(WriteConfig, without=names_of(config), panel="Options of tasks that write their answers")


def names_of(config: type[Config]) -> tuple[str, ...]:
    """Return the names of a configuration's options."""
    return tuple(field.name for field in dataclasses.fields(config))


def check(options: Mapping[str, Any], *configs: type[Config]) -> None:
    """Check options before a model is opened, each by the first configuration that has it."""
    left = dict(options)
    for config in configs:
        config.of({name: left.pop(name) for name in names_of(config) if name in left})


def task_flags() -> list[inspect.Parameter]:
    """Make one flag for each field of the tasks; the help is the line of its docstring, or each task's own."""
    out = []
    for name, owners in _owners().items():
        hint = typing.get_type_hints(plugins.load("tasks", next(iter(owners))))[name]
        kind: Any = bool if hint is bool else list[str] if _is_sequence(hint) else str
        decls = [f"--{name.replace('_', '-')}"]
        if kind == list[str]:  # One name per flag reads better in the singular.
            decls = [decls[0].removesuffix("s"), *decls]
        panel = f"Options of {next(iter(owners))}" if len(owners) == 1 else "Options of several tasks"
        out.append(_flag(name, kind, _said_by(owners), None if kind is bool else _metavar(hint), panel, decls))
    return out


def narrow(parameters: Sequence[Any], task: str) -> None:
    """Hide the flags of all other tasks from the help, and let shared ones say what they do in this one."""
    owners = _owners()
    for parameter in parameters:
        lines = owners.get(parameter.name, {})
        if task in lines:
            parameter.help, parameter.rich_help_panel = _escaped(lines[task]), f"Options of {task}"
        parameter.hidden = bool(lines) and task not in lines


def _owners() -> dict[str, dict[str, str]]:
    """Return for each option of a task the tasks that have it, each with its own words for it."""
    out: dict[str, dict[str, str]] = {}
    for tag in plugins.names("tasks"):
        task = plugins.load("tasks", tag)
        hints, lines = typing.get_type_hints(task), argument_lines(task)
        for field in options_of(task):
            more = " Once for each, or all with commas between." if _is_sequence(hints[field.name]) else ""
            out.setdefault(field.name, {})[tag] = f"{lines.get(field.name, '')}{more}".strip()
    return out


def _said_by(owners: Mapping[str, str]) -> str:
    """Join what tasks say of an option: once if all say the same."""
    tasks: dict[str, list[str]] = {}
    for tag, line in owners.items():
        tasks.setdefault(line, []).append(tag)
    if len(tasks) == 1:
        where = "" if len(owners) == 1 else f" ({', '.join(owners)})"
        return next(iter(tasks)).rstrip("." if where else "") + where
    return "; ".join(f"{', '.join(tags)}: {line.rstrip('.')}" for line, tags in tasks.items())


def settle(
    given: Mapping[str, Any], *, settings: Sequence[str] | None = None, recipe: str | Path | None = None,
    also: Sequence[str] = (),
) -> Job:  # fmt: skip
    """Settle a job from flags, ``key=value`` settings and a recipe; check everything that needs no model.

    ``also`` names options of the verb besides those of a fine-tuning.

    Raises:
        UsageError: an unknown key, a wrong value, or no model or data given.
    """
    merged = {**_checked(read_recipe(recipe) if recipe else {}, recipe), **parse_settings(list(settings or ()))}
    merged |= {k: v for k, v in given.items() if v is not None}
    task_class = plugins.load("tasks", str(merged.pop("task", None) or DEFAULT_TASK))
    task_fields = [field.name for field in options_of(task_class)]
    config_fields = [field.name for field in dataclasses.fields(FinetuneConfig)]
    known = (*OWN, *task_fields, *config_fields, *also)
    for name in merged:
        if name not in known:
            raise UsageError(
                f"there is no option {name!r}", hint=f"{did_you_mean(name, known)}known: {', '.join(known)}"
            )
    for name, flag in (("model", "MODEL"), ("data", "--data")):
        if not merged.get(name):
            raise UsageError(f"no {name} given", hint=f"pass {flag}, or write `{name}: ...` into the recipe")
    options = {k: merged[k] for k in (*config_fields, *also) if k in merged}
    FinetuneConfig.of({k: options[k] for k in config_fields if k in options})  # told now, not after a model was loaded
    own = {k: None if merged[k] is None else str(merged[k]) for k in OWN if k in merged and k != "columns"}
    columns = parse_columns(merged.get("columns"))
    hints = typing.get_type_hints(task_class)
    task = task_class(**{k: _task_value(k, merged[k], hints[k]) for k in task_fields if k in merged})
    return Job(**own, task=task, columns=columns, options=options)  # type: ignore[arg-type]


def parse_columns(columns: Mapping[str, Any] | Sequence[str] | str | None) -> dict[str, str] | None:
    """Read ``["text=review"]``, or a recipe's mapping, as a mapping from field to column."""
    if not columns:
        return None
    if isinstance(columns, Mapping):
        return {str(k): str(v) for k, v in columns.items()}
    out = {}
    for pair in [columns] if isinstance(columns, str) else columns:
        field, sign, column = pair.partition("=")
        if not (sign and field.strip() and column.strip()):
            raise UsageError(f"columns: {pair!r} is not FIELD=COLUMN", hint="for example --columns text=review")
        out[field.strip()] = column.strip()
    return out


def _checked(recipe: dict[str, Any], path: str | Path | None) -> dict[str, Any]:
    """Refuse YAML's most common trap: a bare yes or no in a list of labels is a boolean."""
    for name, value in recipe.items():
        if isinstance(value, list) and any(isinstance(item, bool) for item in value):
            raise UsageError(f"{path}: {name} holds the booleans that YAML makes of yes, no, on and off",
                             hint=f"quote them: {name}: ['yes', 'no']")  # fmt: skip
    return {str(name).replace("-", "_"): value for name, value in recipe.items()}


def _task_value(name: str, value: Any, hint: Any) -> Any:
    """Convert words from the shell to what a task's field takes; leave a recipe's typed values alone."""
    if _is_sequence(hint) and isinstance(value, list | str):
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            (value,) = value
        return _labels(value if isinstance(value, list) else [part.strip() for part in value.split(",")])
    if not isinstance(value, str):
        return value
    parts = _parts(hint)
    if bool in parts and value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind, word in ((int, "a whole number"), (float, "a number")):
        if kind in parts:
            try:
                return kind(value)
            except ValueError as error:
                raise UsageError(f"{name}={value!r} is not {word}", hint=f"for example {name}=2") from error
    return _mapping(value) if value.startswith("{") else value


def _labels(words: list[Any]) -> list[Any]:
    """Read labels that are all whole numbers as integers, as a JSON file has them."""
    whole = [isinstance(w, str) and w.removeprefix("-").isdecimal() and str(int(w)) == w for w in words]
    return [int(w) for w in words] if all(whole) else words


def _mapping(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{text!r} is not a mapping", hint="for example '{spam: 2.0, ham: 1.0}'") from error


def _flag(
    name: str, kind: Any, help: str, metavar: str | None, panel: str | None = None, decls: Sequence[str] = ()
) -> inspect.Parameter:
    decls = decls or [f"--{name.replace('_', '-')}"]
    info = typer.Option(*decls, help=_escaped(help), metavar=metavar, rich_help_panel=panel, show_default=False)
    annotation = Annotated[kind | None, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _escaped(text: str) -> str:
    """Keep rich from reading brackets as its own marks."""
    return text.replace("[", r"\[")


def _parts(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _is_sequence(hint: Any) -> bool:
    return any(typing.get_origin(part) in (list, tuple, Sequence) for part in _parts(hint))


def _metavar(hint: Any) -> str:
    names = {int: "INTEGER", float: "NUMBER"}
    return next((names[part] for part in _parts(hint) if part in names), "TEXT")


def options_of(task: type[Task]) -> list[dataclasses.Field[Any]]:
    """Return the fields of a task that a user may set: not those that are settled from the data alone."""
    return [field for field in dataclasses.fields(task) if not field.metadata.get("settled")]  # type: ignore[arg-type]


def argument_lines(owner: type) -> dict[str, str]:
    """Return the lines under ``Args:`` of the docstrings of a class and of those it inherits from, by argument."""
    lines: dict[str, str] = {}
    for kind in reversed(owner.__mro__):
        _, _, block = inspect.cleandoc(kind.__doc__ or "").partition("\nArgs:\n")
        block = re.split(r"\n\S", block)[0]
        found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", block, flags=re.MULTILINE)
        lines |= {name: " ".join(text.replace("``", "").split()) for name, text in found}
    return lines


Adapters = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=DIR", help="an adapter of one of the models, over the same weights in memory"),
]
"""``--adapter`` of what serves models."""


def adapters_of(words: Sequence[str] | None) -> dict[str, Any]:
    """Open adapters, NAME=DIR; of one that is damaged return how, since it alone is not served."""
    from ..llm import LLM
    from ..serving.start import named

    found: dict[str, Any] = {}
    for name, ref in named(words or []).items():
        try:
            found[name] = LLM.from_pretrained(ref)
        except BundleError as error:
            if not bundle.is_adapter(Path(ref)):
                raise
            found[name] = error
    return found
