"""Files as people have them: encodings, headers, packings, workbooks, databases, several at once."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data.table import Table, read_table
from plait.errors import DataError

ROWS = {"x": [1, 2], "y": ["a", "b"]}
PLAIN = "x,y\n1,a\n2,b\n"


def stored(folder: Path, data: str | bytes, name: str = "t.csv") -> Path:
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder / name


def cells(table: Table) -> dict:
    return table.data.to_pydict()


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.encode("utf-16"),
        PLAIN.encode("utf-16-le"),
        PLAIN.encode("utf-16-be"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        "sep=;\n" + PLAIN.replace(",", ";"),
        b"\xef\xbb\xbfsep=|\r\n" + PLAIN.replace(",", "|").encode(),
        ("sep=\t\n" + PLAIN.replace(",", "\t")).encode("utf-16"),
        "# made on a Monday, by hand\n" + PLAIN + "# the end\n",
        "\n\n" + PLAIN,
        "x,y\n1,a,\n2,b,\n",
        "x,y\n1,a\nx,y\n2,b\n",
    ],
    ids="plain BOM UTF-16 LE BE CRLF CR sep sep-BOM sep-UTF-16 comments blank-lines spare again".split(),
)
def test_the_same_table_however_it_is_saved(data, tmp_path) -> None:
    assert cells(read_table(stored(tmp_path, data))) == ROWS


@pytest.mark.parametrize("orient", ["columns", "index", "split", "table", "records", "list", "wrapped"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_same_table_however_json_holds_it(orient: str, encoding: str, tmp_path) -> None:
    frame = pd.DataFrame(ROWS)
    if orient == "list":
        text = json.dumps(ROWS)
    elif orient == "wrapped":
        text = json.dumps({"items": frame.to_dict("records")}, indent=1)
    else:
        text = frame.to_json(orient=orient, index=orient not in ("table", "records"))
    assert cells(read_table(stored(tmp_path, text.encode(encoding), "t.json"))) == ROWS
    line = json.dumps({"v": [1, 2], "w": [3, 4]})  # a line is a row, whatever it holds
    assert cells(read_table(stored(tmp_path, line.encode(encoding), "t.jsonl"))) == {
        "v": [[1.0, 2.0]],
        "w": [[3.0, 4.0]],
    }


@settings(max_examples=60, deadline=None)
@given(
    titles=st.lists(st.sampled_from(["Sales of 2020", "by hand", "page one", ""]), min_size=1, max_size=4),
    blank=st.booleans(),
    width=st.integers(2, 5),
)
def test_titles_filled_up_with_separators_stand_above_the_names(titles, blank, width, tmp_path_factory) -> None:
    names = [f"name {chr(97 + i)}" for i in range(width)]
    lines = [";".join([title, *[""] * (width - 1)]) for title in titles] + [";" * (width - 1)] * blank
    rows = [";".join([f"w{i % 3}", *[str(10 * i + k) for k in range(width - 1)]]) for i in range(8)]
    path = stored(tmp_path_factory.mktemp("t"), "\n".join([*lines, ";".join(names), *rows]))
    table = read_table(path)
    assert table.names == names and len(table) == 8
    bare = [";" * (width - 1) + "y", *[";".join(str(7 * i + k) for k in range(width)) for i in range(8)]]
    assert read_table(stored(path.parent, "\n".join(bare))).names[-1] == "y"  # names that are few are names


@pytest.mark.parametrize(
    ("head", "told"),
    [(b"PK\x03\x04", "archive or a workbook"), (b"PAR1", "Parquet"), (b"\x1f\x8b\x08", "gzip"), (b"%PDF-1", "PDF")],
)
def test_a_file_that_is_not_what_its_ending_says_is_named(head: bytes, told: str, tmp_path) -> None:
    for name in ("t.csv", "t.json", "t.tsv"):
        with pytest.raises(DataError, match=f"is called {Path(name).suffix}, and holds .*{told}"):
            read_table(stored(tmp_path, head + b"x" * 99, name))
    with pytest.raises(DataError, match="has columns but no rows"):
        read_table(stored(tmp_path, "a,b"))


@pytest.mark.parametrize(
    ("data", "names", "told"),
    [
        ("Sales of 2020, all\n\nx,y,z\n1,a,2\n2,b,3\n", ["x", "y", "z"], "no part of the table"),
        ("5.1,3.5,a\n4.9,3.0,b\n6.0,1.0,a\n", ["column_1", "column_2", "column_3"], "no line names the columns"),
        ("x,x,o,win\no,x,o,lose\nx,x,x,win\no,o,x,lose\n", [f"column_{i}" for i in range(1, 5)], "no line names"),
        ("30,64,1,1\n31,59,0,2\n30,65,0,1\n", [f"column_{i}" for i in range(1, 5)], "no line names"),
        ('"a","b"\n"r1",1,2\n"r2",3,4\n', ["column_1", "a", "b"], None),
        ("a,a,b\n1,2,3\n", ["a", "a.1", "b"], "several columns named 'a'"),
        ("a,a,a.1\n1,2,3\n", ["a", "a.2", "a.1"], "several columns named 'a'"),
        (",b\n1,2\n", ["column_1", "b"], None),
        ("#x,y\n1,a\n2,b\n", ["#x", "y"], None),
        ("# about it\n#x,y\n1,2.5\n2,3.5\n", ["#x", "y"], None),
        ('"price, EUR";"say ""x"""\n1;2\n', ["price, EUR", 'say "x"'], None),
        ("country,1990,1991\nA,1.5,2\nB,2,3\n", ["country", "1990", "1991"], None),
        ("0,1,2\n5,6,7\n8,9,9\n", ["0", "1", "2"], None),
        (",16.5,17.25\n71,0,1\n70,0,3\n69,2,3\n", ["column_1", "16.5", "17.25"], None),
        (",1.5,2.5\n3.5,1.5,2.5\n4.5,0.5,0.5\n5.5,2.5,1.5\n", [f"column_{i}" for i in range(1, 4)], "no line names"),
        (",1.5,2.5\n3.5,0.5,1.5\n3.5,0.5,0.5\n5.5,2.5,1.5\n", [f"column_{i}" for i in range(1, 4)], "no line names"),
        ("text\nhello, world\nwell\n", ["text"], None),
        ("x;y\n1,5;2,5\n10,25;3,0\n", ["x", "y"], None),
    ],
)
def test_where_rows_begin_and_what_columns_are_called(data: str, names: list[str], told: str | None, tmp_path) -> None:
    table = read_table(stored(tmp_path, data))
    assert table.names == names and (told is None) == (not table.said) and (told or "") in " ".join(table.said)


