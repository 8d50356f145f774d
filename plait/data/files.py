"""Files that hold tables, other than as plain text: compressed ones, archives, workbooks and databases, and several
files as one."""

from __future__ import annotations

import sqlite3
import zipfile
from contextlib import closing
from glob import glob, has_magic
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet

from plait.data.arrow import column_from_values, with_categories
from plait.data.folder import file_columns
from plait.data.headers import header, named_columns
from plait.data.textfiles import Parsed, csv_texts, read_json, typed
from plait.data.unify import end_to_end, unify
from plait.errors import DataError, nearest

TEXTS = (".csv", ".tsv", ".tab", ".psv")
TABS = (".tsv", ".tab")
LINES = (".jsonl", ".ndjson", ".json")
ARROW = (".parquet", ".pq")
BOOKS = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
BASES = (".db", ".sqlite", ".sqlite3", ".duckdb")
PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
MAGIC = {b"\x1f\x8b": "what gzip packs (.gz)", b"\x28\xb5\x2f\xfd": "what zstandard packs (.zst)",
         b"BZh": "what bzip2 packs (.bz2)", b"PK\x03\x04": "an archive or a workbook (.zip, .xlsx, .ods)",
         b"\xd0\xcf\x11\xe0": "a workbook (.xls)", b"PAR1": "Parquet (.parquet)",
         b"SQLite format 3": "an SQLite base (.sqlite)", b"ARROW1": "Arrow's own form, which is to be saved as Parquet",
         b"\x89PNG": "a picture", b"%PDF": "a PDF"}  # fmt: skip
SUFFIXES = (*TEXTS, *LINES, *ARROW, *BOOKS, *BASES, ".zip", *PACKED)
MARK = "::"  # between a file and a table in it
REMOTE = ("http://", "https://", "s3://", "gs://", "hf://", "ftp://", "az://")


def local_path(source: str | Path) -> tuple[Path, str | None]:
    """The path that a text means, also as file://..., and the table in it behind "::". Raises DataError for what lies
    elsewhere: plait fetches nothing."""
    text = str(source)
    if text.startswith(REMOTE):
        raise DataError(f"{text} is not on this machine, and plait fetches no tables: download it and give its path.")
    if text.startswith("file://"):
        text = unquote(urlparse(text).path)
    path = Path(text).expanduser()
    if not path.exists() and "\\" in text:  # as Windows writes it
        path = Path(text.replace("\\", "/")).expanduser()
    if path.exists() or MARK not in text:
        return path, None
    where, _, name = text.rpartition(MARK)
    return Path(where).expanduser(), name


def several(path: Path) -> list[Path]:
    """The files that a pattern such as parts/*.csv means, sorted; nothing for what is no pattern."""
    return [] if path.exists() or not has_magic(str(path)) else sorted(map(Path, glob(str(path), recursive=True)))


def tables_in(folder: Path) -> list[Path]:
    """The files of a folder, where all of them are tables of one form; else nothing."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith((".", "_")))
    forms = {form(p) for p in files}
    return files if len(forms) == 1 and forms <= {*TEXTS, *LINES, *ARROW} else []


def form(path: Path) -> str:
    """The suffix that says what a file holds, without that of its packing."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in PACKED else suffix


