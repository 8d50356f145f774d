"""What metrics are given, checked: truth and predictions of the shapes and values that they ask for."""

from __future__ import annotations

import numpy as np

from plait.errors import PlaitError
from plait.evaluate.intervals import finite

IGNORED = -100


def checked_classes(truth: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, probs = np.asarray(truth), np.asarray(probs)
    if truth.ndim != 1 or probs.ndim != 2 or len(truth) != len(probs) or probs.shape[1] < 2:
        raise PlaitError(f"got truth {truth.shape} and probs {probs.shape}, expected (n,) and (n, K) with K >= 2")
    kept = truth != IGNORED
    truth, probs = finite(truth[kept], "the truth").astype(np.int64), finite(probs[kept], "the probabilities")
    K = probs.shape[1]
    if truth.min() < 0 or truth.max() >= K:
        raise PlaitError(f"got classes {truth.min()} to {truth.max()}, expected 0 to {K - 1} (or -100 for ignored)")
    wrong = int(np.count_nonzero((np.abs(probs.sum(1) - 1) > 0.02) | (probs.min(1) < -1e-6)))
    if wrong:
        raise PlaitError(
            f"got {wrong} of {len(probs)} rows that are no probabilities, expected values >= 0 that sum to 1; "
            "apply a softmax first"
        )
    return truth, probs


def checked_answers(
    truth: np.ndarray, probs: np.ndarray, answer: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `checked_classes`, and the answer (n,) to each row that is left: else the likeliest class."""
    kept, probs = np.asarray(truth) != IGNORED, np.asarray(probs)
    known, left = checked_classes(truth, probs)
    return known, left, left.argmax(1) if answer is None else np.asarray(answer)[kept]


def checked_labels(truth: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    truth, probs = np.asarray(truth), np.asarray(probs)
    if truth.ndim != 2 or truth.shape != probs.shape:
        raise PlaitError(f"got truth {truth.shape} and probs {probs.shape}, expected (n, K) twice")
    kept = (truth != IGNORED).any(1)
    truth, probs = finite(truth[kept], "the truth"), finite(probs[kept], "the probabilities")
    check_zero_one(truth, probs)
    return truth, probs, truth != IGNORED


def checked_pairs(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, score = np.asarray(truth), np.asarray(score)
    if truth.ndim != 1 or truth.shape != score.shape:
        raise PlaitError(f"got truth {truth.shape} and score {score.shape}, expected (n,) twice")
    kept = truth != IGNORED
    truth, score = finite(truth[kept], "the truth"), finite(score[kept], "the scores")
    check_zero_one(truth, score)
    return truth, score


def check_zero_one(truth: np.ndarray, probs: np.ndarray) -> None:
    strange = np.setdiff1d(truth, [0, 1, IGNORED])
    if len(strange):
        raise PlaitError(f"got truth {strange[:5]}, expected 0, 1 or -100")
    if probs.min() < 0 or probs.max() > 1:
        raise PlaitError(
            f"got probabilities from {probs.min():g} to {probs.max():g}, expected 0 to 1; apply a sigmoid first"
        )


def checked_numbers(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != 1 or truth.shape != predicted.shape:
        raise PlaitError(f"got truth {truth.shape} and predicted {predicted.shape}, expected (n,) twice")
    return finite(truth, "the truth"), finite(predicted, "the predictions")
