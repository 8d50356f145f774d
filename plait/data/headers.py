"""Where the rows of a table begin, and what their columns are called."""

from __future__ import annotations

import re
from collections import Counter
from itertools import count
from typing import NamedTuple

from plait.errors import DataError

COMMENTS = ("#", "%", "//")
WHOLE = re.compile(r"[+-]?\d+")
DECIMAL = re.compile(r"[+-]?\d*[.,]\d+(?:[eE][+-]?\d+)?")

Record = tuple[int, list[str]]  # how many lines stand before it, and its cells


class Header(NamedTuple):
    """The names of a table's columns; how many lines stand before the one that gives them, or before the first row
    where none does (`named`); columns that rows alone may have; and what had to be decided, in sentences."""

    names: list[str]
    lines: int
    named: bool
    spare: list[str]
    said: tuple[str, ...]


def header(records: list[Record], source: str) -> Header:
    """Find the header among a file's first records. Titles, comments and blank lines before it do not count.

    Raises:
        DataError: every record is blank.
    """
    rows = [(line, cells) for line, cells in records if any(c.strip() for c in cells)]
    if not rows:
        raise DataError(f"{source} starts with an empty line. Expected a header with column names.")
    rows = _without_comments(rows)
    widths = Counter(len(cells) for _, cells in rows)
    width = max(widths, key=lambda w: (widths[w], w == len(rows[0][1]), w))
    first = next(i for i, (_, cells) in enumerate(rows) if len(cells) == width)
    below = [cells for _, cells in rows[first + 1 :] if len(cells) == width]
    said: list[str] = []
    if first == 1 and len(rows[0][1]) == width - 1 and not _holds_cells(rows[0][1], []) and any(
        map(_is_number, rows[1][1])
    ):  # fmt: skip
        return _one_short(rows, width, source)
    first = _below_titles(rows, first, width)
    line, cells = rows[first]
    below = [cells for _, cells in rows[first + 1 :] if len(cells) == width]
    named = not _holds_cells(cells, below)
    if first:
        said.append(f"{source}: the first {first} line{'s' * (first > 1)} are no part of the table and left out")
    if not named:
        said.append(f"{source}: no line names the columns, they are called column_1 to column_{width}")
    names = named_columns(cells if named else [""] * width, source, said)
    return Header(names, line, named, [], tuple(said))


def named_columns(cells: list[str], source: str, said: list[str]) -> list[str]:
    """A name for each column: its own, without blanks at the ends; column_3 for none."""
    return distinct([name.strip().strip("\ufeff") or f"column_{i}" for i, name in enumerate(cells, 1)], source, said)


def distinct(names: list[str], source: str, said: list[str]) -> list[str]:
    """The names, with .1, .2... behind one that is there already. `said` gets a sentence on that."""
    taken, out, there = set(names), [], set[str]()
    for name in names:
        if name in there:
            name = next(new for i in count(1) if (new := f"{name}.{i}") not in taken)
            taken.add(name)
        out.append(name)
        there.add(name)
    if more := [new for name, new in zip(names, out) if name != new]:
        twice = sorted({n for n in names if names.count(n) > 1})
        said.append(
            f"{source} has several columns named {', '.join(map(repr, twice))}: the later ones are called "
            f"{', '.join(map(repr, more))}"
        )
    return out


def _one_short(rows: list[Record], width: int, source: str) -> Header:
    """A header with a name less than the rows have cells: R leaves out that of the column of names, and other programs
    end every row with a separator."""
    line, cells = rows[0]
    late = all(not row[-1].strip() for _, row in rows[1:] if len(row) == width)
    said: list[str] = []
    names = named_columns([*cells, ""] if late else ["", *cells], source, said)
    return Header(names, line, True, names[-1:] if late else [], tuple(said))


def _below_titles(rows: list[Record], first: int, width: int) -> int:
    """Where the names are, below titles that a program has filled up with separators: a record that is half empty,
    perhaps others without numbers, and then one that is full of words over numbers."""
    if 2 * sum(bool(c.strip()) for c in rows[first][1]) > width:
        return first
    whole = [(i, cells) for i, (_, cells) in enumerate(rows) if i >= first and len(cells) == width]
    at, cells = next(((i, c) for i, c in whole if any(map(_is_number, c)) or all(map(str.strip, c))), whole[-1])
    below = [row for i, row in whole if i > at]
    words = len({c.strip() for c in cells}) == width and all(map(str.strip, cells)) and not any(map(_is_number, cells))
    return at if words and not _holds_cells(cells, below) and any(map(_is_number, sum(below, []))) else first


def _without_comments(rows: list[Record]) -> list[Record]:
    """The records that are no comments. The last comment before the rows may name the columns: where the next record
    holds cells, and it has as many."""
    plain = [row for row in rows if not row[1][0].lstrip().startswith(COMMENTS)]
    if not plain:
        return rows
    before = [row for row in rows if row[0] < plain[0][0]]
    cells = plain[0][1]
    if before and len(before[-1][1]) == len(cells) > 1 and (any(map(_is_number, cells)) or _holds_cells(
        cells, [row for _, row in plain[1:]]
    )):  # fmt: skip
        return [before[-1], *plain]
    return plain


def _is_number(text: str) -> bool:
    return bool(WHOLE.fullmatch(text.strip()) or DECIMAL.fullmatch(text.strip()))


def _holds_cells(cells: list[str], below: list[list[str]]) -> bool:
    """Whether a record holds cells and no names: decimal numbers, whole ones that are neither years nor places, or what
    stands again below in the same columns."""
    texts = [c.strip() for c in cells]
    if _names_rows(texts, below):
        return False
    if any(DECIMAL.fullmatch(t) for t in texts):
        return True
    whole = [int(t) for t in texts if WHOLE.fullmatch(t)]
    if len(set(whole)) < len(whole):
        return True
    places = bool(whole) and whole == list(range(whole[0], whole[0] + len(whole)))
    if len(whole) == len(texts) > 1 and not places and not all(1000 <= w < 2200 for w in whole):
        return True
    filled, others = [(i, t) for i, t in enumerate(texts) if t], [row for row in below if row != cells]
    again = sum(any(row[i].strip() == t for row in others if i < len(row)) for i, t in filled)
    return 2 * again > len(filled)


def _names_rows(texts: list[str], below: list[list[str]]) -> bool:
    """Whether a record stands over names of rows: its first cell alone is empty, there only, and no cell is there twice
    in the first column, nor any of the record's in its own."""
    rows = [[c.strip() for c in row] for row in below]
    first = [row[0] for row in rows]
    if len(rows) < 3 or texts[0] or not all(texts[1:]) or len(set(texts)) < len(texts):
        return False
    return all(first) and len(set(first)) == len(first) and not any(t in row for t, *row in zip(texts, *rows))
