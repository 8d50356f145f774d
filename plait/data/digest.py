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
from plait.data.hashes import codes, hash_column, mixed
from plait.data.kinds import KINDS, Place
from plait.data.kinds.category import column_text
from plait.data.schema import Schema
from plait.data.table import Table
from plait.data.threads import each

SIZE, CHUNK, READERS = 16, 64, 4
ROWS = 1 << 16  # digested at once
BYTES = 1  # the seed of cells that are bytes, and no text
_known: WeakKeyDictionary[Table, dict] = WeakKeyDictionary()  # reading every file twice would double the wait


def cell_digests(table: Table, schema: Schema, name: str) -> np.ndarray:
    """One 16-byte digest per cell of a column (n,), dtype S16; b"" where the cell is null.

    Media are digested by their bytes, whether they lie in the table or in files; a path that cannot be read by the path
    itself. Other cells by what they say as texts, so that 1, 1.0 and "1" are one.
    """
    column = schema.column(name)
    kept = _known.setdefault(table, {})
    key = (name, column.kind, str(column.style), schema.allow_outside)
    if key in kept:
        return kept[key]
    cells = schema.read(table).column(name)
    if KINDS[column.kind].media:
        place, starts = Place(table.root, schema.allow_outside), range(0, len(cells), CHUNK)
        with ThreadPoolExecutor(READERS) as pool:  # a slow disk is waited for once
            chunks = pool.map(lambda at: [_media(c, place) for c in cells.slice(at, CHUNK).to_pylist()], starts)
            found = np.asarray([digest for chunk in chunks for digest in chunk], f"S{SIZE}")
        kept[key] = found  # of others what is kept would soon outgrow the table
        return found
    return _hashed(cells, _as_bytes(cells)).view(f"S{SIZE}")[:, 0]


def row_digests(table: Table, schema: Schema, names: list[str]) -> np.ndarray:
    """One digest per row over the columns `names` in any order (n,), dtype S16; equal exactly where all these cells
    are."""
    told = [schema.column(name) for name in names]
    kept = _known.setdefault(table, {})
    key = (frozenset((c.name, c.kind, str(c.style)) for c in told), schema.allow_outside)
    if key not in kept:
        uses = {use: [c.name for c in told if c.use == use] for use in dict.fromkeys(c.use for c in told)}
        if len(uses) > 1:  # what the inputs alone say is asked for too
            sums = sum(_lanes(row_digests(table, schema, some)) for some in uses.values())
        else:
            read = schema.read(table)
            media = {c.name: cell_digests(table, schema, c.name) for c in told if KINDS[c.kind].media}
            rest = [(name, read.column(name), _as_bytes(read.column(name))) for name in names if name not in media]
            sums = np.zeros((len(table), 2), np.uint64)

            def some(start: int) -> None:  # what columns are turned into on the way is as large as they are
                part = sums[start : start + ROWS]
                for name, digests in media.items():
                    part += mixed(_lanes(digests[start : start + ROWS]), name)
                for name, cells, as_bytes in rest:
                    part += mixed(_hashed(cells.slice(start, ROWS), as_bytes), name)

            each(some, range(0, len(table), ROWS), len(table))
        kept[key] = np.ascontiguousarray(sums).view(f"S{SIZE}")[:, 0]
    return kept[key]


def same_digests(digests: np.ndarray) -> np.ndarray:
    """Digests (n,) as numbers from 0, the same where they are, in their order (n,) int64; -1 for the empty one."""
    out = codes(_lanes(digests))
    empty = digests == b""
    return np.where(empty, -1, out - empty.any()) if empty.any() else out


def _lanes(digests: np.ndarray) -> np.ndarray:
    """(n,) S16 -> (n, 2) uint64."""
    return np.ascontiguousarray(digests).view(np.uint64).reshape(-1, 2)


def _as_bytes(cells: pa.ChunkedArray) -> bool:
    """Whether cells are hashed as they lie there: bytes, and lists of floats without gaps."""
    kind = cells.type
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_floating(kind.value_type):
        return not any(chunk.flatten().null_count for chunk in cells.chunks)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _hashed(cells: pa.ChunkedArray, as_bytes: bool) -> np.ndarray:
    return hash_column(cells, BYTES) if as_bytes else hash_column(column_text(cells))


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
