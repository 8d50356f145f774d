"""Held rows that cannot tell everything: splits that are empty, unreadable or of one answer never end a run that could
train."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import plait
from plait.errors import DataError
from plait.runs.console import Console

N = 60
SPLIT = ["test" if i % 4 == 0 else "val" if i % 4 == 1 else "train" for i in range(N)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photos(broken: tuple[str, ...] = ()) -> list[bytes]:
    rng, cells = np.random.default_rng(0), []
    for part in SPLIT:
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(out, "PNG")
        cells.append(out.getvalue()[: 40 if part in broken else None])
    return cells


def fit(table: dict, folder, **options):
    usual = dict(
        system="auto_toy",
        image_size=32,
        epochs=1,
        precision="fp32",
        kinds={"photo": "image"},
        inputs=["photo"],
        split="split",
    )
    return plait.fit({"split": SPLIT, **table}, out=folder / "run", console=Console(quiet=True), **usual | options)


@pytest.mark.parametrize(
    "table, options, told",
    [
        ({"y": [float(i) if s == "train" else 3.0 for i, s in enumerate(SPLIT)]}, {"target": "y"}, ["MAE", "RMSE"]),
        ({"y": [i % 3 == 0 and s == "train" for i, s in enumerate(SPLIT)],
          "z": [i % 2 == 0 and s == "train" for i, s in enumerate(SPLIT)]},
         {"target": ["y", "z"]}, ["exact match"]),
        ({"name": [f"number {i}" for i in range(N)], "y": [i % 3 == 0 or s != "train" for i, s in enumerate(SPLIT)]},
         {"target": "y", "task": "match", "inputs": ["photo", "name"]}, ["accuracy"]),
        ({"y": ["a" if i % 3 == 0 or s != "train" else "b" for i, s in enumerate(SPLIT)]}, {"target": "y"},
        ["accuracy", "macro F1"]),
    ],
    ids=["one number", "no positive label", "only true pairs", "one class"],
)  # fmt: skip
def test_scores_that_need_more_are_left_out(table, options, told, tmp_path):
    run = fit({"photo": photos(), **table}, tmp_path, **options)
    names = [s.name for s in run.assessments["test"].scores]
    assert [n for n in names if n in (*told, "R2", "AUROC", "macro average precision")] == told
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    "split, answered",
    [(["train"] * N, "train"), (["train"] * (N - 1) + ["test"], "test"), (["train"] * (N - 1) + ["val"], "val")],
    ids=["no held rows", "no validation rows", "no test rows"],
)
def test_splits_may_be_empty(split, answered, tmp_path):
    run = fit({"photo": photos(), "y": [f"k{i % 2}" for i in range(N)], "split": split}, tmp_path, target="y")
    assert list(run.assessments) == [answered]


@pytest.mark.parametrize("broken, answered", [(("val",), "test"), (("test",), "val"), (("val", "test"), "train")])
def test_pairs_that_cannot_be_read_are_no_pairs(broken, answered, tmp_path):
    names = [f"number {i}" for i in range(N)]
    run = fit(
        {"photo": photos(broken), "name": names}, tmp_path, task="retrieve", inputs=["photo", "name"], system="clip_toy"
    )
    assert list(run.assessments) == [answered]


def test_without_a_readable_pair_there_is_nothing_to_train(tmp_path):
    names = [f"number {i}" for i in range(N)]
    with pytest.raises(DataError, match="no training row has both a readable 'name' and a readable 'photo'"):
        fit(
            {"photo": photos(("train",)), "name": names},
            tmp_path,
            task="retrieve",
            inputs=["photo", "name"],
            system="clip_toy",
        )
    assert not (tmp_path / "run").exists()
