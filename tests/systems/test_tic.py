"""TiC: a kernel of attention is masked dense attention, moves with the picture and reads any size; rolled channels come
from afar."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.attend import attend, with_backend
from plait.core.block import split_heads
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.systems.vision.tic import AttentionConv, Roll
from tests.parity.compare import perturb

GRID = (7, 9)


def layer(heads: int, kernel: int, dilation: int) -> AttentionConv:
    return perturb(initialise(AttentionConv(8, heads, kernel, dilation)))


def tokens(seed: int = 0) -> Tokens:
    return Tokens(torch.randn(2, GRID[0] * GRID[1], 8, generator=torch.Generator().manual_seed(seed)), grid=GRID)


@torch.no_grad()
# the last is the depthwise form
@pytest.mark.parametrize("heads, kernel, dilation", [(2, 3, 1), (2, 5, 1), (4, 3, 2), (8, 3, 1)])
def test_it_is_dense_attention_masked_to_each_window_of_the_map_with_a_border_of_zeros(heads, kernel, dilation):
    f, t, reach = layer(heads, kernel, dilation), tokens(), kernel // 2 * dilation
    q, k, v = f.qkv(t.x).unflatten(1, GRID).split(8, 3)
    k, v = (F.pad(part, (0, 0, *[reach] * 4)).flatten(1, 2) for part in (k, v))
    rows, columns = ((torch.arange(n + 2 * reach) - reach)[None] - torch.arange(n)[:, None] for n in GRID)
    row, column = ((d.abs() <= reach) & (d % dilation == 0) for d in (rows, columns))
    keep = (row[:, None, :, None] & column[None, :, None, :]).flatten(2).flatten(0, 1)  # (N, padded N)
    (q,), (k,), (v,) = (split_heads(part, 1, heads) for part in (q.flatten(1, 2), k, v))
    dense = attend(q, k, v, keep=keep.expand(2, -1, -1)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(f(t).x, dense, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_it_moves_with_the_picture_away_from_the_border():
    f, big = layer(2, 3, 2), torch.randn(1, 12, 14, 8, generator=torch.Generator().manual_seed(1))
    a, b = (
        f(Tokens(x.flatten(1, 2), grid=(10, 10))).x.view(1, 10, 10, 8) for x in (big[:, :10, :10], big[:, 2:, 3:13])
    )
    torch.testing.assert_close(a[:, 4:8, 5:8], b[:, 2:6, 2:5])


@torch.no_grad()
def test_one_set_of_weights_reads_any_size_at_a_cost_linear_in_the_pixels():
    model, costs = plait.create_model("tic_toy").eval(), []
    for side in (160, 224, 384):
        eager = with_backend(model, "eager")
        with FlopCounterMode(display=False) as flops:
            assert eager(torch.rand(1, 3, side, side)).isfinite().all()
        costs.append(flops.get_total_flops() / side**2)
    assert max(costs) / min(costs) < 1.001


@torch.no_grad()
def test_channels_are_rolled_in_four_directions_and_can_be_rolled_back():
    t = tokens()
    rolled = Roll(2)(t)
    x = t.x.view(2, *GRID, 8)
    for quarter, (down, right) in enumerate([(2, 0), (-2, 0), (0, 2), (0, -2)]):
        part = slice(2 * quarter, 2 * quarter + 2)
        torch.testing.assert_close(
            rolled.x.view(2, *GRID, 8)[..., part], x[..., part].roll((down, right), (1, 2)), rtol=0, atol=0
        )
    assert torch.equal(Roll(-2)(rolled).x, t.x)


@torch.no_grad()
def test_rolled_channels_widen_what_a_place_hears_of():
    f = layer(2, 3, 1)
    heard = []
    for mix in (f, torch.nn.Sequential(Roll(3), f)):
        t, grid = torch.zeros(2, 121, 8), (11, 11)
        t[1, 60] = 1.0  # the place in the middle
        y = mix(Tokens(t, grid=grid)).x.view(2, *grid, 8)
        heard.append((y[0] != y[1]).any(-1))
    assert heard[0].nonzero().unique().tolist() == [4, 5, 6]  # the nearest
    assert heard[1].sum() == 4 * 9 and not heard[1][4:7, 4:7].any()  # four windows of nine around it
