"""Twins: windows talk through the summaries of every second layer; positions are the generator of CPVT."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.attend import recorded
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.parts.positions.conditional import ConditionalPositions
from tests.parity.compare import relative_error
from tests.peers import declare_torchvision


@torch.no_grad()
def test_a_window_hears_of_the_others_in_the_next_layer():
    first, second = plait.create_model("twins_toy", window=4).eval().stages[0][1].f.blocks
    x = torch.randn(1, 256, 8, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[0, 0] = x[0, 1]
    a, b = (first.mix(Tokens(v, grid=(16, 16))) for v in (x, other))
    assert (a.x != b.x).any(-1).view(16, 16).nonzero().max() == 3
    assert (second.mix(a).x != second.mix(b).x).any(-1).all()


def test_global_layers_ask_one_summary_of_each_patch():
    model = plait.create_model("twins_toy").eval()
    watched, maps = recorded(model)
    watched(torch.rand(1, 3, 32, 32))
    assert [m.shape[2:] for m in maps] == [(4, 4), (256, 16), (4, 4), (64, 16), (4, 4), (4, 4), (4, 4)]


@torch.no_grad()
@pytest.mark.parametrize("grid", [(7, 7), (5, 9)])
def test_positions_are_those_of_timm(grid):
    declare_torchvision()
    from timm.models.twins import PosConv

    theirs, ours = PosConv(6, 6).eval(), initialise(ConditionalPositions(6)).eval()
    ours.conv.load_state_dict(theirs.proj[0].state_dict())
    x = torch.randn(2, grid[0] * grid[1], 6, generator=torch.Generator().manual_seed(0))
    assert relative_error(ours(Tokens(x, grid=grid)).x, theirs(x, grid)) < 1e-6
