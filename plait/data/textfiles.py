"""CSV and JSON files, read without surprises: what is not plainly a number stays text, and what is broken is named by
its line."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from plait.data.arrow import column_from_values, named_table
from plait.data.headers import COMMENTS, header
from plait.data.words import NOTHING, without
from plait.errors import DataError

CHUNK = 1 << 23
FIRST = 1000  # cells that are tried before a column is
LOOK = 1 << 20  # bytes in which header and separator are looked for
NONE = "\x1f"  # stands in no text
RECORDS = 100  # the most in which they are
SEP_LINE = re.compile(r"\ufeff?sep=(.)\r?\n?", re.IGNORECASE)
# leading zeros, a plus, blanks, too many digits, hexadecimal: no plain numbers
CODED = r"^[+-]?0[\dxX]|^\+|^-0+$|^\s|\s$|^[+-]?\d{16}"
GROUPS = r"^-?[1-9]\d{0,2}\.\d{3}$"  # a number, or thousands
PLAINLY = r"^-?(0|[1-9]\d{0,8})(\.\d{0,5}[1-9])?$"


class Parsed(NamedTuple):
    """What a file holds. written: columns as the file has them, of those whose type lost some of that; textual: whether
    words such as NA may say that nothing is there; said: what had to be decided, in sentences."""

    data: pa.Table
    written: dict[str, pa.ChunkedArray] = {}
    separator: str | None = None
    textual: bool = False
    said: tuple[str, ...] = ()


def csv_texts(
    path: Path, source: Path | pa.Buffer | None = None, *, tabs: bool | None = None
) -> tuple[pa.Table, str, tuple[str, ...]]:
    """All cells of a CSV file as strings, its separator, and what had to be decided.

    The separator is a tab for .tsv (or where `tabs` says so), what a line `sep=;` says, else the one of ``, ; tab |``
    that parts the lines most evenly. Lines before the header (titles, comments) are skipped, and so are comments among
    the rows. source: where the bytes are, if not in the file as it is; UTF-16 is read too.
    """
    source = _utf8(path, path if source is None else source)
    with pa.input_stream(source) as file:
        raw = file.read(LOOK + 1)
    head = raw[:LOOK].decode("utf-8-sig", errors="ignore")
    tabs = path.suffix.lower() == ".tsv" if tabs is None else tabs
    told = SEP_LINE.match(head)
    separator = "\t" if tabs else told[1] if told else _separator(head)
    found = _records(head, separator, whole=len(raw) <= LOOK)
    top = header(found[1:] if told else found, str(path))
    said = list(top.said)
    if top.named and len(raw) <= LOOK and not any(line > top.lines for line, cells in found if cells):
        raise DataError(f"{path} has columns but no rows.")
    separator = NONE if len(top.names) == 1 and not tabs else separator  # lines of text, with whatever marks
    comments = any(cells and cells[0].lstrip().startswith(COMMENTS) for line, cells in found if line < top.lines)
    size = source.size if isinstance(source, pa.Buffer) else path.stat().st_size

    def ragged(row: pa.csv.InvalidRow) -> str:
        return "skip" if row.text.lstrip().startswith(COMMENTS) else "error"

    def options(threads: bool, block: int) -> dict:
        return dict(
            read_options=pa.csv.ReadOptions(
                use_threads=threads,
                column_names=top.names,
                skip_rows=top.lines,
                skip_rows_after_names=int(top.named),
                block_size=block,
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter=separator, newlines_in_values=True, invalid_row_handler=ragged
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types={n: pa.string() for n in top.names}, null_values=[""], strings_can_be_null=True
            ),
        )  # fmt: skip

    def parse(threads: bool) -> pa.Table:
        file = source if isinstance(source, Path) else pa.BufferReader(source)
        return pa.csv.read_csv(file, **options(threads, min(max(size, 1 << 20), 1 << 28)))

    def parse_in_blocks() -> pa.Table:  # a whole file at once takes three times its size
        file = source if isinstance(source, Path) else pa.BufferReader(source)
        with pa.csv.open_csv(file, **options(True, CHUNK)) as reader:
            return pa.Table.from_batches(list(reader), reader.schema)

    try:
        try:
            data = parse_in_blocks() if size > CHUNK else parse(threads=True)
        except pa.ArrowException:
            data = parse(threads=False)  # slower, but it knows the number of the row that is wrong
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a well-formed table: {error}. Expected {len(top.names)} columns "
            f"({', '.join(top.names[:8])}) in every row."
        ) from error
    if comments and len(data):
        kept = pc.invert(pc.match_substring_regex(data.column(0), r"^\s*(#|%|//)").fill_null(False))
        data = data.filter(kept)
    if top.named and len(data):
        data, again = _once(data, top.names)
        said += [f"{path}: the header stands among the rows again, {again:,} times, and is left out"] * bool(again)
    spare = [n for n in top.spare if data.column(n).null_count == len(data)]
    return data.drop_columns(spare), separator, tuple(said)


def _once(data: pa.Table, names: list[str]) -> tuple[pa.Table, int]:
    """The rows without those that are the header again, as in files that were put together, and how many these are."""
    same = pc.equal(data.column(0), names[0]).fill_null(False)
    for name in names[1:]:
        if not pc.any(same).as_py():
            return data, 0
        same = pc.and_(same, pc.equal(data.column(name), name).fill_null(False))
    again = pc.sum(same).as_py() or 0
    return (data.filter(pc.invert(same)), again) if again and len(names) > 1 else (data, 0)


def _records(head: str, separator: str, whole: bool = True) -> list[tuple[int, list[str]]]:
    """The first records of a text: how many lines stand before each, and its cells."""
    reader, out, before = csv.reader(io.StringIO(head, newline=""), delimiter=separator), [], 0
    try:
        for cells in reader:
            out.append((before, cells))
            before = reader.line_num
            if len(out) > RECORDS:
                break
        else:
            out = out if whole or len(out) < 2 else out[:-1]  # the last one may be cut
    except csv.Error:
        pass  # a huge cell: what came before it tells enough
    return out


def _separator(head: str) -> str:
    """The mark that parts most of the first lines into equally many cells."""

    def evenly(mark: str) -> tuple[int, int, bool]:
        widths = Counter(len(cells) for _, cells in _records(head, mark) if len(cells) > 1)
        first = head.split("\n", 1)[0]
        bare = "".join(part for i, part in enumerate(first.split('"')) if i % 2 == 0)
        return max(widths.values(), default=0), bare.count(mark), mark == ","

    return max(",;\t|", key=evenly)


def _utf8(path: Path, source: Path | pa.Buffer) -> Path | pa.Buffer:
    """The bytes as UTF-8: UTF-16 is turned into it; NUL bytes and anything else are refused, naming the line."""
    decoder, line, first = codecs.getincrementaldecoder("utf-8")(), 1, True
    with pa.input_stream(source) as file:
        while block := file.read(CHUNK):
            if first and (wide := _utf16(block)):
                return _turned(path, block + file.read(), wide)
            first = False
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
    return source


def _utf16(block: bytes) -> str | None:
    """The encoding of bytes that are UTF-16: by their mark, or by a NUL in every other place."""
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    some = block[:2000]
    if len(some) > 7 and not some[0::2].count(0) and some[1::2].count(0) > 0.4 * len(some):
        return "utf-16-le"
    return "utf-16-be" if len(some) > 7 and not some[1::2].count(0) and some[0::2].count(0) > 0.4 * len(some) else None


def _turned(path: Path, data: bytes, encoding: str) -> pa.Buffer:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged UTF-16: {error}. Save it as UTF-8.") from error
    if "\0" in text:
        raise DataError(
            f"{path} has a NUL byte in line {text[: text.index(chr(0))].count(chr(10)) + 1}: it is damaged."
        )
    return pa.py_buffer(text.encode())


def typed(texts: dict[str, pa.ChunkedArray], separator: str | None = None, said: tuple[str, ...] = ()) -> Parsed:
    """Columns of strings with those that are numbers as such, and null in place of words that say nothing. `texts` is
    emptied on the way: what is read twice would need the room twice."""
    names, columns, written = list(texts), {}, {}
    short = not names or len(texts[names[0]]) < FIRST
    with ThreadPoolExecutor(2) as pool:
        for at in range(0, len(names), 2):
            some = {name: texts.pop(name) for name in names[at : at + 2]}
            for (name, cells), (column, lossy) in zip(
                some.items(), (map if short else pool.map)(_typed, some.values())
            ):
                columns[name] = column
                if lossy:
                    written[name] = cells
    return Parsed(pa.table(columns), written, separator, True, said)


def _typed(cells: pa.ChunkedArray) -> tuple[pa.ChunkedArray, bool]:
    """A column of strings as what it is, and whether that lost some of how it is written."""
    bare = without(cells, NOTHING)
    number = _number_if_all(bare)
    lossy = number is not None and pa.types.is_floating(number.type) and not _plainly(bare)
    return bare if number is None else number, lossy or bare.null_count > cells.null_count


def _plainly(texts: pa.ChunkedArray) -> bool:
    """Whether all that texts of decimal numbers say is the number: none ends in a zero, has many digits, or could be
    thousands."""
    if pc.any(pc.match_substring_regex(texts, GROUPS)).as_py():
        return False
    return bool(pc.all(pc.match_substring_regex(texts, PLAINLY)).as_py())


def _number_if_all(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Whole numbers, else decimal numbers, where every cell is one."""
    if column.null_count == len(column):
        return None
    for kind in (pa.int64(), pa.float64()):
        try:
            column.slice(0, FIRST).cast(kind)  # what is none is seen at once
            number = column.cast(kind)
        except pa.ArrowInvalid:
            continue
        return None if pc.any(pc.match_substring_regex(column, CODED)).as_py() else number
    return None


