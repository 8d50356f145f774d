"""COCO's, VOC's and YOLO's files give the same table."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from plait.data.annotations import read_coco, read_voc, read_yolo
from plait.data.kinds.boxes import read_boxes
from plait.errors import DataError

TRUTH = {"a.png": [("cat", [10.0, 20, 30, 60]), ("dog", [0.0, 0, 50, 25])], "b.png": []}
VOC = (
    "<annotation><filename>{name}</filename>{things}</annotation>",
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>",
)


@pytest.fixture
def folder(tmp_path):
    images, annotations = [], []
    for i, (name, things) in enumerate(TRUTH.items()):
        Image.new("RGB", (100, 80)).save(tmp_path / name)
        images.append({"id": 7 + i, "file_name": name, "width": 100, "height": 80})
        for label, (x0, y0, x1, y1) in things:
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": {"cat": 3, "dog": 9}[label]}
            annotations.append({"image_id": 7 + i, "iscrowd": 0} | box)
        text = "".join(VOC[1].format(label, *box) for label, box in things)
        (tmp_path / f"{name[0]}.xml").write_text(VOC[0].format(name=name, things=text))
    lines = [f"{['dog', 'cat'].index(n)} {(a + c) / 200} {(b + d) / 160} {(c - a) / 100} {(d - b) / 80}"
             for n, (a, b, c, d) in TRUTH["a.png"]]  # fmt: skip
    (tmp_path / "a.txt").write_text("\n".join(lines))
    annotations.append(annotations[0] | {"iscrowd": 1})
    kinds = [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}]
    (tmp_path / "all.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": kinds}))
    return tmp_path


def test_all_give_the_same_table(folder) -> None:
    for table in (read_coco(folder / "all.json"), read_voc(folder), read_yolo(folder, folder, ["dog", "cat"])):
        assert table.root == folder and table.column("image").to_pylist() == list(TRUTH)
        for cell, want in zip(table.column("boxes").to_pylist(), TRUTH.values()):
            got = read_boxes(cell)
            assert [label for label, _ in got] == [label for label, _ in want]
            np.testing.assert_allclose([b for _, b in got], [b for _, b in want], atol=1e-9)


def test_what_is_none_of_these_is_said(folder, tmp_path) -> None:
    (folder / "bad.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="no file of COCO's boxes"):
        read_coco(folder / "bad.json")
    (folder / "c.xml").write_text("<annotation><filename>a.png</filename><object><name>x</name></object></annotation>")
    with pytest.raises(DataError, match="no xmin"):
        read_voc(folder)
    (folder / "b.txt").write_text("5 0.1 0.1 0.1 0.1")
    with pytest.raises(DataError, match="a class from 0 to 1"):
        read_yolo(folder, folder, ["dog", "cat"])
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture with boxes"):
        read_voc(empty)
