"""Yes or no: a category with two values, however it is written."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from plait.data.kinds.base import Encoded, FitOptions, Glance, Place, counted
from plait.data.kinds.category import CategoryKind, column_text

YES = {"true", "t", "yes", "y", "1", "on"}
NO = {"false", "f", "no", "n", "0", "off"}


class BooleanKind(CategoryKind):
    """Ids: 0 missing, 1 no, 2 yes. `params["values"]` is ["false", "true"]."""

    name, slot, own_slot = "boolean", "category", False

    def guess(self, glance: Glance) -> str | None:
        if pa.types.is_boolean(glance.column.type):
            return "type bool"
        if not (glance.is_text or pa.types.is_integer(glance.column.type)) or glance.distinct > 12:
            return None
        words = {str(v).strip().lower() for v in glance.filled.unique().to_pylist()} - {""}
        if words and words <= YES | NO and words & YES and words & NO:
            return counted(glance.count, glance.count, f"are {' or '.join(sorted(words))}")
        return None

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        return {"values": ["false", "true"]}

    def fit_target(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """As for an input, and the `counts` of no and yes."""
        params = self.fit(column, options)
        ids = self.encode_column(column, params, options.place).values
        return params | {"counts": [int((ids == i).sum()) for i in (1, 2)]}

    def encode_column(self, column: pa.ChunkedArray, params: dict, place: Place) -> Encoded:
        """values (n, 1) int64. A cell that is neither yes nor no is bad."""
        texts = column_text(column).to_pylist()
        ids, bad = np.zeros(len(texts), np.int64), []
        for i, text in enumerate(texts):
            if text is None:
                continue
            word = text.lower()
            ids[i] = 2 if word in YES else 1 if word in NO else 0
            if not ids[i]:
                bad.append((i, "neither yes nor no"))
        return Encoded(ids[:, None], ids > 0, bad)
