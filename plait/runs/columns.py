"""Columns between a table and a run: which of them a run means, and what it makes of theirs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from plait.data.kinds import KINDS
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import UsageError

LISTS = ("vector", "labels", "series", "points", "boxes")  # kinds of which a cell may be a list


def aligned(table: Table, schema: Schema, *, any_name: bool = False) -> Table:
    """The table with its columns named as in the schema, where that can only mean one thing: one that is called by its
    kind is the schema's only one of that kind.

    any_name: the schema is of no table, and whatever column is the only one of its kind is meant. Raises UsageError
    where there are several and nothing else is there.
    """
    inputs = schema.used("input")
    for column in inputs:
        only = sum(c.kind == column.kind for c in inputs) == 1
        if column.name not in table.names and KINDS[column.kind].media and only and column.kind in table.names:
            table = renamed(table, column.kind, column.name)
    if not any_name:
        return table
    several: list[str] = []
    for look in (of_kind, strings):
        for column in inputs:
            found = [] if column.name in table.names else look(table, column.kind)
            found = [name for name in found if name not in {c.name for c in schema.columns}]
            if len(found) == 1:
                table = renamed(table, found[0], column.name)
            elif found:
                several.append(f"{', '.join(found)} for {column.name!r}")
        if {c.name for c in inputs} & set(table.names):
            return table
    if several:
        raise UsageError(
            f"{table.source} has several columns that might be meant: {'; '.join(several)}. Call the one that is meant "
            "so, or make the run with --kind NAME=KIND"
        )
    return table


def of_kind(table: Table, kind: str) -> list[str]:
    """The columns that look like this kind."""
    return [
        c.name
        for c in Schema.guess(table, inputs=[n for n in table.names if n not in table.unread]).columns
        if c.kind == kind
    ]


def strings(table: Table, kind: str) -> list[str]:
    """Where texts are asked for, the columns of words that look like classes; none beside pictures or sounds."""
    guessed = {
        c.name: c.kind for c in Schema.guess(table, inputs=[n for n in table.names if n not in table.unread]).columns
    }
    if kind != "text" or any(KINDS[k].media for k in guessed.values()):
        return []
    return [n for n, k in guessed.items() if k == "category" and pa.types.is_string(table.column(n).type)]


def _kinds(table: Table) -> dict[str, str]:
    """{column: the kind that it looks like}."""
    readable = [name for name in table.names if name not in table.unread]
    return {c.name: c.kind for c in Schema.guess(table, inputs=readable).columns}


def one_row(source: Any, schema: Schema) -> Any:
    """A dict of cells, such as {"rooms": 3, "town": "Bern"}, as the table of one row that it means; anything else as it
    is. Lists are cells where the column's kind has lists in its cells."""
    if not isinstance(source, dict) or not source:
        return source
    kinds = {c.name: c.kind for c in schema.columns}
    lone = {n for n, v in source.items() if isinstance(v, (str, bytes, dict)) or not hasattr(v, "__len__")}
    if not lone or any(kinds.get(name) not in LISTS for name in source.keys() - lone):
        return source
    return {name: [str(v) if isinstance(v, Path) else v] for name, v in source.items()}


def asking(schema: Schema) -> Schema:
    """The schema as queries are read: what stands before a text that asks may be other than before one that is
    found."""
    columns = [replace(c, params=c.params | {"prefix": c.params.get("query", "")}) for c in schema.columns]
    odd = any("query" in c.params for c in schema.columns)
    return Schema(columns, schema.slots, schema.allow_outside) if odd else schema


def renamed(table: Table, old: str, new: str) -> Table:
    data = table.data.rename_columns([new if name == old else name for name in table.names])
    written = {new if name == old else name: cells for name, cells in table.written.items()}
    return replace(table, data=data, written=written)


def safe(name: str) -> str:
    """A column's name as a part of a file's."""
    return re.sub(r"[^\w-]+", "_", name)


def like(table: Table, name: str) -> pa.ChunkedArray:
    """A column of `table`; nulls where it has none."""
    return table.column(name) if name in table.names else pa.chunked_array([pa.nulls(len(table))])


def unread(rows: Rows) -> list[str]:
    out: list[list[str]] = [[] for _ in range(len(rows))]
    for row, column in sorted(rows.bad.cells):
        out[row].append(column)
    return [", ".join(names) for names in out]
