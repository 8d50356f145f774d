"""Metrics by name, of rows that may count differently: what `--metric` chooses, and every score of rows with weights.

A statistic takes truth, what was answered, and w (n,), how much each row counts; w of whole numbers gives what so many
copies of each row would."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from plait.errors import PlaitError, UsageError, nearest
from plait.evaluate.inputs import IGNORED, checked_answers, checked_labels, checked_numbers
from plait.evaluate.intervals import Score, percentiles, wilson
from plait.evaluate.metrics import BINS, SMALLEST

DRAWS, MOST = 400, 5_000  # bootstrap samples; of more rows so many are drawn from, and the interval shrinks accordingly

Statistic = Callable[..., float]


class Metric(NamedTuple):
    """title: as scores are called. better: "higher" or "lower". decides: its value hangs on where answers are parted,
    so that a threshold is worth choosing. share: it lies between 0 and 1, and a perfect sample is no certainty."""

    title: str
    value: Statistic
    better: str = "higher"
    decides: bool = False
    share: bool = True


# ---- classes: truth (n,), probs (n, K), answer (n,), positive: of two classes the one looked for ----


def _accuracy(truth: np.ndarray, probs: np.ndarray, answer: np.ndarray, w: np.ndarray, positive: int | None) -> float:
    return float(w @ (answer == truth) / w.sum())


def _by_class(truth: np.ndarray, answer: np.ndarray, w: np.ndarray, K: int) -> tuple[np.ndarray, ...]:
    """(K,) weights of what is right, true, and answered."""
    return tuple(np.bincount(at, part, K) for at, part in ((truth, w * (answer == truth)), (truth, w), (answer, w)))


def _recall(truth: np.ndarray, probs: np.ndarray, answer: np.ndarray, w: np.ndarray, positive: int | None) -> float:
    hits, have, _ = _by_class(truth, answer, w, probs.shape[1])
    return float((hits[have > 0] / have[have > 0]).mean())


def _f1_macro(truth: np.ndarray, probs: np.ndarray, answer: np.ndarray, w: np.ndarray, positive: int | None) -> float:
    hits, have, said = _by_class(truth, answer, w, probs.shape[1])
    both = have + said
    return float((2 * hits[both > 0] / both[both > 0]).mean())


def _f1(truth: np.ndarray, probs: np.ndarray, answer: np.ndarray, w: np.ndarray, positive: int | None) -> float:
    """Of the class that is looked for, where there are two; else the mean of all."""
    if positive is None:
        return _f1_macro(truth, probs, answer, w, positive)
    hits, have, said = _by_class(truth, answer, w, probs.shape[1])
    both = have[positive] + said[positive]
    return float(2 * hits[positive] / both) if both > 0 else 0.0


def _log_loss(truth: np.ndarray, probs: np.ndarray, answer: np.ndarray, w: np.ndarray, positive: int | None) -> float:
    return float(-w @ np.log(np.clip(probs[np.arange(len(truth)), truth], SMALLEST, 1.0)) / w.sum())


def _one_by_one(of: Callable[[np.ndarray, np.ndarray, np.ndarray], float]) -> Statistic:
    """The statistic of one label, of the class that is looked for where there are two; else the mean over the classes
    that have both right and wrong rows."""

    def mean(truth: np.ndarray, probs: np.ndarray, answer: np.ndarray, w: np.ndarray, positive: int | None) -> float:
        looked_for = range(probs.shape[1]) if positive is None else [positive]
        found = [of(truth == k, probs[:, k], w) for k in looked_for]
        found = [value for value in found if np.isfinite(value)]
        return float(np.mean(found)) if found else np.nan

    return mean


def auroc(right: np.ndarray, score: np.ndarray, w: np.ndarray) -> float:
    """Of one label, right (n,) bool; ties count half. NaN where rows of one sort have no weight."""
    order = np.argsort(score, kind="stable")
    sorted_scores, yes, no = score[order], (w * right)[order], (w * ~right)[order]
    if not yes.sum() > 0 or not no.sum() > 0:
        return np.nan
    starts = np.flatnonzero(np.r_[True, np.diff(sorted_scores) != 0])
    yes, no = np.add.reduceat(yes, starts), np.add.reduceat(no, starts)
    below = np.cumsum(no) - no / 2
    return float(yes @ below / (yes.sum() * no.sum()))


def average_precision(right: np.ndarray, score: np.ndarray, w: np.ndarray) -> float:
    """Of one label; rows with equal scores enter together. NaN where no right row has a weight."""
    order = np.argsort(-score, kind="stable")
    sorted_scores, yes, all_ = score[order], (w * right)[order], w[order]
    if not yes.sum() > 0:
        return np.nan
    starts = np.flatnonzero(np.r_[True, np.diff(sorted_scores) != 0])
    yes, all_ = np.add.reduceat(yes, starts), np.add.reduceat(all_, starts)
    kept = yes > 0
    return float(yes[kept] @ (np.cumsum(yes) / np.maximum(np.cumsum(all_), 1e-300))[kept] / yes.sum())


def _calibration(
    truth: np.ndarray, probs: np.ndarray, answer: np.ndarray, w: np.ndarray, positive: int | None
) -> float:
    """Of the likeliest class, in 15 bins of equal width."""
    sure = probs.max(1)
    bins = np.clip(np.searchsorted(np.linspace(0, 1, BINS + 1), sure, "right") - 1, 0, BINS - 1)
    return float(np.abs(np.bincount(bins, w * (sure - (probs.argmax(1) == truth)), BINS)).sum() / w.sum())


CLASSES: dict[str, Metric] = {
    "accuracy": Metric("accuracy", _accuracy),
    "balanced_accuracy": Metric("balanced accuracy", _recall, decides=True),
    "f1": Metric("F1", _f1, decides=True),
    "f1_macro": Metric("macro F1", _f1_macro, decides=True),
    "auroc": Metric("AUROC", _one_by_one(auroc)),
    "average_precision": Metric("average precision", _one_by_one(average_precision)),
    "log_loss": Metric("log loss", _log_loss, "lower", share=False),
}
CALIBRATION = Metric("calibration error", _calibration, "lower", share=False)

# ---- several labels: truth (n, K) of 0, 1 and -100, probs (n, K), said (n, K) bool: what is answered ----


def _macro_precision(truth: np.ndarray, probs: np.ndarray, said: np.ndarray | None = None, *, w: np.ndarray) -> float:
    known = truth != IGNORED
    found = [average_precision(truth[r, k] == 1, probs[r, k], w[r]) for k, r in enumerate(known.T)]
    found = [value for value in found if np.isfinite(value)]
    return float(np.mean(found)) if found else np.nan


def _f1_micro(truth: np.ndarray, probs: np.ndarray, said: np.ndarray | None = None, *, w: np.ndarray) -> float:
    known = truth != IGNORED
    yes, right = (probs >= 0.5 if said is None else said) & known, (truth == 1) & known
    both = w @ (yes.sum(1) + right.sum(1))
    return float(2 * w @ (yes & right).sum(1) / both) if both > 0 else np.nan


def _exact(truth: np.ndarray, probs: np.ndarray, said: np.ndarray | None = None, *, w: np.ndarray) -> float:
    said = probs >= 0.5 if said is None else said
    return float(w @ ((said == (truth == 1)) | (truth == IGNORED)).all(1) / w.sum())


LABELS: dict[str, Metric] = {
    "average_precision": Metric("macro average precision", _macro_precision),
    "f1": Metric("micro F1", _f1_micro, decides=True),
    "exact_match": Metric("exact match", _exact),
}

# ---- numbers: truth (n,), predicted (n,) ----


def _mse(truth: np.ndarray, predicted: np.ndarray, w: np.ndarray) -> float:
    return float(w @ np.square(truth - predicted) / w.sum())


def _r2(truth: np.ndarray, predicted: np.ndarray, w: np.ndarray) -> float:
    spread = _mse(truth, np.full(len(truth), w @ truth / w.sum()), w)
    return 1 - _mse(truth, predicted, w) / spread if spread > 1e-12 * max(float(truth.var()), 1e-300) else np.nan


def _mae(truth: np.ndarray, predicted: np.ndarray, w: np.ndarray) -> float:
    return float(w @ np.abs(truth - predicted) / w.sum())


def _rmse(truth: np.ndarray, predicted: np.ndarray, w: np.ndarray) -> float:
    return _mse(truth, predicted, w) ** 0.5


def _mape(truth: np.ndarray, predicted: np.ndarray, w: np.ndarray) -> float:
    """Over the rows whose truth is not 0."""
    kept = (truth != 0) & (w > 0)
    part = w[kept]
    return float(part @ np.abs((truth - predicted)[kept] / truth[kept]) / part.sum()) if kept.any() else np.nan


def _spearman(truth: np.ndarray, predicted: np.ndarray, w: np.ndarray) -> float:
    def ranks(values: np.ndarray) -> np.ndarray:
        _, place = np.unique(values, return_inverse=True)
        sizes = np.bincount(place, w)
        return (np.cumsum(sizes) - sizes / 2)[place] - w.sum() / 2

    x, y = ranks(truth), ranks(predicted)
    left, right = w @ (x * x), w @ (y * y)
    return float(w @ (x * y) / np.sqrt(left * right)) if left > 0 and right > 0 else np.nan


NUMBERS: dict[str, Metric] = {
    "r2": Metric("R2", _r2, share=False),
    "mae": Metric("MAE", _mae, "lower", share=False),
    "mse": Metric("MSE", _mse, "lower", share=False),
    "rmse": Metric("RMSE", _rmse, "lower", share=False),
    "mape": Metric("MAPE", _mape, "lower", share=False),
    "spearman": Metric("Spearman", _spearman, share=False),
}


def pinball(truth: np.ndarray, quantiles: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """(n,): the mean pinball loss of quantiles (n, Q) of truth (n,) at levels (Q,) (Koenker and Bassett 1978)."""
    over = truth[:, None] - quantiles
    return np.maximum(levels * over, (levels - 1) * over).mean(1)


def _of_each(metric: Metric) -> Statistic:
    """The metric of several numbers (n, K), NaN where one is not known: its mean over these."""

    def mean(truth: np.ndarray, predicted: np.ndarray, w: np.ndarray) -> float:
        known = np.isfinite(truth).T
        return float(np.mean([metric.value(truth[r, k], predicted[r, k], w=w[r]) for k, r in enumerate(known)]))

    return mean


SEVERAL = {name: m._replace(title=f"mean {m.title}", value=_of_each(m)) for name, m in NUMBERS.items()}

ALSO = {
    "auc": "auroc",
    "roc_auc": "auroc",
    "ap": "average_precision",
    "logloss": "log_loss",
    "macro_f1": "f1_macro",
    "qwk": "quadratic_kappa",
    "quadratic_weighted_kappa": "quadratic_kappa",
    "mean_absolute_error": "mae",
    "mean_squared_error": "mse",
    "root_mean_squared_error": "rmse",
    "mean_absolute_percentage_error": "mape",
}


def named(name: str, known: Mapping[str, Metric], noun: str) -> str:
    """The metric's name among `known`, however it is spelled. Raises UsageError with the list where it is none."""
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    plain = ALSO.get(plain, plain)
    if plain not in known:
        raise UsageError(f"no metric {name!r} of {noun}. {nearest(plain, known)} There are {', '.join(known)}")
    return plain


