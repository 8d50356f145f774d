"""Cells that are missing or unusable when a model answers: any subset of the inputs will do, and nothing at all gets
what is usual."""

from __future__ import annotations

import io
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import plait
from plait.core.catalog import systems
from plait.data.table import Table, read_table
from plait.runs.console import Console
from plait.runs.run import Run
from plait.tasks import tasks_of

INPUTS = ("photo", "word", "ink", "colour")
PAIRS = [
    name
    for name, system in systems().items()
    if {"image", "text"} <= set(system.takes) and "classify" in tasks_of(plait.model_info(name))
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def table() -> Table:
    digits, rng, n = load_digits(), np.random.default_rng(0), 240
    photos = []
    for image in digits.images[:n]:
        out = io.BytesIO()
        Image.fromarray((image * 15.9).astype(np.uint8)).save(out, "PNG")
        photos.append(out.getvalue())
    kinds = digits.target[:n]
    cells = {
        "photo": photos,
        "word": [f"I take this for a {k}, or for a {rng.integers(10)}" for k in kinds],
        "ink": digits.images[:n].mean((1, 2)).tolist(),
        "colour": [("red", "green", "blue")[k % 3] for k in kinds],
    }
    for name in cells:  # the training rows have gaps too
        cells[name] = [c if rng.random() < 0.9 else None for c in cells[name]]
    part = ["test" if i % 5 == 0 else "val" if i % 5 == 1 else "train" for i in range(n)]
    return read_table(cells | {"label": [f"d{k // 4}" for k in kinds], "size": kinds.astype(float), "split": part})


def train(table: Table, folder, target: str, inputs: tuple[str, ...], system: str) -> Run:
    options = dict(
        inputs=list(inputs),
        kinds={"word": "text"},
        image_size=32,
        precision="fp32",
        augment=0.0,
        epochs=2,
        split="split",
    )
    return plait.fit(table, out=folder / "run", target=target, system=system, console=Console(quiet=True), **options)


@pytest.fixture(scope="module")
def runs(table, tmp_path_factory) -> dict[str, Run]:
    return {
        target: train(table, tmp_path_factory.mktemp(target), target, INPUTS, "auto_toy")
        for target in ("label", "size")
    }


def every_subset(table: Table, inputs: tuple[str, ...]) -> tuple[Table, np.ndarray]:
    """Whole rows, each in all versions with cells missing; and which cells are there (n, columns)."""
    whole = [i for i in range(len(table)) if all(table.column(c)[i].is_valid for c in inputs)][:6]
    there = np.array(list(product((True, False), repeat=len(inputs))) * len(whole))
    rows = table.take(np.repeat(whole, 2 ** len(inputs)))
    for k, name in enumerate(inputs):
        rows = rows.with_column(name, [c if ok else None for c, ok in zip(rows.column(name).to_pylist(), there[:, k])])
    return rows, there


def numbers(run: Run, rows: Table) -> np.ndarray:
    """(n, K) probabilities, or (n, 1) numbers."""
    answers = run.predict(rows)
    assert answers["row"].to_pylist() == list(range(len(rows))) and set(answers["unread"].to_pylist()) == {""}
    names = [f"p({c})" for c in run.task.classes] if run.task.name == "classify" else [run.task.target]
    return np.stack([answers[name].to_numpy() for name in names], 1)


def usual(table: Table, target: str) -> np.ndarray:
    """What the training rows answer by themselves: the frequencies of the classes, or the mean."""
    values = np.array(
        [v for v, s in zip(table.column(target).to_pylist(), table.column("split").to_pylist()) if s == "train"]
    )
    return np.unique(values, return_counts=True)[1] / len(values) if target == "label" else values.mean(keepdims=True)


@pytest.mark.parametrize("target", ["label", "size"])
def test_any_subset_of_the_inputs_is_answered(runs, table, target):
    run, (rows, there) = runs[target], every_subset(table, INPUTS)
    found = numbers(run, rows)
    nothing = ~there.any(1)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[nothing], np.tile(usual(table, target), (nothing.sum(), 1)), rtol=1e-6)
    versions = found.reshape(6, 16, -1)
    assert all(len(np.unique(v, axis=0)) == 16 for v in versions)  # each cell has a say, whatever else is there


@pytest.mark.parametrize("name", PAIRS)
def test_every_system_answers_without_a_picture_or_a_text(name, table, tmp_path):
    pair = ("photo", "word")
    run, (rows, there) = train(table, tmp_path, "label", pair, f"{name}_toy"), every_subset(table, pair)
    found = numbers(run, rows)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[~there.any(1)], np.tile(usual(table, "label"), (6, 1)), rtol=1e-6)


def test_columns_that_a_table_lacks_are_missing_cells(runs, table):
    run, (rows, there) = runs["label"], every_subset(table, INPUTS)
    ink = there[:, 2] & ~there[:, [0, 1, 3]].any(1)
    only = read_table({"ink": table.column("ink").drop_null().to_pylist()[:6]})
    inks = rows.column("ink").to_numpy()[ink]
    expected = numbers(run, rows)[ink]
    found = numbers(run, read_table({"ink": inks.tolist()}))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isfinite(numbers(run, only)).all()


def test_what_cannot_be_used_is_counted_and_answered_as_missing(runs, table):
    run = runs["label"]
    whole = next(i for i in range(len(table)) if all(table.column(c)[i].is_valid for c in INPUTS))
    rows = table.take(np.full(8, whole))
    cells = {name: rows.column(name).to_pylist() for name in INPUTS}
    gone = {name: list(column) for name, column in cells.items()}
    for row, (name, value) in enumerate([("ink", float("nan")), ("ink", float("inf")), ("ink", float("-inf")),
                                         ("colour", "mauve"), ("word", ""), ("word", " \t"), ("photo", b"no picture"),
                                         ("photo", b"")]):  # fmt: skip
        cells[name][row], gone[name][row] = value, None
    strange, missing = read_table(cells), read_table(gone)
    answers = run.predict(strange)
    probs = np.stack([answers[f"p({c})"].to_numpy() for c in run.task.classes], 1)
    np.testing.assert_allclose(probs, numbers(run, missing), rtol=1e-5)
    seen = run.rows(strange)
    assert answers["unread"].to_pylist() == ["ink", "ink", "ink", "", "", "", "photo", "photo"]
    assert seen.notes == {"colour": {"never seen": 1}, "word": {"empty text": 2}}
