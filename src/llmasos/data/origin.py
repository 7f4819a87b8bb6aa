"""See any source of rows (lists, columns, pandas, Hugging Face, files) as columns and records."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.errors import DataError, UsageError, shown
from . import dealing
from .arrow import IN_MEMORY, place_of
from .files import Complain, Content, Record, data_files, format_of, open_file, parts_of
from .shards import File, stamp

if TYPE_CHECKING:
    from ..tasks.base import Field

_HEAD = 1000


class Origin(NamedTuple):
    """A source with its name; ``key`` names its content where it is large, ``digits`` if all is text.

    ``files`` are the names of its files, where it has several.
    """

    name: str
    content: Content
    key: str | None = None
    digits: bool = False
    files: tuple[str, ...] = ()


def origin_of(source: Any, fields: Sequence[Field], complain: Complain, *, head: int = _HEAD) -> Origin:
    """Return the rows of anything that holds rows.

    Args:
        source: what ``read`` takes.
        fields: the task's fields: they name the parts of tuples.
        complain: called with every item that is no row.
        head: items that are looked at before the first is handed on, to learn the columns.

    Raises:
        UsageError: this kind of value holds no rows.
        DataError: the source as a whole cannot be read.
    """
    if isinstance(source, str | Path):
        return _file(source, complain)
    if isinstance(source, Mapping):
        return _columns("<dict>", source)
    pandas, hub = sys.modules.get("pandas"), sys.modules.get("datasets")
    if pandas is not None and isinstance(source, pandas.DataFrame):
        return _columns("<DataFrame>", {str(name): _series(source[name]) for name in source.columns})
    if hub is not None and isinstance(source, hub.Dataset):
        return _hub(source)
    if isinstance(source, Iterable):
        name = "<list>" if isinstance(source, list | tuple) else f"<{type(source).__name__}>"
        return Origin(name, _items(name, source, fields, complain, head))
    raise UsageError(
        f"data is {shown(source)}",
        hint="give a path, a list of (text, label) or of dicts, a dict of columns, a DataFrame or a Dataset",
    )


def spread(origin: Origin, fields: Sequence[Field]) -> Origin:
    """Offer the parts of a column that holds objects as columns, "translation.de", where a field looks for them."""
    inside = {alias.partition(".")[0] for field in fields for alias in field.aliases if "." in alias}
    inside &= set(origin.content.columns)
    if not inside:
        return origin
    rest = iter(origin.content.records)
    first = next(rest, None)

    def parts(record: Record) -> dict[str, Any]:
        objects = {name: value for name in inside if isinstance(value := record.values.get(name), Mapping)}
        return {f"{name}.{key}": item for name, value in objects.items() for key, item in value.items()}

    columns = [*origin.content.columns, *({} if first is None else parts(first))]
    records = (r._replace(values={**r.values, **parts(r)}) for r in chain([] if first is None else [first], rest))
    return origin._replace(content=Content(columns, records))


def _file(source: str | Path, complain: Complain) -> Origin:
    files = data_files(source)
    kind, packed = format_of(files[0])
    states = [stamp(file) for file in files]
    is_large = sum(size for _, size, _ in states) > IN_MEMORY // (8 if packed or kind == "parquet" else 1)
    key = "\n".join(f"{path} {size} {when}" for path, size, when in states) if is_large else None
    has_columns = kind in ("csv", "tsv", "parquet")
    several = len(files) > 1
    content = _files(files, complain, has_columns) if several else open_file(files[0], complain)
    names = tuple(file.name for file in files) if several else ()
    name = "/".join(str(source).rstrip("/").split("/")[-2:]) if several else files[0].name
    return Origin(name, content, key, digits=kind in ("csv", "tsv"), files=names)


def _files(files: Sequence[File], complain: Complain, has_columns: bool) -> Content:
    """Read files one after the other, wherever the parts of data are worked on."""
    columns = open_file(files[0], lambda *_: None).columns  # complaints come when its rows do

    def records() -> Iterator[Record]:
        read = partial(parts_of, columns=columns if has_columns else None)
        for part in dealing.dealt(read, enumerate(files)):
            yield from part.rows
            for wrong in part.wrong:
                complain(*wrong)

    return Content(columns, records())


def _columns(name: str, source: Mapping[str, Any]) -> Origin:
    split = next((key for key, column in source.items() if hasattr(column, "column_names")), None)
    if split is not None:
        raise UsageError("data is a DatasetDict", hint=f"give one of its splits: data[{split!r}]")
    for column, values in source.items():
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise DataError(
                f"{name}, column {column!r}: found {shown(values)}, expected a list of values",
                hint='give {"text": [...], "label": [...]}, or a list of dicts',
            )
    lengths = {column: len(values) for column, values in source.items()}
    if len(set(lengths.values())) > 1:
        shown_lengths = ", ".join(f"{column} {length}" for column, length in lengths.items())
        raise DataError(f"{name} has columns of different lengths: {shown_lengths}", hint="one value for each row")
    names = list(map(str, source))
    rows = zip(*source.values()) if source else iter(())
    return Origin(name, Content(names, (Record(dict(zip(names, row))) for row in rows)))


def _series(column: Any) -> list[Any]:
    """Return a pandas column as Python values, missing ones (NaN, NA, NaT) as None."""
    values = column.astype(object)
    return list(values.where(column.notna(), None))


def _hub(source: Any) -> Origin:
    """Read a datasets.Dataset; class labels become their names, columns of images and the like are left."""
    features = {name: getattr(kind, "feature", kind) for name, kind in source.features.items()}
    usable = [name for name, kind in features.items() if _is_plain(kind)]
    names = {name: features[name].names for name in usable if type(features[name]).__name__ == "ClassLabel"}
    data = source.with_format(None).select_columns(usable)

    def records() -> Iterator[Record]:
        for start in range(0, len(data), _HEAD):
            columns = data[start : start + _HEAD]
            for column, known in names.items():
                columns[column] = [_class_name(value, known) for value in columns[column]]
            yield from (Record(dict(zip(columns, row))) for row in zip(*columns.values()))

    key = f"datasets {source._fingerprint}" if data.data.nbytes > IN_MEMORY else None
    return Origin("<Dataset>", Content(usable, records()), key)


def _is_plain(kind: Any) -> bool:
    """Whether a feature is values, class labels, or lists and objects of these."""
    if isinstance(kind, Mapping):
        return all(map(_is_plain, kind.values()))
    inner = getattr(kind, "feature", None)
    return type(kind).__name__ in ("Value", "ClassLabel", "Translation") if inner is None else _is_plain(inner)


def _class_name(value: Any, names: list[str]) -> Any:
    """Return the name of a class number, of a list of them, or None for the -1 of unlabelled rows."""
    if isinstance(value, list):
        return [_class_name(item, names) for item in value]
    return None if value is None or value < 0 else names[value]


def _items(name: str, source: Iterable[Any], fields: Sequence[Field], complain: Complain, head: int) -> Content:
    def records() -> Iterator[Record]:
        for number, item in enumerate(source):
            values = item if isinstance(item, Mapping) else _named(item, fields)
            if values is None:
                what = f"{place_of(name, number, None)}: found {shown(item)}"
                complain(f"{what}, expected a text, a (text, label) tuple or a dict", "correct these rows")
            else:
                yield Record(values)

    rows = records()
    first = list(islice(rows, head))
    return Content(list(dict.fromkeys(str(key) for row in first for key in row.values)), chain(first, rows))


def _named(item: Any, fields: Sequence[Field]) -> dict[str, Any] | None:
    """Name the parts of a text, (text, label), (text, text_pair, label) or ((text, text_pair), label).

    As many items as there are required texts, if several, are these texts.
    """
    texts = [field.name for field in fields if field.kind in ("text", "content") and not field.is_answer]
    labels = [field.name for field in fields if field.kind == "label" or field.is_answer]
    if isinstance(item, str):
        return {texts[0]: item}
    if not isinstance(item, tuple | list) or not item:
        return None
    needed = [field.name for field in fields if field.required and field.name in texts]
    if len(item) == len(needed) > 1 and not isinstance(item[0], tuple | list):
        return dict(zip(needed, item))
    numbers = {field.name for field in fields if field.kind == "number"}
    if numbers:  # of several answers, a number is the one that is a number
        is_number = isinstance(item[-1], int | float)
        labels = [name for name in labels if (name in numbers) == is_number]
    first, *rest = item
    if isinstance(first, tuple | list):
        return _zipped(texts, first, labels, rest)
    return _zipped(texts, [first, *rest[:-1]], labels, rest[-1:])


def _zipped(texts: list[str], first: Sequence[Any], labels: list[str], rest: Sequence[Any]) -> dict[str, Any] | None:
    if len(first) > len(texts) or len(rest) > len(labels):
        return None
    return {**dict(zip(texts, first)), **dict(zip(labels, rest))}
