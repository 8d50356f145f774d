"""The contrastive objective against open_clip, and what it adds: duplicates and absent rows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from plait.parts.objectives.contrastive import contrastive
from tests.peers import declare_torchvision


def vectors(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_equals_open_clip_without_duplicates():
    declare_torchvision()
    from open_clip.loss import ClipLoss

    a, b, scale = (
        vectors(9, 0).requires_grad_(),
        vectors(9, 1).requires_grad_(),
        torch.tensor([math.log(14.0)], requires_grad=True),
    )
    ours, theirs = contrastive(a, b, scale)["contrastive"], ClipLoss()(a, b, scale.exp())
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for x, y in zip(torch.autograd.grad(ours, [a, b, scale]), torch.autograd.grad(theirs, [a, b, scale])):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_duplicates_are_no_negatives():
    """Rows 0 and 3 are the same pair: each row's target is half one, half the other, whichever of the two a score
    belongs to."""
    a, b, scale = vectors(5, 0), vectors(5, 1), torch.tensor([3.0])
    a[3], b[3] = a[0], b[0]
    same = torch.eye(5, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    scores = scale.exp() * a @ b.T
    target = same.float() / same.sum(1, keepdim=True)
    expected = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
    torch.testing.assert_close(contrastive(a, b, scale, same)["contrastive"], expected)
    # A perfect model of a batch with duplicates can do no better than the entropy of the even choice.
    perfect = F.one_hot(torch.tensor([0, 1, 2, 0, 4]), 16).float()
    best = contrastive(perfect, perfect, torch.tensor([9.0]), same)["contrastive"]
    torch.testing.assert_close(best, torch.tensor(2 / 5 * math.log(2)), rtol=1e-4, atol=1e-4)


def test_same_may_hold_in_one_direction_only():
    """One picture with two captions: the mask is read by rows for a, by columns for b."""
    a, b, scale = vectors(4, 0), vectors(4, 1), torch.tensor([2.0])
    same = torch.eye(4, dtype=torch.bool)
    same[1, 2] = True
    scores = scale.exp() * a @ b.T
    expected = (
        F.cross_entropy(scores, same / same.sum(1, keepdim=True))
        + F.cross_entropy(scores.T, same.T / same.T.sum(1, keepdim=True))
    ) / 2
    torch.testing.assert_close(contrastive(a, b, scale, same)["contrastive"], expected)


def test_absent_rows_neither_ask_nor_answer():
    a, b, scale = vectors(6, 0), vectors(6, 1), torch.tensor([3.0])
    present = torch.tensor([True, False, True, True, False, True])
    holed_a, holed_b = a.clone(), b.clone()
    holed_a[1], holed_b[4] = 0.0, 0.0
    expected = contrastive(a[present], b[present], scale)["contrastive"]
    torch.testing.assert_close(contrastive(holed_a, holed_b, scale, present=present)["contrastive"], expected)

    a.requires_grad_()
    contrastive(a, b, scale, present=present)["contrastive"].backward()
    assert a.grad.isfinite().all() and not a.grad[~present].any()
    nobody = contrastive(a, b, scale, present=torch.zeros(6, dtype=torch.bool))["contrastive"]
    assert nobody.item() == 0.0


def test_scores_are_float32_and_the_scale_is_clamped():
    a, b = vectors(8, 0), vectors(8, 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive(a, b, torch.tensor([3.0]))["contrastive"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, contrastive(a, b, torch.tensor([3.0]))["contrastive"], rtol=0, atol=0)
    huge = contrastive(a, b, torch.tensor([9.0]))["contrastive"]
    torch.testing.assert_close(huge, contrastive(a, b, torch.tensor([math.log(100)]))["contrastive"])