def test_the_rows_below_a_title_are_whole(tmp_path) -> None:
    made = stored(tmp_path, '"Report, of\nall"\n\nx,y\n"a\nb",1\n# no, row, at all\nc,2\n')
    assert cells(read_table(made)) == {"x": ["a\nb", "c"], "y": [1, 2]}


WORD = st.text("abcXYZ é,;|\t\"'#-0123456789.", max_size=8)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(WORD, WORD, WORD), min_size=3, max_size=8),
    separator=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_cells_come_back(rows, separator, encoding, tmp_path_factory) -> None:
    """What a writer of CSV quotes is read back as it was, whatever stands in it."""
    import csv

    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerow(["first name", "second name", "third name"])
    writer.writerows(rows)
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_bytes(out.getvalue().encode(encoding))
    table = read_table(path)
    for i, name in enumerate(table.names):
        found = table.written.get(name, table.data.column(name)).to_pylist()
        assert [None if c is None else str(c) for c in found] == [row[i] or None for row in rows]


def test_packed_files(tmp_path) -> None:
    made = [stored(tmp_path, gzip.compress(PLAIN.encode()), "t.csv.gz")]
    made.append(stored(tmp_path, bz2.compress(PLAIN.replace(",", "\t").encode()), "t.tsv.bz2"))
    made.append(stored(tmp_path, gzip.compress(b'{"x": 1, "y": "a"}\n{"x": 2, "y": "b"}\n'), "t.jsonl.gz"))
    with pa.CompressedOutputStream(str(tmp_path / "t.csv.zst"), "zstd") as file:
        file.write(PLAIN.encode("utf-16"))
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        for name, data in (("in/t.csv", PLAIN), ("__MACOSX/t.csv", "x"), ("readme.md", "hi")):
            archive.writestr(name, data)
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("t.csv.gz", gzip.compress(PLAIN.encode()))
    for path in (*made, tmp_path / "t.csv.zst", tmp_path / "one.zip", tmp_path / "packed.zip"):
        assert cells(read_table(path)) == ROWS, path
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", "z\n9\n8\n"), archive.writestr("b.csv", PLAIN)
    with pytest.raises(DataError, match="several tables: a.csv, b.csv.*two.zip::a.csv"):
        read_table(tmp_path / "two.zip")
    assert cells(read_table(f"{tmp_path}/two.zip::b.csv")) == ROWS
    with pytest.raises(DataError, match="no 'c.csv'"):
        read_table(f"{tmp_path}/two.zip::c.csv")
    for name in ("bad.zip", "bad.csv.gz", "bad.csv.zst"):
        with pytest.raises(DataError, match="not a readable"):
            read_table(stored(tmp_path, b"hello", name))
    with pytest.raises(DataError, match="not a readable"):
        read_table(stored(tmp_path, gzip.compress(PLAIN.encode() * 99)[:30], "cut.csv.gz"))


