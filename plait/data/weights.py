"""How much each row of a table counts, as a column of it says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from plait.data.kinds.number import parse_column
from plait.data.numerals import PLAIN
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import DataError


def read_weights(table: Table, schema: Schema, bad: Callable[..., None]) -> np.ndarray | None:
    """(n,) float64, NaN where the cell is empty, no number, or below 0: all but the empty ones go to `bad(row, column,
    kind, reason, cell)`. None where no column of the table holds weights."""
    column = next((c for c in schema.used("weight") if c.name in table.names), None)
    if column is None:
        return None
    cells = table.column(column.name)
    values, real, odd = parse_column(cells, column.style.get("number", PLAIN))
    odd += [(int(i), "below 0, and a weight is 0 or more") for i in np.flatnonzero(real & (values < 0))]
    for row, reason in odd:
        bad(row, column.name, column.kind, reason, cells[row].as_py())
    return np.where(real & (values >= 0), values, np.nan)


def levelled(weights: np.ndarray | None, index: np.ndarray) -> np.ndarray | None:
    """The weights, scaled so that their mean over the rows `index` is 1. Raises DataError where these are all 0."""
    if weights is None:
        return None
    mean = float(weights[index].mean())
    if not mean > 0:
        raise DataError("all training rows weigh 0: there is nothing to learn from")
    return weights / mean