# ---- with their intervals ----


def score(metric: Metric, parts: tuple, w: np.ndarray | None = None, seed: int = 0, **more: Any) -> Score | None:
    """The metric of `parts`, each with the rows first, with the percentile interval of a bootstrap of the rows; None
    where it is not defined, such as AUROC of rows of one class. A perfect or hopeless share gets Wilson's interval for
    as many rows as the weights are worth."""
    n = len(parts[0])
    w = np.ones(n) if w is None else np.asarray(w, np.float64)
    value = metric.value(*parts, w=w, **more)
    if not np.isfinite(value):
        return None
    rng, m = np.random.default_rng(seed), min(n, MOST)
    some = slice(None) if m == n else rng.choice(n, m, replace=False)
    few, part = tuple(p[some] for p in parts), w[some]
    middle = value if m == n else metric.value(*few, w=part, **more)
    draws = np.full(DRAWS, np.nan)
    for i in range(DRAWS):
        drawn = part * np.bincount(rng.integers(0, m, m), minlength=m)
        if drawn.sum() > 0:
            draws[i] = metric.value(*few, w=drawn, **more)
    low, high = percentiles(draws) if np.isfinite(draws).any() else (value, value)
    shrink = (m / n) ** 0.5
    low, high = value - shrink * (middle - low), value + shrink * (high - middle)
    if metric.share:
        value, low, high = (round(min(max(float(x), 0.0), 1.0), 12) for x in (value, low, high))
        if low == high and value in (0.0, 1.0):
            units = float(w.sum() ** 2 / np.square(w).sum())
            low, high = wilson(value * units, units)  # type: ignore[arg-type]
    return Score(metric.title, float(value), min(float(low), float(value)), max(float(high), float(value)), n,
                 metric.better)  # fmt: skip


