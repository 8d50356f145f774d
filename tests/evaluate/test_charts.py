"""Curves of probabilities, held to scikit-learn's and to counting."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve, roc_curve

from plait.evaluate import charts
from plait.evaluate.intervals import wilson
from plait.evaluate.slices import by_class, by_names, by_numbers, worst

EVIL = '<script>alert("x")</script> & $x$ 数'


def drawn(seed: int, n: int = 80):
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.4
    return truth, np.round(np.clip(0.4 * truth + rng.random(n) * 0.6, 0, 1), 1)  # with many ties


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_are_those_of_scikit_learn(seed):
    truth, score = drawn(seed)
    (line,) = charts.roc([("a", truth, score)]).lines
    false, true, _ = roc_curve(truth, score, drop_intermediate=False)
    assert np.allclose(line.points, list(zip(false, true)))
    chart = charts.precision_recall([("a", truth, score)])
    precision, recall, _ = precision_recall_curve(truth, score, drop_intermediate=False)
    assert np.allclose(chart.lines[0].points[1:], list(zip(recall[:-1], precision[:-1]))[::-1])
    assert chart.guess == ((0.0, truth.mean()), (1.0, truth.mean()))


def test_what_has_only_one_side_is_no_curve():
    truth, score = drawn(0)
    assert charts.roc([("a", truth | True, score)]) is None is charts.precision_recall([("a", truth & False, score)])
    many = [(f"c{i}", np.arange(80) < i, score) for i in range(12)]
    assert [line.name.split()[0] for line in charts.roc(many).lines] == [f"c{i}" for i in range(11, 4, -1)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 30), st.integers(0, 99))
def test_groups_of_like_probabilities_are_a_partition(n, different, seed):
    rng = np.random.default_rng(seed)
    p = rng.integers(0, different, n) / different
    right = rng.random(n) < p
    groups = charts.reliable(p, right)
    assert sum(size for *_, size in groups) == n and 1 <= len(groups) <= 10
    assert sum(share * size for _, share, _, _, size in groups) == pytest.approx(right.sum())
    assert sum(mean * size for mean, *_, size in groups) == pytest.approx(p.sum())
    assert [mean for mean, *_ in groups] == sorted(mean for mean, *_ in groups)
    for _, share, low, high, size in groups:
        assert (low, high) == pytest.approx(wilson(round(share * size), size))
    assert n < 60 or different < 20 or len(groups) > 1


def test_a_chart_is_drawn_where_its_points_are_and_escapes_names():
    chart = charts.Chart(EVIL, "y", [charts.Line(EVIL, [(0.0, 0.0), (0.5, 1.0)])], ranges=((0.5, 0.25, 1.0),))
    drawn = charts.svg(chart)
    assert "<script" not in drawn and "&lt;script&gt;" in drawn and "数" in drawn
    assert 'd="M48.0 236.0L198.0 8.0"' in drawn and '<circle cx="198.0" cy="8.0"' in drawn
    assert 'd="M198.0 179.0V8.0"' in drawn and 'role="img"' in drawn
    long = charts.Chart("x", "y", [charts.Line("", [(i / 5000, i / 5000) for i in range(5001)])])
    assert len(charts.svg(long)) < 6000 and re.search(r"L348\.0 8\.0\"", charts.svg(long))


def test_classes_one_by_one():
    truth, answer = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 0, 0])
    (a, b, c) = by_class(truth, answer, 3)
    assert (a[0].value, a[1].value, a[2], a[3]) == (0.5, pytest.approx(2 / 3), pytest.approx(4 / 7), 3)
    assert (b[0].value, b[1].value, b[2], b[3]) == (0.5, 0.5, 0.5, 2)
    assert c == (None, None, 0.0, 0)
    assert (a[1].low, a[1].high) == wilson(2, 3)


def test_slices_and_the_worst_of_them():
    rng = np.random.default_rng(0)
    values = np.where(np.arange(200) < 30, np.nan, rng.normal(size=200))
    parts = by_numbers("x", values)
    assert [p.what for p in parts][-1] == "missing" and len(parts) == 5
    assert sorted(np.concatenate([p.rows for p in parts])) == list(range(200))
    assert all(len(p.rows) >= 20 for p in parts) and by_numbers("x", np.ones(200)) == []
    names = ["a"] * 150 + ["b"] * 30 + ["c"] * 19 + [None]
    found = by_names("n", names)
    assert [(s.what, len(s.rows)) for s in found] == [("a", 150), ("b", 30)]
    right = np.ones(200)
    right[150:175] = 0  # of b nearly all are wrong
    (told,) = worst([*found, *parts[:0]], right, "accuracy", "higher", 8)
    assert told[0].what == "b" and told[1].value == pytest.approx(5 / 30) and told[1].n == 30
    error = np.where(np.isnan(values), 5.0, 1.0) + rng.random(200)
    first = worst(parts, error, "MAE", "lower", 8)[0]
    assert first[0].what == "missing" and first[1].value > 5 and first[1].better == "lower"
