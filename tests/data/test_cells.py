"""A cell means the same wherever it stands: alone or among others, given or asked for, in whatever spelling of its
column."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.core.declared import check
from plait.data import moments, numerals
from plait.data.kinds import KINDS, Place
from plait.data.kinds.base import FitOptions, Glance
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.data.words import Labels, merged, plain_number
from plait.errors import DataError
from plait.tasks.regress import Regress

LABELS = ["a", "b"] * 30


def texts(cells: list) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(cells, pa.string())])


def written(value: float, digits: int, decimal: str, group: str, minus: str) -> str:
    """A number as a person writes it, with grouped thousands."""
    text = f"{abs(value):,.{digits}f}".replace(",", "\0").replace(".", decimal).replace("\0", group)
    sign = value < 0 and text.strip("0.,") != ""
    return {"-": f"-{text}", "−": f"−{text}", "()": f"({text})", "after": f"{text}-"}[minus] if sign else text


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(-(10**8), 10**8).map(lambda v: v / 100), min_size=6, max_size=12),
    marks=st.sampled_from([(".", ","), (",", "."), (",", " "), (",", "\u202f"), (".", "'"), (".", "’"), (".", "")]),
    minus=st.sampled_from(["-", "−", "()", "after"]),
    around=st.sampled_from(
        [("", ""), ("$", ""), ("€ ", ""), ("", " €"), ("", " kg"), ("", "%"), ("CHF ", ""), ("", " °C")]
    ),
)
def test_a_number_is_read_however_its_column_is_written(values, marks, minus, around) -> None:
    cells = [written(v, 2, *marks, minus) for v in values]
    cells = [f"{c[0]}{around[0]}{c[1:]}" if c[0] in "-−(" else f"{around[0]}{c}" for c in cells]
    cells = [f"{c[:-1]}{around[1]})" if c.endswith(")") else f"{c}{around[1]}" for c in cells if not c.endswith("-")]
    values = [v for v in values if not (minus == "after" and v < 0)]
    if not cells:
        return
    style = json.loads(json.dumps(numerals.learn(texts(cells))))
    found, real, bad = numerals.read(texts(cells), style)
    assert real.all() and not bad
    np.testing.assert_allclose(found, values, rtol=1e-12)
    for cell, value in zip(cells, values):  # alone as among neighbours
        assert numerals.number(cell, style) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (["2.500", "1,5"], [2500, 1.5]),
        (["1,234", "1,234.5"], [1234, 1234.5]),
        (["0,123", "10,46"], [0.123, 10.46]),
        (["1,23,456", "12,34,567.5"], [123456, 1234567.5]),
        (["€1.5M", "€500K", "€3"], [1.5e6, 5e5, 3]),
        (["5 kg", "300 g", "7kg"], [5, 0.3, 7]),
        (["12 months", "1 month", "1.5 years"], [12, 1, 18]),
        (["1st", "2nd", "14th"], [1, 2, 14]),
        (["١٢", "٣٫٥"], [12, 3.5]),
        (["１２", "３．５"], [12, 3.5]),
        (["(0, 5]", "(5, 10]"], [2.5, 7.5]),
        (["1e3", "2.5E-2", "-.5"], [1000, 0.025, -0.5]),
        (["$(1,234.50)", "$ 7.00", "($5.00)"], [-1234.5, 7, -5]),
        (["50,-", "1.250,-", "CHF 7.–"], [50, 1250, 7]),
    ],
)
def test_what_cells_of_one_column_say(cells: list[str], wanted: list[float]) -> None:
    style = numerals.learn(texts(cells))
    assert [numerals.number(c, style) for c in cells] == pytest.approx(wanted)


@pytest.mark.parametrize(
    "cell",
    "? - unknown <0.1 5-10 12:30 1.2.3 0x10 1_000 $-5- k7 $(5 5,-3".split() + ["5 kg", "9 pm"],
)
def test_what_says_no_number(cell: str) -> None:
    assert isinstance(numerals.number(cell, numerals.PLAIN), str)


def test_units_of_many_sorts_are_no_numbers() -> None:
    for cells in (["12A", "13B", "7C"], ["$5", "€6"] * 9, [f"{i} {w} Street" for i, w in enumerate("abcdef")]):
        style = numerals.learn(texts(cells))
        assert any(isinstance(numerals.number(c, style), str) for c in cells)


def semicolons(folder, name: str, columns: dict[str, list[str]]):
    rows = [";".join(columns), *(";".join(row) for row in zip(*columns.values()))]
    (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / name


def test_the_training_file_says_how_every_later_one_is_written(tmp_path) -> None:
    """2.500 is two thousand five hundred where another cell, or another column, of the training file has a decimal
    comma; in a table of one row, in one of numbers, and as a target."""
    sales = [f"{1 + i % 9}.{i % 10}00" for i in range(60)]
    other = [f"{i},{1 + i % 9}" for i in range(60)]
    both = read_table(semicolons(tmp_path, "t.csv", {"sales": sales, "other": other, "y": LABELS}))
    schema = Schema.guess(both, target="y").fit(both, np.arange(60))
    schema = Schema.from_json(json.loads(json.dumps(schema.to_json())))
    assert schema.column("sales").kind == "number" and schema.column("sales").params["mean"] > 1000

    def first(source) -> float:
        batch = Rows(read_table(source), schema).scan().batch(np.array([0]))
        return batch["number"][0, 0].item()

    alone = first(semicolons(tmp_path, "one.csv", {"sales": ["2.500"]}))
    assert alone == first({"sales": ["2.500", "1,5"]}) == first({"sales": [2500]}) == first({"sales": ["2 500,0"]})
    assert alone != first({"sales": [2.5]})
    asked = Schema.guess(both, target="sales", inputs=["other"]).fit(both, np.arange(60))
    assert asked.column("sales").params["mean"] > 1000
    point = read_table({"sales": ["2.500", "1.300"] * 30, "y": LABELS})
    assert Schema.guess(point, target="y").fit(point, np.arange(60)).column("sales").params["mean"] == pytest.approx(
        1.9
    )


def test_a_separator_decides_where_nothing_else_does(tmp_path) -> None:
    cells = [f"{1 + i % 9},{i % 10}05" for i in range(60)]
    found = read_table(semicolons(tmp_path, "t.csv", {"x": cells, "y": LABELS}))
    assert Schema.guess(found, target="y").fit(found, np.arange(60)).column("x").params["mean"] < 20
    quoted = tmp_path / "q.csv"
    quoted.write_text("x,y\n" + "".join(f'"{c}",{y}\n' for c, y in zip(cells, LABELS)))
    found = read_table(quoted)
    assert Schema.guess(found, target="y").fit(found, np.arange(60)).column("x").params["mean"] > 1000


@pytest.mark.parametrize("word", ["?", "unknown", "-", "<0.1", ">= 90", "n.d.", "#DIV/0!", "trace"])
@pytest.mark.parametrize("form", ["csv", "python"])
def test_a_bad_cell_among_numbers_is_listed_and_no_more(word: str, form: str, tmp_path) -> None:
    numbers = [f"{i / 7:.3f}" for i in range(60)]
    cells: list = [word if i % 10 == 3 else float(v) if form == "python" else v for i, v in enumerate(numbers)]
    source: object = {"x": cells, "y": LABELS}
    if form == "csv":
        source = tmp_path / "t.csv"
        source.write_text("x,y\n" + "".join(f"{a},{b}\n" for a, b in zip(cells, LABELS)))
    table = read_table(source)
    schema = Schema.guess(table, target="y").fit(table, np.arange(60))
    rows = Rows(table, schema).scan()
    assert schema.column("x").kind == "number" and rows.bad.by_reason() == {"not a number": 6}
    kept = rows.batch(np.arange(60))["keep"]["number"][:, 0]
    assert (~kept).nonzero()[:, 0].tolist() == [i for i in range(60) if i % 10 == 3]


def test_codes_of_digits_and_letters_are_no_numbers() -> None:
    for cells in (
        ["1", "2", "3", "K"] * 15,
        ["S", "36", "38", "M"] * 15,
        ["007", "012", "999"] * 20,
        ["101", "102", "3B"] * 20,
    ):
        assert KINDS["number"].guess(Glance("x", texts(cells), Place())) is None


def test_hexadecimal_cells_are_no_numbers_wherever_they_stand(tmp_path) -> None:
    cells = [hex(700 + 37 * i) for i in range(60)]
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "".join(f"{a},{b}\n" for a, b in zip(cells, LABELS)))
    read = [read_table(path).column("x"), read_table({"x": cells}).column("x")]
    assert read[0].to_pylist() == read[1].to_pylist() == cells


STYLES = ["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%y", "%d %b %Y", "%B %d, %Y", "%Y/%m/%d %H:%M",
          "%d-%b-%y %I:%M %p", "%a, %d %b %Y %H:%M:%S +0000", "%Y-%m-%dT%H:%M:%SZ", "%Y年%m月%d日",
          "%d%b%Y:%H:%M:%S", "%d/%b/%Y:%H:%M:%S +0000", "%a %b %d %H:%M:%S %Y", "%a %b %d %H:%M:%S UTC %Y", "%d%b%Y",
          "%a %b %d %Y %H:%M:%S GMT+0000 (Greenwich Mean Time)", "%Y년 %m월 %d일", "%Y. %m. %d."]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20_000), min_size=20, max_size=30, unique=True), st.sampled_from(STYLES))
def test_dates_are_read_however_their_column_is_written(days: list[int], style: str) -> None:
    stamps = [
        datetime(1970, 1, 1) + timedelta(days=d, hours=9) for d in [*days, 30, 58]
    ]  # two that tell day from month
    learnt, share = moments.learn("x", texts([s.strftime(style) for s in stamps]))
    assert share == 1
    cells = [s.strftime(style) for s in stamps]
    found, real, _ = moments.read(texts(cells), learnt)  # many at a time, as one by one
    assert real.all() and found.tolist() == [moments.moment(c, learnt) for c in cells]
    for stamp in stamps:
        said = moments.moment(stamp.strftime(style), learnt)
        hour = stamp.hour if "%H" in style or "%I" in style else 0
        assert said == stamp.replace(hour=hour, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("cells", "day"),
    [
        (["2012-05", "2013-12"], "2012-05-01"),
        (["05/2012", "12/2013"], "2012-05-01"),
        (["May 2012", "Dez 2013"], "2012-05-01"),
        (["2012Q2", "2013 Q4"], "2012-04-01"),
        (["Q2 2012", "Q4 2013"], "2012-04-01"),
        (["2012-W05", "2013-W50-3"], "2012-01-30"),
        (["1999-00", "2000-01", "2012-13"], "1999-01-01"),
        (["14:30", "2:30 PM"], "1970-01-01T14:30"),
        (["3. März 2012", "4. Mai 2013"], "2012-03-03"),
        (["2021-12-31T23:59:59+01:00"], "2021-12-31T22:59:59"),
        (["2021-12-31 23:59:59 EST"], "2022-01-01T04:59:59"),
        (["Sep-21", "Okt-22"], "2021-09-01"),
        (["Sep'21", "Jan '22"], "2021-09-01"),
        (["2020년 5월", "2021년 12월"], "2020-05-01"),
        (["Сентябрь 2020", "май 2021"], "2020-09-01"),
        (["15 września 2020", "1 maja 2021"], "2020-09-15"),
        (["Q3'20", "Q1 '21"], "2020-07-01"),
        (["3Q20", "1Q21"], "2020-07-01"),
        (["2021H2", "2022 H1"], "2021-07-01"),
        (["23h35", "11h05"], "1970-01-01T23:35"),
        (["11 PM", "12 a.m."], "1970-01-01T23:00"),
        (["1 days 02:03:04", "-1 days +23:59:00"], "1970-01-02T02:03:04"),
        (["1 day, 2:03:04", "2:00:00"], "1970-01-02T02:03:04"),
        (["1h 30m", "2h 5min"], "1970-01-01T01:30"),
        (["PT5H30M", "P1DT2H"], "1970-01-01T05:30"),
    ],
)
def test_months_quarters_weeks_and_times(cells: list[str], day: str) -> None:
    style, share = moments.learn("x", texts(cells))
    assert share == 1 and moments.moment(cells[0], style) == np.datetime64(day, "s").astype(np.int64)
    assert KINDS["datetime"].guess(Glance("x", texts(cells * 3), Place())) is not None


def test_one_column_tells_another_which_number_is_the_day() -> None:
    open_, told = ["03/04/2020", "05/06/2021"] * 5, ["03/25/2020", "05/06/2021"] * 5
    table = read_table({"a": open_, "b": told, "y": ["p", "q"] * 5})
    assert Schema.guess(table, target="y").column("a").style["moment"]["first"] == "month"
    table = read_table({"a": open_, "y": ["p", "q"] * 5})
    assert Schema.guess(table, target="y").column("a").style["moment"]["first"] == "day"


def test_whole_numbers_are_dates_only_where_they_are_called_so() -> None:
    for name, cells, form in (
        ("timestamp", [1_500_000_000, 1_600_000_000], "epoch s"),
        ("created_at", [1_500_000_000_000, 1_500_000_000_001], "epoch ms"),
        ("date", [20_120_503, 20_121_231], "compact"),
        ("month", [201_205, 201_212], "compact"),
        ("date", [20_120_503_143_000, 20_121_231_000_000], "compact"),
        ("salary", [201_205, 201_212], None),
        ("amount", [20_120_503, 20_121_231], None),
        ("date", [800_102, 870_521, 80_102], "short"),
        ("amount", [800_102, 870_521], None),
        ("date", [200_511, 200_612], "compact"),  # months
        ("date", [801_302, 870_521], None),
        ("month", [101, 102], None),
    ):
        glance = Glance(name, pa.chunked_array([cells * 10]), Place())
        assert (KINDS["datetime"].guess(glance) is not None) == (form is not None)
        assert form is None or glance.moment[0]["form"] == form


@pytest.mark.parametrize(
    ("cells", "day"),
    [(["1/86", "12/87"], "1986-01-01"), (["800102", "870521"], "1980-01-02"), (["080102"], "2008-01-02")],
)
def test_years_of_two_digits_need_a_name(cells: list[str], day: str) -> None:
    style, share = moments.learn("month", texts(cells))
    assert share == 1 and moments.moment(cells[0], style) == np.datetime64(day, "s").astype(np.int64)
    assert moments.learn("x", texts(cells))[1] == 0


def test_a_year_and_another_are_no_season() -> None:
    assert moments.learn("x", texts(["1999-05", "1999-13"]))[1] < 1 and moments.learn("x", texts(["1999-01"]))[1] == 1
    assert moments.learn("x", texts(["1999-15", "2000-17"]))[1] == 0
    glance = Glance("season", texts([f"{y}-{(y + 1) % 100:02d}" for y in range(1920, 1960)]), Place())
    made = Schema.guess(read_table({"season": glance.column, "z": list(range(40))}))
    assert (made.column("season").kind, made.column("season").use) == ("datetime", "input")


@pytest.mark.parametrize("zeros", ["000000", "000000000"])
def test_times_since_1970_are_such_in_a_text_file_too(zeros: str, tmp_path) -> None:
    stamps = [1_500_000_000 + 86_400 * i for i in range(60)]
    path = tmp_path / "t.csv"
    path.write_text("timestamp,y\n" + "".join(f"{s}{zeros},{b}\n" for s, b in zip(stamps, LABELS)))
    table = read_table(path)
    column = Schema.guess(table, target="y").fit(table, np.arange(60)).column("timestamp")
    assert column.kind == "datetime" and column.use == "input"
    assert column.params["median"] == pytest.approx(np.median(stamps))


@pytest.mark.parametrize("word", ["?", "unknown", "0000-00-00", "00.00.0000"])
def test_what_says_no_date_is_no_evidence_against_dates(word: str) -> None:
    cells = [word if i % 5 < 2 else f"2020-{1 + i % 12:02d}-{1 + i % 28:02d}" for i in range(60)]
    table = read_table({"d": cells, "y": LABELS})
    schema = Schema.guess(table, target="y").fit(table, np.arange(60))
    rows = Rows(table, schema).scan()
    assert schema.column("d").kind == "datetime" and rows.bad.by_reason() == {"not a date": 24}
    assert KINDS["datetime"].guess(Glance("d", texts(["words"] * 24 + cells), Place())) is None


def test_dates_that_repeat_are_classes_of_a_target() -> None:
    for cells in (["2020-01", "Feb 2021"], ["12:30", "11:15"], [datetime(2020, 1, 1), datetime(2021, 1, 1)]):
        table = read_table({"x": list(range(60)), "y": cells * 30})
        assert Schema.guess(table, target="y").column("y").kind == "category"
    days = [str(np.datetime64("2020-01-01") + i) for i in range(60)]
    table = read_table({"x": list(range(60)), "y": days})
    schema = Schema.guess(table, target="y")
    Regress.variant(schema, table)
    schema.fit(table, np.arange(60))
    with pytest.raises(DataError, match="holds dates or times"):
        Regress.learn(schema)


TRUTH = [True, False, True, True, False] * 4
SPELLINGS = {
    "bool": TRUTH,
    "int": [int(v) for v in TRUTH],
    "float": [float(v) for v in TRUTH],
    "digits": [str(int(v)) for v in TRUTH],
    "decimals": [f"{v:.1f}" for v in TRUTH],
    "capitals": ["TRUE" if v else "FALSE" for v in TRUTH],
    "small": ["true" if v else "false" for v in TRUTH],
    "words": ["yes " if v else " No" for v in TRUTH],
    "wide": ["１" if v else "０" for v in TRUTH],
}
OWN = {"bool": [False, True], "int": [0, 1], "float": [0.0, 1.0], "digits": ["0", "1"], "decimals": ["0.0", "1.0"]}
OWN |= {"capitals": ["FALSE", "TRUE"], "small": ["false", "true"], "words": ["No", "yes"], "wide": ["０", "１"]}


@pytest.mark.parametrize("learnt", SPELLINGS)
def test_labels_are_the_same_in_any_spelling_of_their_type(learnt: str) -> None:
    kind, column = KINDS["category"], pa.chunked_array([pa.array(SPELLINGS[learnt])])
    params = kind.fit_target(column, FitOptions(Place(), style={"type": str(column.type)}))
    assert params["classes"] == OWN[learnt] and [type(c) for c in params["classes"]] == [type(c) for c in OWN[learnt]]
    for cells in SPELLINGS.values():
        found = kind.encode_target(pa.chunked_array([pa.array(cells)]), params, Place())
        assert (found.values[:, 0] == np.asarray(TRUTH) + 1).all() and found.real.all() and not found.bad
        inputs = KINDS["boolean"].encode_column(
            pa.chunked_array([pa.array(cells)]), {"values": ["false", "true"]}, Place()
        )
        assert (inputs.values[:, 0] == np.asarray(TRUTH) + 1).all()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.text("aàbB1 .-", min_size=1, max_size=5).map(str.strip).filter(bool), min_size=1, max_size=8, unique=True
    )
)
def test_every_label_is_found_as_itself(values: list[str]) -> None:
    labels = Labels(values)
    assert [labels.find(v) for v in values] == list(range(len(values)))
    assert labels.find("something else") is None
    assert sum(count for _, count in merged((v, 2) for v in values)) == 2 * len(values)


def test_spellings_that_could_be_two_labels_are_neither() -> None:
    labels = Labels(["Cat", "cat", "01", "1"])
    assert labels.find("CAT") is None and labels.find("1.0") is None and labels.find("cat") == 1
    assert Labels(["Cat", "Dog"]).find("  DOG".strip()) == 1 and Labels(["007", "12"]).find("7") == 0
    assert plain_number("-0") == "0" and plain_number("1e3") == "1000" and plain_number("1.50") == "1.5"


@pytest.mark.parametrize("first", [2**53 + 1, -(2**60)])
def test_whole_numbers_beyond_what_json_tells_apart_are_classes(first: int) -> None:
    cells = pa.chunked_array([pa.array([first + i % 2 for i in range(20)])])
    params = KINDS["category"].fit_target(cells, FitOptions(Place(), style={"type": "int64"}))
    assert sorted(params["classes"]) == sorted([str(first), str(first + 1)])
    check(json.loads(json.dumps(params)), KINDS["category"].learnt)  # raises for what a run's file may not hold
    found = KINDS["category"].encode_target(cells, params, Place())
    assert set(found.values[:, 0].tolist()) == {1, 2} and not found.bad


def test_a_class_that_was_never_learnt_is_one_more() -> None:
    kind, place = KINDS["category"], Place()
    params = kind.fit_target(texts(["a", "b", "a"]), FitOptions(place))
    found = kind.encode_target(texts(["a", "d", None, "c", "d"]), params, place)
    assert found.values[:, 0].tolist() == [1, 4, 0, 3, 4] and found.real.tolist() == [True, True, False, True, True]
    assert [row for row, _ in found.bad] == [1, 3, 4]


@pytest.mark.parametrize("word", ["None", "NA", "null", "N/A"])
def test_a_class_may_be_called_none(word: str, tmp_path) -> None:
    answers = [[word, "mild", "severe"][i % 3] for i in range(60)]
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "".join(f"{i / 7},{a}\n" for i, a in enumerate(answers)))
    table = read_table(path)
    schema = Schema.guess(table, target="y").fit(table, np.arange(60))
    assert schema.column("y").params["classes"] == sorted([word, "mild", "severe"]) and word in schema.said[0]
    path.write_text(path.read_text() + "1.5,\n")  # where a cell is empty, the word says the same
    table = read_table(path)
    schema = Schema.guess(table, target="y").fit(table, np.arange(61))
    assert schema.column("y").params["classes"] == ["mild", "severe"] and "no value" in schema.said[0]
    (tmp_path / "n.csv").write_text("x,y\n" + "".join(f"{word if i % 5 == 0 else i},{i % 2}\n" for i in range(60)))
    table = read_table(tmp_path / "n.csv")
    rows = Rows(table, Schema.guess(table, target="y").fit(table, np.arange(60))).scan()
    assert not rows.bad.count() and rows.batch(np.arange(60))["keep"]["number"].sum() == 48  # missing among numbers
