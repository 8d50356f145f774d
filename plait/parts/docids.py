"""Names of texts by which a model can find them: those of like texts begin alike."""

from __future__ import annotations

import numpy as np

from plait.errors import PlaitError


def semantic_ids(vectors: np.ndarray, *, branch: int = 10, leaf: int = 100, seed: int = 0) -> list[str]:
    """Of n vectors (n, E) as many different names, such as "4 0 17": the clusters that each lies in, coarse first, and
    its number in the last one (DSI, Tay et al. 2022, arXiv:2202.06991, section 3.2).

    k-means parts vectors in `branch` clusters, and again each that has more than `leaf`. Vectors that are all the same
    are parted by their order. Raises PlaitError for what is no matrix of finite numbers.
    """
    vectors = np.asarray(vectors, np.float64)
    if vectors.ndim != 2 or not len(vectors) or not np.isfinite(vectors).all():
        raise PlaitError(f"got {vectors.shape}, expected vectors (n, E) of finite numbers")
    if branch < 2 or leaf < 1:
        raise PlaitError(f"got branch={branch} and leaf={leaf}, expected at least 2 and 1")
    names = [""] * len(vectors)
    _name(vectors, np.arange(len(vectors)), "", names, branch, leaf, seed)
    return names


def _name(vectors: np.ndarray, rows: np.ndarray, before: str, names: list[str], branch: int, leaf: int, seed: int):
    if len(rows) <= leaf:
        for number, row in enumerate(rows):
            names[row] = f"{before}{number}"
        return
    for number, part in enumerate(_parted(vectors[rows], branch, seed)):
        if len(part):
            _name(vectors, rows[part], f"{before}{number} ", names, branch, leaf, seed)


def _parted(vectors: np.ndarray, branch: int, seed: int) -> list[np.ndarray]:
    from sklearn.cluster import KMeans

    if len(np.unique(vectors, axis=0)) >= branch:
        found = KMeans(branch, n_init=1, random_state=seed).fit_predict(vectors)
        return [np.flatnonzero(found == k) for k in range(branch)]
    return np.array_split(np.lexsort(vectors.T[::-1]), branch)  # hardly any that differ: like ones stay together
