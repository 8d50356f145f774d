"""CSV and JSON files, read without surprises: what is not plainly a number stays text, and what is broken is named by
its line."""

from __future__ import annotations

import codecs
import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from plait.data.arrow import column_from_values
from plait.errors import DataError

MISSING = ["", "NA", "N/A", "n/a", "#N/A", "null", "NULL", "Null", "NaN", "nan", "None"]
CHUNK = 1 << 24


def read_csv(path: Path) -> pa.Table:
    """A CSV or TSV file in UTF-8. Columns in which every cell is a number become numbers; numbers with leading zeros
    stay text.

    The separator is a tab for .tsv, else the one of ``, ; tab |`` that the header uses most.
    """
    _check_bytes(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.read(1 << 20)
    separator = "\t" if path.suffix.lower() == ".tsv" else _separator(head)
    try:
        names = next(csv.reader(io.StringIO(head, newline=""), delimiter=separator), [])
    except csv.Error as error:
        raise DataError(f"{path}: the header cannot be read: {error}.") from error
    if not any(name.strip() for name in names):
        raise DataError(f"{path} starts with an empty line. Expected a header with column names.")
    names = [name.strip() or f"column_{i + 1}" for i, name in enumerate(names)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise DataError(
            f"{path} has several columns named {', '.join(map(repr, twice))}. Give every column a name of its own."
        )

    def parse(threads: bool) -> pa.Table:
        return pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(
                use_threads=threads,
                column_names=names,
                skip_rows_after_names=1,
                block_size=min(max(path.stat().st_size, 1 << 20), 1 << 28),
            ),
            parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types={n: pa.string() for n in names}, null_values=MISSING, strings_can_be_null=True
            ),
        )

    try:
        try:
            data = parse(threads=True)
        except pa.ArrowException:
            data = parse(threads=False)  # slower, but it knows the number of the row that is wrong
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a well-formed table: {error}. Expected {len(names)} columns ({', '.join(names[:8])}) in "
            "every row."
        ) from error
    return pa.table({name: _number_if_all(data.column(name)) for name in names})


def _check_bytes(path: Path) -> None:
    """Refuse NUL bytes and anything that is not UTF-8, naming the line."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            if line == 1 and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise DataError(f"{path} is in UTF-16. Save it as UTF-8.")
            if b"\0" in block:
                raise DataError(
                    f"{path} has a NUL byte in line {line + block[: block.index(0)].count(10)}: it is not a text "
                    "file, or damaged."
                )
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                at = line + error.object[: error.start].count(10)
                raise DataError(
                    f"{path} is not UTF-8 (line {at}). Convert it, for example: iconv -f latin1 -t utf-8."
                ) from error
            line += block.count(10)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: it ends within a character (line {line}). It may be cut off.") from error


def _separator(head: str) -> str:
    first = head.split("\n", 1)[0]
    bare = "".join(part for i, part in enumerate(first.split('"')) if i % 2 == 0)
    return max(",;\t|", key=lambda mark: (bare.count(mark), mark == ","))


def _number_if_all(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole numbers, else decimal numbers, where every cell is one. Leading zeros and more than 15 digits mean an
    identifier: text."""
    if column.null_count == len(column):
        return column
    if pc.any(pc.match_substring_regex(column, r"^[+-]?0\d|^\+|^\s|\s$|\d{16}")).as_py():
        return column
    for kind in (pa.int64(), pa.float64()):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue
    return column


def read_json(path: Path) -> pa.Table:
    """JSON lines (one object per line), or one JSON array of objects."""
    with path.open("rb") as file:
        array = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if not array:
        try:
            return pa.json.read_json(path, parse_options=pa.json.ParseOptions(newlines_in_values=False))
        except (pa.ArrowException, OSError):
            pass  # mixed cells or broken lines: the reader below takes the first and names the second
    rows = _json_rows(path, array)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.Table.from_arrays([column_from_values(n, [row.get(n) for row in rows]) for n in names], names=names)


def _json_rows(path: Path, array: bool) -> list[dict]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = (
            json.loads(text)
            if array
            else [_json_line(path, i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        )
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8. Convert it, for example: iconv -f latin1 -t utf-8.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}.") from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply.") from error
    wrong = next((i for i, row in enumerate(rows, 1) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise DataError(f"{path}: row {wrong} is not an object. Expected one {{column: cell}} per row.")
    return rows


def _json_line(path: Path, number: int, line: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {number} is not JSON: {error.msg}.") from error
