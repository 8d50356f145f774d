"""What to know of a table before training: kinds, gaps, broken cells, repetitions and columns that give the answer
away."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa

from plait.data.arrow import as_text
from plait.data.digest import cell_digests, row_digests
from plait.data.kinds import KINDS
from plait.data.kinds.category import column_text
from plait.data.kinds.number import parse_column
from plait.data.numerals import PLAIN
from plait.data.rows import Rows
from plait.data.schema import Column, Schema
from plait.data.table import Table

NEAR = 0.999
FEWEST = 10  # rows below which nothing is said about leaks


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
    inputs = [name for name in schema.inputs if name in table.names]
    whole = row_digests(table, schema, inputs)
    return {
        "rows": len(table),
        "columns": [_column(table, schema, rows, c, slots[c.name]) for c in schema.columns if c.name in table.names],
        "repeated_rows": len(whole) - len(set(whole.tolist())),
        "absent": list(rows.absent),
        "bad_cells": rows.bad.count(),
        "leaks": [leak for target in schema.targets if target in table.names for leak in leaks(table, schema, target)],
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


def _column(table: Table, schema: Schema, rows: Rows, column: Column, slot: str) -> dict:
    cells = table.column(column.name)
    filled = cells.drop_null()
    own = KINDS[column.kind].own_slot and column.use == "input"
    different = len(set(cell_digests(table, schema, column.name).tolist()) - {b""}) if len(filled) else 0
    return {
        "name": column.name,
        "kind": column.kind,
        "use": column.use,
        "slot": slot,
        "why": column.why,
        "examples": [_shown(c) for c in filled.slice(0, 3).to_pylist()],
        "missing": int(cells.null_count)
        + sum(n for remark, n in rows.notes.get(column.name, {}).items() if remark.startswith("empty")),
        "bad": rows.bad.by_reason(column.name),
        "repeated": len(filled) - different if own else 0,
        "notes": rows.notes.get(column.name, {}),
        "constant": different == 1,
    }


def _shown(cell: Any) -> str:
    if isinstance(cell, dict):
        cell = cell.get("path") or cell.get("bytes") or ""
    return as_text(cell)[:80]


def leaks(table: Table, schema: Schema, target: str) -> list[dict]:
    """Input columns that (nearly) determine the target by themselves, each with a sentence that says how."""
    answer = table.column(target)
    texts = np.asarray(column_text(answer).to_pylist(), dtype=object)
    found = []
    for name in schema.inputs:
        if name not in table.names:
            continue
        column, cells = schema.column(name), table.column(name)
        media = KINDS[column.kind].media
        said = None
        if media or column.kind == "text":
            if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
                said = _names_answer(name, cells.to_pylist(), target, texts, media)
        elif not KINDS[column.kind].own_slot:
            said = _copies(name, cells, target, texts) or _correlates(
                name, cells, column, schema.column(target), answer
            )
            said = said or _determines(name, cells, target, texts)
        if said:
            found.append({"column": name, "target": target, "sentence": said, "read": not media})
    return found


def _both(cells: pa.ChunkedArray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(column_text(cells).to_pylist(), dtype=object)
    real = np.asarray([a is not None and b is not None for a, b in zip(values, texts)], dtype=bool)
    return values[real], texts[real]


def _copies(name: str, cells: pa.ChunkedArray, target: str, texts: np.ndarray) -> str | None:
    a, b = _both(cells, texts)
    same = int((a == b).sum())
    if len(a) < FEWEST or same < NEAR * len(a):
        return None
    return f"{name!r} is a copy of the target {target!r}: the two are equal in {same:,} of {len(a):,} rows."


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


def _determines(name: str, cells: pa.ChunkedArray, target: str, texts: np.ndarray) -> str | None:
    a, b = _both(cells, texts)
    if len(a) < FEWEST:
        return None
    values, i = np.unique(a.astype(str), return_inverse=True)
    classes, j = np.unique(b.astype(str), return_inverse=True)
    if len(values) * 3 > len(a) or len(classes) * 3 > len(a) or len(classes) < 2:
        return None
    pairs, many = np.unique(np.stack([i, j]), axis=1, return_counts=True)
    best = np.zeros(len(values), np.int64)
    np.maximum.at(best, pairs[0], many)
    right, usual = int(best.sum()), int(np.bincount(j).max())
    if right < NEAR * len(a) or usual > 0.99 * len(a):
        return None
    how = "one-to-one" if len(values) == len(classes) else f"{len(values):,} values to {len(classes):,}"
    return f"{name!r} alone tells the target {target!r} in {right:,} of {len(a):,} rows ({how})."


def _names_answer(name: str, cells: list, target: str, texts: np.ndarray, media: bool) -> str | None:
    both = [(c.casefold(), t.casefold()) for c, t in zip(cells, texts) if c is not None and t is not None]
    if len(both) < FEWEST or len({t for _, t in both}) < 2:
        return None
    labels = [t for _, t in both]
    others = sorted(set(labels))
    turned = dict(zip(others, others[1:] + others[:1]))
    hits = sum(_holds(c, t) for c, t in both)
    chance = sum(_holds(c, turned[t]) for c, t in both)  # how often another label is there just as well
    if hits < 0.95 * len(both) or chance > 0.5 * len(both):
        return None
    where = "file names" if media else "texts"
    after = " The model reads the files, not their names, so this alone does no harm." if media else ""
    return f"the {where} of {name!r} contain the target {target!r} in {hits:,} of {len(both):,} rows.{after}"


def _holds(text: str, label: str) -> bool:
    """Whether a label stands in a text as a word of its own; "_", "/", "-" and "." part words too."""
    return label in text and re.search(rf"(?<![^\W_]){re.escape(label)}(?![^\W_])", text) is not None
