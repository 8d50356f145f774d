"""Trees as arrays: scikit-learn grows them, boosted on histograms or at random, and nothing but numbers is kept."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

BATCH = 4096  # rows that walk down all trees at once
FOREST = 100  # extremely randomised trees
FEW = 10  # classes: of more, a number each costs more than it saves


class Trees(NamedTuple):
    """All nodes end to end. feature, left, right (M,) int32 (a leaf has left -1); threshold (M,) float64; value (M,)
    float64, or (M, K) of trees that answer all outputs at once; missing (M,) bool: NaN goes left; roots (T,) int32 and
    output (T,) int32 of each tree; start (K,) float64."""

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
        return self.staged(x, 1)[0]

    def staged(self, x: np.ndarray, steps: int) -> np.ndarray:
        """(steps, n, K): the sums after each of so many equal parts of the rounds."""
        batches = [self._some(x[i : i + BATCH], steps) for i in range(0, max(len(x), 1), BATCH)]
        return np.concatenate(batches, 1)

    def _some(self, x: np.ndarray, steps: int) -> np.ndarray:
        out = np.zeros((steps, len(x), len(self.start))) + self.start
        if not len(self.roots) or not len(x):
            return out
        leaves = self.value[self._leaves(x)]  # (n, T) or (n, T, K)
        for k in range(len(self.start)):
            own = leaves[:, self.output == k] if leaves.ndim == 2 else leaves[..., k]
            parts = np.stack([part.sum(1) for part in np.split(own, steps, 1)])
            out[..., k] += parts.cumsum(0)
        return out

    def _leaves(self, x: np.ndarray) -> np.ndarray:
        """(n, T): the node that each row ends in, of each tree."""
        at = np.repeat(self.roots[None], len(x), 0)
        rows = np.arange(len(x))[:, None]
        while True:
            inner = self.left[at] >= 0
            if not inner.any():
                return at
            value = x[rows, np.maximum(self.feature[at], 0)]
            left = np.where(np.isnan(value), self.missing[at], value <= self.threshold[at])
            at = np.where(inner, np.where(left, self.left[at], self.right[at]), at)


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
    nodes, output = [], []
    for grown in model._predictors[:rounds]:
        for k, tree in enumerate(grown):
            n = tree.nodes
            leaf = n["is_leaf"].astype(bool)
            left = np.where(leaf, -1, n["left"].astype(np.int64))
            nodes.append(
                (n["feature_idx"], n["num_threshold"], left, n["right"], n["missing_go_to_left"], n["value"], leaf)
            )
            output.append(k)
    return _end_to_end(nodes, output, np.asarray(model._baseline_prediction, np.float64).reshape(-1))


def scattered(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None, *, classes: int, leaf: int, seed: int) -> Trees:
    """Extremely randomised trees (Geurts, Ernst and Wehenkel 2006) of classes (0: of a number) on x (n, F) with NaN and
    y (n,): their sum is the mean of their leaves, of classes the share of each. leaf: the fewest rows of one."""
    how: dict[str, Any] = dict(min_samples_leaf=leaf, max_features=0.5)
    threads = torch.get_num_threads()
    if classes > FEW:
        from sklearn.ensemble import ExtraTreesClassifier

        forest = ExtraTreesClassifier(FOREST, random_state=seed, n_jobs=threads, **how)
        grown = forest.fit(x, y, sample_weight=weight).estimators_
    else:
        # the variance of 0 and 1 is the impurity of classes, and a tree of numbers is begun in half the time
        from sklearn.tree import ExtraTreeRegressor

        x = np.ascontiguousarray(x, np.float32)
        target = np.asarray(y, np.float64)
        if classes:
            target = np.eye(classes)[np.unique(y, return_inverse=True)[1]][:, int(classes == 2) :]
        draw, missing = np.random.RandomState(seed), bool(np.isnan(x).any())
        trees = [ExtraTreeRegressor(random_state=draw.randint(2**31 - 1), **how) for _ in range(FOREST)]
        with ThreadPoolExecutor(threads) as pool:
            grown = list(pool.map(lambda tree: tree.fit(x, target, weight, check_input=missing), trees))
    nodes = []
    for one in grown:
        n = one.tree_
        value = (n.value[:, 0] if classes > FEW else n.value[..., 0]) / FOREST
        if classes == 2:
            value = np.concatenate([1 / FOREST - value, value], 1)
        leaf_ = n.children_left < 0
        nodes.append((n.feature, n.threshold, n.children_left, n.children_right, n.missing_go_to_left, value, leaf_))
    found = _end_to_end(nodes, [0] * FOREST, np.zeros(max(classes, 1)))
    return found if classes else found._replace(value=found.value[:, 0])


def _end_to_end(nodes: Sequence[tuple[np.ndarray, ...]], output: list[int], start: np.ndarray) -> Trees:
    """nodes: of each tree what `Trees` holds, in its order, by the numbers of nodes within it, and which are leaves."""
    before = np.cumsum([0, *(len(one[0]) for one in nodes)])
    kinds = (np.int32, np.float64, np.int32, np.int32, bool, np.float64)
    columns: list[list[np.ndarray]] = [[] for _ in kinds]
    for (feature, threshold, left, right, missing, value, leaf), first in zip(nodes, before):
        moved = (np.where(leaf, 0, feature), threshold, np.where(leaf, -1, left + first),
                 np.where(leaf, 0, right + first), missing, value)  # fmt: skip
        for column, piece in zip(columns, moved):
            column.append(piece)
    arrays = [
        np.concatenate(column).astype(kind) if column else np.zeros(0, kind) for column, kind in zip(columns, kinds)
    ]
    arrays += [np.asarray(before[:-1], np.int32), np.asarray(output, np.int32), start]
    return Trees(*arrays)
