"""Splits: exact, by content, groups and identical rows whole, classes spread."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from plait.data.schema import Schema
from plait.data.split import duplicates_across, split_folds, split_rows
from plait.data.table import read_table
from plait.errors import DataError, UsageError


def table_of(n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    table = read_table(
        {
            "x": rng.normal(size=n).tolist(),
            "g": rng.integers(0, max(1, n // 4), n).tolist(),
            "y": rng.integers(0, 3, n).tolist(),
        }
    )
    return table, Schema.guess(table, inputs=["x"], kinds={"y": "category"})


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(3, 300),
    seed=st.integers(0, 50),
    fractions=st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.9, 0.1, 0.0), (1.0, 0.0, 0.0)]),
)
def test_a_partition_of_exact_sizes(n: int, seed: int, fractions: tuple) -> None:
    table, schema = table_of(n)
    split = split_rows(table, schema, fractions=fractions, seed=seed)
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(n))
    assert all((np.diff(rows) > 0).all() for rows in split.values())
    for name, fraction in zip(("val", "test"), fractions[1:]):
        wanted = round(fraction * n)
        assert len(split[name]) in ({wanted} if wanted or fraction == 0 else {0, 1})


@settings(max_examples=60, deadline=None)
@given(n=st.integers(9, 200), seed=st.integers(0, 50))
def test_groups_and_identical_rows_stay_together(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = [f"text number {w} of many" for w in rng.integers(0, n // 2, n)]
    table = read_table({"t": words, "g": [int(g) if g else None for g in rng.integers(0, n // 3, n)]})
    schema = Schema.guess(table, inputs=["t"], kinds={"t": "text"}, group="g")
    split = split_rows(table, schema, seed=seed, group="g")
    side = {int(i): name for name, rows in split.items() for i in rows}
    for column in ("t", "g"):
        sides: dict = {}
        for i, value in enumerate(table.column(column).to_pylist()):
            if value is not None:
                assert sides.setdefault(value, side[i]) == side[i]
    assert len(split["train"]) > 0
    assert duplicates_across(table, schema, split) == []


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=2, max_size=8), seed=st.integers(0, 9), heavy=st.booleans())
def test_classes_are_spread_and_always_trained_on(counts: list[int], seed: int, heavy: bool) -> None:
    labels = [f"c{k}" for k, count in enumerate(counts) for _ in range(count)]
    table = read_table({"x": np.random.default_rng(seed).normal(size=len(labels)).tolist(), "y": labels})
    schema = Schema.guess(table, inputs=["x"])
    fractions = (0.2, 0.4, 0.4) if heavy else (0.8, 0.1, 0.1)
    split = split_rows(table, schema, fractions=fractions, seed=seed, stratify=labels)
    for k, count in enumerate(counts):
        there = {name: sum(labels[i] == f"c{k}" for i in rows) for name, rows in split.items()}
        if count >= 3:
            assert there["train"] >= 1
        if not heavy and len(labels) >= 30:
            assert abs(there["test"] - 0.1 * count) <= 2
    if not heavy and min(counts) >= 3:
        assert len(split["test"]) == round(0.1 * len(labels))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(12, 120), folds=st.integers(2, 10), seed=st.integers(0, 50))
def test_folds_are_even_in_size_and_in_classes(n: int, folds: int, seed: int) -> None:
    table, schema = table_of(n, seed)
    labels = table.column("y").to_pylist()
    side = split_folds(table, schema, folds, seed=seed, stratify=labels)
    assert np.ptp(np.bincount(side, minlength=folds)) <= len(set(labels))
    for label in set(labels):
        assert np.ptp(np.bincount(side[np.array(labels) == label], minlength=folds)) <= 1
    plain = split_folds(table, schema, folds, seed=seed)
    assert np.ptp(np.bincount(plain, minlength=folds)) <= 1
    turned = np.random.default_rng(seed).permutation(n)
    assert (split_folds(table.take(turned), schema, folds, seed=seed) == plain[turned]).all()
    assert (split_folds(table, schema, folds, seed=seed + 1) != plain).any()


def test_folds_leave_groups_and_identical_rows_together() -> None:
    words = [f"text number {i // 2} of many" for i in range(60)]
    table = read_table({"t": words, "g": [i // 6 if i < 48 else None for i in range(60)]})
    schema = Schema.guess(table, inputs=["t"], kinds={"t": "text"}, group="g")
    side = split_folds(table, schema, 4, group="g")
    for key in (words, [i // 6 if i < 48 else 8 + i // 2 for i in range(60)]):
        assert all(len(set(side[[k == value for k in key]])) == 1 for value in set(key))
    assert np.ptp(np.bincount(side)) <= 6
    with pytest.raises(DataError, match="groups of rows are too few for 15 folds"):
        split_folds(table, schema, 15, group="g")


def test_the_order_of_rows_does_not_matter_but_the_seed_does() -> None:
    table, schema = table_of(200)
    turned = np.random.default_rng(1).permutation(200)
    one, two = split_rows(table, schema), split_rows(table.take(turned), schema)
    assert all(set(one[name].tolist()) == set(turned[two[name]].tolist()) for name in one)
    assert split_rows(table, schema, seed=1)["test"].tolist() != one["test"].tolist()


def test_identical_pictures_in_different_files_stay_together(tmp_path) -> None:
    for i in range(40):
        Image.fromarray(np.full((8, 8, 3), i // 2, np.uint8)).save(tmp_path / f"{i}.png")
    table = read_table({"photo": [f"{i}.png" for i in range(40)], "y": [i // 2 % 2 for i in range(40)]}, root=tmp_path)
    schema = Schema.guess(table, target="y")
    split = split_rows(table, schema)
    side = {int(i): name for name, rows in split.items() for i in rows}
    assert all(side[i] == side[i + 1] for i in range(0, 40, 2)) and len(split["test"]) == 4
    parted = {"train": np.arange(0, 40, 2), "test": np.arange(1, 40, 2)}
    found = duplicates_across(table, schema, parted)
    assert len([f for f in found if f["what"] == "inputs"]) == len([f for f in found if f["what"] == "media"]) == 20
    assert found[0]["rows"] == [0, 1] and found[0]["splits"] == ["test", "train"]


def test_a_table_of_few_different_rows_is_still_split() -> None:
    table = read_table({"c": ["a", "b"] * 100, "y": ["u", "u", "v", "v"] * 50})
    split = split_rows(table, Schema.guess(table, target="y"))
    assert [len(rows) for rows in split.values()] == [160, 20, 20]


def test_one_large_group_leaves_no_split_empty() -> None:
    table, schema = table_of(100)
    table = table.with_column("g", [0] * 90 + [1] * 5 + [2] * 5)
    split = split_rows(table, schema, group="g")
    assert sorted(len(rows) for rows in split.values()) == [5, 5, 90]


def test_ready_made() -> None:
    table = read_table({"x": [1.0, 2, 3, 4, 5], "s": ["Training", "dev", "test", "train", "faces"]})
    schema = Schema.guess(table, split="s")
    split = split_rows(table, schema, column="s")
    assert {name: rows.tolist() for name, rows in split.items()} == {
        "train": [0, 3],
        "val": [1],
        "test": [2],
        "faces": [4],
    }
    for cells, message in (
        (["trian", "test", "test", "test", "test"], "Did you mean"),
        (["test"] * 5, "no 'train'"),
        (["train", None] + ["test"] * 3, "1 rows"),
    ):
        with pytest.raises(DataError, match=message):
            split_rows(table.with_column("s", cells), schema, column="s")


def test_wrong_fractions() -> None:
    with pytest.raises(UsageError, match="sum to 1"):
        split_rows(*table_of(9), fractions=(0.8, 0.3, 0.1))


def test_bytes_and_files_digest_alike(tmp_path) -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    (tmp_path / "a.png").write_bytes(out.getvalue())
    table = read_table({"photo": ["a.png", out.getvalue()], "n": [1.0, 2.0]}, root=tmp_path)
    schema = Schema.guess(table, kinds={"photo": "image"})
    assert [
        f["what"] for f in duplicates_across(table, schema, {"train": np.asarray([0]), "test": np.asarray([1])})
    ] == ["media"]
