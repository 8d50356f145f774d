"""A folder of pictures of which a third are cut off: all are listed, none costs another row its answer, and the model
hardly notices."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import plait
from plait.data.table import read_table
from plait.errors import DataError
from plait.runs.console import Console

OPTIONS = dict(target="digit", split="split", system="auto_toy", image_size=16, lr=3e-3, precision="fp32")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """clean/ and cut/: the digits as PNG files and a table of them; in cut/ the files of `broken(home)` end at a random
    byte."""
    digits, folder = load_digits(), tmp_path_factory.mktemp("digits")
    n, rng = len(digits.images), np.random.default_rng(0)
    cut = set(rng.choice(n, round(0.3 * n), replace=False).tolist())
    for name in ("clean", "cut"):
        (folder / name).mkdir()
        for i, image in enumerate(digits.images):
            path = folder / name / f"{i}.png"
            Image.fromarray((image * 15.9).astype(np.uint8)).save(path)
            if name == "cut" and i in cut:
                data = path.read_bytes()
                path.write_bytes(data[: int(rng.integers(0, len(data)))])
        with (folder / name / "digits.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["photo", "digit", "split"])
            for i, k in enumerate(digits.target):
                lines.writerow([f"{i}.png", f"d{k}", "train" if i % 10 < 6 else "val" if i % 10 < 7 else "test"])
    return folder


def broken(home: Path) -> list[int]:
    clean, cut = home / "clean", home / "cut"
    names = (f"{i}.png" for i in range(len(list(cut.glob("*.png")))))
    return [i for i, name in enumerate(names) if (clean / name).read_bytes() != (cut / name).read_bytes()]


def train(home: Path, name: str):
    return plait.fit(
        home / name / "digits.csv", out=home / f"run_{name}", epochs=25, console=Console(quiet=True), **OPTIONS
    )


@pytest.fixture(scope="module")
def run(home):
    return train(home, "cut")


def test_every_cut_file_is_listed(home, run):
    listed = pq.read_table(run.folder / "bad_rows.parquet").to_pylist()
    assert [r["row"] for r in listed] == broken(home) and len(listed) == 539
    assert {r["column"] for r in listed} == {"photo"}
    assert {r["reason"] for r in listed} <= {"broken picture (cut off)", "not a picture", "empty file"}
    assert all(r["value"] == f"{r['row']}.png" for r in listed)


def test_readable_rows_are_answered_as_well_as_ever(home, run):
    clean, lost = train(home, "clean").assessments["test"], set(broken(home))
    found = run.assessments["test"]
    assert np.array_equal(clean.index, found.index)
    kept = np.array([i not in lost for i in found.index])
    right = [(a.answers["probabilities"].argmax(1) == a.truth["digit"])[kept].mean() for a in (clean, found)]
    assert right[0] > 0.95 and right[0] - right[1] <= 0.02, right


def test_every_row_keeps_its_answer_and_a_broken_one_gets_the_frequencies(home, run):
    table, lost = read_table(home / "cut" / "digits.csv"), np.array(broken(home))
    answers = run.predict(table)
    classes = [f"d{k}" for k in range(10)]
    assert answers["row"].to_pylist() == list(range(len(table)))
    probs = np.stack([answers[f"p({c})"].to_numpy() for c in classes], 1)
    digit, split = (np.array(table.column(c).to_pylist()) for c in ("digit", "split"))
    names, counts = np.unique(digit[split == "train"], return_counts=True)
    assert names.tolist() == classes
    np.testing.assert_allclose(probs[lost], np.tile(counts / counts.sum(), (len(lost), 1)), atol=1e-6)
    assert np.flatnonzero([u == "photo" for u in answers["unread"].to_pylist()]).tolist() == lost.tolist()
    order = np.random.default_rng(1).permutation(len(table))
    again = run.predict(table.take(order))
    moved = np.stack([again[f"p({c})"].to_numpy() for c in classes], 1)
    np.testing.assert_allclose(moved, probs[order], atol=1e-5)
    whole = np.setdiff1d(np.arange(len(table)), lost)
    alone = run.predict(table.take(whole))  # the broken ones have no influence on the others
    np.testing.assert_allclose(np.stack([alone[f"p({c})"].to_numpy() for c in classes], 1), probs[whole], atol=1e-5)


def test_too_many_bad_rows_stop_it_before_training(home, tmp_path):
    with pytest.raises(DataError, match=r"539 of 1,797 rows \(30\.0%\) .*--max-bad 1\.0% allows: \d+ x broken picture"):
        plait.fit(
            home / "cut" / "digits.csv",
            out=tmp_path / "run",
            max_bad=0.01,
            epochs=1,
            console=Console(quiet=True),
            **OPTIONS,
        )
    assert not (tmp_path / "run").exists()


def test_empty_cells_are_missing_not_bad(home, tmp_path):
    table = read_table(home / "clean" / "digits.csv").take(np.arange(300))
    empty = [7, 8, 100, 250]
    photos = [None if i == 7 else "" if i in empty else c for i, c in enumerate(table.column("photo").to_pylist())]
    table = table.with_column("photo", photos)
    run = plait.fit(table, out=tmp_path / "run", max_bad=0.0, epochs=1, console=Console(quiet=True), **OPTIONS)
    assert pq.read_table(tmp_path / "run" / "bad_rows.parquet").num_rows == 0
    answers = run.predict(table)
    probs = np.stack([answers[f"p({c})"].to_numpy() for c in run.task.classes], 1)
    np.testing.assert_allclose(probs[empty], np.tile(run.task.frequencies, (4, 1)), atol=1e-6)
    rest = np.delete(np.arange(300), empty)
    assert (np.abs(probs[rest] - run.task.frequencies).max(1) > 1e-4).all() and set(answers["unread"].to_pylist()) == {
        ""
    }
