"""Categories: a vocabulary learnt from the training rows -> ids, 0 = missing or never seen."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.data.arrow import as_text
from plait.data.kinds.base import Encoded, FitOptions, Glance, Kind, Place
from plait.parts.presence import Blank
from plait.parts.tokenizers.features import CategoryTokens

MOST = 10_000
MOST_STRAIGHT = 2000  # ids that a linear model reads one by one


class CategoryKind(Kind):
    """Values are compared as text; whole decimals as whole numbers (3.0 is 3), so that a column may change its type
    between tables."""

    name, slot, own_slot, straight, dtype = "category", "category", False, True, np.int64

    def guess(self, glance: Glance) -> str | None:
        if not (glance.is_text or pa.types.is_boolean(glance.column.type)):
            return None
        return f"{glance.distinct:,} different values in {glance.count:,} cells"

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`values`: the most frequent first (ties by name), at most 10,000; value i has id i + 1."""
        counts = pc.value_counts(column_text(column).drop_null())
        pairs = sorted(((c["counts"], c["values"]) for c in counts.to_pylist()), key=lambda p: (-p[0], p[1]))
        return {"values": [value for _, value in pairs[:MOST]]}

    def fit_target(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`classes` in their own order, as the table has them, `values` as text, and the `counts` of each."""
        texts, cells = column_text(column).to_pylist(), column.to_pylist()
        plain = {t: c if isinstance(c, (bool, int, float, str)) else t for t, c in zip(texts, cells) if t is not None}
        order = sorted(plain, key=lambda t: (isinstance(plain[t], str), plain[t]))
        counts = Counter(texts)
        return {"values": order, "classes": [plain[t] for t in order], "counts": [counts[t] for t in order]}

    def encode_target(self, column: pa.ChunkedArray, params: dict, place: Place) -> Encoded:
        """A class that no training row has is bad."""
        found = super().encode_target(column, params, place)
        valid = column_text(column).is_valid().to_numpy(zero_copy_only=False).astype(bool)
        never = np.flatnonzero(valid & ~found.real & ~np.isin(np.arange(len(valid)), [row for row, _ in found.bad]))
        return found._replace(bad=[*found.bad, *((int(i), "class not in the training rows") for i in never)])

    def target(self, x: Tensor, keep: Tensor | None, present: Tensor) -> Tensor:
        """Classes from 0."""
        return super().target(x - 1, keep, present)

    def width(self, params: dict) -> int:
        return 1

    def shape(self, columns: dict[str, dict]) -> dict:
        """`sizes`: the number of ids of each column, 0 included."""
        return {"sizes": [len(params["values"]) + 1 for params in columns.values()]}

    def arguments(self, shape: dict) -> dict:
        return {"sizes": tuple(shape["sizes"])}

    def tokens(self, width: int, sizes: tuple[int, ...]) -> nn.Module:
        """One token each."""
        return CategoryTokens(sizes, width)

    def blank(self, sizes: tuple[int, ...]) -> Blank:
        return (len(sizes),), torch.int64

    def raw(self, x: Tensor, keep: Tensor | None, sizes: tuple[int, ...]) -> Tensor:
        """One-hot, nothing for missing ones."""
        hot = [F.one_hot(x[:, i].clamp(0, n - 1), n)[:, 1:].float() for i, n in enumerate(sizes)]
        return torch.cat([F.pad(h, (1, 0)) for h in hot], 1)

    def raw_width(self, sizes: tuple[int, ...]) -> int:
        return sum(sizes) if sum(sizes) <= MOST_STRAIGHT else 0

    def write(self, value: np.ndarray, params: dict) -> Any:
        at = int(np.asarray(value).item())
        return params["values"][at - 1] if at > 0 else None

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
