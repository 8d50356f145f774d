"""Yes or no: a category with two values, however it is written."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plait.core.declared import Record
from plait.data.kinds.base import COUNT, Encoded, FitOptions, Glance, Place, counted
from plait.data.kinds.category import BLANK, CategoryKind, column_text
from plait.data.words import Labels, yes_or_no


class BooleanKind(CategoryKind):
    """Ids: 0 missing, 1 no, 2 yes. `params["values"]` is ["false", "true"]. Where cells have one value or none, the one
    says yes and a blank no; `one` is that value."""

    name, slot, own_slot = "boolean", "category", False
    learnt: ClassVar[Record] = Record({"values": list[str]}, {"one": str, "counts": tuple[COUNT, COUNT]})

    def guess(self, glance: Glance) -> str | None:
        if glance.one_or_blank:
            blank = glance.column.null_count
            return f"{glance.count:,} cells are {str(glance.sample[0])[:30]!r} and {blank:,} blank: yes and no"
        if pa.types.is_boolean(glance.column.type):
            return "type bool"
        if not (glance.is_text or pa.types.is_integer(glance.column.type)) or glance.over(12):
            return None
        words = {str(v).strip().lower() for v in glance.filled.unique().to_pylist()} - {""}
        if {yes_or_no(word) for word in words} == {True, False}:
            return counted(glance.count, glance.count, f"are {' or '.join(sorted(words))}")
        return None

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        return {"values": ["false", "true"]} | ({"one": options.style["one"]} if "one" in options.style else {})

    def fit_target(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """As for an input, and the `counts` of no and yes."""
        params = self.fit(column, options)
        ids = self.encode_column(column, params, options.place).values
        return params | {"counts": [int((ids == i).sum()) for i in (1, 2)]}

    def encode_target(self, column: pa.ChunkedArray, params: dict, place: Place) -> Encoded:
        return self.encode_column(column, params, place)

    def encode_column(self, column: pa.ChunkedArray, params: dict, place: Place) -> Encoded:
        """values (n, 1) int64. A cell that is neither yes nor no is bad."""
        texts = pc.dictionary_encode(column_text(column)).combine_chunks()
        one = Labels([BLANK, params["one"]]) if "one" in params else None
        said = [yes_or_no(text) if one is None else one.find(text) for text in texts.dictionary.to_pylist()]
        known = np.asarray([0 if v is None else 1 + int(v) for v in said] + [0], np.int64)  # the last is for null
        at = texts.indices.fill_null(-1).to_numpy()
        ids = known[at]
        why = "neither yes nor no" if one is None else f"neither {params['one']!r} nor blank"
        bad = [(i, why) for i in np.flatnonzero((at >= 0) & (ids == 0)).tolist()]
        return Encoded(ids[:, None], ids > 0, bad)
