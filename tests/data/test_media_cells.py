"""Pictures and sounds wherever they are: in memory, in base64, under paths as people write them; deep gray keeps its
contrast."""

from __future__ import annotations

import base64
import io
import os
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from plait.data.check import unreadable
from plait.data.folder import folder_columns
from plait.data.kinds import KINDS, Place
from plait.data.kinds.base import FitOptions
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.errors import DataError

N = 8
LABELS = ["a", "b"] * (N // 2)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (N, 16, 16, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def wav(wave: np.ndarray) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, wave, 8000, format="WAV")
    return out.getvalue()


def seen(source, kind: str = "image", root=None, name: str = "c") -> np.ndarray:
    """The batch that a column's cells become."""
    table = read_table(source, root=root)
    schema = Schema.guess(table, target="y")
    assert schema.column(name).kind == kind, schema.column(name).why
    schema.fit(table, np.arange(len(table)), image_size=[16, 16])
    rows = Rows(table, schema).scan()
    assert not rows.bad.count(), rows.bad.by_reason()
    return rows.batch(np.arange(len(table)))[f"{kind}_0"].numpy()


def frame(cells: list) -> pd.DataFrame:
    made = pd.DataFrame({"y": LABELS})
    made["c"] = pd.Series(cells, dtype=object)
    return made


@pytest.mark.parametrize(
    "cells",
    [
        [Image.fromarray(p) for p in PIXELS],
        list(PIXELS),
        [p.transpose(2, 0, 1) for p in PIXELS],
        [p / np.float32(255) for p in PIXELS],
        [np.concatenate([p, np.full((16, 16, 1), 255, np.uint8)], 2) for p in PIXELS],
        [base64.b64encode(png(p)).decode() for p in PIXELS],
        ["data:image/png;base64," + base64.b64encode(png(p)).decode() for p in PIXELS],
        ["data:image/png;base64," + base64.urlsafe_b64encode(png(p)).decode().rstrip("=") for p in PIXELS],
        [{"bytes": png(p), "path": None} for p in PIXELS],
    ],
    ids="PIL arrays channels-first floats alpha base64 data-URI data-URI-of-URLs dicts".split(),
)
def test_pictures_in_memory(cells: list) -> None:
    wanted = PIXELS.transpose(0, 3, 1, 2) / np.float32(255)
    for source in (frame(cells), {"c": cells, "y": LABELS}, [{"c": c, "y": y} for c, y in zip(cells, LABELS)]):
        np.testing.assert_allclose(seen(source), wanted, atol=1e-6)


def test_pictures_and_sounds_of_data_sets() -> None:
    waves = [RNG.normal(0, 0.1, 800).astype(np.float32) for _ in range(N)]
    features = datasets.Features({"c": datasets.Image(), "y": datasets.ClassLabel(names=["no", "yes"])})
    made = datasets.Dataset.from_dict({"c": [Image.fromarray(p) for p in PIXELS], "y": [0, 1] * 4}, features=features)
    np.testing.assert_allclose(seen(made), PIXELS.transpose(0, 3, 1, 2) / np.float32(255), atol=1e-6)
    assert Schema.guess(read_table(made), target="c", inputs=["y"]).column("y").kind == "category"
    bytes_ = datasets.Dataset.from_dict({"c": [{"bytes": wav(w), "path": None} for w in waves], "y": LABELS})
    decoded = [{"array": w, "sampling_rate": 8000, "path": None} for w in waves]
    for source in (bytes_, {"c": decoded, "y": LABELS}, frame(decoded)):
        np.testing.assert_allclose(seen(source, "audio")[:, :800], np.stack(waves), atol=1e-4)


def test_paths_as_people_write_them(tmp_path) -> None:
    (tmp_path / "Pics").mkdir()
    for i, pixels in enumerate(PIXELS):
        (tmp_path / "Pics" / f"A {i}.PNG").write_bytes(png(pixels))
    wanted = PIXELS.transpose(0, 3, 1, 2) / np.float32(255)
    for write in (
        lambda i: f"Pics/A {i}.PNG",
        lambda i: f"Pics\\A {i}.PNG",
        lambda i: f"pics/a {i}.png ",
        lambda i: f".\\PICS\\a {i}.PNG",
        lambda i: (tmp_path / "Pics" / f"A {i}.PNG").resolve().as_uri(),
    ):
        cells = [write(i) for i in range(N)]
        np.testing.assert_allclose(seen({"c": cells, "y": LABELS}, root=tmp_path), wanted, atol=1e-6)
    (tmp_path / "Pics" / "a 0.png").write_bytes(png(PIXELS[1]))  # two that differ in case alone: only what is written
    assert (
        Place(tmp_path).source("Pics/A 0.PNG").name == "A 0.PNG"
        and Place(tmp_path).source("Pics/a 0.png").name == "a 0.png"
    )
    with pytest.raises(ValueError, match="no such file"):
        Place(tmp_path).source("Pics/a 0.PNG")


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (lambda i: f"gone/{i}.png", "no such file"),
        (lambda i: f"https://x.org/{i}.png", "fetches nothing"),
        (lambda i: f"s3://bucket/{i}.png", "fetches nothing"),
        (lambda i: f"/etc/{i}.png", "outside"),
    ],
)
def test_one_loud_sentence_where_no_cell_of_a_column_can_be_read(write, why: str, tmp_path) -> None:
    table = read_table({"c": [write(i) for i in range(N)], "z": RNG.normal(size=N), "y": LABELS}, root=tmp_path)
    schema = Schema.guess(table, target="y").fit(table, np.arange(N))
    assert schema.column("c").kind == "image"
    (said,) = unreadable(Rows(table, schema).scan())
    assert said.startswith("NO CELL of 'c' can be read") and why in said and write(0) in said and str(tmp_path) in said
    (tmp_path / "one.png").write_bytes(png(PIXELS[0]))
    some = read_table({"c": ["one.png", *[write(i) for i in range(1, N)]], "y": LABELS}, root=tmp_path)
    assert unreadable(Rows(some, Schema.guess(some, target="y").fit(some, np.arange(N))).scan()) == []


