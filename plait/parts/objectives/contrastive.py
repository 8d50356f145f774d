"""The contrastive objective of two towers, and which rows of a batch are no negatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plait.parts.objectives.late import PLAIN, Late


def contrastive(
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor,
    same: Tensor | None = None,
    present: Tensor | None = None,
    compare: Late = PLAIN,
) -> dict[str, Tensor]:
    """Symmetric InfoNCE (arXiv:2103.00020): each row of `a` must find its own row of `b` in the batch, and the other
    way round.

    a, b: (B, E) unit vectors, row i of one belongs to row i of the other. logit_scale: (1,), the logarithm of the
    scores' factor, clamped at log 100. same: (B, B) bool, pairs (i, j) where b_j is as right for a_i as its own:
    duplicates in a batch are no negatives, and a row's target is shared evenly among all that are right. present: (B,)
    bool, rows with both sides; the others neither ask nor answer. compare(a, b) -> (B, B), the product unless given.

    Returns {"contrastive": the mean of both directions}; 0 where no row is present. Scores are float32 whatever the
    inputs' type.
    """
    with torch.autocast(a.device.type, enabled=False):
        factor = logit_scale.float().clamp(max=math.log(100)).exp()
        if compare.views == 1:  # the factor on the vectors: there are fewer of them than of scores
            scores = compare(factor * a.float(), b.float())  # (B, B)
        else:
            scores = factor * compare(a.float(), b.float())
        asked = scores if present is None else scores.masked_fill(~present, torch.finfo(scores.dtype).min)
        other = scores if present is None else scores.masked_fill(~present[:, None], torch.finfo(scores.dtype).min)
        every = asked.logsumexp(1) + other.logsumexp(0)  # (B,) of both directions
        if same is None:
            every = every - 2 * scores.diagonal()
        else:
            every = every - _right(scores, same, present)
        if present is None:
            return {"contrastive": every.mean() / 2}
        return {"contrastive": every.masked_fill(~present, 0.0).sum() / present.sum().clamp(min=1) / 2}


def _right(scores: Tensor, same: Tensor, present: Tensor | None) -> Tensor:
    """(B,): the mean score of what is right for each row of a, and that for each of b."""
    right = same | torch.eye(len(same), dtype=torch.bool, device=same.device)
    if present is not None:
        right = right & present & present[:, None]
    found = scores.masked_fill(~right, 0.0)
    return found.sum(1) / right.sum(1).clamp(min=1) + found.sum(0) / right.sum(0).clamp(min=1)


def same_content(x: Tensor) -> Tensor:
    """(B, B) bool: which rows of a slot (B, ...) have the same content; these are never each other's negatives."""
    flat = x.flatten(1)
    if flat.is_floating_point():  # equal rows have equal sums, and few others do
        flat = torch.stack([flat.sum(1), (flat * torch.linspace(0, 1, flat.shape[1], device=x.device)).sum(1)], 1)
    elif flat.shape[1] > 2:  # so have whole numbers, times odd ones and round 2 ** 64, without all rows beside all
        odd = torch.arange(1, flat.shape[1] + 1, device=x.device)
        for factor in MIXED:
            odd = odd * factor
            odd = odd ^ (odd >> 29)
        flat = (flat.long() * (odd | 1)).sum(1, keepdim=True)
    return (flat[:, None] == flat[None]).all(-1)


MIXED = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB)  # of splitmix64, as far as they fit
