"""Columns of strings by their different values: what is done to each value is done once, where values repeat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plait.data.drawn import drawn

FEWEST, LOOK = 1000, 2000  # cells: fewer are not worth it; those that tell whether values repeat


def values_of(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray] | None:
    """The different values of a column of strings and which of them each cell has (n,), -1 for null; None where most
    cells differ."""
    if len(column) < FEWEST:
        return None
    some = drawn(column, LOOK)
    different = pc.count_distinct(some, mode="all").as_py()
    if 2 * different > len(some):  # of D values drawn alike m cells repeat about m^2 / 2D
        different = len(some) ** 2 // (2 * max(len(some) - different, 1))
    if 4 * different > len(column):
        return None
    coded = pc.dictionary_encode(column).combine_chunks()
    return coded.dictionary, coded.indices.fill_null(-1).to_numpy()


def by_value(column: pa.ChunkedArray, change: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> pa.ChunkedArray:
    """`change` of a column of strings, a function of each cell that leaves null null."""
    found = values_of(column)
    if found is None:
        return change(column)
    values, at = found
    changed = change(pa.chunked_array([values])).combine_chunks()
    return pa.chunked_array([changed.take(pa.array(at, mask=at < 0))], changed.type)


Read = tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]  # numbers (n,), real (n,), the bad cells and why


def read_by_value(column: pa.ChunkedArray, read: Callable[[pa.ChunkedArray], Read]) -> Read:
    """`read` of a column of strings, cell by cell: numbers with 0 where there is nothing, real, and the bad cells."""
    found = values_of(column)
    if found is None:
        return read(column)
    values, at = found
    numbers, real, bad = read(pa.chunked_array([values]))
    why, odd = dict(bad), np.zeros(len(values) + 1, bool)  # the last is for null
    odd[list(why)] = True
    cells = np.flatnonzero(odd[at])
    return (
        np.append(numbers, 0.0)[at],
        np.append(real, False)[at],
        [(i, why[v]) for i, v in zip(cells.tolist(), at[cells].tolist())],
    )


def holds(column: pa.ChunkedArray, marks: bytes) -> bool:
    """Whether one of some characters of ASCII may stand in a cell of strings: what lies in the bytes of null ones
    counts too."""
    for chunk in column.chunks:
        _, _, data = _buffers(chunk)
        if any((data == mark).any() for mark in marks):
            return True
    return False


def smooth(column: pa.ChunkedArray) -> bool:
    """Whether no cell of strings begins or ends with anything but a visible character of ASCII, nor is empty."""
    for chunk in column.chunks:
        if chunk.null_count == len(chunk):
            continue
        starts, ends, data = _buffers(chunk)
        if chunk.null_count:
            there = chunk.is_valid().to_numpy(zero_copy_only=False)
            starts, ends = starts[there], ends[there]
        if (starts == ends).any():
            return False
        for edge in (data[starts], data[ends - 1]):
            if edge.min() <= 32 or edge.max() >= 127:
                return False
    return True


def _buffers(chunk: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each cell of strings starts and ends (n,) in the bytes of all of them."""
    _, offsets, data = chunk.buffers()
    kind = np.int64 if pa.types.is_large_string(chunk.type) else np.int32
    if not len(chunk) or offsets is None or data is None:
        return (zeros := np.zeros(len(chunk), kind)), zeros, np.zeros(0, np.uint8)
    at = np.frombuffer(offsets, kind)[chunk.offset :][: len(chunk) + 1]
    low = at[0]
    return at[:-1] - low, at[1:] - low, np.frombuffer(data, np.uint8)[low : at[-1]]
