"""Samples of rows and cells, drawn at random and always the same ones."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def drawn(cells: pa.ChunkedArray, most: int) -> pa.ChunkedArray:
    """At most so many cells, those at `places`."""
    return cells if len(cells) <= most else cells.take(pa.array(places(len(cells), most)))


def places(count: int, most: int) -> np.ndarray:
    """At most so many of 0 to count - 1 in their order, drawn at random (always the same ones): even steps would see
    one sort of rows that alternate."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False, shuffle=False))