def read_file(path: Path, name: str | None = None) -> Parsed:
    """The table in a file. name: which, of a file that holds several.

    Raises:
        DataError: nothing there, no table, or one that cannot be read.
    """
    if not path.exists():
        there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise DataError(f"no such file or folder: {path}. {nearest(path.name, there) if there else ''}".rstrip())
    if path.suffix.lower() not in SUFFIXES or form(path) not in SUFFIXES:
        if media := file_columns(path):
            return Parsed(pa.table(media))
        raise DataError(
            f"{path} is not a table that plait reads (got {form(path) or path.suffix or 'no suffix'!r}, expected "
            f"{', '.join(SUFFIXES)}, a folder, a picture or a sound)."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    kind = form(path)
    if name is not None and kind not in (*BOOKS, *BASES, ".zip"):
        raise DataError(f"{path} holds one table: leave out {MARK}{name}.")
    try:
        if kind in BOOKS:
            return _book(path, name)
        if kind in BASES:
            return _base(path, name)
        return _read(path, kind, *_unpacked(path, name))
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise DataError(f"{path} is not a readable {kind} file: {error}") from error


def _read(path: Path, kind: str, source: Path | pa.Buffer, inner: str = "") -> Parsed:
    kind = Path(inner).suffix.lower() if inner else kind
    if kind in (*TEXTS, *LINES):
        with pa.input_stream(source) as file:
            head = file.read(16)
        if other := next((what for mark, what in MAGIC.items() if head.startswith(mark)), None):
            raise DataError(f"{path} is called {kind}, and holds {other}: give it the ending of what it is.")
    if kind in TEXTS:
        texts, separator, said = csv_texts(path, source, tabs=kind in TABS)
        columns = dict(zip(texts.column_names, texts.columns))
        del texts
        return typed(columns, separator, said)
    if kind in LINES:
        return Parsed(read_json(path, source, lines=kind != ".json"))
    try:
        file = pa.parquet.ParquetFile(source if isinstance(source, Path) else pa.BufferReader(source))
        return Parsed(with_categories(file.read(), file.metadata.metadata))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def read_files(paths: list[Path]) -> Parsed:
    """Several files of the same columns as one table, in the order given."""
    kinds = {form(p) for p in paths}
    if kinds <= set(TEXTS):  # typed together: what is a number in one file may be a word in the next
        read = [csv_texts(p, _unpacked(p, None)[0], tabs=form(p) in TABS) for p in paths]
        tables, said = [data for data, _, _ in read], [s for _, _, more in read for s in more]
        joined = _joined(tables, paths)
        return typed(dict(zip(joined.column_names, joined.columns)), read[0][1], tuple(said))
    parts = [read_file(p) for p in paths]
    said = tuple(s for part in parts for s in part.said)
    return Parsed(_joined([p.data for p in parts], paths), {}, None, any(p.textual for p in parts), said)


def _joined(tables: list[pa.Table], paths: list[Path]) -> pa.Table:
    names = tables[0].column_names
    for table, path in zip(tables, paths):
        if set(table.column_names) != set(names):
            odd = sorted(set(table.column_names) ^ set(names))
            raise DataError(
                f"{path} and {paths[0]} have different columns ({', '.join(map(repr, odd[:5]))}): files that are read "
                "as one table have the same."
            )
    columns = [end_to_end(unify(name, [t.column(name) for t in tables])) for name in names]
    return pa.Table.from_arrays(columns, names=names)


def _unpacked(path: Path, name: str | None) -> tuple[Path | pa.Buffer, str]:
    """Where the bytes of a table are, and the name of the file in an archive that they are of."""
    suffix = path.suffix.lower()
    if suffix in PACKED:
        with pa.CompressedInputStream(pa.OSFile(str(path)), PACKED[suffix]) as file:
            return pa.py_buffer(file.read()), ""
    if suffix != ".zip":
        return path, ""
    with zipfile.ZipFile(path) as archive:
        found = [n for n in archive.namelist() if form(Path(n)) in (*TEXTS, *LINES, *ARROW) and "__MACOSX" not in n]
        inner = _choose(path, found, name)
        data = pa.py_buffer(archive.read(inner))
    packing = PACKED.get(Path(inner).suffix.lower())
    if packing is None:
        return data, inner
    with pa.CompressedInputStream(pa.BufferReader(data), packing) as file:
        return pa.py_buffer(file.read()), Path(inner).stem


def _choose(path: Path, found: list[str], name: str | None) -> str:
    """The table that is named, or the only one."""
    if name is not None and name in found:
        return name
    if name is None and len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"{path} holds no table.")
    asked = f"no {name!r}. {nearest(name, found)} It holds" if name is not None else "several tables:"
    raise DataError(
        f"{path} holds {asked} {', '.join(found[:20])}. Name one behind the file, such as {path.name}{MARK}{found[0]}."
    )


