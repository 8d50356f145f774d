"""MaxViT: one pair of layers connects any two places; a grid is put together as it was taken apart."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.systems.vision.maxvit import GridAttention


@torch.no_grad()
@pytest.mark.parametrize("grid", [(8, 8), (8, 12), (16, 12)])  # a part is at most a window
def test_one_pair_connects_any_two_places_and_neither_alone_does(grid):
    pair = plait.create_model("maxvit_toy").eval().stages[0][0][1].f.blocks
    x = torch.randn(1, grid[0] * grid[1], 16, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[0, -1] = x[0, 0]
    a, b = (Tokens(v, grid=grid) for v in (x, other))
    changed = [(f(a).x != f(b).x).any(-1) for f in (pair[0], pair[1], lambda t: pair[1](pair[0](t)))]
    assert changed[2].all() and 1 < changed[0].sum() <= 16 and 1 < changed[1].sum() <= 16


@torch.no_grad()
def test_a_grid_meets_one_place_of_every_part():
    module = initialise(GridAttention(8, 2, (4, 4)))
    x = torch.randn(1, 96, 8, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[0, 2 * 12 + 5] = x[0, 0]  # row 2, column 5 of 8 x 12: parts of 2 x 3
    seen = (module(Tokens(x, grid=(8, 12))).x != module(Tokens(other, grid=(8, 12))).x).any(-1).view(8, 12)
    rows, columns = torch.arange(8) % 2 == 0, torch.arange(12) % 3 == 2
    assert torch.equal(seen, rows[:, None] & columns)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(8, 8), (6, 10)])
def test_taken_apart_and_put_together_nothing_moves(grid):
    module = initialise(GridAttention(8, 2, (4, 4)))
    module.mix = lambda t, bias: t
    t = Tokens(torch.randn(2, grid[0] * grid[1], 8), grid=grid)
    assert torch.equal(module(t).x, t.x)
