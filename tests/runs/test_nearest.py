"""A search among many vectors finds what sorting all of them would, however they lie in their file."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.errors import DataError
from plait.runs import nearest as module
from plait.runs.nearest import blocks_of, nearest, stored

TYPES = (pa.list_(pa.float32(), 2), pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.int64()))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.tuples(st.integers(-2, 2), st.integers(-2, 2))), min_size=1, max_size=14),
    st.integers(1, 6),
    st.sampled_from(TYPES),
    st.integers(0, 3),
    st.integers(1, 5),
)
def test_nearest(cells, k, kind, cut, block) -> None:
    """With ties, rows without a vector and vectors of zeros, over chunks and blocks of all sizes."""
    lists = [None if c is None else list(c) for c in cells]
    column = pa.chunked_array([pa.array(lists, kind).slice(0, cut), pa.array(lists, kind).slice(cut)], kind)
    queries = np.asarray([[1, 2], [-1, 0]], np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = nearest(blocks_of(column.chunks, "v"), queries, k)
    for query, hits in zip(queries, found):
        scores = [(-float(np.dot(c, query)), i) for i, c in enumerate(cells) if c is not None and any(c)]
        assert hits == [(i, -score) for score, i in sorted(scores)[:k]]


def test_vectors_in_files_and_memory(tmp_path) -> None:
    x = np.random.default_rng(0).standard_normal((40_000, 8)).astype(np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 8)
    table, path = pa.table({"row": np.arange(len(x)), "vector": vectors}), tmp_path / "v.parquet"
    pa.parquet.write_table(table, path, row_group_size=30_000)
    expected = np.argsort(-(x @ x[7]), kind="stable")[:5].tolist()
    for source in (table, path, str(path)):
        kept = stored(source)
        assert kept is not None and kept.names == ["row", "vector"]
        ((*hits,),) = nearest(blocks_of(kept.chunks("vector"), "v"), x[7:8], 5)
        assert [row for row, _ in hits] == expected
    ((vector, _), *_) = blocks_of(stored(table).chunks("vector"), "v")
    held = table.column("vector").chunk(0).values.buffers()[1]
    assert held.address <= vector.ctypes.data < held.address + held.size  # not copied
    assert stored({"row": [1]}) is None and stored(tmp_path) is None
    with pytest.raises(ValueError, match="^8$"):
        nearest(blocks_of(vectors_of(table), "v"), np.ones((1, 3), np.float32), 2)


def vectors_of(table: pa.Table) -> list[pa.Array]:
    return table.column("vector").chunks


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (pa.array([[1.0], [1.0, 2.0]]), "differ in length"),
        (pa.array([[1.0, 2.0, 3.0], [1.0]]), "differ in length"),
        (pa.array([[], []], pa.list_(pa.float32())), "empty"),
        (pa.array([1.0]), "expected lists of numbers"),
    ],
)
def test_no_vectors(cells, why) -> None:
    with pytest.raises(DataError, match=why):
        list(blocks_of([cells], "column 'v'"))


def test_lengths_that_differ_between_blocks() -> None:
    with pytest.raises(DataError, match="differ in length"):
        list(blocks_of([pa.array([[1.0]]), pa.array([[1.0, 2.0]])], "column 'v'"))