def _base(path: Path, name: str | None) -> Parsed:
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"SQLite format 3"):
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as base:
            return _query(path, name, base, "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') "
                          "AND name NOT LIKE 'sqlite_%' ORDER BY name", sqlite3.Error)  # fmt: skip
    if head[8:12] != b"DUCK":
        raise DataError(f"{path} is neither an SQLite nor a DuckDB file.")
    duckdb = _library("duckdb", "duckdb", path)
    try:
        with closing(duckdb.connect(str(path), read_only=True)) as base:
            names = [row[0] for row in base.execute("SELECT table_name FROM information_schema.tables").fetchall()]
            chosen = _choose(path, sorted(names), name)
            return Parsed(base.sql(f"SELECT * FROM {_quoted(chosen)}").to_arrow_table())
    except duckdb.Error as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _query(path: Path, name: str | None, base: Any, listing: str, failed: type[Exception]) -> Parsed:
    try:
        chosen = _choose(path, [row[0] for row in base.execute(listing)], name)
        rows = base.execute(f"SELECT * FROM {_quoted(chosen)}")
        said: list[str] = []
        names = named_columns([d[0] for d in rows.description], f"{path}{MARK}{chosen}", said)
        cells = list(zip(*rows.fetchall())) or [()] * len(names)
    except failed as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return Parsed(pa.table({n: column_from_values(n, list(c)) for n, c in zip(names, cells)}), said=tuple(said))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _book(path: Path, name: str | None) -> Parsed:
    """A sheet of a workbook: the one that is named, or the only one with cells."""
    calamine = _library("python_calamine", "excel", path)
    try:
        book = calamine.CalamineWorkbook.from_path(str(path))
        wanted = [name] if name in book.sheet_names else book.sheet_names
        sheets = {n: book.get_sheet_by_name(n).to_python() for n in wanted}
    except (calamine.CalamineError, OSError) as error:
        raise DataError(f"{path} is not a readable workbook: {error}") from error
    filled = [n for n, rows in sheets.items() if rows]
    rows = sheets[_choose(path, filled, name)]
    shown = [_filled(row) for row in rows[:200]]
    width = max(map(len, shown), default=0)
    first = next((i for i, row in enumerate(shown) if 2 * sum(map(bool, row)) > width), 0)  # what is above is a title
    shown[first:] = [row + [""] * (width - len(row)) for row in shown[first:]]
    top = header(list(enumerate(shown)), str(path))
    body = [row for row in rows[top.lines + top.named :] if any(c not in ("", None) for c in row)]
    columns = {n: [_cell(row[i]) if i < len(row) else None for row in body] for i, n in enumerate(top.names)}
    data = pa.table({n: column_from_values(n, _whole(cells)) for n, cells in columns.items()})
    return Parsed(data, textual=True, said=top.said)


def _filled(row: list) -> list[str]:
    """The cells of a row as texts, without the empty ones at its end."""
    texts = [_shown(c) for c in row]
    while texts and not texts[-1]:
        texts.pop()
    return texts


def _shown(cell: Any) -> str:
    return "" if cell is None else str(int(cell)) if isinstance(cell, float) and cell == int(cell) else str(cell)


def _cell(cell: Any) -> Any:
    return None if isinstance(cell, str) and not cell.strip() else cell


def _whole(cells: list) -> list:
    """Workbooks know decimal numbers alone: where all are whole, whole numbers are meant."""
    numbers = [c for c in cells if isinstance(c, float)]
    whole = all(c == c and abs(c) < 2**53 and c == int(c) for c in numbers)
    return [int(c) if whole and isinstance(c, float) else c for c in cells]


def _library(module: str, extra: str, path: Path) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(f"{path.suffix} files are read by {module}: pip install 'plait[{extra}]'.") from error
