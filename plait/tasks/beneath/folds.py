"""Rows to learn from and rows to answer, in turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from plait.tasks.beneath.asked import Asked, Classes
from plait.tasks.beneath.design import Parts


def taken(given: Parts, rows: Any) -> Parts:
    """The rows (a slice, or numbers) of parts."""

    def some(x: Any) -> Any:
        return x[rows] if isinstance(x, np.ndarray) or isinstance(rows, slice) else [x[i] for i in rows]

    return {name: some(x) for name, x in given.items()}


def folds_of(y: np.ndarray, asked: Asked) -> np.ndarray:
    """(n,) which fold each row is held out in, of rows in a random order; classes are spread evenly."""
    order = np.argsort(y, kind="stable") if isinstance(asked, Classes) else np.arange(len(y))
    folds = np.empty(len(y), np.int64)
    folds[order] = np.arange(len(y)) % (5 if len(y) < 5000 else 3)
    return folds


def splits(folds: np.ndarray, single: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(train, test) rows of each fold, or of the first."""
    for fold in range(1 if single else folds.max() + 1):
        yield np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