def test_damaged_base64_is_a_bad_cell() -> None:
    with pytest.raises(ValueError, match="base64"):
        Place().source("data:image/png;base64,iVBORw0KGgo$$$")
    assert Place().source("data:image/svg+xml,%3Csvg%3E") == b"<svg>"


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((16, 16, 2)), r"shape \(16, 16, 2\) is no picture"),
        (np.zeros((16, 16, 5), np.uint8), "is no picture"),
        (np.zeros((4, 16, 16, 3), np.uint8), "is no picture"),
        (np.linspace(-1, 1, 768).reshape(16, 16, 3), "from -1 to 1"),
    ],
)
def test_arrays_that_would_lose_what_they_hold_are_refused(array: np.ndarray, told: str) -> None:
    with pytest.raises(DataError, match=f"column 'c', row 2: .*{told}"):
        read_table({"c": [PIXELS[0], None, array] + [PIXELS[1]] * 5, "y": LABELS})


@settings(max_examples=30, deadline=None)
@given(
    gains=st.lists(st.sampled_from([1.0, -1.0, 0.99, -0.99, 0.0]), min_size=1, max_size=4),
    way=st.sampled_from(["file", "dict", "rate first", "rate last"]),
)
def test_a_sound_is_heard_whatever_its_channels_do_to_each_other(gains, way) -> None:
    """As the mean of its channels, or as its loudest one where they cancel each other out."""
    wave = np.sin(np.arange(8000) / 8000 * 2 * np.pi * 440) * 0.5
    sound = wave[:, None] * np.asarray(gains)  # (S, C)
    cell = {"file": wav(sound), "dict": {"array": sound, "sampling_rate": 8000}}
    cell |= {"rate first": (8000, sound), "rate last": (sound, 8000)}
    table = read_table({"c": [cell[way], wav(wave / 2)] * 4, "y": LABELS})
    schema = Schema.guess(table, target="y").fit(table, np.arange(N))
    heard = Rows(table, schema).scan().batch(np.arange(2))["audio_0"].numpy()
    mean, loudest = float(np.mean(gains)), float(np.abs(gains).max())
    way_round = -1 if heard[0] @ wave < 0 else 1  # of two that are as loud either is heard
    wanted = mean if abs(mean) > 0.1 * loudest else way_round * loudest
    np.testing.assert_allclose(heard, np.stack([wanted * wave, wave / 2]), atol=1e-3)


