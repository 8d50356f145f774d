"""Two runs on the same rows: the difference is paired, and the rows where it is largest are listed."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import plait
from plait.cli import main
from plait.errors import UsageError
from plait.runs.console import Console

QUIET = Console(quiet=True)


def table(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=(2, n))
    return pd.DataFrame({"x": x, "z": z, "y": np.where(x + 0.3 * z > 0, "yes", "no"), "v": 3 * x + z})


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("compare")
    table(300, 0).to_csv(place / "t.csv", index=False)
    how = dict(system="auto_toy", epochs=1, precision="fp32", no_ladder=True, folds=1, console=QUIET)
    for name, target, inputs in [
        ("poor", "y", ["z"]),
        ("good", "y", ["x", "z"]),
        ("v", "v", ["x"]),
        ("w", "v", ["x", "z"]),
    ]:
        plait.fit(place / "t.csv", target=target, inputs=inputs, out=place / name, **how)
    plait.fit(place / "t.csv", target="y", inputs=["x", "z"], out=place / "other", seed=3, **how)
    plait.fit(place / "t.csv", target="y", inputs=["x", "z"], out=place / "twin", lr=1e-5, **how)
    yield place
    torch.set_num_threads(before)


def test_the_better_one_is_found_with_its_interval_and_rows(place) -> None:
    new = table(400, 1)
    found = plait.compare(place / "poor", place / "good", new)
    told = [np.array(plait.load(place / n).predict(new).column("y").to_pylist()) for n in ("poor", "good")]
    right = [t == new["y"].to_numpy() for t in told]
    assert found.gain.value == pytest.approx(np.mean(right[1]) - np.mean(right[0])) and found.gain.low > 0
    error = np.std(right[1].astype(float) - right[0]) / 20
    assert (found.gain.high - found.gain.low) / 2 == pytest.approx(1.96 * error, rel=0.2)
    assert found.p < 0.001 and found.a.scores[0].value == pytest.approx(np.mean(right[0]))
    assert len(found.rows) == 10
    for row in found.rows:
        assert row["truth"] == new["y"][row["row"]]
        assert (row["a"], row["b"]) == (told[0][row["row"]], told[1][row["row"]])
    gains = [abs(r["gain"]) for r in found.rows]
    assert gains == sorted(gains, reverse=True) and gains[0] > 1
    turned = plait.compare(place / "good", place / "poor", new)
    assert turned.gain.value == pytest.approx(-found.gain.value) and turned.rows[0]["gain"] == -found.rows[0]["gain"]


def test_a_run_is_no_better_than_itself(place) -> None:
    found = plait.compare(place / "good", place / "good", table(50, 1))
    assert (found.gain.value, found.p, found.rows) == (0, 1, [])


def test_numbers_are_compared_too(place) -> None:
    found = plait.compare(place / "v", place / "w", table(200, 1), most=3)
    assert found.gain.low > 0 and len(found.rows) == 3 and found.rows[0]["gain"] > 0
    assert found.rows[0]["truth"] == table(200, 1)["v"][found.rows[0]["row"]]


def test_without_a_table_the_rows_that_both_kept_are_asked(place) -> None:
    found = plait.compare(place / "twin", place / "good")
    assert len(found.a.index) == 30
    report = json.loads((place / "good" / "report.json").read_text())["splits"]["test"]["scores"][0]
    assert found.b.scores[0].value == report["value"]
    few = plait.compare(place / "good", place / "other")
    assert 0 < len(few.a.index) < 15


@pytest.mark.parametrize(
    "a, b, words", [("good", "v", "does classify of y .* does regress of v"), ("good", "m", "on one file")]
)
def test_what_cannot_be_is_said(place, a: str, b: str, words: str) -> None:
    if not (place / "m").exists():
        how = dict(system="auto_toy", epochs=1, no_ladder=True, console=QUIET)
        plait.fit(table(60, 0), target="y", inputs=["x"], out=place / "m", **how)
    with pytest.raises(UsageError, match=words):
        plait.compare(place / a, place / b)


def test_the_command_line(place) -> None:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = main(["compare", str(place / "poor"), str(place / "good"), str(place / "t.csv"), "--most", "2"])
        as_json = main(["compare", str(place / "twin"), str(place / "good"), "--json"])
    lines = out.getvalue().splitlines()
    assert (code, as_json) == (0, 0)
    assert any("good is better" in line for line in lines) and any("lower loss" in line for line in lines)
    data = json.loads(next(line for line in lines if line.startswith("{")))
    assert data["rows"] == 30 and {s["name"] for s in data["a"]} == {s["name"] for s in data["b"]}
