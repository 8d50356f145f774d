"""Rows in the order of time: earlier ones train, later ones are asked."""

from __future__ import annotations

import io
import random
from contextlib import redirect_stderr, redirect_stdout
from datetime import date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.cli import main
from plait.data.schema import Schema
from plait.data.split import split_in_time
from plait.data.table import read_table
from plait.errors import DataError, UsageError
from plait.runs.console import Console
from plait.runs.prepare import Prepared, prepare
from plait.runs.settings import Settings

QUIET = Console(quiet=True)
N = 100


def rows(seed: int = 0) -> dict:
    days = [date(2021, 1, 1) + timedelta(days=3 * i) for i in range(N)]
    random.Random(seed).shuffle(days)
    x = np.random.default_rng(seed).normal(size=N)
    return {"day": days, "x": x, "y": 2 * x + 1}


def ready(source, **how) -> Prepared:
    return prepare(source, Settings(**{"target": "y", "system": "auto_toy", "folds": 1} | how), QUIET)


def in_order(times: np.ndarray, splits: dict) -> bool:
    sides = [times[splits[name]] for name in ("train", "val", "test") if len(splits[name])]
    return all(a.max() < b.min() for a, b in zip(sides, sides[1:]))


@pytest.mark.parametrize("written", ["type", "iso", "german", "epoch", "number"])
def test_train_is_before_val_is_before_test(written: str, tmp_path) -> None:
    source = rows()
    times = np.array([d.toordinal() for d in source["day"]])
    source["day"] = {
        "type": source["day"],
        "iso": [d.isoformat() for d in source["day"]],
        "german": [d.strftime("%d.%m.%Y") for d in source["day"]],
        "epoch": [int(datetime(d.year, d.month, d.day).timestamp()) for d in source["day"]],
        "number": [d.toordinal() / 7 for d in source["day"]],
    }[written]
    data = ready(source, time="day")
    assert in_order(times, data.splits) and data.sizes() == {"train": 80, "val": 10, "test": 10}
    assert not in_order(times, ready(source).splits)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=3, max_size=60), st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.3, 0.2)]))
def test_whatever_the_times(times: list[int], fractions: tuple) -> None:
    table = read_table({"t": [float(t) / 2 for t in times], "y": list(range(len(times)))})
    schema = Schema.guess(table, target="y", inputs=["t"], kinds={"t": "number"}) if len(set(times)) > 1 else None
    if schema is None:
        return
    if len(set(times)) < 3:
        with pytest.raises(DataError, match="holds 2 different times.*at least 3"):
            split_in_time(table, schema, "t", fractions)
        return
    found = split_in_time(table, schema, "t", fractions)
    assert sorted(np.concatenate(list(found.values())).tolist()) == list(range(len(times)))
    assert all(len(found[name]) for name in found) and in_order(np.array(times), found)
    if len(set(times)) == len(times):
        assert [len(found[n]) for n in ("val", "test")] == [max(1, round(f * len(times))) for f in fractions[1:]]


def test_rows_to_be_predicted_have_no_say_and_never_test() -> None:
    source = rows()
    latest = np.argsort([d.toordinal() for d in source["day"]])[-20:]
    source["y"] = [None if i in latest else v for i, v in enumerate(source["y"])]
    assert ready(source, time="day").sizes() == {"train": 64, "val": 8, "test": 8}


def test_a_test_table_leaves_the_latest_tenth_to_watch(tmp_path) -> None:
    import pandas as pd

    pd.DataFrame(rows(1)).to_csv(tmp_path / "t.csv", index=False)
    source = rows()
    data = ready(source, time="day", test=str(tmp_path / "t.csv"))
    times = np.array([d.toordinal() for d in source["day"]])
    assert data.sizes() == {"train": 90, "val": 10, "test": 100}
    assert times[data.splits["train"]].max() < times[data.splits["val"]].min()


@pytest.mark.parametrize(
    "how, error, words",
    [
        ({"time": "date"}, UsageError, "no column 'date'"),
        ({"time": "word"}, UsageError, "'word' is taken for category .*expected dates or numbers"),
        ({"time": "gaps"}, DataError, r"2 rows have no time in 'gaps' \(the first is row 3\)"),
        ({"time": "two"}, DataError, "holds 2 different times"),
        ({"time": "day", "group": "word"}, UsageError, "time and group both say"),
        ({"time": "day", "split": "word"}, UsageError, "time and split both say"),
    ],
)
def test_what_cannot_be_is_said(how: dict, error: type, words: str) -> None:
    source = rows()
    source |= {"gaps": [None if i in (3, 8) else d for i, d in enumerate(source["day"])]}
    source |= {"two": [float(i % 2) for i in range(N)], "word": ["train" if i % 2 else "test" for i in range(N)]}
    kinds = {"two": "number"}
    with pytest.raises(error, match=words):
        ready(source, kinds=kinds, **how)


def test_a_table_with_dates_that_is_split_at_random_says_so() -> None:
    def said(**how) -> list[str]:
        return [s for s in ready(rows(), **how).remarks() if "at random" in s]

    (one,) = said()
    assert "'day' holds dates" in one and "--time day" in one
    assert not said(time="day") and not said(inputs=["x"])
    clocks = {"at": [f"{i % 24:02}:30" for i in range(N)], "took": [f"{i % 9} min {i % 50 + 1} s" for i in range(N)]}
    made = ready({"x": rows()["x"], "y": rows()["y"]} | clocks)
    assert {made.schema.column(name).kind for name in clocks} == {"datetime"}
    assert not [s for s in made.remarks() if "at random" in s]


def test_the_command_line_takes_it(tmp_path) -> None:
    import pandas as pd

    pd.DataFrame(rows()).to_csv(tmp_path / "t.csv", index=False)
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = main(["fit", str(tmp_path / "t.csv"), "--target", "y", "--time", "day", "--dry-run"])
    assert code == 0, out.getvalue()
    assert "train 80 / val 10 / test 10, by day, tested from 2021-09-28" in out.getvalue()
