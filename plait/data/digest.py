"""Content digests of rows and media, so that splits and duplicates go by what cells hold and not by where they
stand."""

from __future__ import annotations

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

SIZE = 16
_known: WeakKeyDictionary[Table, dict] = WeakKeyDictionary()  # reading every file twice would double the wait


def cell_digests(table: Table, schema: Schema, name: str) -> np.ndarray:
    """One 16-byte digest per cell of a column (n,), dtype object; b"" where the cell is null.

    Media are digested by their bytes, whether they lie in the table or in files; a path that cannot be read by the path
    itself.
    """
    column = schema.column(name)
    media = KINDS[column.kind].media
    kept = _known.setdefault(table, {})
    key = (name, media, schema.allow_outside)
    if key not in kept:
        place = Place(table.root, schema.allow_outside)
        cells = table.column(name)
        if media:
            chunks = (cells.slice(at, 64).to_pylist() for at in range(0, len(cells), 64))
            digests = [b"" if cell is None else _media(cell, place) for chunk in chunks for cell in chunk]
        else:
            digests = [b"" if text is None else _digest(text.encode()) for text in _texts(cells)]
        kept[key] = np.asarray(digests, dtype=object)
    return kept[key]


def row_digests(table: Table, schema: Schema, names: list[str]) -> np.ndarray:
    """One digest per row over the columns `names`, dtype object; equal exactly where all these cells are."""
    columns = [cell_digests(table, schema, name) for name in names]
    return np.asarray([_digest(b"".join(bytes([len(d)]) + d for d in row)) for row in zip(*columns)], dtype=object)


def _texts(cells: pa.ChunkedArray) -> list[str | None]:
    if pa.types.is_nested(cells.type) or pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type):
        return [
            None if c is None else _digest(c).hex() if isinstance(c, bytes) else as_text(c) for c in cells.to_pylist()
        ]
    return column_text(cells).to_pylist()


def _media(cell: Any, place: Place) -> bytes:
    try:
        source = place.source(cell)
        return _digest(source.read_bytes() if isinstance(source, Path) else source)
    except (ValueError, OSError):  # unreadable: the scan lists it as bad
        return _digest(as_text(cell).encode("utf-8", "surrogatepass"))


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=SIZE).digest()
