"""The metric that is chosen stops training, is told first, and parts two classes."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

import plait
from plait.cli import main
from plait.errors import UsageError
from plait.runs.console import Console
from plait.tasks.deciding import at_cuts, likely, threshold

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rare(n: int, seed: int = 0) -> dict:
    """Three in a hundred are frauds, and the likeliest answer is nearly always that it is none."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=n), rng.normal(size=n)
    odds = 0.8 * (a + b) - 4.1
    return {"a": a, "b": b, "y": np.where(rng.random(n) < 1 / (1 + np.exp(-odds)), "fraud", "ok")}


def fit(source: dict, out, **how) -> plait.Run:
    usual = dict(target="y", system="auto_toy", folds=1, epochs=2, precision="fp32", lr=1e-4, out=out, console=QUIET)
    return plait.fit(source, **usual | how)


def test_f1_is_within_0_02_of_the_best_threshold_in_hindsight(tmp_path) -> None:
    source = rare(6000)
    assert 0.025 < np.mean(source["y"] == "fraud") < 0.04
    run = plait.load(fit(source, tmp_path / "r", metric="F1", positive="fraud").folder)
    plain = fit(source, tmp_path / "p")
    new = rare(20_000, 1)
    told, truth = run.predict(new), new["y"] == "fraud"
    p = told.column("p(fraud)").to_numpy()
    precision, recall, _ = sk.precision_recall_curve(truth, p)
    best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-9))
    f1 = sk.f1_score(new["y"], told.column("y").to_pylist(), pos_label="fraud")
    assert f1 > best - 0.02
    assert sk.f1_score(new["y"], plain.predict(new).column("y").to_pylist(), pos_label="fraud") < 0.1
    said, sure = np.array(told.column("y").to_pylist()), told.column("probability").to_numpy()
    assert ((said == "fraud") == (p >= run.task.threshold)).all()
    np.testing.assert_allclose(sure, np.where(said == "fraud", p, 1 - p), atol=1e-6)
    found = run.evaluate(new)
    scores = {s.name: s.value for s in found.scores}
    assert found.scores[0].name == "F1" and scores["F1"] == pytest.approx(f1)
    assert scores["accuracy"] == pytest.approx(np.mean(said == new["y"]))
    assert scores["balanced accuracy"] == pytest.approx(sk.balanced_accuracy_score(new["y"], said))
    assert found.baseline[0].name == "F1" and found.baseline[0].value == 0


def test_what_is_chosen_stops_training_and_is_told_first(tmp_path) -> None:
    out = io.StringIO()
    run = fit(rare(900), tmp_path / "r", metric="average precision", epochs=3, positive="fraud", console=Console(out))
    (line,) = [line for line in out.getvalue().splitlines() if line.startswith("test")]
    assert line.split()[1:3] == ["average", "precision"]
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["guide"] < 1 for row in rows) and run.task.threshold is None
    report = json.loads((tmp_path / "r" / "report.json").read_text())["splits"]["test"]
    assert report["scores"][0]["name"] == "average precision"
    assert "average precision" in (tmp_path / "r" / "report.html").read_text().split("<section>")[0]


@pytest.mark.parametrize(
    "name, first, better", [("mae", "MAE", "lower"), ("r2", "R2", "higher"), ("MAPE", "MAPE", "lower")]
)
def test_of_numbers(name: str, first: str, better: str, tmp_path) -> None:
    source = rare(300)
    run = fit(source | {"y": source["a"] * 2 + 9}, tmp_path / "r", metric=name)
    assert run.assessments["test"].scores[0].name == first and run.assessments["test"].scores[0].better == better
    guides = [row["score"] for row in run.history.rows]
    assert all(g < 0 for g in guides) if better == "lower" else all(g > 0 for g in guides)


def test_of_labels(tmp_path) -> None:
    source = rare(200)
    source = {"a": source["a"], "b": source["b"], "p": source["a"] > 0, "q": source["b"] > 0.5}
    run = plait.load(fit(source, tmp_path / "r", target=["p", "q"], metric="f1").folder)
    assert run.evaluate(source).scores[0].name == "micro F1" and run.task.metric == "f1"


