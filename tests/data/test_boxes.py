"""Boxes: every spelling, where they lie in what a model reads, and that they move with their picture."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from plait.data.augment import augment
from plait.data.kinds import KINDS, Bad, Place
from plait.data.kinds.boxes import read_boxes
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import read_table

KIND = KINDS["boxes"]
CAT = [("cat", [1.0, 2.0, 4.0, 6.0])]


@pytest.mark.parametrize(
    "cell",
    [
        [{"label": "cat", "box": [1, 2, 4, 6]}],
        '[{"category": "cat", "bbox": [1, 2, 3, 4]}]',
        {"bbox": [[1, 2, 3, 4]], "category": ["cat"], "area": [12]},
        [{"name": "cat", "xmin": 1, "ymin": 2, "xmax": 4, "ymax": 6, "bbox": None}],
        [{"type": "cat", "x": 1, "y": 2, "width": 3, "height": 4}],
        [{"class": "cat", "left": 1, "top": 2, "right": 4, "bottom": 6}],
    ],
)
def test_every_spelling_is_read(cell) -> None:
    assert read_boxes(cell) == CAT


@pytest.mark.parametrize(
    "cell, reason",
    [
        ("[1, 2", "not boxes"),
        ([1, 2], "not boxes"),
        ({"bbox": [[1, 2, 3, 4]], "category": []}, "not boxes"),
        ([{"box": [1, 2, 3, 4]}], "without a label"),
        ([{"label": "cat"}], "without a box"),
        ([{"label": "cat", "box": [1, 2, 3]}], "not four numbers"),
        ([{"label": "cat", "box": [1, 2, 1, 4]}], "without an area"),
        ([{"label": "cat", "bbox": [1, 2, float("nan"), 4]}], "without an area"),
    ],
)
def test_what_is_no_box_is_said(cell, reason) -> None:
    with pytest.raises(Bad, match=reason):
        read_boxes(cell)


def rows(size, crop=None, shape=(60, 140), count=4) -> Rows:
    """Black pictures with one white thing each, elsewhere in each."""
    cells, boxes = [], []
    for i in range(count):
        pixels, (x, y, w, h) = np.zeros((*shape, 3), np.uint8), (40 + 9 * i, 16 + 2 * i, 30, 20)
        pixels[y : y + h, x : x + w] = 255
        Image.fromarray(pixels).save(out := io.BytesIO(), "PNG")
        cells.append(out.getvalue())
        boxes.append(json.dumps([{"label": "thing", "bbox": [x, y, w, h]}]))
    table = read_table({"photo": cells, "things": boxes})
    schema = Schema.guess(table, target="things", kinds={"things": "boxes"})
    schema.fit(table, np.arange(count), image_size=size, crop=crop)
    return Rows(table, schema, asked=True)


def seen(x: torch.Tensor) -> torch.Tensor:
    """(B, 4): where each picture (B, 3, H, W) is white, as shares of it."""
    white = x.mean(1) > 0.75
    found = []
    for picture in white:
        ys, xs = picture.any(1).nonzero(), picture.any(0).nonzero()
        sides = torch.tensor([picture.shape[1], picture.shape[0]] * 2)
        found.append(torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / sides)
    return torch.stack(found)


CROP = dict(crop_mode="center", crop_pct=0.875, interpolation="bilinear")


@pytest.mark.parametrize(
    "size, crop", [((60, 140), None), ((96, 96), None), ((72, 100), CROP), ((64, 64), CROP | dict(crop_mode="squash"))]
)
def test_boxes_lie_where_the_thing_is_seen(size, crop) -> None:
    made = rows(list(size), crop)
    batch = made.batch(np.arange(4))
    x = torch.where((batch["image_0"] - 128 / 255).abs() < 0.01, 0.0, batch["image_0"])  # without letterboxes
    box = batch["target"]["things"][:, 0, 1:]
    assert (box - seen(x)).abs().max() < 1.6 / min(size)


def test_boxes_move_with_the_picture() -> None:
    made = rows([120, 280], shape=(120, 280))
    batch = made.batch(np.arange(4))
    moved = 0
    for seed in range(6):
        new = augment(batch, made.schema, torch.Generator().manual_seed(seed), whole=True)
        box = new["target"]["things"][:, 0, 1:]
        assert (box - seen(new["image_0"])).abs().max() < 1.1 / 120
        moved += int((box - batch["target"]["things"][:, 0, 1:]).abs().amax(1).gt(0.01).sum())
    assert moved > 12


def test_boxes_out_of_sight_are_not_asked_for() -> None:
    window = torch.tensor([[0.0, 0, 100, 100]])
    x = torch.tensor([[[0.0, 10, 10, 20, 20], [1, 90, 90, 130, 130], [1, 40, -20, 60, 20], [0, 150, 0, 160, 9]]])
    laid = KIND.lay(x, window)
    assert laid[0, :, 0].isnan().tolist() == [False, True, False, True]
    torch.testing.assert_close(laid[0, 2], torch.tensor([1, 0.4, 0, 0.6, 0.2]))


def test_labels_never_seen_and_pictures_without_a_thing() -> None:
    table = read_table({"photo": [b""] * 3, "things": ['[{"label": "a", "box": [0, 0, 1, 1]}]', "[]", None]})
    params = KIND.fit(table.column("things"), None)
    assert params["values"] == ["a"] and params["counts"] == [1] and params["cells"] == 2 and params["most"] == 1
    place = Place()
    other = KIND.encode('[{"label": "b", "box": [0, 0, 1, 1]}]', params, place)
    assert other[0, 0] == 1 and place.notes == {"never seen": 1}
    assert KIND.encode("[]", params, place).shape == (0, 5)
