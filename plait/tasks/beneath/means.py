"""The target's means by category, which trees read in place of many levels."""

from __future__ import annotations

import numpy as np

from plait.tasks.beneath.asked import Asked, Labels, Number


def encoded(
    x: np.ndarray, ids: np.ndarray | None, y: np.ndarray, asked: Asked, seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """x with the target's means by category, which are of other folds, and how often each occurs; and both of all rows
    for later ones, (levels + 1, C) a column, the last for a level never seen."""
    if ids is None:
        return x, []
    often = [np.append(np.bincount(column), 0)[:, None].astype(np.float32) for column in ids.T]
    if isinstance(asked, Labels) or asked.outputs > 12:
        return with_means(x, ids, often), often
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import TargetEncoder

    kind = "continuous" if isinstance(asked, Number) else "binary" if len(np.unique(y)) == 2 else "multiclass"
    encoder = TargetEncoder(target_type=kind, cv=KFold(5, shuffle=True, random_state=seed))
    means = encoder.fit_transform(ids, y).astype(np.float32)  # (n, C x columns), by column
    width, tables = means.shape[1] // ids.shape[1], []
    for i, levels in enumerate(encoder.categories_):
        table = np.tile(np.atleast_1d(encoder.target_mean_).astype(np.float32), (len(often[i]), 1))
        for k in range(width):
            table[levels.astype(int), k] = encoder.encodings_[i * width + k]
        tables.append(np.concatenate([table, often[i]], 1))
    columns = [
        np.concatenate([means[:, i * width : (i + 1) * width], often[i][ids[:, i]]], 1) for i in range(ids.shape[1])
    ]
    return np.concatenate([x.reshape(len(ids), -1), *columns], 1), tables


def with_means(x: np.ndarray, ids: np.ndarray | None, tables: list[np.ndarray]) -> np.ndarray:
    if ids is None or not tables:
        return x
    found = [table[np.minimum(ids[:, i], len(table) - 1)] for i, table in enumerate(tables)]
    return np.concatenate([x.reshape(len(ids), -1), *found], 1).astype(np.float32)
