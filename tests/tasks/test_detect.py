"""Detecting: a run from a table to boxes in pixels and a report with pictures."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import plait
from plait.errors import DataError, UsageError
from plait.runs.console import Console

QUIET = Console(quiet=True)
COLOURS = {"red": (230, 40, 40), "blue": (40, 60, 230)}


def things(n: int, seed: int = 0, size=(32, 48)) -> dict[str, list]:
    """Gray pictures with none to two coloured squares of 12 to 16 pixels."""
    rng = np.random.default_rng(seed)
    pictures, boxes = [], []
    for _ in range(n):
        pixels, told = np.full((*size, 3), 150, np.uint8), []
        for place in rng.permutation(2)[: rng.integers(0, 3)]:
            label, side = str(rng.choice(list(COLOURS))), int(rng.integers(12, 17))
            x, y = int(place * 24 + rng.integers(0, 25 - side)), int(rng.integers(0, size[0] - side))
            pixels[y : y + side, x : x + side] = COLOURS[label]
            told.append({"label": label, "box": [x, y, x + side, y + side]})
        Image.fromarray(pixels).save(out := io.BytesIO(), "PNG")
        pictures.append(out.getvalue())
        boxes.append(json.dumps(told))
    return {"photo": pictures, "things": boxes}


def fit(rows: dict, folder, **more):
    how = {"task": "detect", "target": "things", "system": "detr_toy", "precision": "fp32", "batch_size": 16}
    return plait.fit(rows, out=folder, console=QUIET, **(how | {"epochs": 12, "lr": 3e-3} | more))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(things(240), tmp_path_factory.mktemp("detect") / "run")


def test_it_finds_more_than_the_same_boxes_everywhere(run) -> None:
    found = run.assessments["test"]
    scores, floor = ({s.name: s for s in part} for part in (found.scores, found.baseline))
    assert list(scores) == ["AP50", "AP", "AP75", "F1"] and scores["AP50"].n == 24
    assert scores["AP50"].value > floor["AP50"].value + 0.05


def test_answers_are_boxes_in_pixels_of_the_picture_itself(run, tmp_path) -> None:
    """Of the same pictures three times as large, three times as large."""
    rows = things(20, seed=5)
    large = []
    for cell in rows["photo"]:
        picture = Image.open(io.BytesIO(cell))
        picture.resize((144, 96), Image.NEAREST).save(out := io.BytesIO(), "PNG")
        large.append(out.getvalue())
    again = plait.load(run.folder)
    one, three = (again.predict({"photo": cells}, out=tmp_path / "out.csv") for cells in (rows["photo"], large))
    assert one.column_names == ["row", "things", "unread"]
    for a, b in zip(*(map(json.loads, table["things"].to_pylist()) for table in (one, three))):
        assert [t["score"] for t in a] == sorted((t["score"] for t in a), reverse=True)
        for mine in a[:2]:  # two of nearly one score may change places
            alike = [other["box"] for other in b if other["label"] == mine["label"]]
            assert mine["label"] in COLOURS
            assert any(np.allclose(np.array(mine["box"]) * 3, box, atol=6) for box in alike)
    whole = again.evaluate(rows)
    assert whole.scores[0].n == 20


def test_boxes_are_drawn_onto_pictures_where_asked(run, tmp_path) -> None:
    rows = things(4, seed=9)
    answers = run.predict({"photo": rows["photo"]}, out=tmp_path / "out.jsonl", show=True)
    assert answers.column_names == ["row", "things", "shown", "unread"]
    for path, cell, told in zip(answers["shown"].to_pylist(), rows["photo"], answers["things"].to_pylist()):
        drawn = np.asarray(Image.open(tmp_path / path), int)
        given = np.asarray(Image.open(io.BytesIO(cell)).resize(drawn.shape[1::-1]), int)
        sure = any(thing["score"] >= 0.5 for thing in json.loads(told))
        assert (abs(drawn - given).max() > 60) == sure


def test_the_report_shows_pictures_and_a_missing_picture_finds_nothing(run) -> None:
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    assert report.count("data:image/png") > 8 and "best and the worst" in report
    rows = things(6, seed=7)
    rows["photo"][2] = None
    assert json.loads(run.predict({"photo": rows["photo"]})["things"].to_pylist()[2]) == []
    assert run.evaluate(rows).scores[0].n == 6


def test_what_cannot_work_is_said(tmp_path) -> None:
    rows = things(40)
    with pytest.raises(DataError, match="no box in the training rows"):
        fit(rows | {"things": ["[]"] * 39 + ['[{"label": "red"}]']}, tmp_path / "a", max_bad=1.0)
    with pytest.raises(UsageError, match="cannot detect"):
        fit(rows, tmp_path / "b", system="vit_toy")
    with pytest.raises(UsageError, match="each once"):
        fit(rows | {"other": rows["photo"][::-1]}, tmp_path / "c", inputs=["photo", "other"])


def test_published_sizes_keep_their_norms_and_a_new_head_has_the_tables_labels() -> None:
    model = plait.create_model("detr_toy", labels=3)
    assert model.classes.out_features == 4
    before = {n: b.clone() for n, b in model.named_buffers()}
    model.train()(torch.rand(4, 3, 32, 32))
    assert before and all(torch.equal(b, before[n]) for n, b in model.named_buffers())
