"""``llmasos runs``: what was trained here, how it went, and what differs between runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import runs
from ..core import plugins
from ..core.errors import UsageError, did_you_mean
from ..progress import duration
from ..runs import Entry
from .output import AsJson, say, show_json, show_table

EXAMPLES = """
llmasos runs list --task text-classification --limit 10
llmasos runs show 3f9a
llmasos runs compare 3f9a 81c2
llmasos runs plot 3f9a 81c2 --output curves.png
llmasos runs rm 3f9a
"""

ACTIONS = {"list": ("task", "model", "limit"), "show": (), "compare": (), "plot": ("output",), "rm": ("model_too",)}
"""What can be done, and the options that it takes."""

_LEDGER = ("rows", "kept", "truncated", "dropped", "duplicates", "contradictory", "in_evaluation_data")


def run(
    action: Annotated[str, typer.Argument(metavar="list|show|compare|plot|rm", help="what to do")],
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID ...]", help="runs, by the beginnings of their ids")
    ] = None,
    *,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="list: only this task")] = None,
    model: Annotated[str | None, typer.Option(metavar="TEXT", help="list: only models with this in their name")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="list: only the newest", min=1)] = None,
    output: Annotated[str | None, typer.Option(metavar="FILE", help="plot: the picture, a .png")] = None,
    model_too: Annotated[
        bool, typer.Option("--model-too", help="rm: remove the folder of the model too, not only what the store holds")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List, show, compare, plot and remove the runs of this machine.

    Every fine-tuning is entered when it starts. A run whose process was killed is shown as lost.
    """
    given = {"task": task, "model": model, "limit": limit, "output": output, "model_too": model_too or None}
    _check(action, ids or [], {name for name, value in given.items() if value is not None})
    if action == "list":
        _list(task, model, limit, as_json=as_json)
        return
    chosen = list({entry.id: entry for entry in map(runs.find, ids or [])}.values())
    if action == "show":
        _show(chosen[0], as_json=as_json)
    elif action == "compare":
        _compare(chosen, as_json=as_json)
    elif action == "plot":
        _plot(chosen, Path(output or ""), as_json=as_json)
    else:
        _remove(chosen, model_too=model_too, as_json=as_json)


def _check(action: str, ids: list[str], given: set[str]) -> None:
    if action not in ACTIONS:
        raise UsageError(
            f"there is no action {action!r}", hint=f"{did_you_mean(action, ACTIONS)}one of {', '.join(ACTIONS)}"
        )
    for name in sorted(given - set(ACTIONS[action])):
        raise UsageError(f"--{name.replace('_', '-')} does nothing with runs {action}", hint="leave it out")
    least, most = {"list": (0, 0), "show": (1, 1), "compare": (2, 99)}.get(action, (1, 99))
    if not least <= len(ids) <= most:
        wanted = {(0, 0): "no ids", (1, 1): "one id", (2, 99): "two ids or more"}.get((least, most), "an id")
        raise UsageError(f"runs {action} takes {wanted}; {len(ids)} given", hint="llmasos runs list shows them")
    if action == "plot" and "output" not in given:
        raise UsageError("no picture named", hint="--output curves.png")


# -- list -------------------------------------------------------------------------------------------------


def _list(task: str | None, model: str | None, limit: int | None, *, as_json: bool) -> None:
    if task is not None and task not in (known := plugins.names("tasks")):
        raise UsageError(f"there is no task {task!r}", hint=f"{did_you_mean(task, known)}one of {', '.join(known)}")
    found = [
        entry for entry in runs.entries() if task in (None, entry.task) and (model or "").lower() in entry.model.lower()
    ][:limit]
    if as_json:
        show_json({"runs": [_as_dict(entry) for entry in found]})
        return
    if not found:
        say("no runs")
        return
    head = ("id", "started", "status", "task", "model", "metric", "time", "where")
    show_table([head, *map(_row, found)])


def _row(entry: Entry) -> tuple[str, ...]:
    records, note = runs.place(entry)
    where = note if records is None or note else entry.folder
    seconds = "" if entry.seconds is None else duration(entry.seconds)
    return entry.id, _when(entry), entry.status, entry.task, entry.model, _metric(entry), seconds, where


def _when(entry: Entry) -> str:
    """Return the start in the user's own time."""
    return datetime.fromisoformat(entry.when).astimezone().strftime("%Y-%m-%d %H:%M") if entry.when else ""


def _metric(entry: Entry) -> str:
    return "" if entry.metric is None else f"{entry.metric['name']} {entry.metric['value']:.4f}"


def _as_dict(entry: Entry) -> dict[str, Any]:
    records, note = runs.place(entry)
    return {**asdict(entry), "records": None if records is None else str(records), "note": note or None}


# -- show -------------------------------------------------------------------------------------------------


def _show(entry: Entry, *, as_json: bool) -> None:
    record = runs.record(entry)
    if as_json:
        show_json({**_as_dict(entry), "record": record})
        return
    note = runs.place(entry).note
    rows = [("run", entry.id), ("started", _when(entry)), ("status", entry.status + _bracketed(entry.reason)),
            ("task", entry.task), ("model", entry.model), ("folder", entry.folder + _bracketed(note)),
            ("metric", _metric(entry)), *_cost(entry)]  # fmt: skip
    show_table([row for row in rows if row[1]])
    if record is None:
        return
    if record["result"]:
        print()
        show_table([("metric", "value", "95 % interval"), *_metric_rows(record)], right=(1, 2))
    print("\nconfiguration")
    show_table([(name, _word(value)) for name, value in record["config"].items()])
    print("\nrows")
    names = [*record["ledgers"]]
    show_table([("", *names), *_ledger_rows(record)], right=range(1, len(names) + 1))
    print("\nlineage")
    show_table(list(_lineage(record)))


