"""Metrics of the tasks, each with a 95% interval. The first score in each list is the main one. numpy only.

Per-row functions return one number per row (n,), so that two models can be compared row by row with `paired_gain`."""

from __future__ import annotations

import numpy as np

from plait.errors import PlaitError
from plait.evaluate.inputs import (
    IGNORED,
    checked_answers,
    checked_classes,
    checked_labels,
    checked_numbers,
    checked_pairs,
)
from plait.evaluate.intervals import (
    MOST_UNITS,
    Score,
    bounded,
    draw_sums,
    draw_weights,
    finite,
    from_draws,
    from_influence,
    mean_score,
    paired_gain,
    paired_permutation_p,
    percentiles,
    proportion,
    wilson,
)
from plait.evaluate.ranking import retrieval, retrieval_chance, retrieval_rows

__all__ = [
    "Score",
    "classification",
    "multilabel",
    "regression",
    "retrieval",
    "retrieval_chance",
    "matching",
    "majority",
    "mean_answer",
    "correct_rows",
    "log_loss_rows",
    "exact_match_rows",
    "absolute_error_rows",
    "squared_error_rows",
    "matched_rows",
    "retrieval_rows",
    "paired_gain",
    "paired_permutation_p",
    "wilson",
    "mean_score",
]

SMALLEST = float(np.finfo(np.float32).eps)  # a probability of 0 counts as this much in the log loss
BINS = 15


# ---- per row ----


def correct_rows(truth: np.ndarray, probs: np.ndarray, answer: np.ndarray | None = None) -> np.ndarray:
    """1.0 where the likeliest class, or `answer` (n,), is the true one, for the rows whose truth (n,) is not -100;
    probs (n, K)."""
    truth, probs, answer = checked_answers(truth, probs, answer)
    return (answer == truth).astype(np.float64)


