"""Column by column, how far new rows lie from those of a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from plait.data.columns import Column
from plait.data.kinds import KINDS, Place
from plait.data.kinds.category import column_text
from plait.data.kinds.number import parse_column
from plait.data.rows import Rows
from plait.evaluate.drift import Distance, kolmogorov_smirnov, stability_index, total_variation, unseen_words

LEVEL = 0.05  # how often chance may call any column of a report drifted that is not
FEWEST = 5  # cells of each side, of which a distance says something
CHUNK = 256  # rows that are decoded at once


class Moved(NamedTuple):
    """One measure of one column. distance: None where a side has too few cells. missing: the share of cells that hold
    nothing usable, in the reference and in the new rows; unseen: of the new classes or words, that which the reference
    has not; psi: the population stability index of classes."""

    column: str
    kind: str
    what: str
    distance: Distance | None
    missing: tuple[float, float]
    unseen: float | None = None
    psi: float | None = None

    @property
    def beyond(self) -> bool:
        """Whether it lies beyond what chance does."""
        return self.distance is not None and self.distance.beyond

    def to_json(self) -> dict:
        """Plain JSON."""
        told = self.distance and self.distance._asdict() | {"beyond": self.distance.beyond}
        return self._asdict() | {"distance": told, "missing": list(self.missing)}


Asked = tuple[Callable[[float], Distance] | None, Moved]  # how far it moved, at a level, and all else of it


def moved(columns: list[Column], reference: Rows, new: Rows) -> list[Moved]:
    """The measures of input and target columns. Each lies beyond chance so seldom that of all together that happens in
    5% of reports at most on rows that are drawn alike."""
    found = [one for column in columns for one in (*_column(column, reference, new), *_gaps(column, reference, new))]
    level = LEVEL / max(sum(how is not None for how, _ in found), 1)
    return [one if how is None else one._replace(distance=how(level)) for how, one in found]


def _column(column: Column, *sides: Rows) -> Iterator[Asked]:
    kind = KINDS[column.kind]
    if not all(rows.table.has(column.name) for rows in sides):
        yield None, Moved(column.name, column.kind, "not there", None, (_missing(column, sides[0]), 1.0))
    elif kind.own_slot:
        yield from _own(column, *sides)
    elif kind.slot == "category":
        yield _classes(column, *sides)
    else:
        both = [_numbers(column, rows) for rows in sides]
        yield _numeric(column, "days" if column.kind == "datetime" else "value", *both)


def _gaps(column: Column, *sides: Rows) -> Iterator[Asked]:
    """Whether more or fewer cells hold something."""
    if not all(rows.table.has(column.name) for rows in sides):
        return
    missing = (_missing(column, sides[0]), _missing(column, sides[1]))
    if max(missing) > 0:
        a, b = (np.rint([len(rows) * share, len(rows) * (1 - share)]) for rows, share in zip(sides, missing))
        yield (
            (lambda level: total_variation(a, b, level)),
            Moved(column.name, column.kind, "missing cells", None, missing),
        )


def _missing(column: Column, rows: Rows) -> float:
    if KINDS[column.kind].own_slot and column.use == "input":
        slot = next(s for s in rows.schema.slots if column.name in s.columns)
        return float((~rows.presence()[slot.name]).mean())
    return float(rows.table.column(column.name).null_count / len(rows))


def _numbers(column: Column, rows: Rows) -> np.ndarray:
    """(n,) of a column of numbers or dates, NaN where there is none."""
    cells = rows.table.column(column.name)
    if column.kind == "number":
        values, real, _ = parse_column(cells, column.params["style"])
    else:
        found = KINDS[column.kind].encode_column(cells, column.params, Place())
        values, real = found.values[:, -1].astype(np.float64), found.real
    return np.where(real & np.isfinite(values), values, np.nan)


def _numeric(column: Column, what: str, a: np.ndarray, b: np.ndarray) -> Asked:
    told = Moved(column.name, column.kind, what, None, (float(np.isnan(a).mean()), float(np.isnan(b).mean())))
    a, b = a[~np.isnan(a)], b[~np.isnan(b)]
    if min(len(a), len(b)) < FEWEST:
        return None, told
    return (lambda level: kolmogorov_smirnov(a, b, level)), told


def _classes(column: Column, *sides: Rows) -> Asked:
    """Of classes and levels; those that the reference has not are one more."""
    kind, counts, missing, unseen = KINDS[column.kind], [], [], 0.0
    for rows in sides:
        cells = rows.table.column(column.name)
        there = column_text(cells).is_valid().to_numpy(zero_copy_only=False).astype(bool)
        ids = kind.encode_column(cells, column.params, Place()).values[:, 0].astype(np.int64)
        found = np.bincount(np.where(ids > 0, ids, 0)[there], minlength=1)
        counts.append(found)
        missing.append(float((~there).mean()))
    width = max(map(len, counts))
    a, b = (np.pad(found, (0, width - len(found))) for found in counts)
    if b.sum():
        unseen = float(b[(a == 0) | (np.arange(width) == 0)].sum() / b.sum())
    told = Moved(column.name, column.kind, "classes", None, (missing[0], missing[1]), unseen)
    if min(a.sum(), b.sum()) < FEWEST:
        return None, told
    return (lambda level: total_variation(a, b, level)), told._replace(psi=stability_index(a, b))


def _own(column: Column, *sides: Rows) -> Iterator[Asked]:
    """Of texts the words, of media, series and vectors what tells of each as a whole."""
    missing = (_missing(column, sides[0]), _missing(column, sides[1]))
    if column.kind == "text":
        texts = [_texts(rows.table.column(column.name)) for rows in sides]
        a, b = texts
        if min(sum(bool(t.split()) for t in side) for side in texts) >= FEWEST:
            told = Moved(column.name, column.kind, "words", None, missing, unseen_words(a, b)[1])
            yield (lambda level: unseen_words(a, b, level)[0]), told
        lengths = [np.asarray([float(len(t.split())) for t in side]) for side in texts]
        how, told = _numeric(column, "length in words", *lengths)
        yield how, told._replace(missing=missing)
        return
    measures = [_measures(column, rows) for rows in sides]
    for what in measures[0]:
        how, told = _numeric(column, what, measures[0][what], measures[1].get(what, np.zeros(0)))
        yield how, told._replace(missing=missing)


def _texts(cells: pa.ChunkedArray) -> list[str]:
    return [str(cell) for cell in cells.drop_null().to_pylist()]


def _measures(column: Column, rows: Rows) -> dict[str, np.ndarray]:
    """{what: (n,)} of the cells that are there."""
    slot = next(s for s in rows.schema.slots if column.name in s.columns)
    found: dict[str, list[np.ndarray]] = {}
    index = np.flatnonzero(rows.presence()[slot.name])
    for start in range(0, len(index), CHUNK):
        batch = rows.batch(index[start : start + CHUNK])
        x, keep = batch[slot.name].float(), batch["keep"].get(slot.name)
        for what, values in _of(column, x, keep).items():
            found.setdefault(what, []).append(values.double().numpy())
    return {what: np.concatenate(parts) for what, parts in found.items()}


def _of(column: Column, x: torch.Tensor, keep: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Of decoded cells (B, ...): {what: (B,)}."""
    if column.kind == "image" and x.ndim == 4:
        grey = x.mean(1).flatten(1)
        colour = x.flatten(2).mean(2)
        return {"brightness": grey.mean(1), "contrast": grey.std(1), "colour": colour.amax(1) - colour.amin(1)}
    if keep is None:
        return {"length of the vector": x.flatten(1).norm(dim=1)}
    count = keep.sum(1).clamp(min=1)
    if column.kind == "audio" and x.ndim == 2:
        power = (x.square() * keep).sum(1) / count
        return {"seconds": keep.sum(1) / column.params["rate"], "loudness in dB": 10 * torch.log10(power + 1e-10)}
    whole = x.reshape(*x.shape[:2], -1).mean(2)
    return {"length": keep.sum(1), "mean": (whole * keep).sum(1) / count}
