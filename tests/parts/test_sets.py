"""The loss of a set: the matching is the cheapest of all, the numbers are transformers', and padding says nothing."""

from __future__ import annotations

import itertools

import pytest
import torch

from plait.parts.heads.boxes import corners, middles
from plait.parts.objectives.sets import matched, overlap, set_losses
from tests.peers import declare_torchvision

LABELS = 4


def guesses(rows: int = 3, layers: int = 2, queries: int = 5, extra: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, layers, queries, LABELS + extra, generator=g).requires_grad_()
    return logits, (0.2 + 0.5 * torch.rand(rows, layers, queries, 4, generator=g)).requires_grad_()


def truth() -> torch.Tensor:
    """Three things, none, and one; (3, 3, 5)."""
    g = torch.Generator().manual_seed(1)
    boxes = corners(0.2 + 0.3 * torch.rand(3, 3, 4, generator=g))
    label = torch.tensor([[0.0, 3, 0], [1, 1, 1], [2, 2, 2]])
    x = torch.cat([label[..., None], boxes], 2)
    return x.masked_fill(torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 1]]).bool()[..., None], torch.nan)


def theirs(logits, boxes, exclusive: bool) -> float:
    """transformers' loss, weighed as the papers weigh it."""
    declare_torchvision()
    from transformers.loss import loss_deformable_detr as focal
    from transformers.loss import loss_for_object_detection as soft

    targets = [{"class_labels": t[~t[:, 0].isnan(), 0].long(), "boxes": middles(t[~t[:, 0].isnan(), 1:])}
               for t in truth()]  # fmt: skip
    if exclusive:
        matcher = soft.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
        criterion = soft.ImageLoss(matcher, LABELS, 0.1, ["labels", "boxes"])
        weights = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
    else:
        matcher = focal.DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
        criterion = focal.DeformableDetrImageLoss(matcher, LABELS, 0.25, ["labels", "boxes"])
        weights = {"loss_ce": 2, "loss_bbox": 5, "loss_giou": 2}
    total = 0.0
    for n in range(logits.shape[1]):
        found = criterion({"logits": logits[:, n], "pred_boxes": boxes[:, n]}, targets)
        total += sum(weights[k] * float(found[k].detach()) for k in weights)
    return total


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_loss_is_transformers(exclusive: bool) -> None:
    logits, boxes = guesses(extra=int(exclusive))
    mine = sum(set_losses(logits, boxes, truth(), exclusive).values())
    assert float(mine.detach()) == pytest.approx(theirs(logits, boxes, exclusive), rel=1e-5)


def test_overlap_is_torchvisions() -> None:
    declare_torchvision()
    from torchvision.ops import generalized_box_iou

    a, b = (corners(torch.rand(n, 4, generator=torch.Generator().manual_seed(n)) + 0.01) for n in (6, 9))
    torch.testing.assert_close(overlap(a[:, None], b[None]), generalized_box_iou(a, b))


def test_the_matching_is_the_cheapest() -> None:
    logits, boxes = guesses(rows=1, layers=1)
    x = truth()[:1]
    _, _, q, m = matched(logits, boxes, x, True)
    assert sorted(m.tolist()) == [0, 1, 2]

    boxes = boxes.detach()

    def cost(chosen) -> float:
        p = logits.detach()[0, 0].softmax(-1)
        return sum(
            float(-p[i, int(t[0])] + 5 * (boxes[0, 0, i] - middles(t[1:])).abs().sum()
                  - 2 * overlap(corners(boxes[0, 0, i]), t[1:]))
            for i, t in zip(chosen, x[0])
        )  # fmt: skip

    best = min(itertools.permutations(range(5), 3), key=cost)
    assert [int(q[m == i]) for i in range(3)] == list(best)


def test_more_things_than_guesses_padding_and_rows_that_do_not_teach() -> None:
    logits, boxes = guesses(queries=2)
    assert all(v.isfinite() for v in set_losses(logits, boxes, truth(), True).values())
    logits, boxes = guesses()
    x = truth()
    turned = x.flip(1)  # padding first
    for exclusive, given in ((True, logits), (False, logits[..., :LABELS])):
        a, b = (set_losses(given, boxes, t, exclusive) for t in (x, turned))
        assert all(torch.allclose(a[k], b[k], rtol=1e-6) for k in a)
    some = torch.tensor([True, False, False])
    grads = torch.autograd.grad(sum(set_losses(logits, boxes, x, True, some).values()), (logits, boxes))
    assert all(g[0].abs().sum() > 0 and not g[1:].any() for g in grads)
