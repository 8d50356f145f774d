"""One table of what was given, and which of its rows are for training, for watching it, and for the report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from plait.data.kinds import KINDS, Place
from plait.data.kinds.base import FitOptions
from plait.data.kinds.place import is_path
from plait.data.schema import Column, Schema
from plait.data.split import split_in_time, split_rows
from plait.data.table import Table, read_table
from plait.data.unify import end_to_end, unify
from plait.errors import DataError, UsageError
from plait.runs.settings import Settings


def gather(first: Table, schema: Schema, settings: Settings) -> tuple[Table, dict[str, np.ndarray] | None]:
    """One table, read as the training file is written, and the splits that files of their own give."""
    given = {name: path for name, path in (("val", settings.val), ("test", settings.test)) if path is not None}
    if not given:
        return schema.read(first), None
    tables = {"train": first} | {name: read_table(path) for name, path in given.items()}
    used = {c.name for c in schema.columns if c.use != "ignored" or c.name == settings.time}
    for name, t in tables.items():
        lacking = [c for c in first.names if c in used and c not in t.names]
        if lacking:
            raise DataError(
                f"{t.source} lacks the column {lacking[0]!r} of {first.source}: give the {name} table the same columns"
            )
    read = {name: _rooted(schema.read(t), schema, first) for name, t in tables.items()}
    names = [n for n in first.names if n in used]
    columns = []
    for name in names:
        decimal = schema.column(name).style.get("number", {}).get("decimal", ".")
        columns.append(end_to_end(unify(name, [t.column(name) for t in read.values()], decimal)))
    ends = np.cumsum([len(t) for t in tables.values()])
    rows = {name: np.arange(end - len(t), end) for (name, t), end in zip(tables.items(), ends)}
    return Table(pa.Table.from_arrays(columns, names=names), first.root, first.source, reader=schema), rows


def _rooted(table: Table, schema: Schema, first: Table) -> Table:
    """A table with the media paths of another folder rewritten, so that they are found from the first table's."""
    if table.root == first.root or not table.root or not first.root:
        return table
    data = table.data
    for column in schema.columns:
        if (
            KINDS[column.kind].media
            and column.name in table.names
            and pa.types.is_string(data.column(column.name).type)
        ):
            cells = data.column(column.name).to_pylist()
            moved = [str((table.root / c).resolve()) if c and is_path(c) else c for c in cells]
            data = data.set_column(data.column_names.index(column.name), column.name, pa.array(moved, pa.string()))
    return replace(table, data=data)


def classes(table: Table, schema: Schema) -> list[int | None] | None:
    """The class of each row, None where it has none; None where the target is of no classes."""
    if len(schema.targets) != 1 or schema.used("target")[0].kind not in ("category", "boolean", "ordinal"):
        return None
    column, labels = schema.used("target")[0], KINDS["category"]
    cells, place = table.column(column.name), Place()
    known = labels.fit(cells, FitOptions(place, style=column.style))
    return [i or None for i in labels.encode_column(cells, known, place).values[:, 0].tolist()]


def split(
    table: Table, schema: Schema, settings: Settings, given: dict[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    if settings.time is not None:
        return _in_time(table, schema, settings, given)
    stratify, group = classes(table, schema), next((c.name for c in schema.used("group")), None)
    if given is None:
        return split_rows(
            table,
            schema,
            fractions=settings.fractions,
            seed=settings.seed,
            group=group,
            column=next((c.name for c in schema.used("split")), None),
            stratify=stratify,
        )
    if "val" not in given:  # a test table alone: a tenth of the training rows watches the training
        train = given["train"]
        part = split_rows(
            table.take(train),
            schema,
            fractions=(0.9, 0.1, 0.0),
            seed=settings.seed,
            group=group,
            stratify=None if stratify is None else [stratify[i] for i in train],
        )
        given = {**given, "train": train[part["train"]], "val": train[part["val"]]}
    return {"test": np.zeros(0, np.int64), **given}


def parted(schema: Schema, settings: Settings, splits: dict[str, np.ndarray], table: Table) -> str:
    """How rows were split, where it was not at random. A date that is read though it was so is remarked on."""
    if settings.time is not None:
        first = splits["test" if len(splits["test"]) else "val"]
        cells = table.column(settings.time).take(pa.array(first)).to_pylist()
        return f"by {settings.time}, tested from {min(cells)} on" if len(splits["test"]) else f"by {settings.time}"
    dates = [c.name for c in schema.used("input") if c.kind == "datetime" and _dated(c, table)]
    if dates and not (settings.split or settings.group or settings.val or settings.test):
        schema.said.append(
            f"rows were split at random, and {dates[0]!r} holds dates: where later rows are to be told from earlier "
            f"ones, --time {dates[0]} tests on the latest"
        )
    return ""


def _dated(column: Column, table: Table) -> bool:
    """Whether it holds dates, and not times of day or spans of time."""
    kind = table.column(column.name).type
    clock = column.style.get("moment", {}).get("form") == "clock"
    return not (clock or pa.types.is_time(kind))


def _in_time(
    table: Table, schema: Schema, settings: Settings, given: dict[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    others = {"split": settings.split, "group": settings.group, "val": settings.val}
    if clash := [name for name, value in others.items() if value is not None]:
        raise UsageError(f"time and {clash[0]} both say how rows are split: give one of them")
    assert settings.time is not None
    if given is None:
        return split_in_time(table, schema, settings.time, settings.fractions)
    train = given["train"]
    part = split_in_time(table.take(train), schema, settings.time, (0.9, 0.1, 0.0))
    return given | {"train": train[part["train"]], "val": train[part["val"]]}
