"""Metrics of rows that count differently: scikit-learn's with sample_weight, and those of so many copies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn import metrics as sk

from plait.errors import PlaitError
from plait.evaluate import chosen, metrics
from plait.evaluate.chosen import CLASSES, LABELS, NUMBERS, score


def drawn(seed: int, n: int = 60, K: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(K), n).round(1) + 1e-3  # with ties
    return rng.integers(0, K, n), p / p.sum(1, keepdims=True), rng.integers(0, 4, n).astype(float)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 5]))
def test_a_row_that_counts_k_times_is_k_rows(seed: int, K: int) -> None:
    truth, p, w = drawn(seed, K=K)
    copies = np.repeat(np.arange(len(w)), w.astype(int))
    for metric in CLASSES.values():
        one = metric.value(truth, p, p.argmax(1), w=w, positive=1)
        all_ = metric.value(*(x[copies] for x in (truth, p, p.argmax(1))), w=np.ones(len(copies)), positive=1)
        assert one == pytest.approx(all_, nan_ok=True), metric.title
    x, y = p[:, 0] * 10 + truth, truth + 1.0
    for metric in NUMBERS.values():
        all_ = metric.value(y[copies], x[copies], w=np.ones(len(copies)))
        assert metric.value(y, x, w=w) == pytest.approx(all_, nan_ok=True), metric.title
    real = (p > 0.3).astype(int)
    real[::7, 0] = -100
    for metric in LABELS.values():
        all_ = metric.value(real[copies], p[copies], w=np.ones(len(copies)))
        assert metric.value(real, p, w=w) == pytest.approx(all_, nan_ok=True), metric.title


def test_values_are_scikit_learns() -> None:
    truth, p, w = drawn(3, 200, 2)
    said, how = p.argmax(1), {"sample_weight": w}
    theirs = {
        "accuracy": sk.accuracy_score(truth, said, **how),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, said, **how),
        "f1": sk.f1_score(truth, said, **how),
        "f1_macro": sk.f1_score(truth, said, average="macro", **how),
        "auroc": sk.roc_auc_score(truth, p[:, 1], **how),
        "average_precision": sk.average_precision_score(truth, p[:, 1], **how),
        "log_loss": sk.log_loss(truth, p, **how),
    }
    assert theirs.keys() == CLASSES.keys()
    for name, value in theirs.items():
        assert CLASSES[name].value(truth, p, said, w=w, positive=1) == pytest.approx(value), name
    zero = CLASSES["f1"].value(truth, p, said, w=w, positive=0)
    assert zero == pytest.approx(sk.f1_score(truth, said, pos_label=0, **how)) and zero != pytest.approx(theirs["f1"])
    x, y = 3 * p[:, 0] + truth, truth + 2 * p[:, 1]
    theirs = {
        "r2": sk.r2_score(y, x, **how),
        "mae": sk.mean_absolute_error(y, x, **how),
        "mse": sk.mean_squared_error(y, x, **how),
        "rmse": sk.root_mean_squared_error(y, x, **how),
        "mape": sk.mean_absolute_percentage_error(y, x, **how),
        "spearman": spearmanr(*(np.repeat(v, w.astype(int)) for v in (y, x))).statistic,
    }
    assert theirs.keys() == NUMBERS.keys()
    for name, value in theirs.items():
        assert NUMBERS[name].value(y, x, w=w) == pytest.approx(value), name


def test_rows_that_count_alike_score_as_they_do_without_weights() -> None:
    truth, p, _ = drawn(5, 300)
    pairs = [
        (metrics.classification(truth, p), chosen.classification(truth, p, np.full(300, 2.5))),
        (metrics.regression(truth * 1.0, p[:, 0]), chosen.regression(truth * 1.0, p[:, 0], np.ones(300))),
        (metrics.multilabel((p > 0.4) * 1, p[:, ::-1]), chosen.multilabel((p > 0.4) * 1, p[:, ::-1], np.ones(300))),
    ]
    for plain, weighed in pairs:
        assert [s.name for s in plain] == [s.name for s in weighed]
        for a, b in zip(plain, weighed):
            assert (a.n, a.better) == (b.n, b.better) and a.value == pytest.approx(b.value)
            if a.name not in ("calibration error", "macro F1"):  # whose draws are mirrored there
                assert (b.low, b.high) == pytest.approx((a.low, a.high), abs=0.3 * (a.high - a.low)), a.name


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Rows of two sorts, of which one counts five times: the weighted accuracy of the population is known."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(100):
        rare = rng.random(150) < 0.3
        w = np.where(rare, 5.0, 1.0)
        right = rng.random(150) < np.where(rare, 0.6, 0.9)
        p = np.where(right, 0.8, 0.2)
        found = chosen.classification(np.ones(150, int), np.stack([1 - p, p], 1), w)[0]
        inside += found.low <= (0.7 * 0.9 + 1.5 * 0.6) / 2.2 <= found.high
    assert 88 <= inside <= 100


def test_of_many_rows_a_part_is_drawn_and_the_interval_shrinks() -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=20_000)
    x = y + rng.normal(size=20_000)
    few, many = (score(NUMBERS["mae"], (y[:n], x[:n])) for n in (5000, 20_000))
    assert (many.high - many.low) / (few.high - few.low) == pytest.approx(0.5, abs=0.1)
    assert many.low < many.value < many.high and many.n == 20_000


def test_what_cannot_be_scored_is_left_out_or_refused() -> None:
    truth, p = np.zeros(20, int), np.tile([0.9, 0.1], (20, 1))
    found = {s.name: s for s in chosen.classification(truth, p, np.ones(20))}
    assert "AUROC" not in found and found["accuracy"].value == 1 and found["accuracy"].low < 0.9
    heavy = chosen.classification(truth, p, np.array([100.0] + [1e-3] * 19))[0]
    assert heavy.low < found["accuracy"].low  # worth hardly more than one row
    for w in (np.zeros(20), np.r_[-1.0, np.ones(19)], np.r_[np.nan, np.ones(19)]):
        with pytest.raises(PlaitError, match="weights that are negative"):
            chosen.classification(truth, p, w)
