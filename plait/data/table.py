"""Tables: whatever the user has (a file, a folder of media, a data frame) as one Arrow table with a root folder for its
media."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plait.data.arrow import column_from_values, declared, named_table, plain_table, unread
from plait.data.files import local_path, read_file, read_files, several, tables_in
from plait.data.folder import folder_columns
from plait.data.headers import distinct
from plait.data.textfiles import Parsed
from plait.errors import DataError, nearest


@dataclass(eq=False)
class Table:
    """An Arrow table, the folder that its media paths are relative to, and where it came from (for messages).

    written: the columns as a file has them, where their types here lost some of that, such as 1.10 and 007. declared:
    the columns whose types say that they are categories, with their values in order, if these have one. unread: why
    columns hold nothing that can be read. separator and
    textual: of a file of texts, in which words such as NA may say that nothing is there. said: what had to be decided
    to read it. reader: the schema that has read it, if one has.
    """

    data: pa.Table
    root: Path | None
    source: str
    written: dict[str, pa.ChunkedArray] = field(default_factory=dict)
    declared: dict[str, list[str]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    separator: str | None = None
    textual: bool = False
    said: tuple[str, ...] = ()
    reader: Any = None

    def __len__(self) -> int:
        return self.data.num_rows

    @cached_property
    def names(self) -> list[str]:
        """Column names, in order."""
        return self.data.column_names

    def has(self, name: str) -> bool:
        """Whether there is a column of that name."""
        return self.data.schema.get_field_index(name) >= 0

    def column(self, name: str) -> pa.ChunkedArray:
        """The cells of one column. Raises DataError with the known names for a column that is not there."""
        if not self.has(name):
            raise DataError(
                f"{self.source} has no column {name!r}. {nearest(name, self.names)} Columns: {', '.join(self.names)}."
            )
        return self.data.column(name)

    def take(self, index: np.ndarray) -> Table:
        """The rows `index` (row numbers, repeats allowed), in that order."""
        at = pa.array(np.asarray(index, dtype=np.int64))
        written = {name: cells.take(at) for name, cells in self.written.items()}
        return replace(self, data=self.data.take(at), written=written)

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
        written = {n: c for n, c in self.written.items() if n != name}
        return replace(self, data=data, written=written, declared={n: v for n, v in self.declared.items() if n != name})


def read_table(source: Any, *, root: str | Path | None = None) -> Table:
    """Read a file or several, a folder of media or one such file, a pandas / polars / pyarrow / `datasets` table, or a
    dict of lists.

    Files are CSV and TSV (also in UTF-16, packed by gzip, zstandard or bzip2, or in a zip), Parquet, JSON and JSON
    lines, workbooks (.xlsx, .ods...) and databases of SQLite and DuckDB: `base.db::name` names a table in a file.

    Args:
        source: a path, also with * and ? for several files that are one table; a list of paths; a table object with the
        Arrow stream interface; or a dict {column: cells}.
        root: the folder that media paths are relative to. Default: the file's folder, or none for tables in memory.

    Raises:
        DataError: nothing there, no rows, or a file that cannot be read.
    """
    if isinstance(source, Table):
        return source if root is None else replace(source, root=Path(root))
    if isinstance(source, (str, Path)) or _are_paths(source):
        parsed, where, label = _from_paths(source)
    else:
        parsed, where, label = Parsed(_from_object(source)), None, f"the {type(source).__name__}"
    where = Path(root) if root is not None else where
    if parsed.data.num_columns == 0:
        raise DataError(f"{label} has no columns.")
    said = list(parsed.said)
    data = parsed.data.rename_columns(distinct(list(map(str, parsed.data.column_names)), label, said))
    if data.num_rows == 0:
        raise DataError(f"{label} has columns but no rows.")
    classes, odd, data = declared(data) | _class_labels(source), unread(data), plain_table(data)
    return Table(
        data.rename_columns(distinct(data.column_names, label, said)),
        where.resolve() if where is not None else None,
        label,
        parsed.written,
        classes,
        odd,
        parsed.separator,
        parsed.textual,
        tuple(said),
    )


def _are_paths(source: Any) -> bool:
    return isinstance(source, (list, tuple)) and bool(source) and all(isinstance(s, (str, Path)) for s in source)


def _from_paths(source: str | Path | list) -> tuple[Parsed, Path, str]:
    """What is read, the folder that media lie under, and how it is called."""
    if not isinstance(source, (str, Path)):
        return _as_one([local_path(s)[0] for s in source], ", ".join(map(str, source)))
    path, name = local_path(source)
    if found := several(path):
        return _as_one(found, str(path))
    if not path.is_dir():
        return read_file(path, name), path.parent, str(source)
    if tables := tables_in(path):
        return _as_one(tables, str(path))
    return Parsed(pa.table(folder_columns(path))), path, str(path)


def _as_one(paths: list[Path], label: str) -> tuple[Parsed, Path, str]:
    folders = {p.parent.resolve() for p in paths}
    if len(folders) > 1:
        raise DataError(
            f"{label}: the files lie in {len(folders)} folders, and media paths are relative to one. Read them one by "
            "one, or put them side by side."
        )
    return read_files(paths), paths[0].parent, label


def _class_labels(source: Any) -> dict[str, list[str]]:
    """Columns of a `datasets` data set that are classes by number."""
    features = getattr(source, "features", None)
    if not isinstance(features, dict):
        return {}
    return {str(n): [] for n, f in features.items() if type(f).__name__ == "ClassLabel"}


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
            if not hasattr(source, "__getitem__"):
                raise DataError(f"the {type(source).__name__} is a stream: pass list(it.take(1000)), or download it.")
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
    return named_table(list(sizes), [column_from_values(str(n), c) for n, c in columns.items()])


def _from_pandas(frame: Any) -> pa.Table:
    names = ["_".join(filter(None, map(str, n))) if isinstance(n, tuple) else str(n) for n in frame.columns]
    arrays: list = []
    for i, name in enumerate(names):
        series = frame.iloc[:, i]
        try:
            array = pa.Array.from_pandas(series)
            arrays.append(column_from_values(name, series.tolist()) if pa.types.is_binary(array.type) else array)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            missing = series.isna().to_numpy()
            cells = [None if gone else cell for cell, gone in zip(series.tolist(), missing)]
            arrays.append(column_from_values(name, cells))
    return named_table(names, arrays)