def _all(metrics: list[Metric], parts: tuple, w: np.ndarray, **more: Any) -> list[Score]:
    w = np.asarray(w, np.float64)
    if not (np.isfinite(w).all() and (w >= 0).all() and w.sum() > 0):
        raise PlaitError("got weights that are negative, not finite, or all 0: expected numbers from 0 on, one above 0")
    return [found for metric in metrics if (found := score(metric, parts, w, **more)) is not None]


def classification(
    truth: np.ndarray, probs: np.ndarray, w: np.ndarray, answer: np.ndarray | None = None
) -> list[Score]:
    """The scores of `metrics.classification` of rows that count w (n,) each; answer (n,): else the likeliest."""
    kept = np.asarray(truth) != IGNORED
    parts = checked_answers(truth, probs, answer)
    names = ("accuracy", "balanced_accuracy", "f1_macro", "log_loss", "auroc")
    positive = 1 if parts[1].shape[1] == 2 else None
    return _all([*(CLASSES[n] for n in names), CALIBRATION], parts, np.asarray(w)[kept], positive=positive)


def multilabel(truth: np.ndarray, probs: np.ndarray, w: np.ndarray, said: np.ndarray | None = None) -> list[Score]:
    """The scores of `metrics.multilabel` of rows that count w (n,) each."""
    kept = (np.asarray(truth) != IGNORED).any(1)
    parts = checked_labels(truth, probs)[:2]
    parts = parts if said is None else (*parts, said[kept])
    return _all(list(LABELS.values()), parts, np.asarray(w)[kept])


def regression(truth: np.ndarray, predicted: np.ndarray, w: np.ndarray) -> list[Score]:
    """The scores of `metrics.regression` of rows that count w (n,) each."""
    metrics = [NUMBERS[n] for n in ("r2", "mae", "rmse", "spearman")]
    return _all(metrics, checked_numbers(truth, predicted), w)
