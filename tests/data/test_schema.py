"""The schema: uses, slots, what is ignored and why, and that it survives being saved."""

from __future__ import annotations

import json
import uuid

import numpy as np
import pytest

from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.errors import DataError, UsageError
from tests.data.maker import Maker

N = 40


def healthy(tmp_path, seed: int = 0):
    maker = Maker(seed, tmp_path)
    maker.n = N
    columns = maker.table()
    columns = {
        "photo": maker.pictures(),
        "second": [maker.png() for _ in range(N)],
        "clip": maker.sounds(),
        **columns,
        "vector": maker.rng.normal(size=(N, 3)).tolist(),
        "id": list(range(N)),
        "key": [str(uuid.UUID(int=i * 7919 + 1)) for i in range(N)],
        "code": [f"k{i}" for i in range(N)],
        "same": ["one"] * N,
        "none": [None] * N,
    }
    return read_table(columns, root=tmp_path)


def test_uses_and_slots(tmp_path) -> None:
    schema = Schema.guess(healthy(tmp_path), target="label")
    assert [(s.name, s.kind, s.columns) for s in schema.slots] == [
        ("image_0", "image", ["photo"]),
        ("image_1", "image", ["second"]),
        ("audio_0", "audio", ["clip"]),
        ("text_0", "text", ["text"]),
        ("vector_0", "vector", ["vector"]),
        ("number", "number", ["number", "day"]),
        ("category", "category", ["colour", "flag"]),
    ]
    why = {c.name: c.why for c in schema.used("ignored")}
    assert set(why) == {"id", "key", "code", "same", "none"}
    assert (
        why["none"] == "no cell has a value"
        and "constant" in why["same"]
        and "uuids" in why["key"]
        and "row numbers" in why["id"]
    )
    assert schema.column("photo").why == "40 of 40 cells end in .png or alike"
    assert schema.targets == ["label"]


def test_choices_override_ignoring_but_not_emptiness(tmp_path) -> None:
    table = healthy(tmp_path)
    schema = Schema.guess(table, target="label", inputs=["code", "same", "text", "none"])
    assert schema.inputs == ["text", "code", "same"]
    assert Schema.guess(table, target="label", kinds={"id": "number"}).column("id").use == "input"


def test_errors_suggest(tmp_path) -> None:
    table = healthy(tmp_path)
    for arguments, message in (
        ({"target": "lable"}, "Did you mean 'label'"),
        ({"kinds": {"photo": "imag"}}, "Did you mean 'image'"),
        ({"kinds": {"foto": "image"}}, "Did you mean 'photo'"),
        ({"inputs": ["label"], "target": "label"}, "both input and target"),
    ):
        with pytest.raises(UsageError, match=message):
            Schema.guess(table, **arguments)
    with pytest.raises(DataError, match="same value in every row"):
        Schema.guess(table, target="same")
    with pytest.raises(DataError, match="no usable input"):
        Schema.guess(table, target="label", inputs=["none"])


def test_targets_of_few_whole_numbers_are_classes() -> None:
    table = read_table(
        {
            "x": [float(i) for i in range(60)],
            "digit": [i % 10 for i in range(60)],
            "two": [1 + i % 2 for i in range(60)],
        }
    )
    assert Schema.guess(table, target="digit").column("digit").kind == "category"
    assert Schema.guess(table, target="two").column("two").kind == "category"
    assert Schema.guess(table, target="x").column("x").kind == "number"
    assert Schema.guess(table, target="x").column("digit").kind == "number"


def test_names_of_files_beside_their_bytes_are_ignored(tmp_path) -> None:
    maker = Maker(0, tmp_path)
    table = read_table(
        {"file": [f"{i}.png" for i in range(9)], "picture": [maker.png() for _ in range(9)]}, root=tmp_path
    )
    schema = Schema.guess(table)
    assert schema.inputs == ["picture"] and "'picture' holds the bytes" in schema.column("file").why


def test_learns_from_training_rows_only(tmp_path) -> None:
    table = read_table({"x": [0.0] * 10 + [1000.0] * 10 + [2.0] * 10, "c": ["a"] * 10 + ["b"] * 10 + ["a"] * 10})
    schema = Schema.guess(table).fit(table, np.r_[0:10, 20:30])
    assert schema.column("c").params == {"values": ["a"]}
    assert schema.column("x").params["mean"] == 1.0


def test_saved_and_loaded_makes_the_same_batches(tmp_path) -> None:
    table = healthy(tmp_path)
    schema = Schema.guess(table, target="label").fit(table, np.arange(30))
    schema.rename_slots({"image_0": "photo", "text_0": "text"})
    again = Schema.from_json(json.loads(json.dumps(schema.to_json())))
    assert again.to_json() == schema.to_json() and again.describe() == schema.describe()
    one, two = (Rows(table, s).batch(np.arange(N)) for s in (schema, again))
    assert set(one) == set(two) >= {"photo", "image_1", "text", "row", "keep", "present"}
    for key in set(one) - {"keep", "present"}:
        assert (one[key] == two[key]).all()
    with pytest.raises(UsageError, match="the same"):
        schema.rename_slots({"image_1": "photo"})


def test_shapes(tmp_path) -> None:
    table = healthy(tmp_path)
    schema = Schema.guess(table, target="label").fit(table, np.arange(30), image_size=48, max_tokens=8)
    assert schema.shape("image_0") == {"size": [48, 48]}
    assert schema.shape("text_0")["max_tokens"] == 8
    assert schema.shape("vector_0") == {"width": 3}
    assert schema.shape("number")["width"] == 9 and schema.shape("number")["features"][:2] == ["number", "day.year"]
    assert schema.shape("category") == {"sizes": [4, 3]}
