"""By which mean and spread a system that begins from nothing reads pictures."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import plait
from plait.data.colours import FAINT, LOOKED, colours
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import read_table


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def drawn(count: int, seed: int = 0) -> np.ndarray:
    """(count, 32, 32, 3) uint8, rather red, with little blue."""
    noise = np.random.default_rng(seed).random((count, 32, 32, 3))
    return (noise * [100, 60, 2] + [140, 40, 10]).astype(np.uint8)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    pixels = drawn(60)
    cells = [png(p) if i % 5 else None for i, p in enumerate(pixels)]
    return pd.DataFrame({"photo": cells, "y": [("a", "b")[i % 2] for i in range(60)]})


def test_a_run_reads_pictures_by_its_training_rows_colours(frame, tmp_path):
    split = np.where(np.arange(60) < 40, "train", np.where(np.arange(60) < 50, "val", "test"))
    run = plait.fit(frame.assign(part=split), target="y", split="part", epochs=1, no_ladder=True, out=tmp_path / "run")
    made = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]
    real = drawn(60)[[i for i in range(40) if i % 5]] / 255
    assert np.abs(np.asarray(made["mean"]) - real.mean((0, 1, 2))).max() < 1e-4
    spread = real.std((0, 1, 2))
    assert spread[2] < FAINT and np.abs(np.asarray(made["std"]) - np.maximum(spread, FAINT)).max() < 1e-4
    again = plait.load(tmp_path / "run")
    one = frame.drop(columns="y").iloc[1:2]
    assert run.predict(one).equals(again.predict(one))


def test_of_many_pictures_some_are_looked_at_and_of_none_nothing_is_said():
    pixels = drawn(LOOKED + 200)
    table = read_table({"photo": [png(p) for p in pixels], "n": list(range(len(pixels)))})
    rows = Rows(table, Schema.guess(table).fit(table, np.arange(50))).scan()
    real = pixels / 255
    found = colours(rows, np.arange(len(pixels)))
    assert found == colours(rows, np.arange(len(pixels)))
    assert 0 < np.abs(np.asarray(found["mean"]) - real.mean((0, 1, 2))).max() < 2e-3
    table = read_table({"n": [1.0, 2.5, 3.0], "m": [0.1, 0.7, 0.3]})
    assert colours(Rows(table, Schema.guess(table).fit(table, np.arange(3))).scan(), np.arange(3)) == {}
