"""Kinds by evidence: text in every script, identifiers that are some, years, yes or nothing, codes, declared types."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plait.data.codes import behave_as_codes, settle_codes
from plait.data.guess import kinds_of, names_of
from plait.data.kinds.category import BLANK
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.errors import DataError, UsageError

N = 60
LABELS = ["a", "b"] * (N // 2)
RNG = np.random.default_rng(0)


def guessed(source, target="y", **more) -> Schema:
    return Schema.guess(read_table(source), target=target, **more)


def strings(alphabet: str, low: int, high: int) -> list[str]:
    return ["".join(RNG.choice(list(alphabet), RNG.integers(low, high))) for _ in range(N)]


@pytest.mark.parametrize(
    "cells",
    [
        strings("这个手机很好用质量不错推荐购买物流快喜欢", 8, 20),
        strings("これは良い本です悪", 6, 12),
        strings("สวัสดีครับอร่อย", 8, 20),
        strings("좋은책나쁜", 5, 9),
        strings("😀🐈🚀🌧", 3, 9),
        strings("CNOc1()=#", 12, 30),
        strings("ACGT", 8, 30),
        strings("MKVLAAGIC", 20, 40),
        [f"https://shop.org/{c}/{i}" for i, c in zip(RNG.permutation(999), ["red", "blue", "green"] * 20)],
        [f"{a}.{b}@mail.org" for a, b in zip(strings("abcdef", 4, 8), ["lee", "kim"] * 30)],
        [f"def f{i}(x):return(x+{i})*y[{i}]" for i in range(N)],
        strings("abcdefgh", 4, 9),
    ],
    ids="Chinese Japanese Thai Korean emoji SMILES DNA protein URLs e-mail code surnames".split(),
)
def test_text_is_text_in_every_script_and_without_blanks(cells: list[str]) -> None:
    column = guessed({"c": cells, "z": RNG.normal(size=N), "y": LABELS}).column("c")
    assert (column.kind, column.use) == ("text", "input"), column.why


def test_capitals_of_formulas_are_letters_of_their_own() -> None:
    table = read_table({"c": strings("CNOcno()", 10, 20), "y": LABELS})
    schema = Schema.guess(table, target="y").fit(table, np.arange(N))
    pair = Rows(read_table({"c": ["CCO", "cco"]}), schema).batch(np.arange(2))["text_0"]
    assert not (pair[0] == pair[1]).all()


@pytest.mark.parametrize(
    ("name", "cells", "evidence"),
    [
        ("id", list(range(N)), "row numbers"),
        ("PassengerId", list(range(1, N + 1)), "row numbers"),
        ("obs", list(range(1, N + 1)), "row numbers"),
        ("user_id", RNG.permutation(10_000)[:N].tolist(), "different whole numbers"),
        ("c", [f"AB-{i:05d}" for i in range(N)], "digits alone"),
        ("c", [f"{chr(65 + i % 7)}{chr(65 + i % 11)}-{10_000 + 37 * i}" for i in range(N)], "all such as"),
        ("c", [f"{i * 7919**9:040x}" for i in range(1, N + 1)], "hexadecimal"),
        ("account", [str(10**16 + 7919**3 * i) for i in range(N)], "15 digits"),
        ("account", [10**16 + 7919**3 * i for i in range(N)], "15 digits"),
        ("key", strings("abcdefgh", 6, 9), "named"),
    ],
)
def test_an_identifier_shows_its_evidence_and_the_way_out(name: str, cells: list, evidence: str) -> None:
    made = {name: cells, "z": RNG.normal(size=N), "y": LABELS}
    column = guessed(made).column(name)
    assert column.use == "ignored" and evidence in column.why
    kind = column.why.partition(f"(--kind {name}=")[2].partition(" ")[0]
    assert guessed(made, kinds={name: kind}).column(name).use == "input"
    alone = guessed({name: cells, "y": LABELS})  # no table is left without an input
    assert alone.inputs == [name] and "nothing else is left" in alone.said[0]


@pytest.mark.parametrize("name", ["year", "time", "depth", "t", "age", "day", "dose"])
def test_consecutive_whole_numbers_that_count_something_are_inputs(name: str) -> None:
    for low in (0, 1, 1930):
        schema = guessed({name: list(range(low, low + N)), "z": RNG.normal(size=N), "y": LABELS})
        assert schema.column(name).use == "input" and schema.column(name).kind == "number"


@pytest.mark.parametrize("value", ["x", "yes", 1, 1.0, True, "✓", "None of it"])
def test_one_value_and_blanks_is_yes_or_no(value) -> None:
    cells = [value if i % 3 == 0 else None for i in range(N)]
    table = read_table({"flag": cells, "z": RNG.normal(size=N), "y": LABELS})
    schema = Schema.guess(table, target="y").fit(table, np.arange(N))
    schema = Schema.from_json(json.loads(json.dumps(schema.to_json())))
    rows = Rows(table, schema).scan()
    at = schema.slot("category").columns.index("flag")
    assert rows.batch(np.arange(N))["category"][:, at].tolist() == [2 if i % 3 == 0 else 1 for i in range(N)]
    later = Rows(read_table({"flag": [None, value], "z": [0.0, 1.0]}), schema).scan()
    assert later.batch(np.arange(2))["category"][:, at].tolist() == [1, 2] and not later.bad.count()
    odd = Rows(read_table({"flag": ["other"], "z": [0.0]}), schema).scan()
    assert "blank" in next(iter(odd.bad.by_reason()))


def test_a_target_of_one_value_and_blanks_has_two_classes() -> None:
    table = read_table({"z": RNG.normal(size=N), "y": ["x" if i % 3 == 0 else "" for i in range(N)]})
    schema = Schema.guess(table, target="y")
    schema.ask("category")
    schema.fit(table, np.arange(N))
    params = schema.column("y").params
    assert params["values"] == ["x", BLANK] and params["classes"] == ["x", None] and params["counts"] == [20, 40]
    assert "blank cells" in schema.said[0]


def effects(levels: int, each: int, arbitrary: bool, seed: int) -> tuple[list[int], np.ndarray]:
    """Numbers from 1000 on and their targets: of arbitrary ones neighbours are always far apart, others lie on a
    wave."""
    rng = np.random.default_rng(seed)
    effect = (
        10 * ((0.618034 * np.arange(levels) + rng.random()) % 1) if arbitrary else 3 * np.sin(np.linspace(0, 3, levels))
    )
    code = np.repeat(np.arange(levels), each)
    return (1000 + code).tolist(), effect[code] + rng.normal(0, 0.5, levels * each)


@pytest.mark.parametrize("levels", [13, 16, 30, 80])
@pytest.mark.parametrize("each", [8, 20])
def test_whole_numbers_with_effects_of_their_own_are_codes(levels: int, each: int) -> None:
    """Nearly always where they are, and never where an effect follows the size."""
    found = {}
    for arbitrary in (True, False):
        for seed in range(25):
            code, y = effects(levels, each, arbitrary, seed)
            _, at, counts = np.unique(code, return_inverse=True, return_counts=True)
            high = (y > np.median(y))[:, None]
            for target in (y[:, None], np.concatenate([high, ~high], 1).astype(float)):
                found.setdefault(arbitrary, []).append(behave_as_codes(np.unique(code), at, counts, target))
    assert np.mean(found[True]) >= 0.95 and not any(found[False])


@pytest.mark.parametrize("arbitrary", [True, False])
def test_codes_become_categories(arbitrary: bool) -> None:
    code, y = effects(40, 15, arbitrary, 0)
    for target in (y.tolist(), np.where(y > np.median(y), "high", "low").tolist()):
        table = read_table({"c": code, "z": y[::-1].tolist(), "y": target})
        schema = Schema.guess(table, target="y")
        assert schema.column("c").kind == "number"
        settle_codes(table, schema, np.arange(len(table)))
        assert schema.column("c").kind == ("category" if arbitrary else "number")
        assert [s.name for s in schema.slots] == (["number", "category"] if arbitrary else ["number"])
        assert schema.column("z").kind == "number"


def test_codes_are_told_by_the_training_rows_and_never_against_the_user() -> None:
    code, y = effects(30, 20, True, 0)
    table = read_table({"c": code, "z": y[::-1].tolist(), "y": y.tolist()})
    for rows, fixed in ((np.arange(40), []), (np.arange(len(y)), ["c"])):
        schema = Schema.guess(table, target="y")
        settle_codes(table, schema, rows, fixed)
        assert schema.column("c").kind == "number"
    few, y = effects(7, 40, True, 1)  # too few for neighbours: a straight line is what a number would be
    exact = [2 * c - 6.5 for c in few]
    for target, kind in (
        (y.tolist(), "category"),
        ((np.asarray(few) + y * 0.01).tolist(), "number"),
        (exact, "number"),
    ):
        table = read_table({"c": few, "z": y[::-1].tolist(), "y": target})
        schema = Schema.guess(table, target="y")
        settle_codes(table, schema, np.arange(len(y)))
        assert schema.column("c").kind == kind


def test_a_curve_that_is_known_exactly_is_no_set_of_codes() -> None:
    """Neighbours do not tell a bent curve to the last digit; as long as they tell most of it, size matters."""
    x = np.repeat(np.arange(24), 100)
    y = np.sin(0.6 * x) + np.random.default_rng(0).normal(0, 0.01, len(x))
    table = read_table({"c": x.tolist(), "z": y[::-1].tolist(), "y": y.tolist()})
    schema = Schema.guess(table, target="y")
    settle_codes(table, schema, np.arange(len(y)))
    assert schema.column("c").kind == "number"


@pytest.mark.parametrize(
    "name",
    "store_id zip StoreId postcode townid Ketchup.hid familyid subject Region shopType pooled.stratum sex trt".split(),
)
def test_numbers_called_as_codes_of_things_are_categories(name: str) -> None:
    for cells in ([1000 + i % 12 for i in range(N)], [7 + i % 2 for i in range(N)]):
        column = guessed({name: cells, "y": LABELS}).column(name)
        assert column.kind == "category" and column.why.endswith(f"(--kind {name}=number: amounts)")


@pytest.mark.parametrize("name", "paid valid acid humid rooms colour school subjects prototype year time town".split())
def test_other_names_say_nothing(name: str) -> None:
    for cells in ([1000 + i % 12 for i in range(N)], [7 + i % 2 for i in range(N)], list(range(1, N + 1))):
        column = guessed({name: cells, "z": RNG.normal(size=N), "y": LABELS}).column(name)
        assert (column.kind, column.use) == ("number", "input")


@pytest.mark.parametrize("name", ["patient", "idcase", "site", "townid"])
def test_units_that_are_there_once_are_left_out(name: str) -> None:
    for cells in (list(range(1, N + 1)), [100 + 7 * i for i in range(N)]):
        column = guessed({name: cells, "z": RNG.normal(size=N), "y": LABELS}).column(name)
        assert column.use == "ignored" and f"--kind {name}=number" in column.why


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([1, 2], "category"),
        ([2, 1, None], "category"),
        ([1.0, 2.0], "category"),
        (["1", "2"], "category"),
        ([1, 2, 3], "number"),
        ([1.0, 1.5, 2.0], "number"),
        ([2, 3], "number"),
        (["1 kg", "2 kg"], "number"),
    ],
)
def test_one_and_two_number_two_classes(cells: list, kind: str) -> None:
    whole = cells * (N // len(cells))
    assert guessed({"c": whole, "y": LABELS[: len(whole)]}).column("c").kind == kind


@pytest.mark.parametrize("values", [["lo", "mid", "hi"], [3, 1, 2]])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("way", ["pandas", "dict", "series", "arrow", "parquet"])
def test_a_declared_category_is_one_and_keeps_its_order(values: list, ordered: bool, way: str, tmp_path) -> None:
    made = pd.Categorical([values[i % 3] for i in range(N)], categories=values, ordered=ordered)
    frame = pd.DataFrame({"c": made, "z": RNG.normal(size=N), "y": LABELS})
    source: object = frame
    if way in ("dict", "series"):
        source = {"c": made if way == "dict" else frame["c"], "z": frame["z"], "y": LABELS}
    if way in ("arrow", "parquet"):
        source = pa.Table.from_pandas(frame, preserve_index=False)
    if way == "parquet":
        pq.write_table(source, tmp_path / "t.parquet")
        source = tmp_path / "t.parquet"
    table = read_table(source)
    schema = Schema.guess(table, target="y").fit(table, np.arange(N))
    assert schema.column("c").kind == "category" and "declared" in schema.column("c").why
    stored = values if way != "parquet" or isinstance(values[0], str) else sorted(values)  # Parquet stores the numbers
    wanted = [str(v) for v in stored] if ordered else sorted(map(str, values))
    assert schema.column("c").params["values"] == wanted
    asked = Schema.guess(table, target="c", inputs=["z"])
    asked.ask("category")
    assert asked.fit(table, np.arange(N)).column("c").params["classes"] == (stored if ordered else sorted(values))


def test_names_of_any_sort_can_be_given() -> None:
    table = read_table({"price, EUR": [1, 2], 'a "b"': [1, 2], "c ": [1, 2], "d": [1, 2], "x=y": [1, 2], "": [1, 2]})
    for name in table.names:
        assert names_of(table, [name]) == [name]
    assert names_of(table, ["c,d"]) == ["c ", "d"] and names_of(table, ["d", "price, EUR"]) == ["d", "price, EUR"]
    assert names_of(table, ['"price, EUR",d']) == ["price, EUR", "d"] and names_of(table, ["price, USD"]) == [
        "price, USD"
    ]
    assert kinds_of(table, {"d=text,x=y": "number"}) == {"d": "text", "x=y": "number"}
    assert kinds_of(table, {"price, EUR": "text", "c": "image"}) == {"price, EUR": "text", "c ": "image"}
    with pytest.raises(UsageError, match="Did you mean 'price, EUR'"):
        Schema.guess(table, target="price, EURO")


@pytest.mark.parametrize("freq", ["D", "W", "W-WED", "M", "Q-NOV", "2M", "Y", "h"])
def test_a_period_is_its_beginning_whatever_its_length(freq: str) -> None:
    periods = pd.period_range("2019-03-01", periods=N, freq=freq)
    for source in (pd.DataFrame({"c": periods, "y": LABELS}), {"c": periods, "y": LABELS}, {"c": list(periods)}):
        assert read_table(source).column("c").to_pylist() == [p.start_time.to_pydatetime() for p in periods]


def test_runs_of_a_value_are_read_as_their_values() -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 5], pa.int32()), pa.array([1.5, None]))
    assert read_table(pa.table({"c": runs})).column("c").to_pylist() == [1.5, 1.5, None, None, None]


def test_half_a_character_in_a_name_is_refused(tmp_path) -> None:
    (tmp_path / "t.json").write_text('[{"c\\ud800": 1}, {"c\\ud800": 2}]')
    for source in ({"c\ud800": [1, 2]}, tmp_path / "t.json"):
        with pytest.raises(DataError, match="no readable text"):
            read_table(source)


class Thing:
    pass


@pytest.mark.parametrize(("cell", "told"), [(Thing(), "test_evidence.Thing"), (complex(1, 2), "complex")])
def test_objects_are_never_read_as_their_names(cell: object, told: str) -> None:
    with pytest.raises(DataError, match=f"'c'.*{told}"):
        read_table({"c": [cell] * 4, "y": [1, 2, 3, 4]})