def log_loss_rows(truth: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """-log of the true class's probability, in nats, for the rows whose truth is not -100."""
    truth, probs = checked_classes(truth, probs)
    return -np.log(np.clip(probs[np.arange(len(truth)), truth], SMALLEST, 1.0))


def exact_match_rows(truth: np.ndarray, probs: np.ndarray, said: np.ndarray | None = None) -> np.ndarray:
    """1.0 where every known label of the row is answered right, by said (n, K) bool, or else from 0.5 on; rows without
    a known label are left out."""
    kept = (np.asarray(truth) != IGNORED).any(1)
    truth, probs, known = checked_labels(truth, probs)
    said = probs >= 0.5 if said is None else said[kept]
    return ((said == (truth == 1)) | ~known).all(1).astype(np.float64)


def absolute_error_rows(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """|truth - predicted| (n,), in the target's unit."""
    truth, predicted = checked_numbers(truth, predicted)
    return np.abs(truth - predicted)


def squared_error_rows(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(truth - predicted)^2 (n,), in the target's unit squared."""
    truth, predicted = checked_numbers(truth, predicted)
    return np.square(truth - predicted)


def matched_rows(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    """1.0 where the pair's probability (n,) is on the right side of 0.5, for the rows whose truth is not -100."""
    truth, score = checked_pairs(truth, score)
    return ((score >= 0.5) == (truth == 1)).astype(np.float64)


# ---- per task ----


def classification(truth: np.ndarray, probs: np.ndarray, answer: np.ndarray | None = None) -> list[Score]:
    """Accuracy, balanced accuracy, macro F1, log loss, AUROC, calibration error of class probabilities.

    truth (n,) int classes, -100 = ignored; probs (n, K), each row sums to 1. answer (n,): else the likeliest.
    Balanced accuracy averages over the true classes, macro F1 over the classes that are true or answered.
    AUROC is that of class 1 where K = 2, else the mean of
    one class against the rest over the classes that have both; it is left out where no class has. Calibration error is
    that of the likeliest class in 15 bins of equal width (Guo et al. 2017); it is biased upwards in small samples, and
    its interval (percentile and basic bootstrap together) misses a small true error more often than 5% of the time for
    that reason.
    Raises ValueError for wrong shapes, NaN (with their count), classes outside 0..K-1, rows that are no probabilities,
    or no row left."""
    truth, probs, answer = checked_answers(truth, probs, answer)
    n = len(truth)
    scores = [proportion("accuracy", answer == truth), *_confusion_scores(truth, answer, probs.shape[1])]
    scores.append(mean_score("log loss", log_loss_rows(truth, probs), "lower"))
    columns = [1] if probs.shape[1] == 2 else range(probs.shape[1])
    members = [truth == k for k in columns]
    kept = [(member, probs[:, k]) for member, k in zip(members, columns) if 0 < member.sum() < n]
    if kept:
        rows = np.arange(n)
        scores.append(_macro("AUROC", [(*auroc_influence(m, p), rows, min(m.sum(), n - m.sum())) for m, p in kept], n))
    return [*scores, _calibration(probs.argmax(1) == truth, probs.max(1))]


def multilabel(truth: np.ndarray, probs: np.ndarray, said: np.ndarray | None = None) -> list[Score]:
    """Macro average precision, micro F1, exact match. truth (n, K) of 0, 1 and -100 = unknown; probs (n, K) in [0, 1];
    said (n, K) bool: what is answered, else from 0.5 on.

    Average precision is the mean over the labels that have a positive row; it is left out where none has. Micro F1 is
    left out where nothing is positive, neither in the truth nor in the answers. Raises ValueError as
    `classification`."""
    exact = exact_match_rows(truth, probs, said) == 1
    said = None if said is None else said[(np.asarray(truth) != IGNORED).any(1)]
    truth, probs, known = checked_labels(truth, probs)
    n, parts = len(truth), []
    for k in range(truth.shape[1]):
        rows = np.flatnonzero(known[:, k])
        positive = truth[rows, k] == 1
        if positive.any():
            parts.append((*precision_influence(positive, probs[rows, k]), rows, positive.sum()))
    yes, right = (probs >= 0.5 if said is None else said) & known, (truth == 1) & known
    columns = np.stack([(yes & right).sum(1), yes.sum(1) + right.sum(1)], 1).astype(np.float64)
    sums, draws = columns.sum(0), draw_sums(columns, 0)
    scores = [_macro("macro average precision", parts, n)] if parts else []
    if sums[1]:
        with np.errstate(divide="ignore", invalid="ignore"):
            scores.append(bounded("micro F1", 2 * sums[0] / sums[1], 2 * draws[:, 0] / draws[:, 1], n))
    return [*scores, proportion("exact match", exact)]


def regression(truth: np.ndarray, predicted: np.ndarray) -> list[Score]:
    """R2, mean absolute error, root mean squared error, Spearman's rank correlation; truth and predicted (n,) finite
    numbers.

    Errors are in the target's unit. R2 is left out where all targets are equal (it divides by their variance), Spearman
    where all targets or all predictions are. Raises ValueError for wrong shapes and NaN (with their count)."""
    truth, predicted = checked_numbers(truth, predicted)
    n = len(truth)
    error, centred = truth - predicted, truth - truth.mean()
    columns = np.stack([np.square(error), np.abs(error), np.square(centred), centred], 1)

    def scores_of(means: np.ndarray) -> np.ndarray:  # (..., 4) -> (3, ...)
        squared, absolute, square, mean = np.moveaxis(means, -1, 0)
        variance = square - mean * mean
        # a draw of one repeated row has no R2
        safe = np.where(variance > 1e-12 * columns[:, 2].mean(), variance, np.nan)
        return np.stack([1 - squared / safe, absolute, np.sqrt(squared)])

    values, draws = scores_of(columns.mean(0)), scores_of(draw_sums(columns, 0) / n)
    errors = [from_draws("MAE", values[1], draws[1], n, "lower"), from_draws("RMSE", values[2], draws[2], n, "lower")]
    if np.ptp(truth) == 0:
        return errors
    scores = [from_draws("R2", values[0], draws[0], n, "higher"), *errors]
    return scores if np.ptp(predicted) == 0 else [*scores, _spearman(truth, predicted)]


def matching(truth: np.ndarray, score: np.ndarray) -> list[Score]:
    """AUROC, accuracy at 0.5, average precision of pair probabilities; truth (n,) of 0, 1 and -100 = ignored, score
    (n,) in [0, 1].

    Only accuracy is given where all pairs are of one kind. Raises ValueError as `classification`."""
    truth, score = checked_pairs(truth, score)
    n, positive = len(truth), truth == 1
    count = int(positive.sum())
    accuracy, rows = proportion("accuracy", (score >= 0.5) == positive), np.arange(n)
    if count in (0, n):
        return [accuracy]
    return [
        _macro("AUROC", [(*auroc_influence(positive, score), rows, min(count, n - count))], n),
        accuracy,
        _macro("average precision", [(*precision_influence(positive, score), rows, count)], n),
    ]


def majority(truth: np.ndarray, K: int, train: np.ndarray | None = None) -> list[Score]:
    """What answering every row with the class frequencies scores: `classification`, or `multilabel` where truth is (n,
    K).

    The frequencies are those of the `train` targets, or of `truth` itself where none are given."""
    truth = np.asarray(truth)
    source = truth if train is None else np.asarray(train)
    if truth.ndim == 2:
        known = source != IGNORED
        rates = ((source == 1) & known).sum(0) / np.maximum(known.sum(0), 1)
        return multilabel(truth, np.tile(rates, (len(truth), 1)))
    source = source[source != IGNORED].astype(np.int64)
    if len(source) == 0:
        raise PlaitError(
            "got no target other than -100, expected at least one; the class frequencies need rows with a target"
        )
    if source.min() < 0 or source.max() >= K:
        raise PlaitError(f"got classes {source.min()} to {source.max()}, expected 0 to {K - 1}")
    rates = np.bincount(source, minlength=K) / len(source)
    return classification(truth, np.tile(rates, (len(truth), 1)))


def mean_answer(truth: np.ndarray, train: np.ndarray | None = None) -> list[Score]:
    """What answering every row with the mean target scores: `regression` (R2 is 0 where the mean is that of `truth`
    itself)."""
    source = finite(truth if train is None else train, "the targets")
    return regression(truth, np.full(len(np.asarray(truth)), source.mean()))


# ---- statistics with their influence values ----


def auroc_influence(positive: np.ndarray, score: np.ndarray) -> tuple[float, np.ndarray]:
    """Area under the ROC curve (ties count half), and each row's influence on it (n,), whose squares sum to DeLong's
    variance (1988)."""
    high, low = np.sort(score[positive]), np.sort(score[~positive])
    p, q = len(high), len(low)
    beaten = (np.searchsorted(low, score[positive], "left") + np.searchsorted(low, score[positive], "right")) / (2 * q)
    above = 1 - (np.searchsorted(high, score[~positive], "left") + np.searchsorted(high, score[~positive], "right")) / (
        2 * p
    )
    value, influence = float(beaten.mean()), np.empty(len(score))
    influence[positive] = (beaten - value) / np.sqrt(p * max(p - 1, 1))
    influence[~positive] = (above - value) / np.sqrt(q * max(q - 1, 1))
    return value, influence


def precision_influence(positive: np.ndarray, score: np.ndarray) -> tuple[float, np.ndarray]:
    """Average precision (rows with equal scores enter together), and each row's influence on it (n,)."""
    ranked, found = np.sort(score), np.sort(score[positive])
    n, p = len(score), len(found)
    taken = n - np.searchsorted(ranked, score, "left")  # rows with at least this score
    right = p - np.searchsorted(found, score, "left")
    value = float(np.mean((right / taken)[positive]))
    order = np.flatnonzero(positive)[np.argsort(score[positive], kind="stable")]
    gain = np.concatenate([[0.0], np.cumsum(1 / taken[order])])
    cost = np.concatenate([[0.0], np.cumsum(right[order] / np.square(taken[order], dtype=np.float64))])
    below = np.searchsorted(found, score, "right")  # right rows that this row stands above or beside
    return value, (positive * (right / taken - value + gain[below]) - cost[below]) / p


def _macro(name: str, parts: list, n: int) -> Score:
    """Mean of (value, influence, rows, units) over labels; the rows' influences add up before they are squared."""
    total = np.zeros(n)
    for _, influence, rows, _ in parts:
        total[rows] += influence
    return from_influence(
        name, float(np.mean([part[0] for part in parts])), total / len(parts), n, int(min(part[3] for part in parts))
    )


def _confusion_scores(truth: np.ndarray, answer: np.ndarray, K: int) -> list[Score]:
    """Balanced accuracy and macro F1. A bootstrap of rows is a multinomial draw of the cells of the confusion
    matrix."""
    n = len(truth)
    cells, counts = np.unique(truth * K + answer, return_counts=True)
    draws = np.random.default_rng(0).multinomial(n, counts / n, size=1000)
    true, said = cells // K, cells % K

    def by_class(table: np.ndarray, key: np.ndarray) -> np.ndarray:  # (d, cells) -> (d, K)
        order = np.argsort(key, kind="stable")
        names, starts = np.unique(key[order], return_index=True)
        out = np.zeros((len(table), K))
        out[:, names] = np.add.reduceat(table[:, order], starts, axis=1)
        return out

    def both(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hits = by_class(table * (true == said), true)
        have, given = by_class(table, true), by_class(table, said)
        recall, f1 = hits / np.maximum(have, 1), 2 * hits / np.maximum(have + given, 1)
        return recall.sum(1) / (have > 0).sum(1), f1.sum(1) / (have + given > 0).sum(1)

    (recall, f1), (recalls, f1s) = both(counts[None]), both(draws)
    # With few rows a class, macro F1 falls when rows are drawn again, as it fell when they were sampled: mirroring
    # takes that back.
    return [
        bounded("balanced accuracy", recall[0], recalls, n),
        bounded("macro F1", f1[0], np.clip(2 * f1[0] - f1s, 0, 1), n),
    ]


def _calibration(correct: np.ndarray, confidence: np.ndarray) -> Score:
    n = len(correct)
    bins = np.clip(np.searchsorted(np.linspace(0, 1, BINS + 1), confidence, "right") - 1, 0, BINS - 1)
    columns = np.zeros((n, BINS))
    columns[np.arange(n), bins] = confidence - correct
    value = float(np.abs(columns.sum(0)).sum() / n)
    low, high = percentiles(np.abs(draw_sums(columns, 0)).sum(1) / n)
    return Score(
        "calibration error",
        value,
        max(0.0, min(low, 2 * value - high)),
        min(1.0, max(high, 2 * value - low)),
        n,
        "lower",
    )


def _spearman(truth: np.ndarray, predicted: np.ndarray) -> Score:
    """Spearman's correlation; each bootstrap sample is ranked anew from how often the rows were drawn.

    Beyond 20,000 rows the bootstrap runs on 20,000 of them and its interval shrinks with the root of the number of
    rows."""
    n = len(truth)
    if n > MOST_UNITS:
        some = np.random.default_rng(0).choice(n, MOST_UNITS, replace=False)
        part, shrink = _spearman(truth[some], predicted[some]), np.sqrt(MOST_UNITS / n)
        ranks = [
            np.cumsum(sizes)[place] - sizes[place] / 2
            for _, place, sizes in (
                np.unique(values, return_inverse=True, return_counts=True) for values in (truth, predicted)
            )
        ]
        value = float(np.corrcoef(*ranks)[0, 1])
        return Score(
            "Spearman",
            value,
            value - shrink * (part.value - part.low),
            value + shrink * (part.high - part.value),
            n,
            "higher",
        )
    a, b = (np.unique(values, return_inverse=True)[1] for values in (truth, predicted))

    def ranks(weights: np.ndarray, place: np.ndarray, order: np.ndarray, starts: np.ndarray) -> np.ndarray:
        sizes = np.add.reduceat(weights[:, order], starts, axis=1)
        return (np.cumsum(sizes, axis=1) - sizes / 2)[:, place]  # the middle of a tie's places

    def sorted_by(place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order = np.argsort(place, kind="stable")
        return place, order, np.unique(place[order], return_index=True)[1]

    a, b = sorted_by(a), sorted_by(b)

    def correlation(weights: np.ndarray) -> np.ndarray:
        x, y = ranks(weights, *a) - n / 2, ranks(weights, *b) - n / 2  # weighted ranks always have the mean n / 2
        top, left, right = (np.einsum("dn,dn,dn->d", weights, u, v) for u, v in ((x, y), (x, x), (y, y)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where((left > 0) & (right > 0), top / np.sqrt(left * right), np.nan)

    draws = np.concatenate([correlation(weights) for weights in draw_weights(n, 0)])
    return from_draws("Spearman", correlation(np.ones((1, n)))[0], draws, n, "higher")


# ---- what comes in ----