@pytest.mark.parametrize(
    "how, words",
    [
        ({"metric": "f2"}, "no metric .f2. of classification.*There are accuracy, balanced_accuracy, f1, f1_macro"),
        ({"metric": "rmse"}, "no metric 'rmse'"),
        ({"metric": "accuracy", "target": "a"}, "no metric 'accuracy' of regression.*r2, mae"),
        ({"metric": "f1", "positive": "maybe"}, "expected one of two classes: fraud, ok"),
        ({"positive": "x", "target": "a"}, "positive is for a target of two classes"),
        ({"task": "retrieve", "target": None, "metric": "f1"}, "can be chosen for classification and regression"),
        ({"metric": "auroc", "split": "s"}, "AUROC is not defined on the 20 rows that watch"),
    ],
)
def test_what_cannot_be_is_said(how: dict, words: str, tmp_path) -> None:
    source = rare(400) | {"t": [f"some words {i} {i % 7}" for i in range(400)], "u": [f"words {i}" for i in range(400)]}
    source["s"] = np.where((source["y"] == "ok") & (np.cumsum(source["y"] == "ok") <= 20), "val", "train")
    inputs = ["t", "u"] if "task" in how else ["b"]
    with pytest.raises(UsageError, match=words):
        fit(source, tmp_path / "r", dry_run=True, **{"inputs": inputs} | how)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["f1", "f1_macro", "balanced_accuracy"]))
def test_cuts_are_what_scikit_learn_says(seed: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 40))
    truth, w = rng.random(n) < 0.4, rng.random(n) + 0.1
    truth[:2] = True, False
    of = {
        "f1": sk.f1_score,
        "f1_macro": lambda *a, **k: sk.f1_score(*a, average="macro", **k),
        "balanced_accuracy": sk.balanced_accuracy_score,
    }[name]
    found = at_cuts(name, w * truth, w * ~truth)
    for k in range(1, n + 1):
        said = np.arange(n) < k
        assert found[k - 1] == pytest.approx(of(truth, said, sample_weight=w)), k


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_a_threshold_parts_the_rows_whatever_the_probabilities(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 30))
    p = rng.choice([0.0, 1e-9, 0.1, 0.5, 0.5 + 1e-7, 0.97, 1.0], n)
    truth = rng.random(n) < 0.5
    cut = threshold("f1", p, truth)
    assert 0 <= cut <= 1
    if truth.all() or not truth.any():
        assert cut == 0.5
    else:
        assert (p >= cut).any()  # F1 asks for some


def test_a_threshold_is_right_where_probabilities_are_off() -> None:
    """Twice as sure as it may be, and shifted: the order is right, and the cut is found all the same."""
    rng = np.random.default_rng(0)
    odds = 2.2 * rng.normal(size=40_000) - 5.6
    truth = rng.random(40_000) < 1 / (1 + np.exp(-odds))
    p = 1 / (1 + np.exp(-(2 * odds + 6)))
    np.testing.assert_allclose(likely(2 * odds + 6, truth, np.ones(40_000)).mean(), truth.mean(), rtol=0.02)
    cut = threshold("f1", p[:2000], truth[:2000])
    f1 = sk.f1_score(truth[2000:], p[2000:] >= cut)
    precision, recall, _ = sk.precision_recall_curve(truth[2000:], p[2000:])
    assert f1 > np.max(2 * precision * recall / np.maximum(precision + recall, 1e-9)) - 0.02
    assert sk.f1_score(truth[2000:], p[2000:] >= 0.5) < f1 - 0.02


def test_the_command_line_takes_it(tmp_path) -> None:
    import pandas as pd

    pd.DataFrame(rare(600)).to_csv(tmp_path / "t.csv", index=False)
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = main(
            ["fit", str(tmp_path / "t.csv"), "--target", "y", "--metric", "f1", "--positive", "fraud",
             "--system", "auto_toy", "--folds", "1", "--epochs", "1", "-o", str(tmp_path / "r")]
        )  # fmt: skip
    assert code == 0, out.getvalue()
    assert "fraud is answered from a probability of" in out.getvalue()
    assert json.loads((tmp_path / "r" / "config.json").read_text())["task"]["threshold"] > 0
