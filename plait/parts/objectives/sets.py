"""The loss of a set of guesses: each true thing is matched to one guess, the cheapest matching of all, and what is left
over is to say nothing (DETR, arXiv:2005.12872).

Guesses are boxes (x, y, w, h) and logits, as `core.roles.Detector` gives them. The truth is (B, M, 5): label, left,
top, right, bottom as shares, NaN where there is no more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.parts.heads.boxes import corners, middles

NOTHING = 0.1  # what a guess of nothing weighs beside one of something
CLASS, EDGE, OVERLAP, FOCAL = 1.0, 5.0, 2.0, 2.0
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union (arXiv:1902.09630) of boxes (..., 4) by their corners: from -1 to 1."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    either = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - both
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return both / either.clamp(min=1e-12) - (hull - either) / hull.clamp(min=1e-12)


@torch.no_grad()
def matched(logits: Tensor, boxes: Tensor, truth: Tensor, exclusive: bool) -> tuple[Tensor, ...]:
    """logits (B, L, Q, K), boxes (B, L, Q, 4), truth (B, M, 5) -> which row, layer, guess and thing belong together,
    (P,) each."""
    from scipy.optimize import linear_sum_assignment  # here: it takes a while to import

    real = ~truth[..., 0].isnan()  # (B, M)
    truth = truth.nan_to_num(0.0)
    label, edges = truth[..., 0].long(), truth[..., 1:]
    if exclusive:
        say = -CLASS * logits.float().softmax(-1)
    else:
        p = logits.float().sigmoid()
        no = (1 - ALPHA) * p**GAMMA * -(1 - p + 1e-8).log()
        say = FOCAL * (ALPHA * (1 - p) ** GAMMA * -(p + 1e-8).log() - no)
    label = label.clamp(max=say.shape[-1] - 1)[:, None, None].expand(*say.shape[:3], -1)
    cost = say.gather(3, label)  # (B, L, Q, M)
    boxes = boxes.float()
    cost = cost + EDGE * (boxes[:, :, :, None] - middles(edges)[:, None, None]).abs().sum(-1)
    cost = cost - OVERLAP * overlap(corners(boxes)[:, :, :, None], edges[:, None, None])
    costs, counts = cost.cpu().numpy(), real.sum(1).cpu().numpy()
    found = []
    for b, row in enumerate(costs):  # real things stand first
        for n, layer in enumerate(row):
            guesses, things = linear_sum_assignment(layer[:, : counts[b]])
            found += [(b, n, q, m) for q, m in zip(guesses, things)]
    pairs = torch.tensor(found, dtype=torch.int64).reshape(-1, 4).to(logits.device)
    return pairs.unbind(1)


def set_losses(
    logits: Tensor, boxes: Tensor, truth: Tensor, exclusive: bool, rows: Tensor | None = None
) -> dict[str, Tensor]:
    """The named losses, summed over layers: logits (B, L, Q, K or K + 1), boxes (B, L, Q, 4), truth (B, M, 5).

    rows: (B,) bool, those that teach; None: all.
    """
    if rows is not None:
        truth = truth.masked_fill(~rows[:, None, None], torch.nan)
    order = truth[..., 0].isnan().int().argsort(dim=1, stable=True)  # real things first
    truth = truth.gather(1, order[..., None].expand_as(truth))
    logits, boxes = logits.float(), boxes.float()
    b, n, q, m = matched(logits, boxes, truth, exclusive)
    things = max(int((~truth[..., 0].isnan()).sum()), 1)
    true = truth[b, m]  # (P, 5)
    mine = boxes[b, n, q]
    edge = (mine - middles(true[:, 1:])).abs().sum()
    apart = (1 - overlap(corners(mine), true[:, 1:])).sum()
    heard = torch.ones_like(logits[..., 0]) if rows is None else rows[:, None, None].expand(logits.shape[:3]).float()
    if exclusive:
        nothing = logits.shape[-1] - 1
        label = torch.full_like(logits[..., 0], nothing, dtype=torch.int64).index_put((b, n, q), true[:, 0].long())
        weight = torch.where(label == nothing, NOTHING, 1.0) * heard
        loss = F.cross_entropy(logits.flatten(0, 2), label.flatten(), reduction="none").view_as(weight)
        said = CLASS * ((loss * weight).sum((0, 2)) / weight.sum((0, 2)).clamp(min=1e-6)).sum()
    else:
        hot = torch.zeros_like(logits)
        hot[b, n, q, true[:, 0].long()] = 1.0
        p = logits.sigmoid()
        loss = F.binary_cross_entropy_with_logits(logits, hot, reduction="none")
        loss = loss * (1 - (p * hot + (1 - p) * (1 - hot))) ** GAMMA * (ALPHA * hot + (1 - ALPHA) * (1 - hot))
        said = FOCAL * (loss * heard[..., None]).sum() / things
    return {"classes": said, "edges": EDGE * edge / things, "overlap": OVERLAP * apart / things}