def test_databases(tmp_path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as base:
        base.execute('create table "my ""own"" t" (x int, y text)')
        base.execute("""insert into "my ""own"" t" values (1, 'a'), (2, 'b')""")
        base.execute("create view seen as select y from 'my \"own\" t'")
        base.commit()
    assert cells(read_table(f'{tmp_path}/a.db::my "own" t')) == ROWS
    assert cells(read_table(f"{tmp_path}/a.db::seen")) == {"y": ["a", "b"]}
    with pytest.raises(DataError, match="Did you mean 'seen'"):
        read_table(f"{tmp_path}/a.db::sen")
    duckdb = pytest.importorskip("duckdb")
    with closing(duckdb.connect(str(tmp_path / "d.duckdb"))) as base:
        base.execute("create table t as select * from (values (1, 'a'), (2, 'b')) v(x, y)")
    assert cells(read_table(tmp_path / "d.duckdb")) == cells(read_table(f"{tmp_path}/d.duckdb::t")) == ROWS
    for name in ("no.db", "no.duckdb"):
        with pytest.raises(DataError, match="neither an SQLite nor a DuckDB"):
            read_table(stored(tmp_path, b"x" * 100, name))


OPEN = "http://schemas.openxmlformats.org"
MAIN, LINKS, OFFICE = (
    f"{OPEN}/{where}"
    for where in ("spreadsheetml/2006/main", "package/2006/relationships", "officeDocument/2006/relationships")
)


def workbook(path: Path, sheets: dict[str, list[list]]) -> Path:
    """A workbook in its simplest form, with strings in the cells themselves."""
    lists = "".join(f'<sheet name="{n}" sheetId="{i}" r:id="r{i}"/>' for i, n in enumerate(sheets, 1))
    links = "".join(
        f'<Relationship Id="r{i}" Type="{OFFICE}/worksheet" Target="s{i}.xml"/>' for i in range(1, len(sheets) + 1)
    )
    top = f'<Relationship Id="r1" Type="{OFFICE}/officeDocument" Target="xl/workbook.xml"/>'
    with zipfile.ZipFile(path, "w") as book:
        book.writestr("[Content_Types].xml", f'<Types xmlns="{OPEN}/package/2006/content-types"/>')
        book.writestr("_rels/.rels", f'<Relationships xmlns="{LINKS}">{top}</Relationships>')
        book.writestr("xl/_rels/workbook.xml.rels", f'<Relationships xmlns="{LINKS}">{links}</Relationships>')
        made = f'<workbook xmlns="{MAIN}" xmlns:r="{OFFICE}"><sheets>{lists}</sheets></workbook>'
        book.writestr("xl/workbook.xml", made)
        for i, rows in enumerate(sheets.values(), 1):
            made = "".join(f'<row r="{r}">{_cells(r, row)}</row>' for r, row in enumerate(rows, 1))
            book.writestr(f"xl/s{i}.xml", f'<worksheet xmlns="{MAIN}"><sheetData>{made}</sheetData></worksheet>')
    return path


def _cells(row: int, values: list) -> str:
    return "".join(_cell(f"{chr(65 + i)}{row}", value) for i, value in enumerate(values) if value is not None)


def _cell(place: str, value: object) -> str:
    if isinstance(value, str):
        return f'<c r="{place}" t="inlineStr"><is><t>{value}</t></is></c>'
    return f'<c r="{place}"><v>{value}</v></c>'


def test_workbooks(tmp_path) -> None:
    pytest.importorskip("python_calamine")
    one = workbook(tmp_path / "one.xlsx", {"first": [["x", "y"], [1, "a"], [2, "b"]]})
    assert cells(read_table(one)) == ROWS
    title = workbook(
        tmp_path / "title.xlsx",
        {"s": [["Sales"], [], ["x", "y", "z"], [1, "NA", 1.5], [None, None, None], [2, "b", 2]]},
    )
    assert cells(read_table(title)) == {"x": [1, 2], "y": ["NA", "b"], "z": [1.5, 2.0]}
    rare = workbook(tmp_path / "rare.xlsx", {"s": [["x", "y", "z"], [1, "a"], [2, "b"], [None, "c", 5]]})
    assert cells(read_table(rare)) == {"x": [1, 2, None], "y": ["a", "b", "c"], "z": [None, None, 5]}
    two = workbook(tmp_path / "two.xlsx", {"p": [["z"], [9]], "q": [["x", "y"], [1, "a"], [2, "b"]]})
    assert cells(read_table(f"{two}::q")) == ROWS
    with pytest.raises(DataError, match="several tables: p, q"):
        read_table(two)
    with pytest.raises(DataError, match="not a readable workbook"):
        read_table(stored(tmp_path, b"hello", "bad.xlsx"))


def test_several_files_are_one_table(tmp_path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for name, text in (("a.csv", "x,y\n1,u\n"), ("b.csv", "y,x\nv,2.5\n"), ("_SUCCESS", "")):
        stored(parts, text, name)
    whole = {"x": [1.0, 2.5], "y": ["u", "v"]}
    for source in (f"{parts}/*.csv", parts, [parts / "a.csv", str(parts / "b.csv")]):
        assert cells(read_table(source)) == whole
    assert cells(read_table([parts / "b.csv", parts / "a.csv"]))["x"] == [2.5, 1.0]
    stored(parts, "x,z\n1,2\n", "c.csv")
    with pytest.raises(DataError, match="different columns .'y', 'z'"):
        read_table(parts)
    with pytest.raises(DataError, match="no such file"):
        read_table(f"{tmp_path}/nowhere/*.csv")
    for i, kind in enumerate((pa.int64(), pa.float64())):
        pq.write_table(pa.table({"x": pa.array([i], kind)}), stored(tmp_path, b"", f"p{i}.parquet"))
    assert cells(read_table(f"{tmp_path}/p?.parquet")) == {"x": [0.0, 1.0]}


def test_what_lies_elsewhere_is_said_and_not_fetched(tmp_path) -> None:
    for where in ("https://x.org/t.csv", "s3://x/t.parquet"):
        with pytest.raises(DataError, match="fetches no tables"):
            read_table(where)
    stored(tmp_path, PLAIN, "my t.csv")
    assert cells(read_table(f"file://{tmp_path}/my%20t.csv")) == ROWS
    with pytest.raises(DataError, match="holds one table"):
        read_table(f"{tmp_path}/my t.csv::x")


def test_what_types_lose_is_kept_as_it_is_written(tmp_path) -> None:
    for text, lossy in (("1.10", True), ("1.5", False), ("1.234", True), ("12", False), ("0.1234567890123", True)):
        table = read_table(stored(tmp_path, f"x,y\n{text},a\n{text},b\n"))
        assert ("x" in table.written) == lossy
        assert table.written.get("x", pa.array(["?"] * 2)).to_pylist() == [text if lossy else "?"] * 2
        for other in (table.take([1]), table.with_column("z", [1, 2])):
            assert ("x" in other.written) == lossy and len(other.written.get("x", other.column("x"))) == len(other)
    words = read_table(stored(tmp_path, "x,y\nNA,a\n2,NA\n"))
    assert cells(words) == {"x": [None, 2], "y": ["a", None]} and words.written["y"].to_pylist() == ["a", "NA"]


def test_damaged_headers_never_end_in_another_error(tmp_path) -> None:
    for parts in itertools.product(("", "x,y", "1,2.5", "#", "sep=", '"'), repeat=3):
        path = stored(tmp_path, "\n".join(parts))
        try:
            assert len(read_table(path))
        except DataError as error:
            assert len(str(error)) > 20
