"""Whole numbers that are codes: each has an effect of its own on the target, whatever its neighbours have."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa

from plait.data.arrow import taken
from plait.data.columns import Column
from plait.data.kinds import KINDS, Place
from plait.data.kinds.base import FitOptions
from plait.data.kinds.number import parse_column
from plait.data.schema import Schema
from plait.data.table import Table
from plait.data.threads import each

FEWEST, EACH = 50, 4  # rows in all, and of each number
SOME = 0.02  # the share of the target's variance that codes must tell
FEW = 12  # levels: of more, neighbours tell whether size matters; of fewer, a straight line
ROUGH = 0.25  # how much of their spread neighbours leave open, at least: of effects of their own all, of curves little
SURE = 4.0  # standard errors
CLASSES = 10  # the most frequent ones speak for all


def settle_codes(table: Table, schema: Schema, rows: np.ndarray, fixed: Collection[str] = ()) -> None:
    """Take the number columns of `schema` for categories that behave so in the training rows `rows`, but for those that
    are `fixed`. Nothing is done without one target of numbers or classes."""
    targets = schema.used("target")
    if len(targets) != 1 or targets[0].kind not in ("number", "category", "boolean", "ordinal") or not len(rows):
        return
    y = _target(taken(table.column(targets[0].name), rows), targets[0])
    told = ~np.isnan(y).any(1)

    def why(column: Column) -> str | None:
        """Why a column of numbers is one of categories."""
        cells = table.column(column.name)
        if column.kind != "number" or column.name in fixed or column.style.get("number", {}).get("units"):
            return None
        x, real, _ = parse_column(taken(cells, rows), column.style["number"])
        known = real & told
        if (x[known] % 1 != 0).any():
            return None
        levels, at, counts = counted_levels(x[known])
        if not behave_as_codes(levels, at, counts, y if known.all() else y[known]):
            return None
        often = f"{len(levels):,} whole numbers, each about {round(len(at) / len(levels)):,} times"
        return f"{often}, with effects that do not follow their size: codes (--kind {column.name}=number: amounts)"

    inputs = schema.used("input")
    found = zip(inputs, each(why, inputs, len(rows)))
    schema.take({column.name: ("category", reason) for column, reason in found if reason})


def _target(cells: pa.ChunkedArray, column: Column) -> np.ndarray:
    """(n, T) with NaN where nothing is known: the number, or a 1 for each of the frequent classes."""
    if column.kind == "number":
        values, real, _ = parse_column(cells, column.style["number"])
        return np.where(real, values, np.nan)[:, None]
    kind, place = KINDS["category"], Place()
    known = kind.fit(cells, FitOptions(place, style=column.style))
    found = kind.encode_column(cells, known, place)
    hot = (found.values == np.arange(1, min(CLASSES, len(known["values"])) + 1)).astype(np.float32)
    hot[~found.real] = np.nan
    return hot


def counted_levels(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of whole numbers (n,) the different ones (L,), which of them each is (n,), and how often each is there (L,): as
    `np.unique`, without sorting where they lie close together."""
    low = x.min() if len(x) else 0
    if not len(x) or x.max() > low + 4 * len(x):
        return np.unique(x, return_inverse=True, return_counts=True)
    place = (x - low).astype(np.int32 if len(x) < 2**28 else np.int64)
    counts = np.bincount(place)
    there = np.flatnonzero(counts)
    order = np.zeros(len(counts), np.int32)
    order[there] = np.arange(len(there))
    return there + low, order[place], counts[there]


def behave_as_codes(levels: np.ndarray, at: np.ndarray, counts: np.ndarray, y: np.ndarray) -> bool:
    """Whether the means of y (n, T) over `levels` (L,) tell it, and neither a straight line (of few levels) nor their
    neighbours (of many) tell the means. at (n,): each row's level; counts (L,)."""
    n, many = len(at), len(levels)
    if many < 3 or n < max(FEWEST, EACH * many):
        return False
    columns = [column - column.mean(dtype=np.float64) for column in y.T]
    means = (
        np.stack([np.bincount(at, weights=column, minlength=many) for column in columns], 1) / counts[:, None]
    )  # (L, T)
    total = sum(float(np.square(column, dtype=np.float64).sum()) for column in columns)
    between = (counts[:, None] * np.square(means)).sum()
    noise = max((total - between) / (n - many), 1e-9 * total / n)  # of one row, over all T
    if total <= 0 or (between - (many - 1) * noise) / total < SOME:
        return False
    if many <= FEW:
        line = np.polynomial.polynomial.polyfit(levels, means, 1, w=np.sqrt(counts))
        fitted = np.polynomial.polynomial.polyval(levels, line).T.reshape(means.shape)
        off, free = (counts[:, None] * np.square(means - fitted)).sum(), many - 2
        return bool((off - free * noise) / total >= SOME and (off / noise - free) / np.sqrt(2 * free) > SURE)
    left = (levels[2:] - levels[1:-1]) / (levels[2:] - levels[:-2])  # how much the neighbour below has to say
    off = np.square(means[1:-1] - left[:, None] * means[:-2] - (1 - left)[:, None] * means[2:]).sum(1)
    own = noise * (1 / counts[1:-1] + left**2 / counts[:-2] + (1 - left) ** 2 / counts[2:])
    rough = (off - own).sum() / (1 + left**2 + (1 - left) ** 2).sum()
    spread = np.square(means - means.mean(0)).sum() / (many - 1) - noise * (1 / counts).mean()
    return bool(rough > ROUGH * spread and (off / own - 1).sum() / np.sqrt(2 * len(off)) > SURE)
