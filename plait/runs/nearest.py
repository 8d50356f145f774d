"""The rows nearest to vectors among very many, exactly: block by block, so that no more than a block is held beside
what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from plait.data.files import ARROW, local_path
from plait.errors import DataError

BLOCK = 1 << 14  # rows at once

Block = tuple[np.ndarray, np.ndarray | None]  # vectors (b, E) float32, and which are there (b,), None for all


class Columns(Protocol):
    """What vectors are searched in: a table's columns by name."""

    source: str

    @property
    def names(self) -> list[str]: ...

    def column(self, name: str) -> pa.ChunkedArray: ...


class Stored:
    """A Parquet file, or an Arrow table in memory, whose vectors are read as they lie there: floats stay as wide as
    they are, and of a file nothing is kept."""

    def __init__(self, file: pa.parquet.ParquetFile | pa.Table, source: str):
        self.file, self.source = file, source
        self.names = list(file.schema.names if isinstance(file, pa.Table) else file.schema_arrow.names)

    def column(self, name: str) -> pa.ChunkedArray:
        return self.file.column(name) if isinstance(self.file, pa.Table) else self.file.read([name]).column(0)

    def chunks(self, name: str) -> Iterable[pa.Array]:
        """The cells of a column, some at a time."""
        if isinstance(self.file, pa.Table):
            return self.file.column(name).chunks
        return (batch.column(0) for batch in self.file.iter_batches(BLOCK, columns=[name]))


def stored(source: Any) -> Stored | None:
    """What `source` holds, if that is one Parquet file or an Arrow table of vectors by row. Raises DataError for a file
    that is none."""
    if isinstance(source, pa.Table):
        return Stored(source, "the table") if "row" in source.column_names else None
    if not isinstance(source, (str, Path)):
        return None
    path, _ = local_path(source)
    if path.suffix.lower() not in ARROW or not path.is_file():
        return None
    try:
        file = pa.parquet.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    return Stored(file, str(source)) if "row" in file.schema_arrow.names else None


def blocks_of(chunks: Iterable[pa.Array], what: str) -> Iterator[Block]:
    """Lists of numbers as vectors. what: how the column is called, for errors. Raises DataError where they are none,
    are empty or differ in length."""
    width = 0
    for chunk in chunks:
        for start in range(0, len(chunk), BLOCK):
            vectors, there = _vectors(chunk.slice(start, BLOCK), what)
            if vectors is None:  # none of these rows has one
                yield np.zeros((len(chunk[start : start + BLOCK]), width), np.float32), there
                continue
            if width and vectors.shape[1] != width:
                raise DataError(f"{what}: the vectors are empty or differ in length")
            width = vectors.shape[1]
            yield vectors, there


def _vectors(array: pa.Array, what: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    kind = array.type
    fixed = pa.types.is_fixed_size_list(kind)
    if not (fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise DataError(
            f"{what}: got {kind}, expected lists of numbers, as plait embed writes them into .parquet and .jsonl"
        )
    there = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None
    filled = array if there is None else array.filter(pa.array(there))
    if not len(filled):
        return None, there
    flat = filled.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    width = len(flat) // len(filled)
    even = fixed or pc.all(pc.equal(pc.list_value_length(filled), width)).as_py()
    if width == 0 or width * len(filled) != len(flat) or not even:
        raise DataError(f"{what}: the vectors are empty or differ in length")
    found = flat.reshape(-1, width)
    if there is None:
        return found, None
    out = np.zeros((len(array), width), np.float32)
    out[there] = found
    return out, there


Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (Q, E), (b, E) -> (Q, b)


def nearest(
    blocks: Iterable[Block], queries: np.ndarray, k: int, scored: Scores | None = None
) -> list[list[tuple[int, float]]]:
    """For each of the queries (Q, E) the k rows of the largest products, (row, product), the largest first and of
    equals the first; vectors of zeros, which are of nothing, never. scored: in place of products. Raises ValueError
    where E differs."""
    rows = [np.zeros(0, np.int64)] * len(queries)
    scores = [np.zeros(0, np.float32)] * len(queries)
    start = 0
    for vectors, there in blocks:
        if vectors.shape[1] != queries.shape[1]:
            if there is None or there.any():
                raise ValueError(f"{vectors.shape[1]}")
            start += len(vectors)
            continue
        found = vectors @ queries.T if scored is None else scored(queries, vectors).T  # (b, Q)
        for q, column in enumerate(np.ascontiguousarray(found.T)):
            usual = np.flatnonzero(column == 0)
            absent = usual[~vectors[usual].any(1)]
            column[absent if there is None else np.append(absent, np.flatnonzero(~there))] = -np.inf
            least = scores[q][-1] if len(rows[q]) == k else -np.inf
            if k < len(column):
                least = max(least, np.partition(column, -k)[-k])
            some = np.flatnonzero((column >= least) & (column > -np.inf))
            rows[q], scores[q] = np.append(rows[q], some + start), np.append(scores[q], column[some])
            best = np.lexsort((rows[q], -scores[q]))[:k]
            rows[q], scores[q] = rows[q][best], scores[q][best]
        start += len(vectors)
    return [list(zip(r.tolist(), s.tolist())) for r, s in zip(rows, scores)]
