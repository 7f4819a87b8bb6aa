"""Lines of a running text, joined into pieces that are long enough to learn from."""

from __future__ import annotations

from collections.abc import Iterator

from .files import Record


def joined(records: Iterator[Record], column: str, least: int) -> Iterator[Record]:
    """Join consecutive lines, each with its line end, into pieces; put end to end they are the text again.

    A piece ends with the first blank line after ``least`` characters, where a paragraph ends; or, if none comes,
    with the line that makes it twice as long. So pieces are nearly equal in length and no line is cut.

    Args:
        records: the lines, in order; what is no string is handed on as it is, for others to complain about.
        column: where the line is.
        least: characters of a piece.
    """
    parts: list[str] = []
    length, start, file = 0, None, 0

    def piece() -> Record:
        return Record({column: "".join(parts)}, start, file)

    for record in records:
        line = record.values.get(column)
        if not isinstance(line, str):
            yield record
            continue
        if not parts:
            length, start, file = 0, record.line, record.file
        parts.append(f"{line}\n")
        length += len(line) + 1
        if length >= 2 * least or (length >= least and not line.strip()):
            yield piece()
            parts.clear()
    if parts:
        yield piece()
