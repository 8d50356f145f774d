"""False pairs drawn for a table of true ones: never across splits, never the same content, nothing else changed."""

from __future__ import annotations

import numpy as np
import pytest

from plait.data.schema import Schema
from plait.data.table import read_table
from plait.errors import DataError
from plait.tasks.match import MATCH, with_mismatches


def pairs(n: int = 40, alike: int = 8) -> tuple:
    """Pictures' names and texts of which several are the same, and a number that belongs to the first."""
    cells = {
        "left": [f"thing number {i} of many" for i in range(n)],
        "size": [float(i) for i in range(n)],
        "right": [f"the text of {i % alike} here" for i in range(n)],
    }
    table = read_table(cells)
    schema = Schema.guess(table, kinds={"left": "text", "right": "text"}, inputs=["left", "right"])
    splits = {"train": np.arange(0, n - 10), "val": np.arange(n - 10, n - 4), "test": np.arange(n - 4, n)}
    return table, schema, splits


def test_each_split_is_doubled_within_itself() -> None:
    table, schema, splits = pairs()
    both, doubled = with_mismatches(table, schema, splits, seed=0)
    left, right, size, true = (both.column(c).to_pylist() for c in ("left", "right", "size", MATCH))
    assert true[:40] == [True] * 40 and not any(true[40:]) and len(both) == 80
    assert [left[:40], right[:40]] == [table.column("left").to_pylist(), table.column("right").to_pylist()]
    assert sorted(np.concatenate(list(doubled.values()))) == list(range(80))
    text = dict(zip(left[:40], right[:40]))
    for name, rows in splits.items():
        assert doubled[name][: len(rows)].tolist() == rows.tolist()
        inside = {left[i] for i in rows}
        for i in doubled[name][len(rows) :]:
            assert left[i] in inside and right[i] in {text[at] for at in inside}, "a pair across splits"
            assert right[i] != text[left[i]], "a false pair that is true"
            assert size[i] == float(left[i].split()[2]), "another column was moved"


def test_it_is_drawn_by_the_seed() -> None:
    draws = [with_mismatches(*pairs(), seed)[0].column("right").to_pylist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_where_all_texts_are_the_same_there_is_no_false_pair() -> None:
    table, schema, splits = pairs(alike=1)
    both, doubled = with_mismatches(table, schema, splits, seed=0)
    assert len(both) == 40 and {k: v.tolist() for k, v in doubled.items()} == {k: v.tolist() for k, v in splits.items()}


def test_one_input_cannot_be_paired() -> None:
    table = read_table({"left": [f"thing {i} of many" for i in range(20)]})
    schema = Schema.guess(table, kinds={"left": "text"})
    with pytest.raises(DataError, match="at least two inputs"):
        with_mismatches(table, schema, {"train": np.arange(20)}, 0)
