"""Splits that depend on what rows hold: the same table in another order is split alike, and identical rows never
part."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plait.data import moments
from plait.data.digest import cell_digests, row_digests, same_digests
from plait.data.hashes import mixed
from plait.data.kinds import KINDS
from plait.data.kinds.category import column_text
from plait.data.kinds.number import parse_column
from plait.data.numerals import PLAIN
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import DataError, UsageError

NAMES = ("train", "val", "test")
SPELLINGS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_rows(
    table: Table,
    schema: Schema,
    *,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    group: str | None = None,
    column: str | None = None,
    stratify: Sequence | np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Split rows into "train", "val" and "test": sorted row numbers.

    Rows are ordered by a digest of their input and target cells (media by their bytes) and the seed. Identical rows
    stay on one side,
    except in a table without media, text or vectors of which fewer than a tenth of the rows differ: there repetition is
    no leak.
    Rows of one `group` stay together. Sizes are exact as far as this allows; no split is empty while three groups of
    rows are there.

    Args:
        fractions: of train, val and test; they sum to 1.
        group: a column; all its rows of one value stay on one side. Rows without a value are groups of their own.
        column: a ready-made split; train/val/validation/dev/test (and other names, which become splits of their own).
        stratify: a class per row (None where unknown): classes are spread evenly, and every class with three rows
        appears in train.

    Raises:
        UsageError: fractions that do not sum to 1. DataError: rows without a split, or nothing to train on.
    """
    if column is not None:
        return _ready_made(table, column)
    parts = np.asarray(fractions, dtype=np.float64)
    if parts.shape != (3,) or (parts < 0).any() or abs(parts.sum() - 1) > 1e-6 or parts[0] == 0:
        raise UsageError(
            f"fractions must be three numbers >= 0 that sum to 1, with something to train on; got {tuple(fractions)}."
        )
    n = len(table)
    classes = _codes(stratify, n)
    clusters = _clusters(table, schema, group, seed)
    counts = np.bincount(classes, minlength=classes.max(initial=0) + 1)
    quota = {name: _quota(counts, float(f)) for name, f in zip(NAMES[1:], parts[1:])}
    over = np.maximum(quota["test"] + quota["val"] - np.maximum(counts - 1, 0), 0)  # a class keeps a row to train on
    for name in ("test", "val"):
        cut = np.minimum(over, quota[name])
        quota[name], over = quota[name] - cut, over - cut
    side = _fill(clusters, classes, counts, quota, {name: round(float(f) * n) for name, f in zip(NAMES[1:], parts[1:])})
    return {name: np.flatnonzero(side == i) for i, name in enumerate(NAMES)}


