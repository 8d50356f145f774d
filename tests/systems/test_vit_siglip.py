"""SigLIP's tower in small: whose positions patches get, and what is not seen."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.tokens import Tokens
from plait.parts.positions.learned import GridPositions, OwnGridPositions


@pytest.fixture(scope="module")
def native():
    return plait.create_model("vit_siglip_toy", native=True).eval()


@torch.no_grad()
@pytest.mark.parametrize("side", [4, 27, 70])
def test_own_positions_are_the_learned_ones_on_the_learned_grid(side):
    own, grid = OwnGridPositions((side, side), 1), GridPositions((side, side), 1)
    own.table.copy_(torch.arange(side**2.0)[None, :, None])
    grid.table.copy_(own.table)
    t = Tokens(torch.zeros(1, side**2, 1), grid=(side, side))
    assert torch.equal(own(t).x, grid(t).x)


@torch.no_grad()
def test_a_patch_gets_the_position_of_where_it_lies_in_its_own_picture():
    made = OwnGridPositions((4, 4), 1)
    made.table.copy_(torch.arange(16.0)[None, :, None])
    keep = torch.zeros(3, 3, 8, dtype=torch.bool)
    keep[0, :2, :8] = keep[1, :1, :2] = True  # of two by eight patches; of one by two; of none
    got = made(Tokens(torch.zeros(3, 24, 1), keep=keep.flatten(1), grid=(3, 8))).x.unflatten(1, (3, 8))[..., 0]
    assert got[0, :2].tolist() == [[0, 0, 1, 1, 2, 2, 3, 3], [8, 8, 9, 9, 10, 10, 11, 11]]
    assert got[1, :1, :2].tolist() == [[0, 2]]


@torch.no_grad()
def test_padded_pixels_are_not_seen(native):
    x = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    keep = torch.ones(2, 32, 40, dtype=torch.bool)
    keep[1, 20:] = keep[1, :, 33:] = False  # 16 rows and 32 columns are whole patches
    dirty = torch.where(keep[:, None], x, torch.nan)
    dirty[1, :, 16:20] = 7.0  # real, but of no whole patch
    got = native(dirty, keep)
    torch.testing.assert_close(got[:1], native(x[:1]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[1:], native(x[1:, :, :16, :32]), rtol=1e-5, atol=1e-5)
