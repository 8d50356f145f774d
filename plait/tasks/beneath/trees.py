"""Boosted trees as arrays: scikit-learn grows them on histograms, and nothing but numbers is kept of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BATCH = 4096  # rows that walk down all trees at once


class Trees(NamedTuple):
    """All nodes end to end. feature, left, right (M,) int32 (a leaf has left -1); threshold, value (M,) float64;
    missing (M,) bool: NaN goes left; roots (T,) int32 and output (T,) int32 of each tree; start (K,) float64."""

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing: np.ndarray
    value: np.ndarray
    roots: np.ndarray
    output: np.ndarray
    start: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(n, F) with NaN -> (n, K): the sums of the leaves that each row falls into."""
        return np.concatenate([self._some(x[i : i + BATCH]) for i in range(0, max(len(x), 1), BATCH)])

    def _some(self, x: np.ndarray) -> np.ndarray:
        out = np.repeat(self.start[None], len(x), 0)
        if not len(self.roots) or not len(x):
            return out
        at = np.repeat(self.roots[None], len(x), 0)  # (n, T)
        rows = np.arange(len(x))[:, None]
        while True:
            inner = self.left[at] >= 0
            if not inner.any():
                break
            value = x[rows, np.maximum(self.feature[at], 0)]
            left = np.where(np.isnan(value), self.missing[at], value <= self.threshold[at])
            at = np.where(inner, np.where(left, self.left[at], self.right[at]), at)
        leaves = self.value[at]
        for k in range(len(self.start)):
            out[:, k] += leaves[:, self.output == k].sum(1)
        return out


def grow(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray | None, *,
    classes: int, rounds: int, rate: float, seed: int, level: float | None = None,
):  # fmt: skip
    """scikit-learn's histogram boosting: of classes (0: of a number, or its quantile of a level) on x (n, F) with NaN
    and y (n,)."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    n = len(x)
    how = dict(
        max_iter=rounds,
        learning_rate=rate,
        max_leaf_nodes=31 if n > 2000 else 15,
        min_samples_leaf=20 if n > 500 else max(4, n // 25),
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    )
    x = np.where(np.isnan(x).all(0), 0.0, x)  # of a feature without any number no bins can be made
    if classes:
        return HistGradientBoostingClassifier(**how).fit(x, y, sample_weight=weight)
    model = HistGradientBoostingRegressor(loss="squared_error" if level is None else "quantile", quantile=level, **how)
    return model.fit(x, y, sample_weight=weight)


def kept(model, rounds: int) -> Trees:
    """The first `rounds` rounds of a grown model."""
    feature, threshold, left, right, missing, value = ([] for _ in range(6))
    roots, output, before = [], [], 0
    for grown in model._predictors[:rounds]:
        for k, tree in enumerate(grown):
            nodes = tree.nodes
            leaf = nodes["is_leaf"].astype(bool)
            feature.append(np.where(leaf, 0, nodes["feature_idx"]))
            threshold.append(nodes["num_threshold"])
            left.append(np.where(leaf, -1, nodes["left"].astype(np.int64) + before))
            right.append(np.where(leaf, -1, nodes["right"].astype(np.int64) + before))
            missing.append(nodes["missing_go_to_left"].astype(bool))
            value.append(nodes["value"])
            roots.append(before)
            output.append(k)
            before += len(nodes)
    start = np.asarray(model._baseline_prediction, np.float64).reshape(-1)

    def end_to_end(pieces: list, dtype: type) -> np.ndarray:
        return np.concatenate(pieces).astype(dtype) if pieces else np.zeros(0, dtype)

    return Trees(
        end_to_end(feature, np.int32),
        end_to_end(threshold, np.float64),
        end_to_end(left, np.int32),
        end_to_end(right, np.int32),
        end_to_end(missing, bool),
        end_to_end(value, np.float64),
        np.asarray(roots, np.int32),
        np.asarray(output, np.int32),
        start,
    )