def _bracketed(text: str) -> str:
    return f" ({text})" if text else ""


def _cost(entry: Entry) -> Iterator[tuple[str, str]]:
    if entry.seconds is not None:
        steps = "" if entry.steps is None else f" for {entry.steps:,} steps"
        energy = "" if entry.energy is None else f", {entry.energy / 3600:,.2f} Wh of the whole machine"
        yield "cost", f"{duration(entry.seconds)}{steps}{energy}"


def _metric_rows(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [(name, f"{value:.4f}", ends) for name, (value, ends) in _metrics(record).items()]


def _metrics(record: Mapping[str, Any] | None) -> dict[str, tuple[float, str]]:
    """Return name -> value and interval of the kept model's metrics."""
    result = (record or {}).get("result") or {}
    intervals = (result.get("report") or {}).get("metrics", {})
    ends = {name: f"{interval['low']:.4f} to {interval['high']:.4f}" for name, interval in intervals.items()}
    return {name: (value, ends.get(name, "")) for name, value in result.get("metrics", {}).items()}


def _ledger_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name in _LEDGER:
        yield name.replace("_", " "), *(f"{ledger[name]:,}" for ledger in record["ledgers"].values())


def _lineage(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    base = record["base"]
    yield "base", base["ref"] + (f" at {base['revision']}" if base["revision"] else "")
    for name, data in record["data"].items():
        yield f"{name} data", f"{data['rows']:,} rows, fingerprint {data['fingerprint'][:16]}"
    yield "made by", f"llmasos {record['llmasos']}, " + ", ".join(f"{k} {v}" for k, v in record["versions"].items())


def _word(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# -- compare, plot, rm ------------------------------------------------------------------------------------


def _compare(chosen: list[Entry], *, as_json: bool) -> None:
    records = {entry.id: _recorded(entry) for entry in chosen}
    flat = {id: _flat(record) for id, record in records.items()}
    names = dict.fromkeys(name for one in flat.values() for name in one)
    differing = {
        name: {id: one.get(name) for id, one in flat.items()}
        for name in names
        if len({repr(one.get(name)) for one in flat.values()}) > 1
    }
    metrics = {id: _metrics(record) for id, record in records.items()}
    scored = dict.fromkeys(name for one in metrics.values() for name in one)
    if as_json:
        results = {id: (record["result"] or {}) for id, record in records.items()}
        found = {id: (result.get("report") or {}).get("metrics") or result.get("metrics", {})
                 for id, result in results.items()}  # fmt: skip
        show_json({"runs": [_as_dict(entry) for entry in chosen], "differing": differing, "metrics": found})
        return
    head = [entry.id for entry in chosen]
    rows = [(name, *(_word(values[id]) for id in head)) for name, values in differing.items()]
    show_table([("what differs", *head), *rows] if rows else [("nothing differs in the configuration",)])
    print()
    cells = [(name, *(_cell(metrics[id].get(name)) for id in head)) for name in scored]
    costs = ("time", *("" if entry.seconds is None else duration(entry.seconds) for entry in chosen))
    show_table([("metric", *head), *cells, costs])


def _recorded(entry: Entry) -> dict[str, Any]:
    record = runs.record(entry)
    if record is None:
        raise UsageError(f"run {entry.id} has no records: {runs.place(entry).note}", hint="leave it out")
    return record


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that a run is made of under one name each."""
    return {
        "model": record["base"]["ref"],
        "revision": record["base"]["revision"],
        **{f"task.{name}" if name != "tag" else "task": value for name, value in record["task"].items()},
        **{name: value for name, value in record["config"].items() if name != "report_to"},
        **{f"{name} data": data["fingerprint"][:16] for name, data in record["data"].items()},
        "forward": record["forward"],
        "llmasos": record["llmasos"],
        **record["versions"],
    }


def _cell(metric: tuple[float, str] | None) -> str:
    return "" if metric is None else f"{metric[0]:.4f}{_bracketed(metric[1])}"


def _plot(chosen: list[Entry], picture: Path, *, as_json: bool) -> None:
    from ..training.curves import plot_curves, plot_runs

    if picture.suffix.lower() != ".png":
        raise UsageError(f"{picture} is not a .png", hint="--output curves.png")
    lines = {}
    for entry in chosen:
        records, note = runs.place(entry)
        if records is None or not (records / "metrics.jsonl").is_file():
            raise UsageError(f"run {entry.id} has no curves: {note}", hint="leave it out")
        lines[f"{entry.id} {Path(entry.folder).name if entry.has_output else entry.task}"] = records / "metrics.jsonl"
    picture.parent.mkdir(parents=True, exist_ok=True)
    if len(lines) == 1:
        plot_curves(next(iter(lines.values())), picture)
    else:
        plot_runs(lines, picture)
    if as_json:
        show_json({"runs": [entry.id for entry in chosen], "output": str(picture)})
    else:
        print(f"picture: {picture}")


def _remove(chosen: list[Entry], *, model_too: bool, as_json: bool) -> None:
    removed = {}
    for entry in chosen:
        folder = runs.remove(entry, model_too=model_too)
        removed[entry.id] = None if folder is None else str(folder)
        if not as_json:
            kept = f"; {entry.folder} stays as it is" if entry.has_output and folder is None else ""
            print(f"removed {entry.id}" + (f" and {folder}" if folder else kept))
    if as_json:
        show_json({"removed": removed})
