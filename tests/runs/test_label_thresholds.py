"""Several labels, each answered from the probability on that is best for the F1 of all."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

import plait
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.evaluate import chosen, metrics
from plait.runs.console import Console
from plait.tasks.classify import ClassifyMany
from plait.tasks.deciding import label_thresholds

QUIET = Console(quiet=True)


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds and what came of them, of a label that is common and three that are seldom likelier than not."""
    rng = np.random.default_rng(seed)
    odds = 1.5 * rng.normal(size=(n, 4)) + [0.0, -2.5, -3.0, -3.5]
    return odds, (rng.random((n, 4)) < 1 / (1 + np.exp(-odds))).astype(int)


def f1(truth: np.ndarray, said: np.ndarray) -> float:
    return sk.f1_score(truth.ravel(), said.ravel())


def table(n: int, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    odds = 1.5 * x + [0.0, -3.0, -3.5]
    found = rng.random((n, 3)) < 1 / (1 + np.exp(-odds))
    return {f"x{i}": x[:, i] for i in range(3)} | {name: found[:, i] for i, name in enumerate("pqr")}


def fit(source: dict, out, **how) -> plait.Run:
    usual = dict(target=["p", "q", "r"], system="auto", epochs=1, precision="fp32", folds=1, out=out, console=QUIET)
    return plait.fit(source, **usual | how)


def test_thresholds_are_as_good_as_those_of_hindsight() -> None:
    """Even where probabilities of some labels are off, as each label has a threshold of its own."""
    odds, truth = drawn(43_000, 0)
    off = odds * [1.0, 2.0, 0.5, 1.0] + [0.0, 3.0, -1.0, 1.0]
    p = 1 / (1 + np.exp(-off))
    at = label_thresholds(p[:3000], truth[:3000])
    best = max(f1(truth[3000:], odds[3000:] >= cut) for cut in np.linspace(-2, 1, 31))
    assert f1(truth[3000:], p[3000:] >= at) > best - 0.005
    assert f1(truth[3000:], p[3000:] >= 0.5) < best - 0.03
    hidden = np.where(np.random.default_rng(0).random(truth.shape) < 0.3, -100, truth)
    assert f1(truth[3000:], p[3000:] >= label_thresholds(p[:3000], hidden[:3000])) > best - 0.01
    w = 1.0 + np.arange(3000) % 2
    twice = np.repeat(np.arange(3000), w.astype(int))
    one, other = label_thresholds(p[:3000], truth[:3000], w), label_thresholds(p[twice], truth[twice])
    assert f1(truth[3000:], p[3000:] >= one) == pytest.approx(f1(truth[3000:], p[3000:] >= other), abs=0.003)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_whatever_the_probabilities_there_is_a_threshold_for_each(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, K = int(rng.integers(1, 30)), int(rng.integers(1, 5))
    p, truth = rng.choice([0.0, 1e-9, 0.1, 0.5, 0.97, 1.0], (n, K)), rng.choice([-100, 0, 1], (n, K))
    at = label_thresholds(p, truth)
    assert at.shape == (K,) and ((at >= 0) & (at <= 2)).all()
    if not (truth == 1).any():
        assert (at == 0.5).all()
    else:
        assert (p >= at).any()  # F1 asks for some


def test_scores_are_of_what_is_said() -> None:
    odds, truth = drawn(300, 1)
    p, said = 1 / (1 + np.exp(-odds)), odds > -1
    truth[::5, 1], truth[7] = -100, -100
    known, rows = truth != -100, np.arange(300) != 7
    match = ((said == (truth == 1)) | ~known)[rows].all(1).mean()
    for found in (metrics.multilabel(truth, p, said), chosen.multilabel(truth, p, np.ones(300), said)):
        got = {s.name: s.value for s in found}
        assert got["micro F1"] == pytest.approx(sk.f1_score(truth[known], said[known]))
        assert got["exact match"] == pytest.approx(match)
    assert metrics.exact_match_rows(truth, p, said).mean() == pytest.approx(match)


def test_a_run_by_f1_is_within_0_02_of_hindsight_and_keeps_its_thresholds(tmp_path) -> None:
    out = io.StringIO()
    made = fit(table(1500, 0), tmp_path / "r", metric="f1", console=Console(out))
    assert "answered from a probability on, by micro F1 on rows held out: p 0." in out.getvalue()
    run, new = plait.load(made.folder), table(5000, 1)
    told = run.predict(new)
    assert told.equals(made.predict(new))
    truth = np.stack([new[name] for name in "pqr"], 1)
    p = np.stack([told.column(f"p({name})").to_numpy() for name in "pqr"], 1)
    said = np.array([[name in row for name in "pqr"] for row in told.column("labels").to_pylist()])
    np.testing.assert_array_equal(said, p >= run.task.thresholds)
    odds = 1.5 * np.stack([new[f"x{i}"] for i in range(3)], 1) + [0.0, -3.0, -3.5]
    best = max(f1(truth, odds >= cut) for cut in np.linspace(-2, 1, 31))
    assert f1(truth, said) > best - 0.02 and f1(truth, p >= 0.5) < f1(truth, said) - 0.01
    found = run.evaluate(new)
    assert found.scores[0].name == "micro F1" and found.scores[0].value == pytest.approx(f1(truth, said))
    assert {s.name: s.value for s in found.scores}["exact match"] == pytest.approx((said == truth).all(1).mean())
    assert {s.name: s.value for s in found.baseline}["micro F1"] < 0.1 or truth[:, 0].mean() > 0.5
    assert len(json.loads((tmp_path / "r" / "config.json").read_text())["task"]["thresholds"]) == 3


def test_what_a_fold_answered_by_its_own_thresholds_stays_answered() -> None:
    source = read_table({"x": [1.0, 2.0] * 5, "p": [True, False] * 5, "q": [False, True] * 5})
    schema = Schema.guess(source, target=["p", "q"], inputs=["x"])
    schema.ask("boolean")
    schema.fit(source, np.arange(10))
    mine, other = (ClassifyMany(["p", "q"], labels, [0.5, 0.5]) for labels in (["p", "q"], ["q", "p"]))
    other.thresholds, answers = np.array([0.2, 0.9]), {"probabilities": np.array([[0.3, 0.8]])}

    class Rows:
        def batch(self, index):
            return None

    mine.record = lambda batch, answers: ({}, {})  # type: ignore[method-assign]
    _, found = mine.recast(other, {}, answers, Rows(), np.arange(1))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found["probabilities"], [[0.8, 0.3]])
    np.testing.assert_array_equal(found["said"], [[False, True]])
    assert mine.columns(found)["labels"] == [["q"]]
    other.thresholds = None
    assert "said" not in mine.recast(other, {}, answers, Rows(), np.arange(1))[1]  # type: ignore[arg-type]
