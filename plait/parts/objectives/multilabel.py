"""Losses of two encoders where a text that asks has several right answers (arXiv:2310.10636)."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.errors import PlaitError

STEPS, EDGE = 50, 40.0  # halvings of the interval in which the threshold lies, as far beyond all scores as that
MOST = 0.999


def decoupled_softmax(scores: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    """Each right answer against the wrong ones alone: the other right ones are left out of its denominator, so that
    none is pushed away by another. With one right answer it is InfoNCE.

    scores (B, M); right, wrong (B, M) bool: what is neither says nothing. Returns () in float32: the mean over the
    right answers of a row, then over the rows that have one; 0 where none has.
    """
    scores = scores.float()
    against = scores.masked_fill(~wrong, torch.finfo(scores.dtype).min)
    bottom = torch.logaddexp(scores, against.logsumexp(1, keepdim=True))  # (B, M): each with all wrong ones
    return _mean(bottom - scores, right)


def soft_topk(scores: Tensor, k: float, there: Tensor | None = None) -> Tensor:
    """A soft answer to which are the k greatest: sigmoids of the scores (B, M) less a threshold of each row, at which
    they add up to k. there (B, M) bool: the others are 0. Gradients are those of the implicit threshold.

    In a row with no more than k scores that are there, all nearly are: they add up to `MOST` of their number. Raises
    PlaitError where k is not above 0.
    """
    if k <= 0:
        raise PlaitError(f"k: got {k}, expected a number above 0")
    x = scores if there is None else scores.masked_fill(~there, float("-inf"))
    with torch.no_grad():
        known = scores if there is None else torch.where(there, scores, scores.mean())
        count = x.new_tensor(x.shape[1]) if there is None else there.sum(1, keepdim=True).to(x.dtype)
        aim = (MOST * count).clamp(max=k)
        low, high = -known.amax(1, keepdim=True) - EDGE, -known.amin(1, keepdim=True) + EDGE
        for _ in range(STEPS):
            middle = (low + high) / 2
            few = (x + middle).sigmoid().sum(1, keepdim=True) < aim
            low, high = torch.where(few, middle, low), torch.where(few, high, middle)
        t = (low + high) / 2
        slope = _slope(x + t).sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    # a step of Newton's, of which the gradient is that of the threshold as a function of the scores
    t = t - ((x + t).sigmoid().sum(1, keepdim=True) - aim) / slope
    return (x + t).sigmoid()


def _slope(x: Tensor) -> Tensor:
    y = x.sigmoid()
    return y * (1 - y)


def soft_topk_loss(scores: Tensor, right: Tensor, there: Tensor, k: float) -> Tensor:
    """How far the right answers are from being among the k greatest: minus the logarithm of `soft_topk`, the mean over
    a row's right answers, then over the rows that have one. scores (B, M); right, there (B, M) bool."""
    found = soft_topk(scores.float(), k, there).clamp(min=1e-12)
    return _mean(-found.log(), right)


def _mean(cost: Tensor, right: Tensor) -> Tensor:
    """() of (B, M)."""
    rows = cost.masked_fill(~right, 0.0).sum(1) / right.sum(1).clamp(min=1)
    return rows.sum() / right.any(1).sum().clamp(min=1)


def asked(ask: Tensor, answer: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """What a batch of pairs says of each other's answers: right and wrong (B, M), M = B.

    ask, answer (B, B) bool: rows whose asking, or answering, content is alike. same (B,): groups of rows that a chain
    of alike contents joins; row i is never wrong for one of its group. An answer that stands in several rows counts
    once.
    """
    right = (ask.float() @ answer.float()) > 0
    first = ~answer.tril(-1).any(1)  # the first row of its content
    return right & first, ~right & (same[:, None] != same) & first
