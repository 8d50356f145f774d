"""Swin: windows that do not see each other, shifted ones that do not see across the seam, every picture size."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.attend import recorded
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.systems.vision.swin import ShiftedWindowAttention, WindowAttention
from tests.parity.swin import against_transformers


def reached(module, grid, place):
    """(H, W) bool: the places whose answer changes when this one place of the grid does."""
    x = torch.randn(1, grid[0] * grid[1], 8, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[0, place[0] * grid[1] + place[1]] += 1
    before, after = (module(Tokens(v, grid=grid)).x for v in (x, other))
    return (before != after).any(-1).view(grid)


@torch.no_grad()
@pytest.mark.parametrize("place", [(0, 0), (1, 5), (2, 2), (7, 7), (6, 1), (9, 11), (0, 11)])
def test_no_place_sees_across_a_border(place):
    """On 10 x 12 places, filled up to 12 x 12, windows of 4 are cut at 4 and 8, shifted ones at 2, 6 and 10, the ring's
    seam among them."""
    for kind, borders in ((WindowAttention, (4, 8)), (ShiftedWindowAttention, (2, 6, 10))):
        module = initialise(kind(8, 2, (4, 4)))
        rows, columns = (torch.bucketize(torch.arange(n), torch.tensor(borders), right=True) for n in (10, 12))
        same = (rows == rows[place[0]])[:, None] & (columns == columns[place[1]])
        assert torch.equal(reached(module, (10, 12), place), same)


@torch.no_grad()
def test_a_side_of_one_window_is_not_shifted():
    module = initialise(ShiftedWindowAttention(8, 2, (4, 4)))
    for place in ((0, 0), (3, 5)):
        seen = reached(module, (4, 8), place)
        # all rows, and those columns that a shifted cut at 2 and 6 leaves together
        assert seen.all(1).sum() == 0 and (seen.any(1)).all()
        assert seen.any(0).nonzero().flatten().tolist() == ([0, 1] if place[1] < 2 else [2, 3, 4, 5])


@pytest.mark.parametrize("size", [(128, 128), (160, 192), (147, 230)])
def test_every_picture_size_agrees_with_transformers(size):
    assert against_transformers(*size) < 1e-5


@torch.no_grad()
def test_the_cost_grows_with_the_picture():
    model = plait.create_model("swin_toy").eval()
    entries = []
    for side in (64, 128):
        watched, maps = recorded(model)
        watched(torch.rand(1, 3, side, side))
        entries.append(sum(m.numel() for m in maps))
    assert entries[1] == 4 * entries[0]
