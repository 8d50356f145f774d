"""Arrow columns of every type brought to the few plain types that the kinds of columns understand."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plait.data.memory import in_memory
from plait.errors import DataError

VIEWS = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}
SCALARS = (str, bytes, bool, int, float, complex, Decimal, Fraction, date, time, timedelta, UUID)


def taken(cells: pa.ChunkedArray, rows: np.ndarray) -> pa.ChunkedArray:
    """The cells of some rows; of all, in their order, the column itself."""
    if len(rows) == len(cells) and (len(rows) == 0 or rows[0] == 0) and bool((rows[1:] - rows[:-1] == 1).all()):
        return cells
    return cells.take(pa.array(rows))


def column_from_values(name: str, values: Any) -> pa.ChunkedArray:
    """Cells of mixed types as one Arrow column: mixed scalars become text, mixed paths and bytes become {bytes, path},
    pictures and sounds in memory the bytes of files.

    Raises:
        DataError: a cell is an object that means nothing here.
    """
    if isinstance(values, pa.ChunkedArray):
        return values
    if isinstance(values, pa.Array):
        return pa.chunked_array([values])
    if type(values).__module__.partition(".")[0] == "pandas" and not isinstance(values.dtype, np.dtype):
        with suppress(pa.ArrowException, TypeError, ValueError):  # categories, intervals and periods say what they are
            found = pa.array(values, from_pandas=True)
            return found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found])
    if hasattr(values, "tolist"):
        values = values.tolist()
    if any(map(_is_complex, values)) and all(v is None or _is_complex(v) for v in values):
        raise DataError(f"column {name!r} holds complex numbers: give their real and imaginary parts a column each.")
    cells = [_plain(name, row, cell) for row, cell in enumerate(values)]
    if {bytes, str} <= {type(cell) for cell in cells}:  # Arrow would take the paths for bytes
        return pa.chunked_array([_mixed(name, cells)])
    try:
        array = pa.array(cells)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        array = _mixed(name, cells)
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def named_table(names: list[str], columns: list) -> pa.Table:
    """A table of columns. Raises DataError for a name that is no text."""
    if odd := [name for name in names if any("\ud800" <= c <= "\udfff" for c in name)]:
        raise DataError(f"a column is named {odd[0]!r}, which is no readable text (half a character): rename it.")
    return pa.Table.from_arrays(columns, names=names)


def _is_complex(cell: Any) -> bool:
    return isinstance(cell, complex)


def _plain(name: str, row: int, cell: Any) -> Any:
    """A cell as Arrow takes it."""
    if cell is None or isinstance(cell, (str, bytes, bool, int, float)):
        return cell
    if isinstance(cell, PurePath):
        return str(cell)
    try:
        if (file := in_memory(cell)) is not None:
            return file
    except ValueError as error:
        raise DataError(f"column {name!r}, row {row}: {error}.") from error
    if hasattr(cell, "__array__"):
        return np.asarray(cell).tolist()
    if isinstance(cell, (set, frozenset)):
        return sorted((_plain(name, row, part) for part in cell), key=as_text)
    if isinstance(cell, (list, tuple)):
        return [_plain(name, row, part) for part in cell]
    if isinstance(cell, dict):
        return {str(key): _plain(name, row, part) for key, part in cell.items()}
    if isinstance(cell, (bytearray, memoryview)):
        return bytes(cell)
    if isinstance(cell, Enum):
        return _plain(name, row, cell.value)
    if isinstance(cell, Fraction):
        return float(cell)
    if isinstance(cell, (complex, UUID)):
        return str(cell)
    if isinstance(cell, SCALARS):
        return cell
    kind = type(cell)
    if kind.__module__.startswith("pandas"):
        return _of_pandas(cell)
    raise DataError(
        f"column {name!r} holds objects of the type {kind.__module__}.{kind.__qualname__} (the first in row {row}), "
        "which are no cells. Expected numbers, texts, dates, lists of these, and PIL pictures, arrays, bytes or paths "
        "for media; leave the column out, or turn it into one of them."
    )


def _of_pandas(cell: Any) -> Any:
    """Intervals as texts, periods as their beginning, other scalars as Arrow knows them."""
    if type(cell).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(cell, "closed_left"):
        return interval_text(cell.left, cell.right, cell.closed)
    return cell.start_time.to_pydatetime() if hasattr(cell, "start_time") else cell


def interval_text(left: Any, right: Any, closed: str) -> str:
    """(0, 1] or the like, as pandas prints it."""
    return f"{'[' if closed in ('left', 'both') else '('}{left}, {right}{']' if closed in ('right', 'both') else ')'}"


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
    if isinstance(cell, datetime):
        return str(cell).removesuffix(" 00:00:00")
    if isinstance(cell, (list, dict)):
        return json.dumps(cell, default=as_text, ensure_ascii=False)
    return str(cell)


def bytes_text(cell: bytes) -> str:
    """Bytes that are no file as a label: the text that they are, or "0x" and their digits."""
    try:
        text = cell.decode()
    except UnicodeDecodeError:
        return f"0x{cell.hex()}"
    return f"0x{cell.hex()}" if text.startswith("0x") else text


def text_bytes(text: str) -> bytes:
    """The bytes that `bytes_text` told."""
    return bytes.fromhex(text[2:]) if text.startswith("0x") else text.encode()


def declared(data: pa.Table) -> dict[str, list[str]]:
    """The columns whose type says that they are categories, and their values where these have an order."""
    found = {}
    for name in data.column_names:
        kind = data.column(name).type
        if pa.types.is_dictionary(kind):
            parts = [c.dictionary for c in data.column(name).chunks] if kind.ordered else []
            texts = [_plain_column(name, pa.chunked_array([part])).to_pylist() for part in parts]
            found[name] = list(dict.fromkeys(as_text(v) for part in texts for v in part))
        elif _extension(kind) == "pandas.interval":
            storage = _storage(data.column(name))
            both = pc.struct_field(storage, [0]).to_pylist(), pc.struct_field(storage, [1]).to_pylist()
            ends = {pair for pair in zip(*both) if None not in pair}
            if len(ends) * 2 <= len(data):
                found[name] = [interval_text(left, right, kind.closed) for left, right in sorted(ends)]
    return found


def with_categories(data: pa.Table, metadata: dict | None) -> pa.Table:
    """A table that was read from Parquet with the categories that its schema told when it was written: those of numbers
    are stored as numbers."""
    text = (metadata or {}).get(b"ARROW:schema")
    if text is None:
        return data
    try:
        told = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
    except (pa.ArrowException, ValueError):
        return data
    for field in told:
        at = data.column_names.index(field.name) if data.column_names.count(field.name) == 1 else -1
        if at < 0 or not pa.types.is_dictionary(field.type) or pa.types.is_dictionary(data.column(at).type):
            continue
        column = data.column(at)
        values = column.drop_null().unique().sort()
        kind = pa.dictionary(pa.int32(), values.type, field.type.ordered)
        index = pc.index_in(column, value_set=values).combine_chunks()
        index = index if isinstance(index, pa.Array) else pa.concat_arrays(index.chunks)
        coded = pa.DictionaryArray.from_arrays(index.cast(pa.int32()), values, ordered=field.type.ordered)
        data = data.set_column(at, pa.field(field.name, kind), pa.chunked_array([coded]))
    return data


def plain_table(data: pa.Table) -> pa.Table:
    """The table with plain columns: no dictionaries, extensions, views, decimals or nested cells other than vectors and
    media. A struct of plain cells becomes a column for each, NAME.FIELD."""
    names, columns = [], []
    for name, column in zip(map(str, data.column_names), data.columns):
        if pa.types.is_struct(column.type) and _scalars(column.type):
            fields = [column.type.field(i).name for i in range(column.type.num_fields)]
            names += [f"{name}.{field}" for field in fields]
            columns += [_plain_column(f"{name}.{f}", pc.struct_field(column, [i])) for i, f in enumerate(fields)]
        else:
            names.append(name)
            columns.append(_plain_column(name, column))
    return pa.Table.from_arrays(columns, names=names)


def unread(data: pa.Table) -> dict[str, str]:
    """The columns whose cells are what no kind reads, and why."""
    why = "cells are lists of pictures or sounds: give each a column of its own"
    return {name: why for name in data.column_names if _holds_media(data.column(name).type)}


def _holds_media(kind: pa.DataType) -> bool:
    """Whether cells are lists that bytes are in."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    inner = kind.value_type
    fields = [inner.field(i).type for i in range(inner.num_fields)] if pa.types.is_struct(inner) else [inner]
    return any(pa.types.is_binary(f) or pa.types.is_large_binary(f) or _holds_media(f) for f in fields)


