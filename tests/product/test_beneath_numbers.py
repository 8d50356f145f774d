"""Fits of several numbers and of quantiles with simple models beneath, and intervals by answers out of fold."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, QuantileRegressor
from sklearn.metrics import mean_pinball_loss, r2_score

import plait
from plait.runs.console import Console
from plait.runs.folder import MISSES
from plait.tasks.beneath import Several

LIKE = dict(system="auto", epochs=1, precision="fp32", seed=0, console=Console(quiet=True), folds=1)
INPUTS = ["x", "z"]


def table(n: int, seed: int) -> pd.DataFrame:
    """a and b are linear, c is as uncertain as x is large."""
    rng = np.random.default_rng(seed)
    x, z, noise = rng.uniform(0, 2, n), rng.normal(size=n), rng.normal(size=(3, n))
    return pd.DataFrame({"x": x, "z": z, "a": 100 + 10 * z + 4 * noise[0], "b": x - 2 * z + 0.5 * noise[1],
                         "c": 5 * x + (0.2 + 3 * x) * noise[2]})  # fmt: skip


NEW = table(3000, 1)


def test_several_numbers_never_lose_to_a_line_each(tmp_path) -> None:
    known = table(400, 0)
    known.loc[::4, "b"] = np.nan
    run = plait.fit(known, target="a,b", inputs=INPUTS, out=tmp_path / "r", **LIKE)
    told = plait.load(run.folder).predict(NEW)
    assert told.equals(run.predict(NEW)) and isinstance(run.model.ladder, Several)
    for target in "ab":
        rows = known[known[target].notna()]
        peer = LinearRegression().fit(rows[INPUTS], rows[target]).predict(NEW[INPUTS])
        assert r2_score(NEW[target], told.column(target).to_numpy()) > r2_score(NEW[target], peer) - 0.01
    page = (run.folder / "report.html").read_text()
    assert "What stands beneath each target" in page
    rungs = json.loads((run.folder / "report.json").read_text())["splits"]["test"]["rungs"]
    assert rungs["simple models"]["name"] == "mean R2"
    nothing = run.predict(NEW[:3].assign(x=None, z=None)).to_pydict()
    assert len(set(nothing["a"])) == 1 and nothing["a"][0] == pytest.approx(known["a"].mean(), abs=1)
    scores = {s.name: s.value for s in run.evaluate(NEW, interval=0.9).scores}
    assert scores["coverage"] == pytest.approx(0.9, abs=0.04)


def test_quantiles_never_lose_to_lines_and_their_intervals_follow_the_spread(tmp_path) -> None:
    known = table(500, 0)
    run = plait.fit(known, target="c", quantiles="0.05,0.5,0.95", inputs=INPUTS, out=tmp_path / "r", **LIKE)
    run = plait.load(run.folder)
    told = run.predict(NEW, interval=0.9)
    lost = 0.0
    for level in (0.05, 0.5, 0.95):
        peer = QuantileRegressor(quantile=level, alpha=0).fit(known[INPUTS], known["c"]).predict(NEW[INPUTS])
        mine = told.column(f"q({level})").to_numpy()
        lost += mean_pinball_loss(NEW["c"], mine, alpha=level) / mean_pinball_loss(NEW["c"], peer, alpha=level) / 3
        assert np.mean(NEW["c"] <= mine) == pytest.approx(level, abs=0.05)
    assert lost < 1.02
    q = np.stack([told.column(f"q({level})").to_numpy() for level in (0.05, 0.5, 0.95)], 1)
    assert (np.diff(q, axis=1) >= 0).all()
    low, high = told.column("low").to_numpy(), told.column("high").to_numpy()
    inside, sure = (low <= NEW["c"]) & (NEW["c"] <= high), NEW["x"] < 0.5
    assert inside.mean() == pytest.approx(0.9, abs=0.04)
    assert inside[sure].mean() < 0.97 and inside[NEW["x"] > 1.5].mean() > 0.83  # each by its own spread
    assert (high - low)[NEW["x"] > 1.5].mean() > 2 * (high - low)[sure].mean()
    scores = {s.name: s.value for s in run.evaluate(NEW, interval=0.9).scores}
    assert scores["coverage"] == pytest.approx(inside.mean()) and scores["width"] == pytest.approx((high - low).mean())
    half = run.predict(NEW, interval=0.5)
    inside = (half.column("low").to_numpy() <= NEW["c"]) & (NEW["c"] <= half.column("high").to_numpy())
    assert inside.mean() == pytest.approx(0.5, abs=0.06)  # quantiles that are too far apart are drawn in


def test_how_far_off_answers_are_is_learnt_of_all_rows_that_simple_models_learn_from(tmp_path) -> None:
    run = plait.fit(table(400, 0), target="a", inputs=INPUTS, out=tmp_path / "r", **LIKE)
    assert not run.model.ladder.heard
    assert json.loads((run.folder / MISSES).read_text())["rows"] == 360  # but the test rows
    assert {s.name: s.value for s in run.evaluate(NEW, interval=0.9).scores}["coverage"] == pytest.approx(0.9, abs=0.03)
    alone = plait.fit(table(400, 0), target="a", inputs=INPUTS, out=tmp_path / "s", no_ladder=True, **LIKE)
    assert json.loads((alone.folder / MISSES).read_text())["rows"] == 40
