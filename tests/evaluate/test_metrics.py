"""Every metric against scikit-learn, scipy and torchmetrics, with ties, ignored targets, absent classes and bad
input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.evaluate import metrics as M

sk = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")


def values(scores):
    return {s.name: s.value for s in scores}


def classes(seed, n, K, digits=1):
    """Random targets and probabilities, rounded so that many scores tie."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, K, n)
    logits = rng.normal(size=(n, K))
    logits[np.arange(n), truth] += 1
    probs = np.exp(np.round(logits, digits))
    return truth, probs / probs.sum(1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 120), st.integers(2, 7))
def test_classification_equals_scikit_learn(seed, n, K):
    truth, probs = classes(seed, n, K)
    got, answer = values(M.classification(truth, probs)), probs.argmax(1)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(truth, answer))
    recalls = [np.mean(answer[truth == k] == k) for k in np.unique(truth)]
    assert got["balanced accuracy"] == pytest.approx(np.mean(recalls))
    assert got["macro F1"] == pytest.approx(sk.f1_score(truth, answer, average="macro", zero_division=0))
    assert got["log loss"] == pytest.approx(sk.log_loss(truth, probs, labels=np.arange(K)))
    both = [k for k in range(K) if 0 < np.sum(truth == k) < n]
    if K == 2:
        both = both and [1]
    if both:
        assert got["AUROC"] == pytest.approx(np.mean([sk.roc_auc_score(truth == k, probs[:, k]) for k in both]))
    else:
        assert "AUROC" not in got


def test_classification_equals_scikit_learn_on_many_rows():
    truth, probs = classes(3, 2000, 6, 3)
    got, answer = values(M.classification(truth, probs)), probs.argmax(1)
    assert got["balanced accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, answer))
    assert got["AUROC"] == pytest.approx(sk.roc_auc_score(truth, probs, multi_class="ovr", average="macro"))


@pytest.mark.parametrize("K", [2, 5])
def test_calibration_error_equals_torchmetrics(K):
    torch = pytest.importorskip("torch")
    from tests.peers import declare_torchvision

    declare_torchvision()
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    truth, probs = classes(5, 700, K, 4)
    peer = torchmetrics.multiclass_calibration_error(
        torch.tensor(probs), torch.tensor(truth), num_classes=K, n_bins=15, norm="l1"
    )
    assert values(M.classification(truth, probs))["calibration error"] == pytest.approx(float(peer), rel=1e-5)


def test_ignored_targets_change_nothing():
    truth, probs = classes(0, 50, 3)
    more, wild = np.concatenate([truth, [-100, -100]]), np.concatenate([probs, [[np.nan] * 3, [9.0, 9, 9]]])
    assert M.classification(more, wild) == M.classification(truth, probs)
    pairs, score = np.array([0, 1, 1, 0, -100]), np.array([0.2, 0.7, 0.4, 0.4, np.nan])
    assert M.matching(pairs, score) == M.matching(pairs[:4], score[:4])


def test_one_class_has_no_auroc_and_a_wilson_interval():
    probs = np.tile([0.9, 0.1], (12, 1))
    scores = {s.name: s for s in M.classification(np.zeros(12, int), probs)}
    assert "AUROC" not in scores
    assert scores["balanced accuracy"].high == 1 and scores["balanced accuracy"].low == pytest.approx(
        M.wilson(12, 12)[0]
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 80), st.integers(1, 6))
def test_multilabel_equals_scikit_learn(seed, n, K):
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, K)) < 0.3).astype(int)
    probs = np.round(rng.random((n, K)), 1)
    truth[0, 0] = 1
    got = values(M.multilabel(truth, probs))
    seen = truth.any(0)
    assert got["macro average precision"] == pytest.approx(
        sk.average_precision_score(truth[:, seen], probs[:, seen], average="macro")
    )
    assert got["micro F1"] == pytest.approx(sk.f1_score(truth.ravel(), probs.ravel() >= 0.5, zero_division=0))
    assert got["exact match"] == pytest.approx(np.mean((truth == (probs >= 0.5)).all(1)))


def test_multilabel_skips_unknown_labels_one_by_one():
    rng = np.random.default_rng(2)
    truth, probs = (rng.random((90, 4)) < 0.4).astype(int), rng.random((90, 4))
    hidden = rng.random(truth.shape) < 0.3
    hidden[7] = True
    got = values(M.multilabel(np.where(hidden, -100, truth), probs))
    known = ~hidden
    peer = [sk.average_precision_score(truth[known[:, k], k], probs[known[:, k], k]) for k in range(4)]
    assert got["macro average precision"] == pytest.approx(np.mean(peer))
    assert got["micro F1"] == pytest.approx(sk.f1_score(truth[known], probs[known] >= 0.5))
    rows = known.any(1)
    assert got["exact match"] == pytest.approx(np.mean(((truth == (probs >= 0.5)) | hidden)[rows].all(1)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 90), st.sampled_from([0, 1, 6]))
