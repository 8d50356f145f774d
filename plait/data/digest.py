"""Content digests of rows and media, so that splits and duplicates go by what cells hold and not by where they
stand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa

from plait.data.arrow import as_text
from plait.data.kinds import KINDS, Place
from plait.data.kinds.category import column_text
from plait.data.schema import Schema
from plait.data.table import Table

SIZE, CHUNK, READERS = 16, 64, 4
_known: WeakKeyDictionary[Table, dict] = WeakKeyDictionary()  # reading every file twice would double the wait


def cell_digests(table: Table, schema: Schema, name: str) -> np.ndarray:
    """One 16-byte digest per cell of a column (n,), dtype object; b"" where the cell is null.

    Media are digested by their bytes, whether they lie in the table or in files; a path that cannot be read by the path
    itself.
    """
    column = schema.column(name)
    media = KINDS[column.kind].media
    kept = _known.setdefault(table, {})
    key = (name, column.kind, str(column.style), schema.allow_outside)
    if key not in kept:
        place = Place(table.root, schema.allow_outside)
        cells = schema.read(table).column(name)
        if media:
            starts = range(0, len(cells), CHUNK)
            with ThreadPoolExecutor(READERS) as pool:  # a slow disk is waited for once
                chunks = pool.map(lambda at: [_media(c, place) for c in cells.slice(at, CHUNK).to_pylist()], starts)
                digests = [digest for chunk in chunks for digest in chunk]
        else:
            digests = [b"" if text is None else _digest(text.encode()) for text in _texts(cells)]
        kept[key] = np.asarray(digests, dtype=object)
    return kept[key]


def row_digests(table: Table, schema: Schema, names: list[str]) -> np.ndarray:
    """One digest per row over the columns `names`, dtype object; equal exactly where all these cells are."""
    columns = [cell_digests(table, schema, name) for name in names]
    kept = _known.setdefault(table, {})
    told = [schema.column(name) for name in names]
    key = (tuple(names), *((c.kind, str(c.style)) for c in told), schema.allow_outside)
    if key not in kept:
        joined = (b"".join(bytes([len(d)]) + d for d in row) for row in zip(*columns))
        kept[key] = np.asarray([_digest(row) for row in joined], dtype=object)
    return kept[key]


def _texts(cells: pa.ChunkedArray) -> list[str | None]:
    if pa.types.is_nested(cells.type) or pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type):
        return [
            None if c is None else _digest(c).hex() if isinstance(c, bytes) else as_text(c) for c in cells.to_pylist()
        ]
    return column_text(cells).to_pylist()


def _media(cell: Any, place: Place) -> bytes:
    if cell is None:
        return b""
    try:
        source = place.source(cell)
        return _digest(source.read_bytes() if isinstance(source, Path) else source)
    except (ValueError, OSError):  # unreadable: the scan lists it as bad
        return _digest(as_text(cell).encode("utf-8", "surrogatepass"))


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=SIZE).digest()
