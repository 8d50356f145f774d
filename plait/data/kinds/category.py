"""Categories: a vocabulary learnt from the training rows -> ids, 0 = missing or never seen."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.declared import WHOLE, Record
from plait.data.arrow import as_text
from plait.data.kinds.base import COUNT, Encoded, FitOptions, Glance, Kind, Place, Survey
from plait.data.words import Labels, labels, merged, plain_number, trimmed, yes_or_no
from plait.parts.presence import Blank
from plait.parts.tokenizers.features import CategoryTokens

MOST = 10_000
MOST_STRAIGHT = 2000  # ids that a linear model reads one by one
UNTAUGHT = "a class that no training row has: counted as wrong"
BLANK = "(blank)"  # a cell without a value, where that says something


class CategoryKind(Kind):
    """A value is a label, and all spellings of one are the same (`plait.data.words.Labels`): a column may change its
    type between tables. Values of a type that has them in order keep it."""

    name, slot, own_slot, straight, dtype = "category", "category", False, True, np.int64
    learnt: ClassVar[Record] = Record(
        {"values": list[str]}, {"classes": list[str | float | bool | None], "counts": list[COUNT]}
    )

    def guess(self, glance: Glance) -> str | None:
        if not (glance.is_text or pa.types.is_boolean(glance.column.type)):
            return None
        return f"{glance.distinct:,} different values in {glance.count:,} cells"

    def disagrees(self, params: dict) -> str:
        types = {float if isinstance(c, float) else type(c) for c in params.get("classes", []) if c is not None}
        if len(types) > 1:
            return "classes are of several types"
        if params.get("classes") and not any(params.get("counts", [])):
            return "no class has a row"
        return super().disagrees(params)

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`values`: in the order that their type has, or the most frequent first (ties by name); at most 10,000; value
        i has id i + 1."""
        pairs = _counted(column, options.style.get("order"))
        return {"values": [value for value, _ in pairs[:MOST]]}

    def fit_target(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`classes` in their own order, as the table has them, `values` as text, and the `counts` of each."""
        kind, ordered = options.style.get("type", str(column.type)), options.style.get("order")
        found = [(value, typed(value, kind), count) for value, count in _counted(column, ordered)]
        if ordered is None:
            found.sort(key=lambda f: (f[1] is None, isinstance(f[1], str), f[1] if f[1] is not None else 0))
        values, classes, counts = (list(part) for part in zip(*found)) if found else ([], [], [])
        if any(isinstance(c, int) and abs(c) > WHOLE for c in classes):
            classes = values  # JSON tells such numbers no longer apart; answers are of the column's type all the same
        return {"values": values, "classes": classes, "counts": counts}

    def encode_target(self, column: pa.ChunkedArray, params: dict, place: Place) -> Encoded:
        """A class that no training row has is one more, which no answer says, and is listed."""
        texts = column_text(column)
        found = self.encode_column(column, params, place)
        there = texts.is_valid().to_numpy(zero_copy_only=False).astype(bool)
        new = np.flatnonzero(there & ~found.real)
        names = texts.take(pa.array(new)).to_pylist()
        more = {name: i for i, name in enumerate(sorted(set(names)), len(params["values"]) + 1)}
        found.values[new, 0] = [more[name] for name in names]
        return Encoded(found.values, there, [*found.bad, *((int(i), UNTAUGHT) for i in new)])

    def target(self, x: Tensor, keep: Tensor | None, present: Tensor) -> Tensor:
        """Classes from 0."""
        return super().target(x - 1, keep, present)

    def survey(self, column: pa.ChunkedArray, params: dict, place: Place) -> Survey:
        return Survey(*self.encode_column(column, params, place)[1:])

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
        """One-hot, nothing for missing ones, nor for the values behind the first of a column with very many."""
        hot = []
        for i, most in enumerate(_shown(sizes)):
            at = x[:, i].masked_fill((x[:, i] < 0) | (x[:, i] >= most), 0)
            hot.append(F.pad(F.one_hot(at, most)[:, 1:].float(), (1, 0)))
        return torch.cat(hot, 1)

    def raw_width(self, sizes: tuple[int, ...]) -> int:
        return sum(_shown(sizes)) if len(sizes) <= MOST_STRAIGHT else 0

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
        there = texts.is_valid().to_numpy(zero_copy_only=False).astype(bool)
        left = np.flatnonzero(there & (ids == 0))
        if len(left):
            find = labels(tuple(params["values"])).find
            rest = pc.dictionary_encode(texts.take(pa.array(left))).combine_chunks()
            places = [find(text) for text in rest.dictionary.to_pylist()]
            ids[left] = np.asarray([0 if at is None else at + 1 for at in places])[rest.indices.to_numpy()]
        unseen = int((there & (ids == 0)).sum())
        if unseen:
            place.note("never seen", unseen)
        return Encoded(ids[:, None], ids > 0, [])


def _shown(sizes: tuple[int, ...]) -> list[int]:
    """How many ids of each column a linear model reads: all, or as many of each as there is room for."""
    low, high = 1, max(sizes)
    while low < high:  # the most that fit
        most = (low + high + 1) // 2
        low, high = (most, high) if sum(min(n, most) for n in sizes) <= MOST_STRAIGHT else (low, most - 1)
    return [min(n, low) for n in sizes]


def _counted(column: pa.ChunkedArray, order: list | None) -> list[tuple[str, int]]:
    """(value, how often) of a column, in `order`, or the most frequent first."""
    counts = pc.value_counts(column_text(column).drop_null()).to_pylist()
    pairs = merged((c["values"], c["counts"]) for c in counts)
    if order is None:
        return pairs
    place = Labels(order)
    at = {value: place.find(value) for value, _ in pairs}
    return sorted(pairs, key=lambda p: len(order) if at[p[0]] is None else at[p[0]])


def typed(value: str, kind: str) -> Any:
    """A label as the cells of an Arrow type (by its name) are: a number, yes or no, None for a blank; or its text."""
    if value == BLANK:
        return None
    number = plain_number(value)
    if kind == "bool":
        return bool(yes_or_no(value))
    if number is not None and kind.startswith(("int", "uint")):
        return int(float(number)) if "." in number else int(number)
    return float(number) if number is not None and kind in ("double", "float", "halffloat") else value


def column_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The cells as text: strings without what has no ink at their ends (empty ones null), booleans as true/false, whole
    decimals without a point, moments as short as they can be said, lists as JSON."""
    kind = column.type
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column).cast(pa.string())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return trimmed(column)
    if pa.types.is_temporal(kind):
        texts = pc.replace_substring_regex(column.cast(pa.string()), r"\.0+(Z?)$", r"\1")
        return pc.replace_substring_regex(texts, r" 00:00:00$", "")
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.string())
    return pa.chunked_array([pa.array([None if c is None else as_text(c) for c in column.to_pylist()], pa.string())])
