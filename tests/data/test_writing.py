"""What a kind writes is read again as the same; what it preprocesses comes back."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from plait.data.arrow import column_from_values
from plait.data.kinds import KINDS, Place
from plait.data.kinds.base import FitOptions
from plait.parts.scaling import Normalise, Standardise
from tests.data.maker import Maker

HERE = Place()


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def cells(tmp_path) -> dict[str, list]:
    rng, maker = np.random.default_rng(0), Maker(0, tmp_path)
    return {
        "image": [png(rng.integers(0, 255, (32, 32, 3), np.uint8)) for _ in range(4)],
        "audio": [maker.wav(0.2) for _ in range(4)],
        "vector": rng.normal(3, 5, (4, 3)).tolist(),
        "boolean": ["yes", "no", "yes", "no"],
        "number": [3.5, -1.0, 2.25, 1e6],
        "datetime": ["2021-03-04 05:06:07", "1999-12-31", "2010-01-01", "2024-02-29"],
        "text": ["a red door", "two doors, one red", "no door", "a door"],
        "category": ["red", "blue", "red", "green"],
        "ordinal": ["2", "1", "2", "3"],
        "labels": [["red", "big"], [], ["big"], ["red"]],
        "points": rng.normal(3, 5, (4, 40, 4)).tolist(),
        "series": [[1.0, 2.5, None], [3.0], [0.5] * 9, [2.0, 4.0]],
        "boxes": [
            [{"label": "cat", "box": [1, 2, 3.5, 4]}, {"label": "dog", "bbox": [0, 0, 9, 5]}],
            [],
            [{"label": "dog", "xmin": 1, "ymin": 1, "xmax": 2, "ymax": 3}],
            '[{"label": "cat", "x": 1, "y": 1, "width": 2, "height": 3}]',
        ],
        "spelling": ["abc", "cab ab", "a", "bc"],
    }


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_is_read_as_the_same(name, tmp_path) -> None:
    kind, given = KINDS[name], cells(tmp_path)[name]
    column = pa.chunked_array([column_from_values(name, given)])
    params = kind.fit(column, FitOptions(HERE))
    for cell in given:
        value = kind.encode(cell, params, HERE)
        written = kind.write(value, params)
        again = kind.encode(written, params, HERE)
        assert again.dtype == value.dtype and again.shape == value.shape
        close = 5e-3 if name == "datetime" else 1e-5  # a minute is 4.4e-3 of the sine of a day
        np.testing.assert_allclose(again, value, rtol=1e-6, atol=close)
        assert isinstance(written, bytes) == bool(kind.suffix)


def test_pictures_and_sounds_are_written_as_models_give_them(tmp_path) -> None:
    given = cells(tmp_path)
    for name, most in (("image", 255), ("audio", 32767)):
        kind = KINDS[name]
        params = kind.fit(pa.chunked_array([pa.array(given[name])]), FitOptions(HERE))
        value = kind.encode(given[name][0], params, HERE)
        assert kind.write(value.astype(np.float32) / most, params) == kind.write(value, params)
        assert kind.write(value.astype(np.float32) / most * 3, params) != kind.write(
            value, params
        )  # clipped, not turned


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1e8, 1e8), min_size=1, max_size=5),
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.sampled_from([None, 0.1, 30.0]),
)
def test_standardising_there_and_back(x, mean, std, log) -> None:
    x = torch.tensor(x, dtype=torch.float64)
    scale = Standardise(mean, std, log, clip=None)
    y = x if log is None else x.sign() * (x.abs() / log).log1p()
    torch.testing.assert_close(scale(x), ((y - mean) / std).float())
    off = 1e-7 * (y.abs() + abs(mean)) + 1e-30  # what float32 in between may lose
    most = off if log is None else (x.abs() + log) * off.expm1() * 1.01
    assert ((scale.inverse(scale(x)) - x).abs() <= most).all()


def test_clipped_and_normalised() -> None:
    assert Standardise(0.0, 1.0)(torch.tensor([1e300, -11.0, 2.0]).double()).tolist() == [10, -10, 2]
    scale, x = Normalise((0.1, 0.2, 0.3), (1.0, 2.0, 4.0)), torch.rand(2, 3, 4, 5)
    assert torch.equal(scale(x)[:, 2], (x[:, 2] - 0.3) / 4)
    torch.testing.assert_close(scale.inverse(scale(x)), x)
