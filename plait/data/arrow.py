"""Arrow columns of every type brought to the few plain types that the kinds of columns understand."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plait.errors import DataError


def column_from_values(name: str, values: Any) -> pa.ChunkedArray:
    """Cells of mixed types as one Arrow column: mixed scalars become text, mixed paths and bytes become {bytes,
    path}."""
    if isinstance(values, pa.ChunkedArray):
        return values
    if isinstance(values, pa.Array):
        return pa.chunked_array([values])
    if hasattr(values, "tolist"):
        values = values.tolist()
    cells = [_plain(cell) for cell in values]
    if {bytes, str} <= {type(cell) for cell in cells}:  # Arrow would take the paths for bytes
        return pa.chunked_array([_mixed(name, cells)])
    try:
        array = pa.array(cells)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        array = _mixed(name, cells)
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def _plain(cell: Any) -> Any:
    if isinstance(cell, PurePath):
        return str(cell)
    if isinstance(cell, (np.ndarray, np.generic)):
        return cell.tolist()
    if isinstance(cell, (set, frozenset, tuple)):
        return list(cell)
    if isinstance(cell, bytearray):
        return bytes(cell)
    if isinstance(cell, complex):
        return str(cell)
    return cell


def _mixed(name: str, cells: list) -> pa.Array:
    if any(isinstance(c, bytes) for c in cells) and all(c is None or isinstance(c, (bytes, str)) for c in cells):
        both = [
            None if c is None else {"bytes": c, "path": None} if isinstance(c, bytes) else {"bytes": None, "path": c}
            for c in cells
        ]
        return pa.array(both, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    try:
        return pa.array([None if c is None else as_text(c) for c in cells], pa.string())
    except (pa.ArrowException, UnicodeError) as error:
        raise DataError(f"column {name!r} holds cells that are not readable text: {error}") from error


def as_text(cell: Any) -> str:
    """A cell as text: strings as they are, nested lists and dicts as JSON, bytes by their length."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bytes):
        return f"<{len(cell)} bytes>"
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, (list, dict)):
        return json.dumps(cell, default=as_text, ensure_ascii=False)
    return str(cell)


def plain_table(data: pa.Table) -> pa.Table:
    """The table with plain columns: no dictionaries, extensions, views, decimals or nested cells other than vectors and
    media."""
    columns = [_plain_column(name, data.column(name)) for name in data.column_names]
    return pa.Table.from_arrays(columns, names=[str(n) for n in data.column_names])


def _plain_column(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_column(name, pa.chunked_array([c.storage for c in column.chunks], kind.storage_type))
    if pa.types.is_dictionary(kind):
        return _plain_column(name, column.cast(kind.value_type))
    if pa.types.is_struct(kind):
        fields = {kind.field(i).name for i in range(kind.num_fields)}
        return _unwrap_media(column) if "bytes" in fields and fields <= {"bytes", "path"} else _as_json(column)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = kind.value_type
        if not (pa.types.is_integer(inner) or pa.types.is_floating(inner)):
            return _as_json(column)
        # arrow cannot turn every list type into Python floats alike; plain lists of doubles keep nulls inside visible
        return column.cast(pa.list_(pa.float64())) if not pa.types.is_float16(inner) else _as_lists(column)
    if pa.types.is_nested(kind):
        return _as_json(column)
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return column.cast(pa.float64())
    if pa.types.is_time(kind):
        return column.cast(pa.string())
    if pa.types.is_duration(kind):
        per_second = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[kind.unit]
        return pc.divide(column.cast(pa.int64()).cast(pa.float64(), safe=False), per_second)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _plain_moments(column)
    if str(kind) in ("string_view", "binary_view"):
        return column.cast(pa.large_string() if str(kind) == "string_view" else pa.large_binary())
    if pa.types.is_fixed_size_binary(kind):
        return column.cast(pa.binary())
    return column


def _plain_moments(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dates and times as microseconds in UTC; a column that leaves the years 1 to 9999 as the whole numbers that it
    holds."""
    kind = column.type
    days = pa.types.is_date32(kind)
    unit = 86400 if days else {"s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[getattr(kind, "unit", "ms")]
    numbers = column.cast(pa.int32()).cast(pa.int64()) if days else column.cast(pa.int64())
    low, high = pc.min_max(numbers).as_py().values()
    if low is not None and (low * unit < -62_135_596_800 or high * unit > 253_402_300_799):
        return numbers
    return column.cast(pa.timestamp("us"), safe=False)


def _as_json(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array(
        [pa.array([None if c is None else as_text(_safe(c)) for c in column.to_pylist()], pa.string())]
    )


def _as_lists(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(column.to_pylist(), pa.list_(pa.float64()))])


def _safe(cell: Any) -> Any:
    return float(cell) if isinstance(cell, Decimal) else cell


def _unwrap_media(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A `datasets` media column {bytes, path}: bytes where all cells have bytes, paths where none has, else the struct
    itself."""
    fields = [column.type.field(i).name for i in range(column.type.num_fields)]
    data = pc.struct_field(column, fields.index("bytes"))
    if "path" not in fields:
        return data
    path = pc.struct_field(column, fields.index("path"))
    filled = pc.is_valid(data)
    if pc.all(pc.or_(filled, pc.is_null(path))).as_py():
        return data
    if not pc.any(filled).as_py():
        return path
    return column
