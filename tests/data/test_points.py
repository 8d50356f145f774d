"""Clouds of points in lists and files."""

from __future__ import annotations

import io
import struct

import numpy as np
import pyarrow as pa
import pytest
import torch

from plait.data.kinds import KINDS, Bad, Missing, Place
from plait.data.kinds.base import FitOptions, Glance
from plait.data.kinds.points import read_points

HERE, KIND = Place(), KINDS["points"]
X = np.random.default_rng(0).normal(3, 2, (20, 3)).astype(np.float32).astype(np.float64)


def npy() -> bytes:
    np.save(file := io.BytesIO(), X.astype(np.float32))
    return file.getvalue()


def ply(layout: str) -> bytes:
    head = f"ply\nformat {layout} 1.0\ncomment made\nelement vertex 20\nproperty float x\nproperty float y\n"
    head += "property float z\nproperty uchar red\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
    if layout == "ascii":
        body = "".join(f"{x:.9g} {y:.9g} {z:.9g} 7\n" for x, y, z in X).encode() + b"3 0 1 2\n"
    else:
        order = "<" if "little" in layout else ">"
        body = b"".join(struct.pack(f"{order}fffB", *row, 7) for row in X) + b"\3" + bytes(12)
    return head.encode() + body


@pytest.mark.parametrize(
    "cell",
    [
        X.tolist(),
        str(X.tolist()),
        npy(),
        "".join(f"{x:.9g} {y:.9g} {z:.9g}\n" for x, y, z in X).encode(),
        *(ply(layout) for layout in ("ascii", "binary_little_endian", "binary_big_endian")),
    ],
    ids=["list", "json", "npy", "xyz", "ply", "ply little", "ply big"],
)
def test_every_way_to_write_a_cloud_is_read_as_the_same(cell):
    found = read_points(cell, HERE)
    np.testing.assert_allclose(found[:, :3], X, rtol=1e-6)
    assert found.shape[1] == 3 or (found[:, 3] == 7).all()


def test_files_are_found_and_guessed(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.npy").write_bytes(npy())
    column = pa.chunked_array([[f"{i}.npy" for i in range(4)]])
    assert KIND.guess(Glance("cloud", column, Place(tmp_path))) == "4 of 4 cells end in .npy, .ply or .xyz"
    assert KIND.guess(Glance("steps", pa.chunked_array([[X.tolist()] * 4]), HERE)) is None
    params = KIND.fit(column, FitOptions(Place(tmp_path)))
    value = KIND.encode("2.npy", params, Place(tmp_path))
    assert params["points"] == 32 and value.dtype == np.float32 and np.abs(value).max() <= 1


@pytest.mark.parametrize(
    "cell, reason",
    [
        ([[1.0, 2.0]], "at least three numbers"),
        ([[1.0, 2.0, 3.0], [1.0]], "no points"),
        ([[1.0, 2.0, float("nan")]], "not finite"),
        ([["a", "b", "c"]], "no points"),
        (b"ply\nformat ascii 1.0\nend_header\n", "no points"),
        (ply("binary_little_endian")[:-200], "no points"),
        (npy()[:60], "no points"),
        (b"\0\1\2", "no points"),
        (7, "neither a path nor bytes"),
    ],
)
def test_what_is_no_cloud_is_said(cell, reason):
    with pytest.raises(Bad, match=reason):
        read_points(cell, HERE)
    with pytest.raises(Missing, match="without points"):
        read_points([], HERE)


def test_large_clouds_are_thinned_and_a_turned_one_keeps_its_shape():
    column = pa.chunked_array([[X.tolist()] * 99 + [np.tile(X, (50, 1)).tolist()]])
    params = KIND.fit(column, FitOptions(HERE, longest=0.9))
    place = Place()
    value = KIND.encode(np.tile(X, (50, 1)).tolist(), params, place)
    assert value.shape == (32, 3) and place.notes == {"thinned": 1}
    x, keep = torch.rand(4, 9, 3), torch.ones(4, 9, dtype=torch.bool)
    keep[:, 7:] = False
    turned, _ = KIND.augment(x, keep, {}, torch.Generator().manual_seed(0), 1.0, False)
    ratio = torch.cdist(turned[:, :7], turned[:, :7]) / torch.cdist(x[:, :7], x[:, :7]).clamp(min=1e-9)
    spread = ratio[:, ~torch.eye(7, dtype=torch.bool)]
    assert not turned[:, 7:].any() and (spread.std(1) < 0.2 * spread.mean(1)).all()
    assert (turned[:, :7] - x[:, :7]).abs().amax() > 0.3