DEPTHS = {"uint16": np.uint16, "int32": np.int32, "float32": np.float32}


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(list(DEPTHS)),
    span=st.sampled_from([(0, 4095), (100, 900), (0, 65535), (-1000, 3000), (0, 1), (2.5, 7.5)]),
)
def test_deep_pictures_keep_their_contrast_by_the_training_pictures_range(dtype: str, span: tuple) -> None:
    low, high = span
    if (dtype == "uint16" and low < 0) or (dtype != "float32" and high - low < 10):
        return
    kind, place = KINDS["image"], Place()

    def stored(share: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray((low + share * (high - low)).astype(DEPTHS[dtype])).save(out, "TIFF")
        return out.getvalue()

    ramp = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    params = kind.fit(pa.chunked_array([[stored(ramp), stored(ramp / 2)]]), FitOptions(place, image_size=[64, 64]))
    step = 255 / (high - low) if dtype != "float32" else 1
    for share in (ramp, ramp / 2, np.full((64, 64), 0.25)):  # a dark picture stays darker than a light one
        made = kind.encode(stored(share), params, place)[0]
        assert np.abs(made - 255 * share).max() <= 2 + step
    assert np.ptp(made) == 0


def test_twelve_bits_in_sixteen_without_any_training_picture() -> None:
    """As many bits as the picture needs, but for stray pixels; 1 bit is black and white."""
    deep = RNG.integers(0, 4096, (64, 64)).astype(np.uint16)
    deep[0, :3] = 60_000
    made = KINDS["image"].encode(png(deep), {"size": [64, 64]}, Place())[0]
    assert len(np.unique(made)) > 200 and made.max() == 255
    np.testing.assert_allclose(made[1:], np.round(deep[1:] * (255 / 4095)), atol=1)
    ink = RNG.random((16, 16)) > 0.5
    assert set(np.unique(KINDS["image"].encode(png(ink), {"size": [16, 16]}, Place()))) == {0, 255}
    arrays = [RNG.integers(0, 4096, (16, 16)).astype(np.uint16) for _ in range(N)]
    assert len(np.unique(seen(frame(arrays)))) > 150


def test_nested_cells_are_read_by_their_parts() -> None:
    from datetime import timedelta
    from decimal import Decimal

    periods = pd.period_range("2020-01", periods=N, freq="M")
    made = pd.DataFrame(
        {
            "span": pd.arrays.IntervalArray.from_breaks(range(N + 1)),
            "month": periods,
            "cost": [Decimal(i) / 4 for i in range(N)],
            "wait": [timedelta(minutes=i) for i in range(N)],
            "later": [pd.DateOffset(months=i) for i in range(1, N + 1)],
            "tags": [["red"], ["red", "big"], [], ["big"]] * 2,
            "place": [{"lat": i / 2, "town": "ab"[i % 2]} for i in range(N)],
            "raw": [f"word number {i}".encode() for i in range(N)],
            "y": LABELS,
        }
    )
    schema = Schema.guess(read_table(made), target="y")
    kinds = {c.name: c.kind for c in schema.columns}
    assert kinds == {
        "span": "number",
        "month": "datetime",
        "cost": "number",
        "wait": "number",
        "later": "number",
        "tags": "labels",
        "place.lat": "number",
        "place.town": "category",
        "raw": "text",
        "y": "category",
    }
    assert read_table(made).column("month").to_pylist()[1] == periods[1].start_time
    assert read_table(made).column("wait").to_pylist()[2] == 120.0
    assert read_table({"c": [Path("a/b.png")]}).column("c").to_pylist() == ["a/b.png"]


def test_a_picture_that_goes_between_reading_and_looking_where_it_lies_is_a_bad_cell(tmp_path):
    for i in range(6):
        Image.new("RGB", (20, 12), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    boxes = [f'[{{"label": "x", "box": [1, {i}, 9, 10]}}]' for i in range(6)]
    data = pa.table({"photo": [f"{i}.png" for i in range(6)], "things": boxes})
    table = read_table(data, root=tmp_path)
    schema = Schema.guess(table, target="things", kinds={"photo": "image", "things": "boxes"})
    schema.fit(table, np.arange(6), image_size=16)
    rows = Rows(table, schema, asked=True)
    rows.scan(lambda done, total: (tmp_path / "3.png").unlink(missing_ok=True) if done == total else None)
    batch = rows.batch(np.arange(6))
    assert batch["present"]["image_0"].tolist() == [True] * 3 + [False] + [True] * 2
    assert rows.bad.by_reason() == {"no such file": 1}


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps permissions otherwise")
def test_a_class_folder_that_cannot_be_read_is_refused_by_name():
    """By a process that is not root, who reads everything."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for label in ("cat", "dog"):
            (home / label).mkdir()
            Image.new("RGB", (8, 8)).save(home / label / "1.png")
        home.chmod(0o755)
        (home / "dog").chmod(0)
        reads, says = os.pipe()
        if (child := os.fork()) == 0:
            if os.geteuid() == 0:
                os.setuid(65534)
            try:
                told = str(folder_columns(home))
            except DataError as error:
                told = str(error)
            os.write(says, told.encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(says)
        told = os.read(reads, 10_000).decode()
        (home / "dog").chmod(0o755)
        assert told.startswith(f"{home}/dog cannot be read: Permission denied. Without it rows, or a class")
        assert folder_columns(home)["label"] == ["cat", "dog"]
