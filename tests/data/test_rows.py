"""Rows and batches: the contract of docs/architecture.md, cached or not, with cells missing and broken."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.errors import DataError
from tests.data.maker import Maker

N = 30


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    maker = Maker(1, folder)
    maker.n = N
    cells = {"photo": maker.pictures(), "clip": [maker.wav(0.05 + 0.02 * i) for i in range(N)], **maker.table()}
    cells["vector"] = maker.rng.normal(size=(N, 3)).tolist()
    cells["photo"][3], cells["clip"][4], cells["text"][5], cells["number"][6], cells["vector"][7] = (
        None,
        None,
        None,
        None,
        None,
    )
    (folder / "8.png").write_bytes(b"broken")
    cells["clip"][9], cells["text"][10], cells["number"][11], cells["vector"][12] = b"broken", "  ", float("inf"), [1.0]
    table = read_table(cells, root=folder)
    return table, Schema.guess(table, target="label").fit(table, np.arange(20))


def test_the_format(made) -> None:
    table, schema = made
    batch = Rows(table, schema).scan().batch(np.asarray([3, 0, 29, 0]))
    assert batch["row"].tolist() == [3, 0, 29, 0] and batch["row"].dtype == torch.int64
    assert batch["image_0"].shape == (4, 3, 32, 32) and batch["image_0"].dtype == torch.float32
    assert 0 <= batch["image_0"].min() and batch["image_0"].max() <= 1
    assert batch["text_0"].dtype == torch.int64 and batch["text_0"].shape[1] % 8 == 0
    assert (
        batch["audio_0"].dtype == torch.float32
        and batch["audio_0"].shape[1] % 800 == 0
        and batch["audio_0"].abs().max() <= 1
    )
    assert batch["number"].shape == (4, 9) and batch["number"].dtype == torch.float32
    assert batch["category"].shape == (4, 2) and batch["category"].dtype == torch.int64
    assert batch["vector_0"].shape == (4, 3)
    assert set(batch["keep"]) == {"text_0", "audio_0", "number", "category"}
    assert set(batch["present"]) == {s.name for s in schema.slots}
    for slot, keep in batch["keep"].items():
        assert keep.dtype == torch.bool and keep.shape == batch[slot].shape
    text = batch["text_0"][1][batch["keep"]["text_0"][1]]
    assert text[0] == 2 and text[-1] == 3 and (batch["text_0"][~batch["keep"]["text_0"]] == 0).all()
    assert not batch["present"]["image_0"][0] and not batch["image_0"][0].any()


def test_presence_and_bad_cells(made, tmp_path) -> None:
    table, schema = made
    rows = Rows(table, schema).scan()
    gone = {slot: np.flatnonzero(~there).tolist() for slot, there in rows.presence().items()}
    assert gone == {
        "image_0": [3, 8],
        "audio_0": [4, 9],
        "text_0": [5, 10],
        "vector_0": [7, 12],
        "number": [],
        "category": [],
    }
    listed = pyarrow.parquet.read_table(rows.bad.write(tmp_path / "bad_rows.parquet")).to_pylist()
    assert [(b["row"], b["column"], b["kind"], b["reason"]) for b in listed] == [
        (8, "photo", "image", "not a picture"),
        (9, "clip", "audio", "not a sound"),
        (11, "number", "number", "not a finite number"),
        (12, "vector", "vector", "a vector of another length than 3"),
    ]
    assert listed[0]["value"] == "8.png" and rows.bad.count() == 4
    assert rows.notes["text"]["empty text"] == 1
    keep = rows.batch(np.asarray([6, 11, 0]))["keep"]["number"]
    assert keep[:, 0].tolist() == [False, False, True]


def test_nothing_bad_still_writes_a_file(tmp_path) -> None:
    table = read_table({"x": [1.0, 2.0, 5.0], "c": ["a", "b", "a"]})
    rows = Rows(table, Schema.guess(table).fit(table, np.arange(3))).scan()
    assert len(pyarrow.parquet.read_table(rows.bad.write(tmp_path / "new" / "bad_rows.parquet"))) == 0


@settings(max_examples=25, deadline=None)
@given(
    index=st.lists(st.integers(0, N - 1), min_size=1, max_size=12), room=st.sampled_from([0, 2000, 100_000, 4 << 30])
)
def test_row_i_is_row_index_i_however_it_is_cached(made, index: list[int], room: int) -> None:
    """Each row of a batch equals the same row asked for alone, up to padding, with a cache of any size."""
    table, schema = made
    rows, whole = Rows(table, schema, cache_bytes=room), Rows(table, schema, workers=1)
    batch = rows.batch(np.asarray(index))
    for i, row in enumerate(index):
        alone = whole.batch(np.asarray([row]))
        for slot in schema.slots:
            n = alone[slot.name].shape[-1]
            mine, wanted = batch[slot.name][i], alone[slot.name][0]
            if slot.name in ("text_0", "audio_0"):
                assert torch.equal(mine[:n], wanted) and not mine[n:].any()
                assert (
                    torch.equal(batch["keep"][slot.name][i][:n], alone["keep"][slot.name][0])
                    and not batch["keep"][slot.name][i][n:].any()
                )
            else:
                assert torch.equal(mine, wanted)
            assert batch["present"][slot.name][i] == alone["present"][slot.name][0]


def test_a_file_that_vanishes_after_the_scan_becomes_a_blank(tmp_path) -> None:
    maker = Maker(2, tmp_path)
    maker.n = 4
    table = read_table({"photo": maker.pictures(), "label": [0, 1, 0, 1]}, root=tmp_path)
    schema = Schema.guess(table, target="label").fit(table, np.arange(4))
    rows = Rows(table, schema, cache_bytes=0).scan()
    (tmp_path / "2.png").unlink()
    batch = rows.batch(np.asarray([1, 2, 3]))
    assert (
        batch["present"]["image_0"].tolist() == [True, False, True]
        and not batch["image_0"][1].any()
        and batch["image_0"][2].any()
    )
    assert rows.bad.by_reason() == {"no such file": 1}


def test_missing_columns(made) -> None:
    table, schema = made
    less = read_table(table.data.drop_columns(["photo", "colour"]), root=table.root)
    rows = Rows(less, schema)
    batch = rows.batch(np.arange(5))
    assert rows.absent == ["photo", "colour"]
    assert (
        not batch["present"]["image_0"].any()
        and not batch["keep"]["category"][:, 0].any()
        and batch["keep"]["category"][:, 1].all()
    )
    with pytest.raises(DataError, match="none of the input columns"):
        Rows(read_table({"other": [1, 2]}), schema)


def test_progress_counts_every_cell(made) -> None:
    table, schema = made
    seen: list[tuple[int, int]] = []
    Rows(table, schema).scan(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (N * len(schema.inputs), N * len(schema.inputs))
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)


def test_rows_outside_the_table_are_refused(made) -> None:
    with pytest.raises(IndexError):
        Rows(*made).batch(np.asarray([0, N]))
    with pytest.raises(IndexError):
        Rows(*made).batch(np.asarray([-1]))