def test_regression_equals_scikit_learn_and_scipy(seed, n, digits):
    rng = np.random.default_rng(seed)
    truth = np.round(rng.normal(size=n) * 3 + 5, digits)
    truth[0] += 1000  # never all equal
    predicted = np.round(truth + rng.normal(size=n), digits)
    got = values(M.regression(truth, predicted))
    assert got["R2"] == pytest.approx(sk.r2_score(truth, predicted))
    assert got["MAE"] == pytest.approx(sk.mean_absolute_error(truth, predicted))
    assert got["RMSE"] == pytest.approx(sk.root_mean_squared_error(truth, predicted))
    assert got["Spearman"] == pytest.approx(stats.spearmanr(truth, predicted).statistic)


def test_spearman_of_many_rows_is_exact_and_its_interval_shrinks():
    rng = np.random.default_rng(0)
    truth = np.round(rng.normal(size=80_000), 1)
    predicted = truth + rng.normal(size=80_000)
    score = M.regression(truth, predicted)[3]
    assert score.value == pytest.approx(stats.spearmanr(truth, predicted).statistic)
    part = M.regression(truth[:20_000], predicted[:20_000])[3]
    assert score.high - score.low == pytest.approx((part.high - part.low) / 2, rel=0.1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 90))
def test_matching_equals_scikit_learn(seed, n):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    truth[:2] = 0, 1
    score = np.round(np.clip(rng.random(n) * 0.7 + 0.3 * truth, 0, 1), 1)
    got = values(M.matching(truth, score))
    assert got["AUROC"] == pytest.approx(sk.roc_auc_score(truth, score))
    assert got["average precision"] == pytest.approx(sk.average_precision_score(truth, score))
    assert got["accuracy"] == pytest.approx(np.mean((score >= 0.5) == truth))


def test_rows_average_to_the_scores():
    truth, probs = classes(1, 60, 4)
    got = values(M.classification(truth, probs))
    assert M.correct_rows(truth, probs).mean() == pytest.approx(got["accuracy"])
    assert M.log_loss_rows(truth, probs).mean() == pytest.approx(got["log loss"])
    y, p = np.arange(9.0), np.arange(9.0)[::-1]
    assert M.absolute_error_rows(y, p).mean() == pytest.approx(values(M.regression(y, p))["MAE"])
    assert np.sqrt(M.squared_error_rows(y, p).mean()) == pytest.approx(values(M.regression(y, p))["RMSE"])


def test_baselines_know_only_the_frequencies():
    truth = np.array([0] * 52 + [1] * 30 + [2] * 18 + [-100])
    scores = values(M.majority(truth, 3))
    shares = np.array([0.52, 0.30, 0.18])
    assert scores["accuracy"] == pytest.approx(0.52) and scores["AUROC"] == 0.5
    assert scores["log loss"] == pytest.approx(-(shares * np.log(shares)).sum())
    assert values(M.majority(truth[:52], 3, train=np.array([2, 2, 1])))["accuracy"] == 0
    assert values(M.majority(np.array([[1, 0], [0, 0], [1, 1], [0, 0]]), 2))[
        "macro average precision"
    ] == pytest.approx(0.375)
    answers = values(M.mean_answer(np.array([1.0, 2, 6])))
    assert answers["R2"] == pytest.approx(0, abs=1e-12) and "Spearman" not in answers


def test_a_probability_of_zero_costs_a_finite_amount():
    rows = M.log_loss_rows(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert rows[0] == pytest.approx(-np.log(np.finfo(np.float32).eps)) and rows[1] == 0


def test_what_these_rows_cannot_tell_is_left_out():
    assert values(M.regression(np.ones(3), np.zeros(3))) == {"MAE": 1, "RMSE": 1}
    assert values(M.regression(np.ones(1), np.zeros(1))) == {"MAE": 1, "RMSE": 1}
    assert values(M.matching(np.array([1, 1]), np.array([0.1, 0.6]))) == {"accuracy": 0.5}
    assert values(M.multilabel(np.array([[0, 0]]), np.array([[0.1, 0.2]]))) == {"exact match": 1}
    assert values(M.multilabel(np.array([[0, 0]]), np.array([[0.1, 0.7]]))) == {"micro F1": 0, "exact match": 0}


NAN = np.array([[0.5, 0.5], [np.nan, 0.5], [np.nan, np.inf]])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: M.classification(np.zeros(3, int), NAN), "got 3 NaN or infinite"),
        (lambda: M.classification(np.array([0, 2]), np.full((2, 2), 0.5)), "expected 0 to 1"),
        (lambda: M.classification(np.array([0, 1]), np.array([[3.0, -1.0], [0.5, 0.5]])), "got 1 of 2 rows.*softmax"),
        (lambda: M.classification(np.array([-100]), np.full((1, 2), 0.5)), "at least one row"),
        (lambda: M.classification(np.array([0]), np.full((2, 2), 0.5)), "expected \\(n,\\) and \\(n, K\\)"),
        (lambda: M.regression(np.array([1.0, np.nan]), np.zeros(2)), "got 1 NaN"),
        (lambda: M.matching(np.array([0, 1]), np.array([-3.0, 0.2])), "sigmoid"),
        (lambda: M.multilabel(np.array([[0, 3]]), np.array([[0.1, 0.2]])), "expected 0, 1 or -100"),
        (lambda: M.majority(np.array([-100]), 2), "other than -100"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
