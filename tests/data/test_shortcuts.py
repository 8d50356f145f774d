"""What is told without looking at every cell is what looking at every cell would tell."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data.check import leaks
from plait.data.distinct import holds
from plait.data.kinds import Place
from plait.data.kinds.base import Glance
from plait.data.schema import Schema
from plait.data.split import _codes
from plait.data.table import read_table
from plait.runs.stored import _joined


@settings(deadline=None)
@given(st.lists(st.binary(max_size=16), min_size=1, max_size=8))
def test_digests_are_joined_without_their_zeros(digests) -> None:
    array = np.asarray(digests, "S16")
    assert _joined(array, False) == b"".join(array.tolist())
    assert _joined(array, True) == b"".join(bytes([len(d)]) + d for d in array.tolist())


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.text("ab.,", max_size=3)), max_size=6), st.integers(0, 3))
def test_marks_that_a_column_holds(cells, start) -> None:
    column = pa.chunked_array([pa.array(cells, pa.string()).slice(start), pa.array(["b"])])
    assert holds(column, b".,") == any(c is not None and set(c) & set(".,") for c in cells[start:])


@pytest.mark.parametrize("cells", [[1], [1, 2], [0.5, None], [True], ["a", "b"], [[1.0], [2.0]], [None, 1]])
def test_how_many_values_there_are_at_least(cells) -> None:
    """Also where the beginning does not tell."""
    column = pa.chunked_array([pa.array([cells[0]] * 2000 + cells)])
    glance = Glance("c", column, Place())
    different = -1 if isinstance(cells[0], list) else len({c for c in cells if c is not None})
    assert glance.distinct == different
    assert [glance.over(most) for most in (1, 2)] == [different > most for most in (1, 2)]
    assert glance.constant == (different == 1)


def test_what_determines_a_target_where_it_is_known() -> None:
    """A third of all answers differ, but few of those in rows that the column has."""
    n = 60
    cells = {
        "part": pa.array([i % 2 if i >= n // 2 else None for i in range(n)], pa.int64()),
        "other": [0.25 * (i * 7 % n) for i in range(n)],
        "y": [f"y{i}" if i < n // 2 else f"z{i % 2}" for i in range(n)],
    }
    table = read_table(cells)
    schema = Schema.guess(table, target="y", kinds={"y": "category", "part": "number"}, inputs=["part", "other"])
    (found,) = leaks(table, schema, "y")
    assert found["column"] == "part" and "in 30 of 30 rows" in found["sentence"]


@pytest.mark.parametrize("values", [[3, 1, None, 11, 2, 3], ["b", "a", "b"], [1, True, 1.0, "1"], [None, None]])
def test_classes_are_numbered_by_their_names(values) -> None:
    names = sorted({str(v) for v in values})
    assert _codes(values, len(values)).tolist() == [names.index(str(v)) for v in values]


@pytest.mark.parametrize("count", [1999, 2000, 2001, 3000, 12_000])
def test_cells_that_alternate_are_not_taken_for_one_sort_of_them(count):
    """Nine of twenty cells, every second one, are numbers, dates, files' names; the others are words."""
    rng = np.random.default_rng(0)
    some = rng.choice("the cat sat on green mats with dogs under a big tree".split(), (count, 6))
    sorts = {"n": lambda i: f"{i * 0.37:.3f}", "when": lambda i: f"2020-01-{1 + i % 28:02d}", "file": "{}.png".format}
    words = [" ".join(line) for line in some]
    cells = {c: [of(i) if i % 2 == 0 and i % 20 else words[i] for i in range(count)] for c, of in sorts.items()}
    table = read_table(cells | {"x": rng.normal(size=count).tolist()})
    schema = Schema.guess(table)
    assert {c: schema.column(c).kind for c in cells} == dict.fromkeys(cells, "text")
