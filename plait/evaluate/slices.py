"""Where a model is worse: rows in groups by what one column holds, and classes one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from plait.evaluate.intervals import Score, number, proportion
from plait.evaluate.metrics import mean_score

LEAST = 20  # rows of a slice
PARTS = 4  # of a column of numbers, by its quartiles
MOST_VALUES = 30  # of a column of names; others are no slices


class Slice(NamedTuple):
    """The rows (k,) of one column whose cells are `what`."""

    column: str
    what: str
    rows: np.ndarray


def by_numbers(column: str, values: np.ndarray, least: int = LEAST) -> list[Slice]:
    """Quarters of the rows by values (n,), NaN = missing, which are a slice of their own; equal values stay
    together."""
    there = np.isfinite(values)
    found = []
    edges = np.unique(np.quantile(values[there], np.linspace(0, 1, PARTS + 1))) if there.any() else np.zeros(0)
    for i, (low, high) in enumerate(zip(edges[:-1], edges[1:])):
        last = i == len(edges) - 2
        rows = np.flatnonzero(there & (values >= low) & ((values <= high) if last else (values < high)))
        found.append(Slice(column, f"{number_of(low)} to {number_of(high)}", rows))
    return [s for s in [*found, Slice(column, "missing", np.flatnonzero(~there))] if least <= len(s.rows) < len(values)]


def by_names(column: str, names: Sequence[object], least: int = LEAST) -> list[Slice]:
    """Rows of equal names (n,), None = missing; those of at most 30 names that are frequent enough."""
    groups: dict[object, list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(name, []).append(i)
    large = sorted((g for g in groups.items() if least <= len(g[1]) < len(names)), key=lambda g: -len(g[1]))
    return [Slice(column, "missing" if k is None else str(k), np.asarray(rows)) for k, rows in large[:MOST_VALUES]]


def worst(slices: Sequence[Slice], figure: np.ndarray, name: str, better: str, most: int) -> list[tuple[Slice, Score]]:
    """The slices whose mean `figure` (n,) is worst, those that surely are first: at most so many, all of them worse
    than the mean of all rows. What is a share has Wilson's interval."""
    exact = set(np.unique(figure)) <= {0.0, 1.0}
    mean, sign = float(figure.mean()), -1.0 if better == "higher" else 1.0
    found = []
    for s in slices:
        rows = figure[s.rows]
        if sign * (rows.mean() - mean) > 0:
            score = proportion(name, rows == 1) if exact else mean_score(name, rows, better)
            found.append((s, score._replace(better=better)))
    surely = [sign * ((score.high if sign < 0 else score.low) - mean) for _, score in found]
    return [found[i] for i in np.argsort(-np.asarray(surely), kind="stable")[:most]]


def by_class(truth: np.ndarray, answer: np.ndarray, K: int) -> list[tuple[Score | None, Score | None, float, int]]:
    """Precision, recall (None where there is nothing to count), F1 and true rows of each of K classes; truth and answer
    (n,), of which truth may hold others."""
    found = []
    for k in range(K):
        said, true = answer == k, truth == k
        right = said & true
        precision = proportion("precision", right[said]) if said.any() else None
        recall = proportion("recall", right[true]) if true.any() else None
        f1 = 2 * right.sum() / max(said.sum() + true.sum(), 1)
        found.append((precision, recall, float(f1), int(true.sum())))
    return found


def number_of(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}" if abs(value) < 1e6 else number(value)
