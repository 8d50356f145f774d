"""A kernel's features: what makes a smooth function of a few hundred rows out of a linear model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LANDMARKS = 1000  # rows that others are compared with
FEATURES = 128
BATCH = 4096  # rows that are compared at once
WIDTHS = (1.0, 4.0)  # that are tried, in squared distances between two rows


class Kernel(NamedTuple):
    """Of a Gaussian kernel the directions with most of its variance over some rows, the landmarks (Nystrom's features;
    Williams and Seeger 2001). rows (m, F); turn (m, R) float64; width (1,) in squared units of x."""

    rows: np.ndarray
    turn: np.ndarray
    width: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(n, F) -> (n, R)."""
        some = range(0, max(len(x), 1), BATCH)
        return np.concatenate([_alike(x[i : i + BATCH], self.rows, float(self.width[0])) @ self.turn for i in some])


def fit(x: np.ndarray, width: float) -> Kernel:
    """Of rows (n, F) in a random order; width in mean squared distances between them."""
    rows = x[:LANDMARKS]
    squared = max(width * 2 * float(rows.var(0).sum()), 1e-12)
    values, vectors = np.linalg.eigh(_alike(rows, rows, squared))
    values, vectors = values[-FEATURES:], vectors[:, -FEATURES:]
    there = values > 1e-8 * values[-1]
    return Kernel(rows, vectors[:, there] / np.sqrt(values[there]), np.asarray([squared]))


def _alike(a: np.ndarray, b: np.ndarray, squared: float) -> np.ndarray:
    """(n, m): exp(-distance squared / squared)."""
    distance = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.exp(-np.maximum(distance, 0.0) / squared)
