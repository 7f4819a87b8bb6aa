"""Find which column of a source carries which field of the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from ..tasks.base import Field, Task


def choose(
    name: str,
    available: Sequence[str],
    fields: Sequence[Field],
    given: Mapping[str, str] | None = None,
    *,
    labelled: bool = True,
) -> dict[str, str]:
    """Return the column of each field that the source has, in the order of the fields.

    Args:
        name: the source, for messages.
        available: the columns of the source.
        fields: the task's fields; each is looked for under its aliases, exact first.
        given: columns that the user named, by field; these are not looked for.
        labelled: whether labels are wanted at all.

    Raises:
        UsageError: ``given`` names a field that the task does not have.
        DataError: a required field has no column, or several.
    """
    given = dict(given or {})
    _check(name, available, fields, given)
    chosen: dict[str, str] = {}
    for field in fields:
        if field.is_answer and not labelled:
            continue
        taken = {column for other, column in given.items() if other != field.name} | set(chosen.values())
        free = [column for column in available if column not in taken]
        column = given.get(field.name) or _found(name, free, field)
        if column is not None:
            chosen[field.name] = column
        elif field.required:
            raise _missing(name, available, field)
    contents = [field for field in fields if not field.is_answer]
    if not any(field.name in chosen for field in contents):
        raise DataError(
            f"{name} has no column that the task reads; columns found: {', '.join(available) or 'none'}",
            hint=f'name one with columns={{"{contents[0].name}": "{available[0] if available else "..."}"}}; '
            f"fields: {', '.join(field.name for field in contents)}",
        )
    return chosen


def _check(name: str, available: Sequence[str], fields: Sequence[Field], given: Mapping[str, str]) -> None:
    known = [field.name for field in fields]
    for field, column in given.items():
        if field not in known:
            turned = f"write the field first: columns={{{column!r}: {field!r}}}; " if column in known else ""
            raise UsageError(
                f"columns names {field!r}, which is no field of the task",
                hint=f"{turned or did_you_mean(field, known)}fields: {', '.join(known)}",
            )
        if column not in available:
            raise DataError(
                f"{name} has no column {column!r} (named for {field})",
                hint=f"{did_you_mean(column, available)}columns: {', '.join(available)}",
            )
    columns = list(given.values())
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        raise UsageError(f"columns gives {twice[0]!r} to two fields", hint="name one column for each field")


def _found(name: str, free: Sequence[str], field: Field) -> str | None:
    aliases = field.aliases or (field.name,)
    for alias in aliases:
        if alias in free:
            return alias
    for alias in aliases:
        same = [column for column in free if column.strip().lower() == alias.lower()]
        if len(same) > 1:
            raise DataError(
                f"{name} has several columns for {field.name}: {', '.join(same)}",
                hint=f'choose one with columns={{"{field.name}": "{same[0]}"}} (--columns {field.name}={same[0]})',
            )
        if same:
            return same[0]
    return None


def _missing(name: str, available: Sequence[str], field: Field) -> DataError:
    found = ", ".join(available) or "none"
    if len(available) == 1 and (sign := next((s for s in ";\t|" if s in available[0]), None)):
        hint = f"its fields look separated by {sign!r}: save it with commas as .csv, or with tabs as .tsv"
    else:
        near = next((n for alias in (field.name, *field.aliases) if (n := did_you_mean(alias, available))), "")
        example = near.split("'")[1] if near else (available[0] if available else "...")
        hint = (
            f'{near}name it with columns={{"{field.name}": "{example}"}} '
            f'(--columns {field.name}={example})'
        )  # fmt: skip
    what = f" ({field.doc})" if field.doc else ""
    return DataError(f"{name} has no column for {field.name}{what}; columns found: {found}", hint=hint)


def is_row(data: Any, task: Task, columns: Mapping[str, str] | None) -> bool:
    """Say whether this is one row, field -> content, rather than a table, column -> values."""
    if not isinstance(data, Mapping) or not data:
        return False
    if all(isinstance(value, str) for value in data.values()):
        return True
    names = choose("<dict>", list(map(str, data)), task.fields, columns, labelled=False)
    return task.problem({field: data[column] for field, column in names.items()}, labelled=False) is None
