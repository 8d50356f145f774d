"""Retrieval metrics. Scores are worked through in blocks of queries, so that 20,000 x 20,000 of them never stand in
memory at once.

Ties: items with the same score stand in random order, and a right item counts at the place where it is expected. Among
t wrong and p right items with one score, below h better items, the j-th right one has the expected rank h + j (t + p +
1) / (p + 1). A model that
scores everything alike so gets the middle rank, and no hit at small k: ties never help."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plait.errors import PlaitError
from plait.evaluate.intervals import Score, Z, finite, mean_score, proportion

KS = (1, 5, 10)
BLOCK = 4_000_000  # scores in memory at a time


class Ranks(NamedTuple):
    """Per query: the expected rank of the first right item, from 1, and the average precision over all right items."""

    first: np.ndarray  # (Q,)
    precision: np.ndarray  # (Q,)


def retrieval_rows(
    scores: np.ndarray | tuple[np.ndarray, np.ndarray], positives: tuple[np.ndarray, np.ndarray]
) -> Ranks:
    """Ranks of the right items; arguments and errors as in `retrieval`."""
    query_ids, item_ids = _ids(positives)
    pair = isinstance(scores, (tuple, list))
    shape = (len(scores[0]), len(scores[1])) if pair else np.shape(scores)
    if shape != (len(query_ids), len(item_ids)):
        raise PlaitError(
            f"got scores for (queries, items) = {tuple(shape)} and {len(query_ids)} query ids, {len(item_ids)} item "
            "ids; "
            "expected one id for each query and each item"
        )
    if pair:
        queries, items = (_float32(part, what) for part, what in zip(scores, ("the query vectors", "the item vectors")))
        if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
            raise PlaitError(f"got vectors {queries.shape} and {items.shape}, expected (queries, D) and (items, D)")
    order = np.argsort(item_ids, kind="stable")
    starts, ends = (np.searchsorted(item_ids[order], query_ids, side) for side in ("left", "right"))
    Q, count = shape
    first, precision = np.empty(Q), np.empty(Q)
    step = max(1, BLOCK // count)
    for start in range(0, Q, step):
        rows = slice(start, min(start + step, Q))
        block = queries[rows] @ items.T if pair else np.asarray(scores[rows])
        finite(block, "the scores")
        ranked = np.sort(block, axis=1)
        for q in range(rows.start, rows.stop):
            right = np.sort(block[q - start, order[starts[q] : ends[q]]])[::-1]  # best first
            ranks = _expected_ranks(ranked[q - start], right)
            first[q], precision[q] = ranks[0], np.mean(np.arange(1, len(ranks) + 1) / ranks)
    return Ranks(first, precision)


def _expected_ranks(ranked: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Expected rank of each right item; ranked (I,) all scores, ascending, right (p,) those of the right items,
    descending."""
    upto = np.searchsorted(ranked, right, "right")
    tied = upto - np.searchsorted(ranked, right, "left")
    mirrored = -right  # ascending, as searchsorted wants it
    before = np.searchsorted(mirrored, mirrored, "left")
    friends = np.searchsorted(mirrored, mirrored, "right") - before
    place = np.arange(1, len(right) + 1) - before  # 1 for the first of a tie's right items
    return len(ranked) - upto + place * (tied + 1) / (friends + 1)


def retrieval(
    scores: np.ndarray | tuple[np.ndarray, np.ndarray], positives: tuple[np.ndarray, np.ndarray]
) -> list[Score]:
    """recall@1 (main), recall@5, recall@10, median rank, mean average precision.

    scores: similarities (Q, I), or the pair (queries (Q, D), items (I, D)) whose dot products they are. positives: the
    pair (query ids (Q,), item ids (I,)) of integers; an item with the query's id is a right answer. recall@k is the
    share of queries with a right item among the first k. Raises ValueError for shapes that disagree, NaN (with their
    count) and queries without a right item."""
    ranks = retrieval_rows(scores, positives)
    n = len(ranks.first)
    ordered = np.sort(ranks.first)
    middle, half = n / 2, Z * np.sqrt(n) / 2  # the order statistics that enclose the median, whatever the distribution
    low, high = ordered[max(0, int(np.floor(middle - half)) - 1)], ordered[min(n - 1, int(np.ceil(middle + half)))]
    return [
        *(proportion(f"recall@{k}", ranks.first <= k) for k in KS),
        Score("median rank", float(np.median(ordered)), float(low), float(high), n, "lower"),
        mean_score("mean average precision", ranks.precision, "higher"),
    ]


def retrieval_chance(query_ids: np.ndarray, item_ids: np.ndarray) -> dict[str, float]:
    """What a random order of the items scores, exactly, under the names that `retrieval` gives.

    recall@k and mean average precision are expected values; median rank is the median of all queries' ranks of the
    first right item."""
    query_ids, item_ids = _ids((query_ids, item_ids))
    names, sizes = np.unique(item_ids, return_counts=True)
    right, queries = np.unique(sizes[np.searchsorted(names, query_ids)], return_counts=True)
    count, share = len(item_ids), queries / queries.sum()
    steps = np.arange(count)
    reached = np.zeros(count)  # the share of queries whose first right item stands at rank 1..r
    for p, weight in zip(right, share):
        reached += weight * (1 - np.cumprod(np.maximum(count - p - steps, 0) / (count - steps)))
    chance = {f"recall@{k}": float(reached[min(k, count) - 1]) for k in KS}
    lower, upper = (int(np.argmax(reached > 0.5 + side)) + 1 for side in (-1e-9, 1e-9))
    chance["median rank"] = (lower + upper) / 2
    harmonic = float(np.sum(1 / (steps + 1)))
    rest = (count - harmonic) / max(count - 1, 1)
    chance["mean average precision"] = float(np.sum(share * (harmonic + (right - 1) * rest)) / count)
    return chance


def _ids(positives: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    query_ids, item_ids = (np.asarray(ids) for ids in positives)
    for ids, what in ((query_ids, "query"), (item_ids, "item")):
        if ids.ndim != 1 or len(ids) == 0 or not np.issubdtype(ids.dtype, np.integer):
            raise PlaitError(
                f"got {what} ids of shape {ids.shape} and type {ids.dtype}, expected integers (n,) with n >= 1"
            )
    lost = int(np.count_nonzero(~np.isin(query_ids, item_ids)))
    if lost:
        raise PlaitError(
            f"got {lost} of {len(query_ids)} queries without a right item, expected at least one each; "
            "leave these queries out"
        )
    return query_ids, item_ids


def _float32(values: np.ndarray, what: str) -> np.ndarray:
    finite(values, what)
    return np.asarray(values, dtype=np.float32)
