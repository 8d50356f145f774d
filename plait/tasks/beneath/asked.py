"""What is asked, as simple models see it: one of K classes, any of K labels, or a number. Each knows its loss, its
linear model, its trees, and how answers of several models become one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.special import log_softmax, softmax
from threadpoolctl import ThreadpoolController

MOST_CLASSES, MOST_LABELS = 40, 20  # of which trees are grown
MOST_WEIGHT = 4.0  # of an answer in a mix
DOUBT = 0.01  # that a forest never saw such a row
ITERATIONS = 300  # of the convex solver
SHORT = 1e8  # multiplications of one of its steps: of fewer, threads of BLAS wait for each other ten times as long


class Classes:
    """y (n,) int64 below K. Answers are log-probabilities (n, K)."""

    name = "classes"

    def __init__(self, count: int):
        self.count = count

    @property
    def outputs(self) -> int:
        """Columns of the trees' sums."""
        return 1 if self.count == 2 else self.count

    @property
    def grown(self) -> bool:
        """Whether trees are worth their time."""
        return self.count <= MOST_CLASSES

    def known(self, y: np.ndarray) -> np.ndarray:
        return (y >= 0) & (y < self.count)

    def prior(self, y: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        counts = np.bincount(y, weight, self.count) + 0.5
        return np.log(counts / counts.sum())

    def normal(self, z: np.ndarray) -> np.ndarray:
        """Any outputs as answers."""
        return log_softmax(z, axis=1)

    def losses(self, answers: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n,) -log p of the class."""
        return -np.maximum(answers[np.arange(len(y)), y], -20.0)

    def solve(self, x: Any, y: np.ndarray, strength: float, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Weights (K, F) and biases (K,) of logistic regression; `strength` is 1 / penalty."""
        there = np.unique(y)
        w, b = np.zeros((self.count, x.shape[1])), np.full(self.count, -20.0)
        if len(there) == 1:
            b[there] = 0.0
            return w, b
        model = _logistic(x, y, strength, weight)
        if len(there) == 2:
            w[there], b[there] = np.outer([-0.5, 0.5], model.coef_[0]), np.asarray([-0.5, 0.5]) * model.intercept_[0]
        else:
            w[there], b[there] = model.coef_, model.intercept_
        b[np.setdiff1d(np.arange(self.count), there)] = b[there].min() - 5.0
        return w, b

    def from_trees(self, raw: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Answers of the trees' sums, which were grown for the classes `there`."""
        full = np.full((len(raw), self.count), raw.min(initial=0.0) - 5.0)
        full[:, there] = np.concatenate([-raw / 2, raw / 2], 1) if len(there) == 2 else raw
        return log_softmax(full, axis=1)

    def from_shares(self, raw: np.ndarray, there: np.ndarray, prior: np.ndarray) -> np.ndarray:
        """Answers of shares (n, classes `there`) of a forest's leaves; a little of the prior is in them."""
        full = np.zeros((len(raw), self.count))
        full[:, there] = raw
        return np.log((1 - DOUBT) * full + DOUBT * np.exp(prior))

    def mix(self, answers: Sequence[np.ndarray], y: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """Weights (R,) from 0 on of several answers' log-probabilities, by the likelihood of y. weight (n,): what each
        row counts."""
        stack, share = np.stack(answers), _shares(y, weight)[:, None]  # (R, n, K), (n, 1)
        real = np.eye(self.count)[y]

        def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
            z = np.tensordot(w, stack, 1)
            slope = ((softmax(z, axis=1) - real)[None] * share * stack).sum((1, 2))
            return -float((log_softmax(z, axis=1) * real * share).sum()), slope

        return _weights(loss, len(answers))

    def mixed(self, weights: np.ndarray, answers: Sequence[np.ndarray]) -> np.ndarray:
        return log_softmax(np.tensordot(weights, np.stack(answers), 1), axis=1)


class Labels:
    """y (n, K) of 1, 0 and -100 = unknown, or (n, K + 1) with labels never learnt. Answers are logits (n, K)."""

    name = "labels"

    def __init__(self, count: int):
        self.count = count

    @property
    def outputs(self) -> int:
        return self.count

    @property
    def grown(self) -> bool:
        return self.count <= MOST_LABELS

    def known(self, y: np.ndarray) -> np.ndarray:
        return (self._learnt(y) != -100).any(1)

    def _learnt(self, y: np.ndarray) -> np.ndarray:
        return y[:, : self.count]

    def prior(self, y: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        y = self._learnt(y)
        w = np.ones((len(y), 1)) if weight is None else weight[:, None]
        yes, known = (w * (y == 1)).sum(0) + 1.0, (w * (y != -100)).sum(0) + 2.0
        return np.log(yes / (known - yes))

    def normal(self, z: np.ndarray) -> np.ndarray:
        return np.clip(z, -30, 30)

    def losses(self, answers: np.ndarray, y: np.ndarray) -> np.ndarray:
        y = self._learnt(y)
        known = y != -100
        loss = np.logaddexp(0, np.where(y == 1, -answers, answers)) * known
        return loss.sum(1) / np.maximum(known.sum(1), 1)

    def solve(self, x: Any, y: np.ndarray, strength: float, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        w, b = np.zeros((self.count, x.shape[1])), self.prior(y, weight)
        for k in range(self.count):
            rows = np.flatnonzero(y[:, k] != -100)
            if len(np.unique(y[rows, k])) == 2:
                model = _logistic(x[rows], y[rows, k], strength, None if weight is None else weight[rows])
                w[k], b[k] = model.coef_[0], model.intercept_[0]
        return w, b

    def mix(self, answers: Sequence[np.ndarray], y: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        y = self._learnt(y)
        stack, real = np.stack(answers), y == 1
        known = (y != -100) * _shares(y, weight)[:, None]
        count = max(known.sum(), 1e-12)

        def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
            z = np.tensordot(w, stack, 1)
            value = (np.logaddexp(0, np.where(real, -z, z)) * known).sum() / count
            slope = (((1 / (1 + np.exp(-np.clip(z, -60, 60))) - real) * known)[None] * stack).sum((1, 2)) / count
            return float(value), slope

        return _weights(loss, len(answers))

    def mixed(self, weights: np.ndarray, answers: Sequence[np.ndarray]) -> np.ndarray:
        return np.tensordot(weights, np.stack(answers), 1)


class Number:
    """y (n,) standardised. Answers are standardised numbers (n, 1). A model may have learnt a logarithm."""

    name, count, outputs, grown = "number", 1, 1, True

    def known(self, y: np.ndarray) -> np.ndarray:
        return np.isfinite(y)

    def prior(self, y: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        return np.asarray([np.average(y, weights=weight)])

    def normal(self, z: np.ndarray) -> np.ndarray:
        return z

    def losses(self, answers: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (answers[:, 0] - y) ** 2

    def solve(self, x: Any, y: np.ndarray, strength: float, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.linear_model import Ridge

        dense = x.toarray() if sp.issparse(x) and x.shape[1] <= 2000 else x
        model = Ridge(alpha=1 / strength, solver="auto" if not sp.issparse(dense) else "sparse_cg")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(dense, y, sample_weight=weight)
        return model.coef_.reshape(1, -1), np.atleast_1d(model.intercept_)

    def mix(self, answers: Sequence[np.ndarray], y: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        from scipy.optimize import nnls  # here: it takes a while to import

        root = np.sqrt(_shares(y, weight))
        return np.minimum(nnls(np.stack([a[:, 0] for a in answers], 1) * root[:, None], y * root)[0], MOST_WEIGHT)

    def mixed(self, weights: np.ndarray, answers: Sequence[np.ndarray]) -> np.ndarray:
        return np.tensordot(weights, np.stack(answers), 1)


Asked = Classes | Labels | Number


def _shares(y: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """(n,) what each row counts, in all 1."""
    w = np.ones(len(y)) if weight is None else weight
    return w / max(w.sum(), 1e-12)


def _weights(loss, count: int) -> np.ndarray:
    from scipy.optimize import minimize

    found = minimize(
        loss, np.full(count, 1.0 / count), jac=True, method="L-BFGS-B", bounds=[(0.0, MOST_WEIGHT)] * count
    )
    return found.x


@cache
def _libraries() -> ThreadpoolController:
    """The libraries that multiply: to find them takes as long as a small model."""
    return ThreadpoolController()


def _logistic(x: Any, y: np.ndarray, strength: float, weight: np.ndarray | None):
    from sklearn.linear_model import LogisticRegression

    wide = x.shape[1] > 2000  # then gradients averaged over rows need a tenth of the time
    how = dict(solver="sag", max_iter=100, tol=1e-3, random_state=0) if wide else dict(max_iter=ITERATIONS, tol=1e-4)
    model = LogisticRegression(C=strength, **how)
    threads = 1 if x.shape[0] * x.shape[1] * len(np.unique(y)) < SHORT else None
    # that it stopped early is no news: the best strength is seen on other rows
    with warnings.catch_warnings(), _libraries().limit(limits=threads, user_api="blas"):
        warnings.simplefilter("ignore")
        return model.fit(x, y, sample_weight=weight)
