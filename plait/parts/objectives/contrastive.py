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
    n = a.shape[0]
    right = torch.eye(n, dtype=torch.bool, device=a.device)
    if same is not None:
        right = right | same
    there = torch.ones(n, dtype=torch.bool, device=a.device) if present is None else present
    with torch.autocast(a.device.type, enabled=False):
        scores = logit_scale.float().clamp(max=math.log(100)).exp() * compare(a.float(), b.float())  # (B, B)
        loss = (_match(scores, right, there) + _match(scores.mT, right.mT, there)) / 2
    return {"contrastive": loss}


def _match(scores: Tensor, right: Tensor, there: Tensor) -> Tensor:
    """Mean over the rows that are there of the cross-entropy to an even distribution over what is right."""
    right = right & there
    log = scores.masked_fill(~there, torch.finfo(scores.dtype).min).log_softmax(1)
    loss = -(log.masked_fill(~right, 0.0).sum(1) / right.sum(1).clamp(min=1))  # (B,)
    return loss.masked_fill(~there, 0.0).sum() / there.sum().clamp(min=1)


def same_content(x: Tensor) -> Tensor:
    """(B, B) bool: which rows of a slot (B, ...) have the same content; these are never each other's negatives."""
    flat = x.flatten(1)
    if flat.is_floating_point():  # equal rows have equal sums, and few others do
        flat = torch.stack([flat.sum(1), (flat * torch.linspace(0, 1, flat.shape[1], device=x.device)).sum(1)], 1)
    return (flat[:, None] == flat[None]).all(-1)