def read_json(path: Path, source: Path | pa.Buffer | None = None, *, lines: bool = False) -> pa.Table:
    """JSON lines (one object per line), or one JSON array of objects; where these are no `lines` also one object that
    holds columns or rows, as pandas writes it."""
    source = _utf8(path, path if source is None else source)
    with pa.input_stream(source) as file:
        array = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if not (array or lines) and (columns := _one_object(source)):
        return named_table(list(columns), [column_from_values(n, cells) for n, cells in columns.items()])
    if not array:
        try:
            with pa.input_stream(source) as file:
                return pa.json.read_json(file, parse_options=pa.json.ParseOptions(newlines_in_values=False))
        except (pa.ArrowException, OSError):
            pass  # mixed cells or broken lines: the reader below takes the first and names the second
    with pa.input_stream(source) as file:
        rows = _json_rows(path, file.read(), array)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return named_table(names, [column_from_values(n, [row.get(n) for row in rows]) for n in names])


def _one_object(source: Path | pa.Buffer) -> dict[str, list] | None:
    """The columns of a file that is one object: of lists, or in one of the ways of pandas (columns, index, split,
    table); None of anything else."""
    with pa.input_stream(source) as file:
        try:
            data = json.loads(file.read().decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return None
    if not isinstance(data, dict):
        return None
    if {"columns", "data"} <= data.keys() <= {"columns", "data", "index"}:
        data = [dict(zip(map(str, data["columns"]), row)) for row in data["data"]]
    elif data.keys() == {"schema", "data"} or (len(data) == 1 and _rows(next(iter(data.values())))):
        data = list(data.values())[-1]
    if isinstance(data, dict) and len(data) > 1 and all(isinstance(v, list) for v in data.values()):
        return data if len(set(map(len, data.values()))) == 1 else None
    inner = list(data.values()) if isinstance(data, dict) else []
    if inner and all(isinstance(v, dict) and v and all(map(str.isdigit, v)) for v in inner):  # {column: {row: cell}}
        places = list(dict.fromkeys(place for column in inner for place in column))
        return {name: [column.get(place) for place in places] for name, column in data.items()}
    rows = inner if isinstance(data, dict) and all(map(str.isdigit, data)) else data
    if not _rows(rows):
        return None
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _rows(data: object) -> bool:
    return isinstance(data, list) and bool(data) and all(isinstance(row, dict) for row in data)


def _json_rows(path: Path, data: bytes, array: bool) -> list[dict]:
    try:
        text = data.decode("utf-8-sig")
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
