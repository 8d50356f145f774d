"""Metrics of ordered levels, told by their ranks from 0; plain functions of truth, answers and weights, as in
`plait.evaluate.chosen`."""

from __future__ import annotations

import numpy as np

from plait.errors import PlaitError
from plait.evaluate.chosen import Metric, score
from plait.evaluate.inputs import IGNORED
from plait.evaluate.intervals import Score


def rank_errors(truth: np.ndarray, answer: np.ndarray, levels: int) -> np.ndarray:
    """(n,) by how many ranks answers (n,) miss truth (n,); a truth that is none of the levels is missed by the way from
    the answer to the far end."""
    far = np.maximum(answer, levels - 1 - answer)
    return np.where((truth >= 0) & (truth < levels), np.abs(truth - answer), far).astype(np.float64)


def _mae(truth: np.ndarray, answer: np.ndarray, w: np.ndarray, levels: int) -> float:
    return float(w @ rank_errors(truth, answer, levels) / w.sum())


def _kappa(truth: np.ndarray, answer: np.ndarray, w: np.ndarray, levels: int) -> float:
    """1 - the mean squared error in ranks over that of the same answers dealt out at random (Cohen 1968). NaN where
    truth and answers are all one level."""
    off = rank_errors(truth, answer, levels)
    known = np.where(truth < levels, truth, np.where(answer * 2 < levels, levels - 1, 0))
    mean = [w @ x / w.sum() for x in (known, answer)]
    spread = [w @ np.square(x - m) / w.sum() for x, m in zip((known, answer), mean)]
    chance = spread[0] + spread[1] + (mean[0] - mean[1]) ** 2
    return round(float(1 - (w @ np.square(off) / w.sum()) / chance), 12) if chance > 0 else np.nan


def _accuracy(truth: np.ndarray, answer: np.ndarray, w: np.ndarray, levels: int) -> float:
    return float(w @ (truth == answer) / w.sum())


LEVELS: dict[str, Metric] = {
    "mae": Metric("MAE in ranks", _mae, "lower", share=False),
    "quadratic_kappa": Metric("quadratic weighted kappa", _kappa, share=False),
    "accuracy": Metric("accuracy", _accuracy),
}


def ordinal(truth: np.ndarray, answer: np.ndarray, levels: int, w: np.ndarray | None = None) -> list[Score]:
    """Mean absolute error in ranks, quadratic weighted kappa (left out where all is one level) and accuracy.

    truth (n,) ranks from 0, -100 = ignored, `levels` or more = a level nobody knew; answer (n,) ranks below `levels`;
    w (n,): how much each row counts. Raises PlaitError for other shapes, answers that are no level, or no row left."""
    truth, answer = np.asarray(truth), np.asarray(answer)
    if truth.ndim != 1 or truth.shape != answer.shape:
        raise PlaitError(f"got truth {truth.shape} and answers {answer.shape}, expected (n,) twice")
    kept = truth != IGNORED
    if not kept.any():
        raise PlaitError("got no row with a known level: there is nothing to compare with")
    truth, answer = truth[kept], answer[kept]
    if truth.min() < 0 or answer.min() < 0 or answer.max() >= levels:
        raise PlaitError(f"got answers {answer.min()} to {answer.max()}, expected ranks from 0 to {levels - 1}")
    w = None if w is None else np.asarray(w, np.float64)[kept]
    found = (score(metric, (truth, answer), w, levels=levels) for metric in LEVELS.values())
    return [one for one in found if one is not None]
