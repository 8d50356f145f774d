"""Tables: whatever the user has (a file, a folder of media, a data frame) as one Arrow table with a root folder for its
media."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from plait.data.arrow import column_from_values, plain_table
from plait.data.folder import file_columns, folder_columns
from plait.data.textfiles import read_csv, read_json
from plait.errors import DataError, nearest

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}


@dataclass(eq=False)
class Table:
    """An Arrow table, the folder that its media paths are relative to, and where it came from (for messages)."""

    data: pa.Table
    root: Path | None
    source: str

    def __len__(self) -> int:
        return self.data.num_rows

    @property
    def names(self) -> list[str]:
        """Column names, in order."""
        return self.data.column_names

    def column(self, name: str) -> pa.ChunkedArray:
        """The cells of one column. Raises DataError with the known names for a column that is not there."""
        if name not in self.names:
            raise DataError(
                f"{self.source} has no column {name!r}. {nearest(name, self.names)} Columns: {', '.join(self.names)}."
            )
        return self.data.column(name)

    def take(self, index: np.ndarray) -> Table:
        """The rows `index` (row numbers, repeats allowed), in that order."""
        return Table(self.data.take(pa.array(np.asarray(index, dtype=np.int64))), self.root, self.source)

    def with_column(self, name: str, values: Any) -> Table:
        """A table with one more (or a replaced) column; `values` is a list, numpy array or Arrow array with a cell per
        row."""
        cells = column_from_values(name, values)
        if len(cells) != len(self):
            raise DataError(f"column {name!r} has {len(cells)} cells, the table has {len(self)} rows.")
        if name in self.names:
            data = self.data.set_column(self.names.index(name), name, cells)
        else:
            data = self.data.append_column(name, cells)
        return Table(data, self.root, self.source)


def read_table(source: Any, *, root: str | Path | None = None) -> Table:
    """Read a CSV, TSV, Parquet or JSON file, a folder of media or one such file, a pandas / polars / pyarrow /
    `datasets` table, or a dict of lists.

    Args:
        source: a path; a table object with the Arrow stream interface; or a dict {column: cells}.
        root: the folder that media paths are relative to. Default: the file's folder, or none for tables in memory.

    Raises:
        DataError: nothing there, no rows, two columns of one name, or a file that cannot be read.
    """
    if isinstance(source, Table):
        return source if root is None else Table(source.data, Path(root), source.source)
    if isinstance(source, (str, Path)):
        path = Path(source)
        data, where, label = _from_path(path), path if path.is_dir() else path.parent, str(path)
    else:
        data, where, label = _from_object(source), None, f"the {type(source).__name__}"
    where = Path(root) if root is not None else where
    if data.num_columns == 0:
        raise DataError(f"{label} has no columns.")
    twice = sorted({n for n in data.column_names if data.column_names.count(n) > 1})
    if twice:
        raise DataError(
            f"{label} has several columns named {', '.join(map(repr, twice))}. Give every column a name of its own."
        )
    if data.num_rows == 0:
        raise DataError(f"{label} has columns but no rows.")
    return Table(plain_table(data), where.resolve() if where is not None else None, label)


def _from_path(path: Path) -> pa.Table:
    if not path.exists():
        there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise DataError(f"no such file or folder: {path}. {nearest(path.name, there) if there else ''}".rstrip())
    if path.is_dir():
        return pa.table(folder_columns(path))
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        if media := file_columns(path):
            return pa.table(media)
        raise DataError(
            f"{path} is not a table that plait reads (got {path.suffix or 'no suffix'!r}, expected "
            f"{', '.join(SUFFIXES)}, a folder, a picture or a sound)."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    if form == "csv":
        return read_csv(path)
    if form == "json":
        return read_json(path)
    try:
        return pa.parquet.read_table(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def _from_object(source: Any) -> pa.Table:
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    if isinstance(source, dict):
        if hasattr(source, "num_rows") and hasattr(source, "column_names"):
            raise DataError(f"got a dictionary of data sets ({', '.join(map(str, source))}); pass one of them.")
        return _from_lists(source)
    if isinstance(source, list) and source and all(isinstance(row, dict) for row in source):
        names = list(dict.fromkeys(name for row in source for name in row))
        return _from_lists({name: [row.get(name) for row in source] for name in names})
    try:
        # a `datasets` data set: this respects select and shuffle
        if hasattr(source, "with_format") and hasattr(source, "features"):
            return source.with_format("arrow")[:]
        if type(source).__module__.split(".")[0] == "pandas" and hasattr(source, "columns"):
            return _from_pandas(source)
        if hasattr(source, "__arrow_c_stream__"):
            return pa.table(source)
        if hasattr(source, "to_arrow"):
            return source.to_arrow()
    except (pa.ArrowException, TypeError) as error:
        raise DataError(f"the {type(source).__name__} cannot become an Arrow table: {error}") from error
    raise DataError(
        f"cannot read a table from a {type(source).__name__}. "
        "Expected a path, a pandas, polars, pyarrow or datasets table, or a dict of lists."
    )


def _from_lists(columns: dict) -> pa.Table:
    lone = [
        str(name) for name, cells in columns.items() if isinstance(cells, (str, bytes)) or not hasattr(cells, "__len__")
    ]
    if lone:
        raise DataError(f"column {lone[0]!r} is not a list of cells. Expected a dict of lists, one cell per row.")
    sizes = {str(name): len(cells) for name, cells in columns.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"columns differ in length: {', '.join(f'{n} has {k}' for n, k in sizes.items())}.")
    return pa.Table.from_arrays([column_from_values(str(n), c) for n, c in columns.items()], names=list(sizes))


def _from_pandas(frame: Any) -> pa.Table:
    names = [str(name) for name in frame.columns]
    arrays = []
    for i, name in enumerate(names):
        series = frame.iloc[:, i]
        try:
            array = pa.Array.from_pandas(series)
            arrays.append(column_from_values(name, series.tolist()) if pa.types.is_binary(array.type) else array)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            missing = series.isna().to_numpy()
            cells = [None if gone else cell for cell, gone in zip(series.tolist(), missing)]
            arrays.append(column_from_values(name, cells))
    return pa.Table.from_arrays(arrays, names=names)
