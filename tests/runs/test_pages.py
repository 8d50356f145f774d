"""The report of a run, from what the run measured."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest

import plait
from plait.evaluate import pictures
from plait.runs import fit as fitting
from plait.runs.console import Console
from plait.runs.pages import again

QUIET = Console(quiet=True)
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")


@pytest.mark.parametrize(
    "command, told",
    [
        ("plait fit t.csv --target y", "plait fit t.csv --target y --precision bf16"),
        ("plait fit 'my t.csv' --target y", "plait fit 'my t.csv' --target y --precision bf16"),
        ("plait fit t.csv --precision fp32", "plait fit t.csv --precision fp32"),
        ("plait fit t.csv --precision=fp32", "plait fit t.csv --precision=fp32"),
        ("plait fit --resume runs/t", "plait fit --resume runs/t"),
        ("python train.py", "python train.py"),
    ],
)
def test_what_was_chosen_is_named_where_a_run_is_to_be_done_again(command, told):
    assert again(command, "bf16") == told


def test_the_report_names_the_precision_that_was_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "command", lambda: "plait fit t.csv --target y")
    table = {"x": [float(i % 7) if i else None for i in range(40)], "y": ["ab"[i % 3 == 0] for i in range(40)]}
    plait.fit(
        table, out=tmp_path / "run", target="y", system="auto_toy", folds=1, epochs=1, console=Console(quiet=True)
    )
    chosen = json.loads((tmp_path / "run" / "config.json").read_text())["plan"]["precision"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"plait fit t.csv --target y --precision {chosen}\nseed 0, precision {chosen}, data " in page
    assert page.count("<td>1 (2.5%)</td>") == 1  # missing cells of x


def test_a_report_of_classes_says_where_and_how_far_it_is_right(tmp_path):
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=200), rng.normal(size=200)
    label = ["yes" if a + 0.5 * e > 0 else "no" for a, e in zip(x, rng.normal(size=200))]
    part = ["train"] * 80 + ["val"] * 20 + ["test"] * 100
    table = {"x": x, "z": z, "kind of <thing>": ["a", "b"] * 100, "label": label, "part": part}
    plait.fit(table, out=tmp_path / "run", target="label", split="part", system="auto_toy", epochs=2, console=QUIET)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for title in ("Class by class", "Can its probabilities be believed?", "At every threshold", "Where it is worse",
                  "What each column is worth"):  # fmt: skip
        assert f"<h2>{title}</h2>" in page, title
    assert page.count("<svg") == 3 and "kind of <thing>" not in page
    counts = label[:80].count("yes"), label[100:].count("yes")
    assert re.search(rf">yes</td>.*?>{counts[0]}</td><td class=\"num\">{counts[1]}</td>", page)
    assert len(page) < 400_000


def test_a_report_of_numbers_names_the_column_and_the_mean(tmp_path, monkeypatch):
    named = []
    monkeypatch.setattr(pictures, "residuals", lambda truth, said, name: (named.append(name), PNG)[1])
    x = np.random.default_rng(0).normal(size=200)
    table = {"x": x, "kind": [f"k{i % 2}" for i in range(200)], "price": 3 * x + np.sign(x)}
    plait.fit(table, out=tmp_path / "run", target="price", folds=1, fractions=(0.4, 0.1, 0.5), system="auto_toy",
              epochs=1, console=QUIET)  # fmt: skip
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert named == ["price"] and "mean of truth − prediction" in page and "(prediction)" in page
    assert re.search(r'class="about">mean -?\d', page) and "majority" not in page


def test_a_silenced_network_is_not_shown_as_what_answers(tmp_path):
    rng = np.random.default_rng(0)
    table = {"x": rng.normal(size=120), "z": rng.normal(size=120), "y": [f"k{k}" for k in rng.integers(0, 2, 120)]}
    how = {"target": "y", "folds": 1, "system": "auto_toy", "epochs": 2, "console": QUIET}
    run = plait.fit(table, out=tmp_path / "run", **how)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert run.model.silent and "<h2>Training</h2>" not in page and "network, which was left out" in page
    both = table | {"word": [f"{v} is a word of {i}" for i, v in enumerate(table["y"])]}
    run = plait.fit(both, out=tmp_path / "both", kinds={"word": "text"}, **how)
    page = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    assert not run.model.silent and "<h2>Training</h2>" in page and "left out" not in page
