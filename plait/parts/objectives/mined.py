"""The objective of a text that asks, among all answers of a batch and others that were mined to mislead it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plait.parts.objectives.late import PLAIN, Late


def mined(
    a: Tensor,
    b: Tensor,
    wrong: Tensor,
    logit_scale: Tensor,
    same: Tensor,
    present: Tensor,
    may: Tensor,
    compare: Late = PLAIN,
) -> dict[str, Tensor]:
    """Each row of `a` must find its own row of `b` among all of these and all that is wrong (arXiv:2010.08191).

    a, b: (B, E) unit vectors, row i of one belongs to row i of the other. wrong: (M, E) unit vectors of what answers
    none, or not the row that it was mined for; a row may find each of them. logit_scale: (1,), the logarithm of the
    scores' factor, clamped at log 100. same: (B, B) bool, pairs (i, j) where b_j is as right for a_i as its own: they
    share its target evenly. present: (B,) bool, rows with both sides; the others neither ask nor answer. may: (B, M)
    bool, what can be wrong for which row: not what is absent, nor what is an answer to it. compare(a, b) -> (B, B), the
    product unless given.

    Returns {"mined": ()}; 0 where no row is present. Answers do not look for who asks. Scores are float32.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, factor = a.float(), logit_scale.float().clamp(max=math.log(100)).exp()
        scores = factor * torch.cat([compare(a, b.float()), compare(a, wrong.float())], 1)  # (B, B + M)
    right = (same | torch.eye(len(a), dtype=torch.bool, device=a.device)) & present
    seen = torch.cat([present.expand(len(a), -1), may], 1)
    log = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).log_softmax(1)[:, : len(a)]
    loss = -log.masked_fill(~right, 0.0).sum(1) / right.sum(1).clamp(min=1)
    return {"mined": loss.masked_fill(~present, 0.0).sum() / present.sum().clamp(min=1)}
