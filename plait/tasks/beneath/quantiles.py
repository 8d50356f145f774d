"""Quantiles of a number, as simple models see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from plait.evaluate.chosen import pinball
from plait.tasks.beneath.asked import ITERATIONS, Number, _shares

SMOOTH = 0.05  # spreads of y, over which the corner of the loss is rounded while it is minimised


class Quantiles(Number):
    """y (n,) standardised. Answers are standardised quantiles (n, Q) of the levels (Q,), both ascending."""

    name = "quantiles"

    def __init__(self, levels: Sequence[float]):
        self.levels = np.asarray(levels, np.float64)
        self.count = self.outputs = len(self.levels)

    def prior(self, y: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        return np.asarray([quantile(y, level, weight) for level in self.levels])

    def normal(self, z: np.ndarray) -> np.ndarray:
        """They never cross."""
        return np.sort(z, 1)

    def losses(self, answers: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n,) the mean pinball loss."""
        return pinball(y, answers, self.levels)

    def solve(self, x: Any, y: np.ndarray, strength: float, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Linear quantile regression (Koenker and Bassett 1978): the corner of the loss is smooth while weights are
        found (Fernandes, Guerre and Horta 2021), and biases are then quantiles of what is left."""
        from scipy.optimize import minimize  # here, as in `asked`

        share, h = _shares(y, weight), max(SMOOTH * float(y.std()), 1e-9)
        w, b = np.zeros((self.count, x.shape[1])), self.prior(y, weight)
        at = np.zeros(x.shape[1] + 1)
        for k, level in enumerate(self.levels):

            def loss(at: np.ndarray, level: float = float(level)) -> tuple[float, np.ndarray]:
                over = y - x @ at[:-1] - at[-1]
                value = share @ (level * over + h * np.logaddexp(0, -over / h))
                slope = share * (expit(-over / h) - level)
                penalty = 1 / (strength * len(y))
                gradient = np.append(x.T @ slope + penalty * at[:-1], slope.sum())
                return float(value + penalty * (at[:-1] @ at[:-1]) / 2), gradient

            at[-1] = b[k] if k == 0 else at[-1] + b[k] - b[k - 1]
            at = minimize(loss, at, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}).x
            w[k], b[k] = at[:-1], quantile(y - x @ at[:-1], level, weight)
        return w, b

    def mix(self, answers: Sequence[np.ndarray], y: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """Shares (R,) that sum to 1: a mean of quantiles that do not cross does not cross."""
        if len(answers) == 1:
            return np.ones(1)
        from scipy.optimize import minimize

        stack, share = np.stack(answers), _shares(y, weight)[:, None] / self.count

        def loss(z: np.ndarray) -> tuple[float, np.ndarray]:
            w = softmax(z)
            over = y[:, None] - np.tensordot(w, stack, 1)
            value = (share * (self.levels * over + SMOOTH * np.logaddexp(0, -over / SMOOTH))).sum()
            slope = (share * (expit(-over / SMOOTH) - self.levels) * stack).sum((1, 2))
            return float(value), w * (slope - w @ slope)

        return softmax(minimize(loss, np.zeros(len(answers)), jac=True, method="L-BFGS-B",
                                bounds=[(-5.0, 5.0)] * len(answers)).x)  # fmt: skip


def quantile(y: np.ndarray, level: float, weight: np.ndarray | None = None) -> float:
    """The least of y (n,) that so much of the weight is not above."""
    order, share = np.argsort(y, kind="stable"), _shares(y, weight)
    at = np.searchsorted(np.cumsum(share[order]), level - 1e-12)
    return float(y[order[min(int(at), len(y) - 1)]])
