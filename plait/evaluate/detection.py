"""Average precision of boxes, as COCO defines it: per label and overlap, guesses in the order of their scores,
precision read off at 101 recalls, at most 100 guesses of a label in a picture; the mean over labels that there are.
Held to pycocotools in tests.

A picture's truth is (m, 5): label, left, top, right, bottom; its guesses (g, 6): the same and a score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plait.evaluate.intervals import Score, bounded, draw_weights, mean_score

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # guesses of a label in a picture
SURE = 0.5  # a guess with less is not counted as one where guesses are counted
DRAWS = 200  # bootstrap samples of pictures
SCORES = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}


def unions(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(g, m): intersection over union of boxes (g, 4) and (m, 4), by their corners."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    both = sides.clip(min=0).prod(2)
    return both / ((a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1)[None] - both)


def hits(guesses: np.ndarray, truth: np.ndarray, overlaps: np.ndarray) -> np.ndarray:
    """(g, T) bool: which guesses (g, 4), the surest first, find a box of truth (m, 4) that no surer one took."""
    found = np.zeros((len(guesses), len(overlaps)), bool)
    if not len(truth):
        return found
    iou, taken, at = unions(guesses, truth), np.zeros((len(overlaps), len(truth)), bool), np.arange(len(overlaps))
    for g in np.flatnonzero(iou.max(1) >= overlaps[0]):
        free = np.where(taken, -1.0, iou[g])  # (T, m)
        best = free.shape[1] - 1 - free[:, ::-1].argmax(1)  # of equal ones the last
        found[g] = free[at, best] >= overlaps
        taken[at[found[g]], best[found[g]]] = True
    return found


class Curves:
    """Everything that precisions need: for each label the scores of all guesses, which of them hit, and whose they
    are."""

    def __init__(self, truth: Sequence[np.ndarray], guesses: Sequence[np.ndarray]):
        overlaps = np.minimum(OVERLAPS, 1 - 1e-10)
        self.pictures, self.labels = len(truth), []
        truth = [np.asarray(t, np.float64) for t in truth]
        guesses = [np.asarray(g, np.float64) for g in guesses]
        guesses = [g[np.argsort(-g[:, 5], kind="stable")] for g in guesses]
        for label in sorted({float(v) for t in truth for v in t[:, 0]}):
            real = [t[t[:, 0] == label, 1:] for t in truth]
            mine = [g[g[:, 0] == label][:MOST] for g in guesses]
            found = np.concatenate([hits(g[:, 1:5], t, overlaps) for g, t in zip(mine, real)])
            score, whose = np.concatenate([g[:, 5] for g in mine]), np.repeat(np.arange(len(mine)), [*map(len, mine)])
            order = np.argsort(-score, kind="mergesort")
            self.labels.append((np.asarray([len(t) for t in real]), found[order].T, whose[order]))

    def precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(K, T) average precisions, NaN of a label that is nowhere; weights (n,): how often each picture counts."""
        weights = np.ones(self.pictures) if weights is None else weights
        out = np.full((len(self.labels), len(OVERLAPS)), np.nan)
        for k, (counts, found, whose) in enumerate(self.labels):
            things, w = float(counts @ weights), weights[whose]
            if things:
                right = np.cumsum(found * w, 1)
                all_ = np.cumsum(w)
                recall, precision = right / things, right / (all_ + np.spacing(1))
                precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
                for t in range(len(OVERLAPS)):
                    at = np.searchsorted(recall[t], RECALLS, side="left")
                    out[k, t] = np.append(precision[t], 0.0)[at].mean()
        return out


def average_precision(truth: Sequence[np.ndarray], guesses: Sequence[np.ndarray]) -> dict[str, float]:
    """AP over all overlaps, AP50 and AP75."""
    found = Curves(truth, guesses).precision()
    return {name: _mean(found[:, part]) for name, part in SCORES.items()}


def detection(truth: Sequence[np.ndarray], guesses: Sequence[np.ndarray], seed: int = 0) -> list[Score]:
    """AP50, AP, AP75 with intervals by drawing pictures, and the mean F1 of pictures."""
    curves, n = Curves(truth, guesses), len(truth)
    whole = curves.precision()
    draws = [curves.precision(w) for block in draw_weights(n, seed, DRAWS) for w in block]
    scores = [
        bounded(name, _mean(whole[:, part]), np.asarray([_mean(d[:, part]) for d in draws]), n)
        for name, part in SCORES.items()
    ]
    return [*sorted(scores, key=lambda s: s.name != "AP50"), mean_score("F1", f1_rows(truth, guesses), "higher", seed)]


def f1_rows(truth: Sequence[np.ndarray], guesses: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) of each picture: F1 of the guesses of at least 0.5 that overlap a thing of their label by half; 1 where
    there is nothing and nothing is guessed."""
    out = np.ones(len(truth))
    for i, (real, mine) in enumerate(zip(truth, guesses)):
        mine = mine[mine[:, 5] >= SURE]
        mine, right = mine[np.argsort(-mine[:, 5], kind="stable")], 0
        for label in np.unique(real[:, 0]):
            same = mine[mine[:, 0] == label]
            right += int(hits(same[:, 1:5], real[real[:, 0] == label, 1:], OVERLAPS[:1]).sum())
        if len(real) + len(mine):
            out[i] = 2 * right / (len(real) + len(mine))
    return out


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else 0.0
