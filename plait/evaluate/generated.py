"""Sets of pictures against real ones: how far apart they lie in features that a tower has of them."""

from __future__ import annotations

import numpy as np

from plait.errors import PlaitError
from plait.evaluate.intervals import Score, draw_weights, finite, from_draws

DRAWS = 200
MOST = 2000  # rows that are compared with each other


def distance(name: str, real: np.ndarray, made: np.ndarray, seed: int = 0) -> Score:
    """The squared kernel distance of two sets of features (n, D), with its bootstrap interval: the unbiased estimate of
    KID (arXiv:1801.01401), about 0 for two sets of one kind, and perhaps below.

    Row i of both may speak of one thing: no row is compared with its own. Beyond 2,000 rows, so many drawn ones.
    """
    x, y = (finite(values, f"the features of {name}") for values in (real, made))
    if len(x) != len(y) or len(x) < 2:
        raise PlaitError(f"got {len(x)} real and {len(y)} other pictures, expected as many of each, and at least two")
    if len(x) > MOST:
        some = np.random.default_rng(seed).permutation(len(x))[:MOST]
        x, y = x[some], y[some]
    h = kernel(x, x) + kernel(y, y) - kernel(x, y) - kernel(y, x)
    np.fill_diagonal(h, 0.0)
    n = len(h)
    draws = np.concatenate([of_pairs(h, weights) for weights in draw_weights(n, seed, DRAWS)])
    return from_draws(name, float(of_pairs(h, np.ones((1, n)))[0]), draws, len(real), "lower")


def of_pairs(h: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draws,) the weighted means of h (n, n) over pairs of different rows; weights (draws, n)."""
    pairs = weights.sum(1) ** 2 - np.square(weights).sum(1)
    with np.errstate(invalid="ignore"):
        return ((weights @ h) * weights).sum(1) / pairs


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, m): the cubic kernel of KID."""
    return (x @ y.T / x.shape[1] + 1) ** 3
