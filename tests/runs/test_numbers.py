"""Several numbers at once, and quantiles of one."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

import plait
from plait.cli import main
from plait.errors import UsageError
from plait.runs.console import Console
from plait.tasks.regress import pinball

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def table(n: int, seed: int) -> dict:
    """a and b are linear; c is as uncertain as x is large."""
    rng = np.random.default_rng(seed)
    x, z = rng.uniform(0, 2, n), rng.normal(size=n)
    noise = rng.normal(size=(3, n))
    return {
        "x": x, "z": z, "a": 100 + 10 * z + noise[0], "b": x - 2 * z + 0.5 * noise[1],
        "c": 5 * x + (0.2 + 3 * x) * noise[2],
    }  # fmt: skip


def fit(source, out, **how) -> plait.Run:
    usual = dict(inputs=["x", "z"], system="auto_toy", precision="fp32", epochs=2, folds=1, out=out, console=QUIET)
    return plait.load(plait.fit(source, **usual | how).folder)


NEW = table(3000, 1)


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> plait.Run:
    source = {k: v.tolist() for k, v in table(600, 0).items()}
    source["b"][::4] = [None] * len(source["b"][::4])
    return fit(source, tmp_path_factory.mktemp("several") / "r", target="a,b")


def test_several_numbers_are_answered_each_in_its_unit(several) -> None:
    told = several.predict(NEW)
    assert told.column_names == ["row", "a", "b", "unread"]
    each = {t: sk.r2_score(NEW[t], told.column(t).to_numpy()) for t in "ab"}
    assert each["a"] > 0.97 and each["b"] > 0.9
    scores = {s.name: s.value for s in several.evaluate(NEW).scores}
    assert several.evaluate(NEW).scores[0].name == "mean R2"
    assert scores["mean R2"] == pytest.approx(np.mean(list(each.values())))
    assert scores["R2 of b"] == pytest.approx(each["b"])
    assert scores["MAE of a"] == pytest.approx(sk.mean_absolute_error(NEW["a"], told.column("a").to_numpy()))
    assert abs({s.name: s.value for s in several.evaluate(NEW).baseline}["mean R2"]) < 0.02


def test_rows_with_some_of_the_numbers_are_scored_by_these(several) -> None:
    some = {k: v.tolist() for k, v in NEW.items()}
    some["a"][:1000], some["b"][:2000] = [None] * 1000, [None] * 2000
    found = several.evaluate(some)
    told = several.predict(NEW)
    assert len(found.index) == 2000 and sum(found.left_out.values()) == 1000
    want = sk.r2_score(NEW["b"][2000:], told.column("b").to_numpy()[2000:])
    assert {s.name: s.value for s in found.scores}["R2 of b"] == pytest.approx(want)


def test_an_interval_holds_all_of_them(several) -> None:
    told = several.predict(NEW, interval=0.9)
    ends = [[told.column(f"{end} {t}").to_numpy() for end in ("low", "high")] for t in "ab"]
    inside = np.all([(low <= NEW[t]) & (NEW[t] <= high) for t, (low, high) in zip("ab", ends)], 0).mean()
    assert abs(inside - 0.9) < 3 * (0.09 / 60) ** 0.5
    assert {s.name: s.value for s in several.evaluate(NEW, interval=0.9).scores}["coverage"] == pytest.approx(inside)


def test_a_metric_and_weights_of_several(tmp_path) -> None:
    run = fit(
        table(200, 0) | {"w": np.linspace(0, 2, 200)},
        tmp_path / "r",
        target=["a", "b"],
        metric="mae",
        sample_weight="w",
    )
    assert run.evaluate(NEW).scores[0].name == "mean MAE" and run.task.centre.any()
    with pytest.raises(UsageError, match="the targets are numbers"):
        fit(table(200, 0), tmp_path / "s", target=["a", "b"], class_weight="balanced")


def test_quantiles_hold_what_they_say_and_follow_the_spread(tmp_path) -> None:
    run = fit(table(1500, 0), tmp_path / "r", target="c", quantiles=[0.9, 0.1, 0.5], epochs=6)
    told = run.predict(NEW)
    q = {level: told.column(f"q({level})").to_numpy() for level in (0.1, 0.5, 0.9)}
    assert (q[0.1] <= q[0.5]).all() and (q[0.5] <= q[0.9]).all()
    np.testing.assert_array_equal(told.column("c").to_numpy(), q[0.5])
    scores = {s.name: s for s in run.evaluate(NEW).scores}
    for level, cut in q.items():
        below = np.mean(NEW["c"] <= cut)
        assert below == pytest.approx(level, abs=0.06)
        assert scores[f"below q({level})"].value == pytest.approx(below)
    wide = q[0.9] - q[0.1]
    assert wide[NEW["x"] > 1.5].mean() > 1.5 * wide[NEW["x"] < 0.5].mean()
    want = np.mean([sk.mean_pinball_loss(NEW["c"], cut, alpha=level) for level, cut in q.items()])
    assert run.evaluate(NEW).scores[0].name == "pinball loss" and scores["pinball loss"].value == pytest.approx(want)
    assert {s.name: s.value for s in run.evaluate(NEW).baseline}["pinball loss"] > 1.2 * want


def test_the_loss_of_quantiles_is_scikit_learns() -> None:
    g = torch.Generator().manual_seed(0)
    out, y = torch.randn(50, 2, generator=g), torch.randn(50, generator=g)
    want = np.mean([sk.mean_pinball_loss(y.numpy(), out[:, i].numpy(), alpha=a) for i, a in enumerate((0.2, 0.7))])
    assert pinball(out, y, torch.tensor([0.2, 0.7])).mean().item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    "how, words",
    [
        ({"target": "c", "quantiles": [0.5, 1.0]}, "expected different shares between 0 and 1"),
        ({"target": "c", "quantiles": "0.5,0.5"}, "expected different shares"),
        ({"target": "k", "quantiles": "0.5"}, "quantiles are for a target that is a number"),
        ({"target": ["a", "b"], "quantiles": "0.5"}, "quantiles are for a target that is a number"),
    ],
)
def test_what_cannot_be_is_said(how: dict, words: str, tmp_path) -> None:
    source = table(100, 0)
    with pytest.raises(UsageError, match=words):
        fit(source | {"k": np.where(source["z"] > 0, "p", "q")}, tmp_path / "r", **how)


def test_the_command_line_takes_both(tmp_path) -> None:
    import pandas as pd

    pd.DataFrame(table(200, 0)).to_csv(tmp_path / "t.csv", index=False)
    for more in (["--target", "a,b"], ["--target", "c", "--quantiles", "0.1,50%,0.9"]):
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            args = [
                "fit",
                str(tmp_path / "t.csv"),
                *more,
                "--inputs",
                "x,z",
                "--system",
                "auto_toy",
                "--epochs",
                "1",
                "--folds",
                "1",
            ]
            code = main([*args, "-o", str(tmp_path / more[1])])
        assert code == 0, out.getvalue()
    assert plait.load(tmp_path / "c").task.quantiles == (0.1, 0.5, 0.9)
