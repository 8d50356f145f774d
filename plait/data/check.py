"""What to know of a table before training: kinds, gaps, broken cells, repetitions and columns that give the answer
away."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plait.data.arrow import as_text
from plait.data.digest import cell_digests, row_digests, same_digests
from plait.data.drawn import places
from plait.data.kinds import KINDS
from plait.data.kinds.category import column_text
from plait.data.kinds.number import parse_column
from plait.data.numerals import PLAIN
from plait.data.rows import Rows
from plait.data.schema import Column, Schema
from plait.data.table import Table
from plait.data.threads import each

NEAR = 0.999
FEWEST = 10  # rows below which nothing is said about leaks
SOME, FILLED = 10_000, 1000  # rows of a large table that are looked at first, where so many cells of these are filled


def check_table(table: Table, schema: Schema, rows: Rows) -> dict:
    """A report as plain data.

    Keys: `rows`; `columns` (name, kind, use, slot, why, examples, missing, bad {reason: cells}, repeated, notes
    {remark: cells}, constant); `repeated_rows` (rows whose inputs equal those of an earlier row); `absent` (input
    columns that the table lacks); `bad_cells`; `leaks` (column, target, sentence, read: whether the model would read
    what gives the answer away).
    """
    rows.scan()
    table = schema.read(table)
    slots = {d["name"]: d["slot"] for d in schema.describe()}
    notes = rows.notes
    inputs = [name for name in schema.inputs if table.has(name)]
    whole = row_digests(table, schema, inputs)
    return {
        "rows": len(table),
        "columns": each(
            lambda c: _column(table, schema, rows, c, slots[c.name], notes.get(c.name, {})),
            [c for c in schema.columns if table.has(c.name)],
            len(table),
        ),
        "repeated_rows": len(whole) - int(same_digests(whole).max(initial=-1)) - 1,
        "absent": list(rows.absent),
        "bad_cells": rows.bad.count(),
        "leaks": [leak for target in schema.targets if table.has(target) for leak in leaks(table, schema, target)],
    }


def unreadable(rows: Rows) -> list[str]:
    """A sentence for each input of media of which no cell can be read: what is wrong, and where was looked."""
    said, there = [], rows.presence()
    for slot in rows.schema.slots:
        (name, *_) = slot.columns
        if not KINDS[slot.kind].media or name in rows.absent or there[slot.name].any():
            continue
        reasons = rows.bad.by_reason(name)
        if not reasons:
            continue
        first = next(c for c in rows.table.column(name).to_pylist() if c is not None)
        where = (
            f", looked for under {rows.table.root}" if rows.table.root is not None and isinstance(first, str) else ""
        )
        why = "; ".join(f"{count:,} x {reason}" for reason, count in reasons.items())
        said.append(f"NO CELL of {name!r} can be read: {why} (such as {_shown(first)!r}{where})")
    return said


def _column(table: Table, schema: Schema, rows: Rows, column: Column, slot: str, notes: dict) -> dict:
    cells = table.column(column.name)
    filled = cells.drop_null()
    own = KINDS[column.kind].own_slot and column.use == "input"
    different = int(same_digests(cell_digests(table, schema, column.name)).max(initial=-1)) + 1 if own else 0
    return {
        "name": column.name,
        "kind": column.kind,
        "use": column.use,
        "slot": slot,
        "why": column.why,
        "examples": [_shown(c) for c in filled.slice(0, 3).to_pylist()],
        "missing": int(cells.null_count) + sum(n for remark, n in notes.items() if remark.startswith("empty")),
        "bad": rows.bad.by_reason(column.name),
        "repeated": len(filled) - different if own else 0,
        "notes": notes,
        "constant": different == 1 if own else _constant(filled),
    }


def _constant(filled: pa.ChunkedArray) -> bool:
    """Whether cells, of which none is null, say the same."""
    texts = column_text(filled.slice(0, FEWEST)).drop_null()
    if pc.count_distinct(texts).as_py() > 1:
        return False
    return pc.count_distinct(column_text(filled).drop_null()).as_py() == 1


def _shown(cell: Any) -> str:
    if isinstance(cell, dict):
        cell = cell.get("path") or cell.get("bytes") or ""
    return as_text(cell)[:80]


def leaks(table: Table, schema: Schema, target: str) -> list[dict]:
    """Input columns that (nearly) determine the target by themselves, each with a sentence that says how.

    What is said holds of all rows. Of a large table some are looked at first, and what is far from it there is let be.
    """
    n = len(table)
    some = pa.array(places(n, SOME)) if n > 2 * SOME else None
    answer = _Answers(table.column(target))
    few = answer if some is None else _Answers(table.column(target).take(some))
    if _filled(few.cells) < FILLED:
        some, few = None, answer

    def look(name: str) -> dict | None:
        column, cells = schema.column(name), table.column(name)
        media = KINDS[column.kind].media
        said, part = None, None if some is None else cells.take(some)
        if part is not None and _filled(part) < FILLED:
            part = None
        if media or column.kind == "text":
            if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
                if part is None or _names_answer(name, part, target, few, media, slack=0.05):
                    said = _names_answer(name, cells, target, answer, media)
        elif not KINDS[column.kind].own_slot:
            if part is None or _copies(name, part, target, few, slack=0.01):
                said = _copies(name, cells, target, answer)
            said = said or _correlates(name, cells, column, schema.column(target), answer.cells)
            if said or (_is_number(cells) and answer.too_many(_lacking(cells))):
                pass
            elif part is None or _may_determine(name, part, cells, target, few):
                said = _determines(name, cells, target, answer)
        return {"column": name, "target": target, "sentence": said, "read": not media} if said else None

    found = each(look, [name for name in schema.inputs if table.has(name)], n)
    return [one for one in found if one]


class _Answers:
    """The cells of a target: as they are, as texts, and which of the different ones each is."""

    def __init__(self, cells: pa.ChunkedArray):
        self.cells = cells

    @cached_property
    def texts(self) -> pa.ChunkedArray:
        return _texts(self.cells)

    @cached_property
    def codes(self) -> np.ndarray:
        """(n,) from 0; -1 where there is none."""
        return _codes(self.texts)

    @cached_property
    def different(self) -> int:
        return int(self.codes.max(initial=-1)) + 1

    def too_many(self, lacking: int) -> bool:
        """Whether more than a third of the cells differ, where so many rows are left out: nothing determines them."""
        return 3 * (self.different - lacking) > len(self.codes)


def _filled(cells: pa.ChunkedArray) -> int:
    return len(cells) - cells.null_count


def _is_number(cells: pa.ChunkedArray) -> bool:
    return pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type)


def _lacking(cells: pa.ChunkedArray) -> int:
    """How many cells of numbers are none."""
    return pc.sum(pc.is_null(cells, nan_is_null=True)).as_py()


def _texts(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    return column_text(cells).cast(pa.large_string())


def _codes(texts: pa.ChunkedArray) -> np.ndarray:
    return pc.dictionary_encode(texts).combine_chunks().indices.fill_null(-1).to_numpy()


def _copies(name: str, cells: pa.ChunkedArray, target: str, answer: _Answers, slack: float = 0.0) -> str | None:
    equal = pc.equal(_texts(cells), answer.texts)  # null where one is
    both, same = len(equal) - equal.null_count, pc.sum(equal).as_py() or 0
    if both < FEWEST or same < (NEAR - slack) * both:
        return None
    return f"{name!r} is a copy of the target {target!r}: the two are equal in {same:,} of {both:,} rows."


def _correlates(
    name: str, cells: pa.ChunkedArray, column: Column, answer: Column, target: pa.ChunkedArray
) -> str | None:
    if column.kind != "number" or answer.kind != "number":
        return None
    (x, a, _), (y, b, _) = (
        parse_column(c, k.style.get("number", PLAIN)) for c, k in ((cells, column), (target, answer))
    )
    x, y = x[a & b], y[a & b]
    if len(x) < FEWEST or x.std() == 0 or y.std() == 0:
        return None
    r = float(np.corrcoef(x, y)[0, 1])
    return (
        f"{name!r} and the target {answer.name!r} are the same number up to scale (correlation {r:.4f})."
        if abs(r) > NEAR
        else None
    )


def _may_determine(
    name: str, part: pa.ChunkedArray, cells: pa.ChunkedArray, target: str, few: _Answers
) -> str | bool | None:
    """Whether some rows of a column let it determine the target; of many values they do not tell."""
    if 10 * pc.count_distinct(_texts(part)).as_py() <= len(part):
        return _determines(name, part, target, few, slack=0.01)
    return pa.types.is_nested(cells.type) or 3 * pc.count_distinct(cells).as_py() <= len(cells)


def _determines(name: str, cells: pa.ChunkedArray, target: str, answer: _Answers, slack: float = 0.0) -> str | None:
    texts, j = _texts(cells), answer.codes
    if answer.too_many(texts.null_count):
        return None
    i = _codes(texts)
    known = (i >= 0) & (j >= 0)
    if not known.all():
        i, j = i[known], j[known]
    if len(i) < FEWEST:
        return None
    values, classes = np.flatnonzero(np.bincount(i)), np.flatnonzero(np.bincount(j))
    if len(values) * 3 > len(i) or len(classes) * 3 > len(i) or len(classes) < 2:
        return None
    width = int(j.max()) + 1
    if (int(i.max()) + 1) * width <= 4 * len(i):
        right = int(np.bincount(i * width + j, minlength=(int(i.max()) + 1) * width).reshape(-1, width).max(1).sum())
    else:
        pairs, many = np.unique(i.astype(np.int64) * width + j, return_counts=True)
        best = np.zeros(int(i.max()) + 1, np.int64)
        np.maximum.at(best, pairs // width, many)
        right = int(best.sum())
    usual = int(np.bincount(j).max())
    if right < (NEAR - slack) * len(i) or usual > (0.99 + slack) * len(i):
        return None
    how = "one-to-one" if len(values) == len(classes) else f"{len(values):,} values to {len(classes):,}"
    return f"{name!r} alone tells the target {target!r} in {right:,} of {len(i):,} rows ({how})."


def _names_answer(
    name: str, cells: pa.ChunkedArray, target: str, answer: _Answers, media: bool, slack: float = 0.0
) -> str | None:
    real = pc.and_(cells.is_valid(), answer.texts.is_valid())
    labels = [t.casefold() for t in answer.texts.filter(real).to_pylist()]
    if len(labels) < FEWEST or len(set(labels)) < 2:
        return None
    both = list(zip((c.casefold() for c in cells.filter(real).to_pylist()), labels))
    others = sorted(set(labels))
    turned = dict(zip(others, others[1:] + others[:1]))
    hits = sum(_holds(c, t) for c, t in both)
    chance = sum(_holds(c, turned[t]) for c, t in both)  # how often another label is there just as well
    if hits < (0.95 - slack) * len(both) or chance > (0.5 + slack) * len(both):
        return None
    where = "file names" if media else "texts"
    after = " The model reads the files, not their names, so this alone does no harm." if media else ""
    return f"the {where} of {name!r} contain the target {target!r} in {hits:,} of {len(both):,} rows.{after}"


def _holds(text: str, label: str) -> bool:
    """Whether a label stands in a text as a word of its own; "_", "/", "-" and "." part words too."""
    return label in text and re.search(rf"(?<![^\W_]){re.escape(label)}(?![^\W_])", text) is not None