def split_in_time(
    table: Table,
    schema: Schema,
    name: str,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> dict[str, np.ndarray]:
    """The earliest rows to train, the latest to test, and those before them to watch, by the moments or numbers in the
    column `name`. Rows of one moment stay on one side; rows without a target have no say in where sides end, and train.

    Raises DataError for rows without a moment, or fewer different ones than sides; UsageError for a column of others.
    """
    when = _moments(table, schema, name)
    asked = [table.column(c).is_valid().to_numpy() for c in schema.targets if c in table.names]
    known = np.flatnonzero(np.all(asked, axis=0)) if asked else np.arange(len(table))
    order = known[np.argsort(when[known], kind="stable")]
    ends = np.flatnonzero(np.diff(when[order]) > 0) + 1  # where a side may end
    sides = [side for side, fraction in zip(NAMES[1:], fractions[1:]) if fraction > 0]
    if len(ends) < len(sides):
        raise DataError(
            f"{name!r} holds {len(ends) + 1} different times in the rows with a target, expected at least "
            f"{len(sides) + 1}: one to train on, and one for {' and '.join(sides)}"
        )
    found, stop, share = {}, len(order), dict(zip(NAMES, fractions))
    for left, side in reversed(list(enumerate(sides))):  # the latest first, and as many ends left as sides are to come
        wanted = stop - round(share[side] * len(order))
        free = ends[ends < stop][left:]
        start = int(free[np.argmin(np.abs(free - wanted))])
        found[side], stop = np.sort(order[start:stop]), start
    held = np.concatenate(list(found.values())) if found else np.zeros(0, np.int64)
    rest = np.setdiff1d(np.arange(len(table)), held)
    return {"train": rest} | {side: found.get(side, np.zeros(0, np.int64)) for side in NAMES[1:]}


def folds_in_time(table: Table, schema: Schema, name: str, folds: int) -> np.ndarray:
    """(n,) int64: the fold of each row, later ones with higher numbers, of about as many rows each; -1: the earliest
    rows, as many again, which are only learnt from. Rows of one moment share a fold. Raises as `split_in_time`."""
    when = _moments(table, schema, name)
    moments, first = np.unique(np.sort(when), return_index=True)
    if len(moments) <= folds:
        raise DataError(f"{name!r} holds {len(moments)} different times, expected at least {folds + 1}: one more fold")
    at = np.minimum(first * (folds + 1) // len(when), folds) - 1
    at = np.maximum(at, np.arange(len(moments)) - len(moments) + folds)  # no fold is empty
    for i in range(1, len(at)):
        at[i] = min(at[i], at[i - 1] + 1)
    return at[np.searchsorted(moments, when)].astype(np.int64)


def _moments(table: Table, schema: Schema, name: str) -> np.ndarray:
    """(n,) float64: what the column orders rows by."""
    column, cells = schema.column(name), table.column(name)
    if column.kind == "number":
        values, real, _ = parse_column(cells, column.style.get("number", PLAIN))
    elif column.kind == "datetime":
        values, real, _ = moments.read(cells, column.style.get("moment", moments.DATES))
    else:
        raise UsageError(
            f"time: {name!r} is taken for {column.kind} ({column.why}), expected dates or numbers; if it holds dates, "
            f"--kind {name}=datetime"
        )
    if not real.all():
        missing = np.flatnonzero(~real)
        raise DataError(f"{len(missing):,} rows have no time in {name!r} (the first is row {missing[0]}).")
    return values


def split_folds(
    table: Table,
    schema: Schema,
    folds: int,
    *,
    seed: int = 0,
    group: str | None = None,
    stratify: Sequence | np.ndarray | None = None,
) -> np.ndarray:
    """(n,) int64: the fold, from 0, that each row is held out in. Sizes differ by as little as groups allow; group and
    stratify as in `split_rows`, and identical rows share a fold.

    Raises DataError where there are fewer groups of rows than folds.
    """
    classes = _codes(stratify, len(table))
    together, starts = _clusters(table, schema, group, seed)
    clusters = np.split(together, starts[1:-1])
    if len(clusters) < folds:
        raise DataError(f"{len(clusters)} groups of rows are too few for {folds} folds: give --folds 1")
    side = np.zeros(len(table), np.int64)
    have = np.zeros((folds, classes.max(initial=0) + 1), np.int64)
    for rows in sorted(clusters, key=len, reverse=True):  # of equal ones in the order of their digests
        which, count = np.unique(classes[rows], return_counts=True)
        at = min(range(folds), key=lambda i: (int(have[i, which] @ count), int(have[i].sum()), i))
        side[rows] = at
        have[at, which] += count
    return side


def _clusters(table: Table, schema: Schema, group: str | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """All rows (n,), those that must stay together side by side and in the order of their digests, and where each such
    cluster begins, and the last ends (C + 1,)."""
    n = len(table)
    content = row_digests(table, schema, sorted(schema.inputs + schema.targets))
    order = mixed(content.view(np.uint64).reshape(-1, 2), f"split {seed}")[:, 0]
    same = same_digests(content)
    rich = any(KINDS[schema.column(c).kind].own_slot for c in schema.inputs)
    if not rich and same.max(initial=0) + 1 < n / 10:
        same = np.arange(n)
    keys = [same]
    if group is not None:
        texts = pc.dictionary_encode(column_text(table.column(group))).combine_chunks()
        keys.append(texts.indices.fill_null(-1).to_numpy().astype(np.int64))
    roots = linked(keys)
    by = np.lexsort((np.arange(n), roots))
    starts = np.flatnonzero(np.diff(roots[by], prepend=-1))
    first = np.minimum.reduceat(order[by], starts)
    order, sizes = np.lexsort((by[starts], first)), np.diff(starts, append=n)
    ends = np.cumsum(sizes[order])
    rows = by[np.repeat(starts[order] - ends + sizes[order], sizes[order]) + np.arange(n)]
    return rows, np.append(0, ends)


def linked(keys: list[np.ndarray]) -> np.ndarray:
    """The first of the rows that hang together (n,) int64: those that have a number of some key (n,) in common; -1 is
    none."""
    root = np.arange(len(keys[0]))
    sorts = []
    for key in keys:
        rows = np.flatnonzero(key >= 0)
        rows = rows[np.argsort(key[rows], kind="stable")]
        new = np.flatnonzero(np.diff(key[rows], prepend=-1))
        sorts.append((rows, new, np.diff(new, append=len(rows))))
    while True:
        before = root.copy()
        for rows, new, counts in sorts:
            if len(rows):
                root[rows] = np.repeat(np.minimum.reduceat(root[rows], new), counts)
        root = root[root]  # who hangs on one that hangs on another hangs on that
        if (root == before).all():
            return root


def _quota(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Rows per class, by largest remainder, summing to the rounded fraction of all rows."""
    exact = counts * fraction
    quota = np.floor(exact + 1e-9).astype(np.int64)
    short = max(0, round(fraction * int(counts.sum())) - int(quota.sum()))
    for k in np.argsort(-(exact - quota), kind="stable")[:short]:
        quota[k] += 1
    return quota


def _fill(
    clusters: tuple[np.ndarray, np.ndarray], classes: np.ndarray, counts: np.ndarray, quota: dict, totals: dict
) -> np.ndarray:
    """The side of each row (n,): 0 train, 1 val, 2 test."""
    rows, bounds = clusters
    starts, of_row = bounds.tolist(), classes[rows].tolist()
    alone = (np.diff(bounds) == 1).tolist()
    left = {name: quota[name].tolist() for name in quota}
    room, training = dict(totals), counts.copy()
    given = np.zeros(len(alone), np.int64)  # the side of each cluster

    def told(at: int) -> tuple[list[int], list[int]]:
        """The different classes of a cluster, and how often each is there."""
        if alone[at]:
            return [of_row[starts[at]]], [1]
        which, have = np.unique(of_row[starts[at] : starts[at + 1]], return_counts=True)
        return which.tolist(), have.tolist()

    def give(at: int, name: str) -> None:
        given[at] = NAMES.index(name)
        which, have = told(at)
        training[which] -= have
        room[name] -= starts[at + 1] - starts[at]

    for at in range(len(alone)):
        if room["test"] <= 0 and room["val"] <= 0:
            break
        which, have = told(at)
        size = starts[at + 1] - starts[at]
        emptier = room["test"] * max(totals["val"], 1) >= room["val"] * max(totals["test"], 1)
        for name in ("test", "val") if emptier else ("val", "test"):  # the emptier one first
            if size <= room[name] and all(n <= left[name][k] for k, n in zip(which, have)):
                for k, n in zip(which, have):
                    left[name][k] -= n
                give(at, name)
                break
    kept = np.flatnonzero(given == 0).tolist()

    def spared(at: int) -> bool:
        which, have = told(at)
        return bool((training[which] - have >= 1).all())

    for name in ("test", "val"):  # second round: reach the sizes where classes and groups did not come out even
        for i in range(len(kept) - 1, -1, -1):
            if room[name] <= 0:
                break
            if starts[kept[i] + 1] - starts[kept[i]] <= room[name] and spared(kept[i]):
                give(kept.pop(i), name)
    for name in ("test", "val"):  # no empty split while there are groups to spare
        if totals[name] > 0 and room[name] == totals[name] and len(kept) > 1:
            smallest = sorted(range(len(kept)), key=lambda i: starts[kept[i] + 1] - starts[kept[i]])
            pick = next((i for i in smallest if spared(kept[i])), None)
            if pick is not None:
                give(kept.pop(pick), name)
    side = np.empty(len(rows), np.int64)
    side[rows] = np.repeat(given, np.diff(bounds))
    return side


def _codes(stratify: Sequence | np.ndarray | None, n: int) -> np.ndarray:
    if stratify is None:
        return np.zeros(n, np.int64)
    values = stratify.tolist() if hasattr(stratify, "tolist") else list(stratify)
    if len(values) != n:
        raise UsageError(f"stratify has {len(values)} values, the table has {n} rows.")
    if len(set(map(type, values)) - {type(None)}) > 1:  # 1 and True are one key, and two names
        values = [str(v) for v in values]
    said = {v: str(v) for v in set(values)}
    codes = {name: i for i, name in enumerate(sorted(set(said.values())))}
    at = {v: codes[name] for v, name in said.items()}
    return np.fromiter(map(at.__getitem__, values), np.int64, n)


def _ready_made(table: Table, column: str) -> dict[str, np.ndarray]:
    texts = column_text(table.column(column)).to_pylist()
    missing = [i for i, t in enumerate(texts) if t is None]
    if missing:
        raise DataError(
            f"{len(missing):,} rows have no value in the split column {column!r} (the first is row {missing[0]})."
        )
    rows: dict[str, list[int]] = {name: [] for name in NAMES}
    for i, text in enumerate(texts):
        rows.setdefault(SPELLINGS.get(text.lower(), text), []).append(i)
    for name in rows:
        close = get_close_matches(name.lower(), SPELLINGS, n=1, cutoff=0.8)
        if name not in NAMES and close:
            raise DataError(f"the split column {column!r} holds {name!r}. Did you mean {close[0]!r}?")
    if len(rows) > 23:
        raise DataError(
            f"the split column {column!r} holds {len(rows) - 3} other values than train, val and test: it does not "
            "look like a split."
        )
    if not rows["train"]:
        raise DataError(
            f"the split column {column!r} has no 'train' rows; it holds "
            f"{', '.join(map(repr, sorted(set(texts))[:10]))}."
        )
    return {name: np.asarray(index, dtype=np.int64) for name, index in rows.items()}


def duplicates_across(table: Table, schema: Schema, splits: dict[str, np.ndarray]) -> list[dict]:
    """Contents that lie on several sides: one dict per content, {"what", "column", "rows", "splits"}.

    "what" is "inputs" (all input cells equal, "column" None) or "media" (one media cell with the same bytes). Contents
    with all input cells missing do not count.
    """
    names = list(splits)
    side = np.full(len(table), -1)
    for i, rows in enumerate(splits.values()):
        side[rows] = i
    inputs = [name for name in schema.inputs if table.has(name)]
    read = schema.read(table)
    found = []
    for rows in _crossing(row_digests(table, schema, inputs), side) if inputs else ():
        if not all(_blank(read.column(name).slice(int(rows[0]), 1), schema.column(name).kind) for name in inputs):
            found.append(_double("inputs", None, rows, side, names))
    for name in inputs:
        if KINDS[schema.column(name).kind].media:
            same = _crossing(cell_digests(table, schema, name), side)
            found += [_double("media", name, rows, side, names) for rows in same]
    return found


def _crossing(digests: np.ndarray, side: np.ndarray) -> list[np.ndarray]:
    """The rows of each content that lies on several sides (n,), -1 being none, in their order."""
    key = np.where(side >= 0, same_digests(digests), -1)
    rows = np.flatnonzero(key >= 0)
    rows = rows[np.argsort(key[rows], kind="stable")]
    if not len(rows):
        return []
    starts = np.flatnonzero(np.diff(key[rows], prepend=-1))
    apart = np.minimum.reduceat(side[rows], starts) != np.maximum.reduceat(side[rows], starts)
    ends = np.append(starts[1:], len(rows))
    groups = [rows[a:b] for a, b in zip(starts[apart].tolist(), ends[apart].tolist())]
    return sorted(groups, key=lambda g: g[0])


def _blank(cell: pa.ChunkedArray, kind: str) -> bool:
    return bool((cell if KINDS[kind].media else column_text(cell)).null_count)


def _double(what: str, column: str | None, rows: np.ndarray, side: np.ndarray, names: list[str]) -> dict:
    return {"what": what, "column": column, "rows": rows.tolist(), "splits": sorted({names[i] for i in side[rows]})}
