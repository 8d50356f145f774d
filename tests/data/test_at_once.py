"""What is read many cells at a time is what is read one by one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data.digest import cell_digests, row_digests
from plait.data.kinds import KINDS, Bad, Missing, Place
from plait.data.kinds.base import FitOptions
from plait.data.kinds.number import parse_cell, parse_column
from plait.data.schema import Schema
from plait.data.table import read_table

STYLES = tuple({"decimal": d, "units": u} for d in ".," for u in ({}, {"%": 1.0}, {"kg": 1.0, "g": 1e-3}, {"$": 1.0}))
NUMBERS = st.one_of(
    st.floats().map(repr),
    st.integers(-(10**18), 10**18).map(str),
    st.from_regex(r"\A[+-]?[0-9]{0,4}[.,]?[0-9]{0,20}([eE][+-]?[0-9]{0,4})? ?(%|kg|g|[$])?\s?\Z"),
    st.sampled_from(
        [
            "",
            " 1",
            "1_0",
            "٣",
            "nan",
            "inf",
            "1.234",
            "1,234.5",
            "0x1",
            "9" * 50,
            "1e400",
            "-0",
            "(5)",
            "1 234",
            "1'234,5",
        ]
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.none(), NUMBERS), max_size=20), st.sampled_from(STYLES))
def test_numbers_in_text(cells, style):
    values, real, bad = parse_column(pa.chunked_array([pa.array(cells, pa.string())]), style)
    for i, cell in enumerate(cells):
        try:
            expected = None if cell is None else parse_cell(cell, style)
        except Bad as reason:
            assert (i, str(reason)) in bad and not real[i]
            continue
        assert real[i] == (expected is not None) and values[i] == (expected or 0.0)


def test_texts():
    cells = ["a red door", None, "  ", b"\x00", {"bytes": b"x"}, "blue " * 50, 3.5, "door"] * 3
    kind, texts = KINDS["text"], pa.chunked_array([["a red door", "blue door"] * 8])
    params = kind.fit(texts, FitOptions(Place(), max_tokens=12))
    at_once, alone = Place(), Place()
    found = kind.encode_some(cells, params, at_once)
    assert len(found) == len(cells) and at_once.notes["too long"] == 3
    for cell, result in zip(cells, found):
        if cell is None:
            assert result is None
        elif isinstance(result, (Bad, Missing)):
            with pytest.raises(type(result), match=str(result)):
                kind.encode(cell, params, alone)
        else:
            np.testing.assert_array_equal(result, kind.encode(cell, params, alone))
    assert alone.notes == at_once.notes


def test_digests_are_made_once_for_each_choice_of_columns():
    table = read_table({"a": list("xyxy"), "b": list("1221")})
    schema = Schema.guess(table, kinds={"a": "category", "b": "category"})
    both, one = row_digests(table, schema, ["a", "b"]), row_digests(table, schema, ["a"])
    assert row_digests(table, schema, ["a", "b"]) is both and cell_digests(table, schema, "a") is not one
    assert len(set(both)) == 4 and len(set(one)) == 2 and one[0] == one[2]
