"""Categories: a vocabulary learnt from the training rows -> ids, 0 = missing or never seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plait.data.arrow import as_text
from plait.data.kinds.base import Encoded, FitOptions, Glance, Kind, Place

MOST = 10_000


class CategoryKind(Kind):
    """Values are compared as text; whole decimals as whole numbers (3.0 is 3), so that a column may change its type
    between tables."""

    name, slot, own_slot = "category", "category", False

    def guess(self, glance: Glance) -> str | None:
        if not (glance.is_text or pa.types.is_boolean(glance.column.type)):
            return None
        return f"{glance.distinct:,} different values in {glance.count:,} cells"

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`values`: the most frequent first (ties by name), at most 10,000; value i has id i + 1."""
        counts = pc.value_counts(column_text(column).drop_null())
        pairs = sorted(((c["counts"], c["values"]) for c in counts.to_pylist()), key=lambda p: (-p[0], p[1]))
        return {"values": [value for _, value in pairs[:MOST]]}

    def width(self, params: dict) -> int:
        return 1

    def sizes(self, params: dict) -> int:
        """The number of ids, 0 included."""
        return len(params["values"]) + 1

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        return self.encode_column(pa.chunked_array([pa.array([cell])]), params, place).values[0]

    def encode_column(self, column: pa.ChunkedArray, params: dict, place: Place) -> Encoded:
        """values (n, 1) int64. A value that was never seen is not real, and is counted."""
        texts = column_text(column)
        found = pc.index_in(texts, value_set=pa.array(params["values"], texts.type))
        ids = found.fill_null(-1).to_numpy().astype(np.int64) + 1
        unseen = int((texts.is_valid().to_numpy(zero_copy_only=False).astype(bool) & (ids == 0)).sum())
        if unseen:
            place.note("never seen", unseen)
        return Encoded(ids[:, None], ids > 0, [])


def column_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The cells as text: stripped strings (empty ones null), booleans as true/false, whole decimals without a point,
    lists as JSON."""
    kind = column.type
    if pa.types.is_floating(kind):
        values = column.cast(pa.float64())
        whole = pc.all(pc.or_kleene(pc.equal(pc.floor(values), values), pc.is_nan(values))).as_py()
        fits = whole and pc.all(pc.or_kleene(pc.less(pc.abs(values), 2.0**53), pc.is_nan(values))).as_py()
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
        return values.cast(pa.int64()).cast(pa.string()) if fits else values.cast(pa.string())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
        return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.large_string()), texts)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
        return column.cast(pa.string())
    return pa.chunked_array([pa.array([None if c is None else as_text(c) for c in column.to_pylist()], pa.string())])