def _scalars(kind: pa.StructType) -> bool:
    """Whether a struct is some cells side by side; the bytes and the path of a file are one."""
    fields = [kind.field(i) for i in range(kind.num_fields)]
    media = {f.name for f in fields} <= {"bytes", "path"} and "bytes" in {f.name for f in fields}
    return bool(fields) and not media and not any(pa.types.is_nested(f.type) for f in fields)


def _extension(kind: pa.DataType) -> str:
    """The name of an extension type, or nothing."""
    return kind.extension_name if isinstance(kind, pa.BaseExtensionType) else ""


def _storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([c.storage for c in column.chunks], column.type.storage_type)


def _plain_column(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_extension(name, column)
    if pa.types.is_dictionary(kind):
        return _plain_column(name, _decoded(column))
    if pa.types.is_run_end_encoded(kind):
        return _plain_column(name, pa.chunked_array([pc.run_end_decode(c) for c in column.chunks], kind.value_type))
    if pa.types.is_struct(kind):
        fields = {kind.field(i).name for i in range(kind.num_fields)}
        if {"array", "sampling_rate"} <= fields:
            return pa.chunked_array([pa.array([None if c is None else in_memory(c) for c in column.to_pylist()])])
        return _unwrap_media(column) if "bytes" in fields and fields <= {"bytes", "path"} else _as_json(column)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = kind.value_type
        if not (pa.types.is_integer(inner) or pa.types.is_floating(inner)):
            return _as_json(column)
        # arrow cannot turn every list type into Python floats alike; plain lists of doubles keep nulls inside visible
        return _as_lists(column) if pa.types.is_float16(inner) else column.cast(pa.list_(pa.float64()), safe=False)
    if pa.types.is_nested(kind):
        return _as_json(column)
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return column.cast(pa.float64())
    if pa.types.is_time(kind):
        return column.cast(pa.string())
    if pa.types.is_duration(kind):
        per_second = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[kind.unit]
        return pc.divide(column.cast(pa.int64()).cast(pa.float64(), safe=False), per_second)
    if pa.types.is_interval(kind):
        return pa.chunked_array([pa.array([_seconds(c) for c in column.to_pylist()], pa.float64())])
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _plain_moments(column)
    if str(kind) == "string_view":
        return column.cast(pa.large_string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) or (
        str(kind) == "binary_view"
    ):  # fmt: skip
        return _words_of(column.cast(pa.large_binary() if str(kind) == "binary_view" else pa.binary()))
    return column


def _plain_extension(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Intervals as texts, periods as their beginning, uuids as texts; others as they are stored."""
    kind, stored = column.type, _storage(column)
    if _extension(kind) == "pandas.interval":
        ends = zip(pc.struct_field(stored, [0]).to_pylist(), pc.struct_field(stored, [1]).to_pylist())
        texts = [None if left is None else interval_text(left, right, kind.closed) for left, right in ends]
        return pa.chunked_array([pa.array(texts, pa.string())])
    if _extension(kind) == "pandas.period" and (unit := _period(kind.freq)):
        counts = stored.fill_null(0).to_numpy().astype(np.int64) * unit[1]
        starts = pa.array(counts.astype(f"datetime64[{unit[0]}]").astype("datetime64[us]"))
        return pa.chunked_array([pc.if_else(stored.is_valid(), starts, pa.scalar(None, starts.type))])
    if _extension(kind) == "pandas.period":  # weeks, business days and the like, which only pandas can tell
        from pandas import PeriodIndex

        starts = PeriodIndex.from_ordinals(stored.fill_null(0).to_numpy(), freq=kind.freq).start_time
        moments = pa.array(starts.to_numpy().astype("datetime64[us]"))
        return pa.chunked_array([pc.if_else(stored.is_valid(), moments, pa.scalar(None, moments.type))])
    if _extension(kind) == "arrow.uuid":
        return pa.chunked_array([pa.array([None if c is None else str(c) for c in column.to_pylist()], pa.string())])
    return _plain_column(name, stored)


def _period(freq: str) -> tuple[str, int] | None:
    """What a period of pandas counts since 1970, as numpy's unit and how many of it."""
    unit, _, last = freq.partition("-")
    if last not in ("", "DEC"):  # years that end in another month
        return None
    return {"M": ("M", 1), "Q": ("M", 3), "Y": ("Y", 1), "A": ("Y", 1), "D": ("D", 1), "h": ("h", 1), "H": ("h", 1),
            "min": ("m", 1), "T": ("m", 1), "s": ("s", 1), "S": ("s", 1)}.get(unit)  # fmt: skip


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of a dictionary type with its values themselves."""
    kind = VIEWS.get(str(column.type.value_type), column.type.value_type)  # Arrow takes and casts no views
    chunks = [c.dictionary if c.dictionary.type == kind else c.dictionary.cast(kind) for c in column.chunks]
    return pa.chunked_array([values.take(c.indices) for values, c in zip(chunks, column.chunks)], kind)


def _words_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Bytes as text, where all of them are some."""
    try:
        texts = column.cast(pa.large_string() if pa.types.is_large_binary(column.type) else pa.string())
    except pa.ArrowInvalid:
        return column
    odd = pc.any(pc.match_substring_regex(texts, r"[\x00-\x08\x0e-\x1f]")).as_py()
    return column if odd or texts.null_count == len(texts) else texts


def _seconds(cell: Any) -> float | None:
    """A calendar interval in seconds, its months of the usual length."""
    return None if cell is None else (cell.months * 30.436875 + cell.days) * 86400 + cell.nanoseconds / 1e9


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
