"""Levels that have an order, such as poor < fair < good: a category whose values keep it."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from plait.data.kinds.base import FitOptions, Glance
from plait.data.kinds.category import CategoryKind, column_text, typed
from plait.data.words import Labels, plain_number
from plait.errors import DataError


class OrdinalKind(CategoryKind):
    """As a category; asked for, all levels of the column's order are known, those without a training row too."""

    name, of_file = "ordinal", True

    def guess(self, glance: Glance) -> str | None:
        """Never: a target whose type has its values in order is of this kind, and what `--kind` says is."""
        return None

    def disagrees(self, params: dict) -> str:
        return super().disagrees(params) or ("fewer than two levels" if len(params.get("classes", [0, 0])) < 2 else "")

    def fit_target(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`classes` and `values` in their order, and the `counts` of each, which may be 0."""
        style = options.style
        order = style["order"] if "order" in style else levels(column, None, "the target")
        found, counts = Labels(order), [0] * len(order)
        for pair in pc.value_counts(column_text(column).drop_null()).to_pylist():
            if (at := found.find(pair["values"])) is not None:
                counts[at] += pair["counts"]
        kind = style.get("type", str(column.type))
        return {"values": list(order), "classes": [typed(value, kind) for value in order], "counts": counts}


def levels(column: pa.ChunkedArray, given: Sequence[str] | None, name: str) -> list[str]:
    """The levels of a column in order, as text: those `given`, else numbers by their size.

    Raises DataError where cells hold words whose order nobody gave, or a level that is not among those given.
    """
    texts = pc.unique(column_text(column).drop_null()).to_pylist()
    how = f'--kind "{name}=ordinal:LOWEST<...<HIGHEST"'
    if given is None:
        numbers = {text: plain_number(text) for text in texts}
        words = [text for text, number in numbers.items() if number is None]
        if words:
            raise DataError(
                f"nothing says in which order the levels of {name!r} are (such as {', '.join(map(repr, words[:3]))}): "
                f"name all, {how}, or give an ordered pandas category"
            )
        return sorted({number for number in numbers.values() if number is not None}, key=float)
    known, there = Labels(given), list(dict.fromkeys(given))
    if len(there) < max(len(given), 2):
        raise DataError(f"{name!r} has the levels {'<'.join(given)}: expected two or more, all different, as in {how}")
    if new := [text for text in texts if known.find(text) is None]:
        raise DataError(
            f"{name!r} holds {', '.join(map(repr, new[:3]))}, which is none of {'<'.join(given)}: name all levels"
        )
    return there
