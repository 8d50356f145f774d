"""The same column of several tables, brought to one type."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from plait.errors import DataError


def unify(name: str, columns: list[pa.ChunkedArray], decimal: str = ".") -> list[pa.ChunkedArray]:
    """The same column of several tables, in one type: numbers of one, or else text. decimal: the mark that numbers are
    written with among texts.

    Raises:
        DataError: types that have nothing in common.
    """
    kinds = [c.type for c in columns if not pa.types.is_null(c.type)] or [pa.null()]
    if len(set(kinds)) == 1:
        return [c.cast(kinds[0]) for c in columns]
    numbers = [pa.types.is_integer(k) or pa.types.is_floating(k) for k in kinds]
    if all(numbers):
        kind = pa.int64() if all(map(pa.types.is_integer, kinds)) else pa.float64()
        return [c.cast(kind, safe=False) for c in columns]
    if any(map(pa.types.is_nested, kinds)) or any(map(pa.types.is_binary, kinds)):
        return _one_media(name, columns)
    return [_written(c, decimal) for c in columns]


def end_to_end(columns: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Columns of one type as one."""
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)


def _written(column: pa.ChunkedArray, decimal: str) -> pa.ChunkedArray:
    texts = column.cast(pa.string())
    floating = pa.types.is_floating(column.type) and decimal == ","
    return pc.replace_substring(texts, ".", ",") if floating else texts


def _one_media(name: str, columns: list[pa.ChunkedArray]) -> list[pa.ChunkedArray]:
    """Paths here and bytes there: {bytes, path}."""
    kind, out = pa.struct([("bytes", pa.binary()), ("path", pa.string())]), []
    for column in columns:
        cells = column.to_pylist()
        if not all(c is None or isinstance(c, (str, bytes)) or (isinstance(c, dict) and set(c) <= {"bytes", "path"})
                   for c in cells):  # fmt: skip
            raise DataError(
                f"column {name!r} is of {' and '.join(sorted({str(c.type) for c in columns}))} in different tables, "
                "which have nothing in common: give it one type."
            )
        out.append(pa.chunked_array([pa.array([_media(c) for c in cells], kind)]))
    return out


def _media(cell: Any) -> dict | None:
    if isinstance(cell, (bytes, str)):
        return {"bytes": cell, "path": None} if isinstance(cell, bytes) else {"bytes": None, "path": cell}
    return cell
