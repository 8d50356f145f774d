"""Reading tables: every source, no surprises, and errors that name the place."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from plait.data.table import read_table
from plait.errors import DataError

CELLS = {"a": [1, 2, 3], "b": ["x", "y", None], "c": [0.5, None, 1.5]}


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(out, "PNG")
    return out.getvalue()


def sources(tmp_path):
    import datasets
    import pandas
    import polars

    yield CELLS
    yield [dict(zip(CELLS, row)) for row in zip(*CELLS.values())]
    yield pa.table(CELLS)
    yield polars.DataFrame(CELLS)
    yield pandas.DataFrame(CELLS)
    yield datasets.Dataset.from_dict(CELLS)
    (tmp_path / "t.csv").write_text("a,b,c\n1,x,0.5\n2,y,\n3,,1.5\n")
    (tmp_path / "t.tsv").write_text("\ufeffa\tb\tc\r\n1\tx\t0.5\r\n2\ty\tNA\r\n3\tnull\t1.5\r\n", encoding="utf-8")
    (tmp_path / "s.csv").write_text('a;"b";c\n1;x;0.5\n2;y;\n3;;1.5\n')
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(dict(zip(CELLS, row))) for row in zip(*CELLS.values())))
    (tmp_path / "t.json").write_text(json.dumps([dict(zip(CELLS, row)) for row in zip(*CELLS.values())]))
    pa.parquet.write_table(pa.table(CELLS), tmp_path / "t.parquet")
    for name in ("t.csv", "t.tsv", "s.csv", "t.jsonl", "t.json", "t.parquet"):
        yield tmp_path / name


def test_every_source_gives_the_same_table(tmp_path) -> None:
    count = 0
    for source in sources(tmp_path):
        table = read_table(source)
        assert table.data.to_pydict() == CELLS, source
        count += 1
    assert count == 12


def test_datasets_respect_their_selection_and_unwrap_media() -> None:
    import datasets

    data = datasets.Dataset.from_dict({"n": [0, 1, 2, 3]}).select([3, 1])
    assert read_table(data).data.to_pydict() == {"n": [3, 1]}
    pictures = datasets.Dataset.from_dict(
        {"photo": [{"bytes": png(), "path": None}] * 2}, features=datasets.Features({"photo": datasets.Image()})
    )
    assert read_table(pictures).column("photo").to_pylist() == [png()] * 2


def test_pandas_of_mixed_types_and_number_names() -> None:
    import pandas

    both = read_table(pandas.DataFrame({"photo": ["a.png", png(), None]})).column("photo").to_pylist()
    assert both == [{"bytes": None, "path": "a.png"}, {"bytes": png(), "path": None}, None]
    table = read_table(
        pandas.DataFrame({0: [1, "two", None], "t": pandas.to_datetime(["2020-01-01", None, "2021-01-01"])})
    )
    assert table.names == ["0", "t"] and table.column("0").to_pylist() == ["1", "two", None]
    assert table.column("t").null_count == 1


def test_csv_keeps_identifiers_and_quoted_line_ends(tmp_path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        'zip,long,text\n00123,12345678901234567890,"two\nlines, and ""quotes"""\n04567,12345678901234567891,NA\n'
    )
    assert read_table(path).data.to_pydict() == {
        "zip": ["00123", "04567"],
        "long": ["12345678901234567890", "12345678901234567891"],
        "text": ['two\nlines, and "quotes"', None],
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1,2\n1,2,3\n", "Expected 2 columns"),
        (b"a,b\n1,2\n3,\0\n", "NUL byte in line 3"),
        (b"a,b\n1,caf\xe9\n", "not UTF-8 .line 2"),
        ("a,b\n1,2\n".encode("utf-16")[:-1], "damaged UTF-16"),
        ("a,b\n1,\0\n".encode("utf-16"), "NUL byte in line 2"),
        (b"a,b\n", "no rows"),
        (b"", "empty"),
    ],
)
def test_csv_errors_name_the_place(data: bytes, message: str, tmp_path) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "t.csv")


def test_json_errors_name_the_line(tmp_path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match="line 2"):
        read_table(tmp_path / "t.jsonl")


def test_names_are_suggested(tmp_path) -> None:
    (tmp_path / "train.csv").write_text("photo,label\n1,2\n")
    with pytest.raises(DataError, match="Did you mean 'train.csv'"):
        read_table(tmp_path / "trian.csv")
    with pytest.raises(DataError, match="Did you mean 'photo'"):
        read_table(tmp_path / "train.csv").column("phoot")


def test_folders(tmp_path) -> None:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).write_bytes(png())
    table = read_table(tmp_path / "a")
    assert table.data.to_pydict() == {"image": ["cat/1.png", "cat/2.png", "dog/1.png"], "label": ["cat", "cat", "dog"]}
    assert table.root == (tmp_path / "a").resolve()
    assert read_table(tmp_path / "a" / "cat").data.to_pydict() == {"image": ["1.png", "2.png"]}
    (tmp_path / "a" / "x.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match="3 pictures and 1 sounds"):
        read_table(tmp_path / "a")
    for name in ("train/cat/1.png", "test/dog/1.png"):
        (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / name).write_bytes(png())
    assert read_table(tmp_path / "b").data.to_pydict() == {
        "image": ["test/dog/1.png", "train/cat/1.png"],
        "split": ["test", "train"],
        "label": ["dog", "cat"],
    }


def test_take_and_with_column() -> None:
    table = read_table(CELLS).take(np.asarray([2, 0, 2]))
    assert table.column("a").to_pylist() == [3, 1, 3]
    assert table.with_column("d", [1, 2, 3]).names == ["a", "b", "c", "d"]
    assert table.with_column("a", [7, 8, 9]).column("a").to_pylist() == [7, 8, 9]
    with pytest.raises(DataError, match="2 cells"):
        table.with_column("d", [1, 2])
