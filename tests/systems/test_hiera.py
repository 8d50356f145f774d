"""Hiera: units that do not hear each other before the third stage, and queries that are a maximum."""

from __future__ import annotations

import torch

import plait
from plait.core.attend import recorded
from plait.core.catalog import build
from plait.core.tokens import Tokens
from plait.systems.vision.hiera import UnitAttention, fours
from tests.parity.compare import count


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_fours_are_the_places_of_each_square():
    x = torch.arange(24.0).view(1, 24, 1)  # 4 rows of 6
    assert fours(x, (4, 6))[0, 1, 0].tolist() == [2, 3, 8, 9]
    assert fours(x, (4, 6)).amax(-1)[0, :, 0].tolist() == [7, 9, 11, 19, 21, 23]


def test_units_are_apart_until_the_third_stage_has_begun():
    model = plait.create_model("hiera_toy").eval()
    watched, maps = recorded(model)
    watched(draw(2, 3, 64, 96))
    units = 2 * 2 * 3
    want = [(units, 64, 64), (units, 16, 64), (units, 4, 16), (2, 6, 24)]
    assert [(m.shape[0], *m.shape[2:]) for m in maps] == want
    blocks, x = model.stack.blocks, draw(1, 16 * 16, 8)
    other = x.clone()
    other[0, 0] += 1
    a, b = (Tokens(v, grid=(16, 16)) for v in (x, other))
    for i, block in enumerate(blocks):
        a, b = block(a), block(b)
        reached = (a.x != b.x).any(-1)[0].view(a.grid)
        assert reached.all() if i == 3 else reached.nonzero().amax() < a.grid[0] // 2, i


def test_a_pooling_attention_asks_with_the_largest_of_four():
    f, x = UnitAttention(8, 16, 2, 4, True).requires_grad_(False), draw(2, 64, 8)
    for p in f.parameters():
        p.copy_(0.5 * draw(*p.shape, seed=1))
    y = f(Tokens(x, grid=(8, 8)))
    assert y.grid == (4, 4) and y.x.shape == (2, 16, 16)
    unit = x.view(2, 8, 8, 8)[:, :4, 4:].flatten(1, 2)  # the upper right one
    q, k, v = f.qkv(unit).view(2, 16, 3, 2, 8).permute(2, 0, 3, 1, 4)
    q = torch.stack([q[:, :, [i, i + 1, i + 4, i + 5]].amax(2) for i in (0, 2, 8, 10)], 2)
    want = f.out(((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(y.x.view(2, 4, 4, 16)[:, :2, 2:].flatten(1, 2), want, rtol=1e-5, atol=1e-5)


def test_positions_of_units_repeat():
    model = plait.create_model("hiera_toy", table=(4, 4))
    torch.nn.init.zeros_(model.positions.table)
    x = model.positions(Tokens(torch.zeros(1, 16 * 24, 8), grid=(16, 24))).x.view(16, 24, 8)
    assert torch.equal(x[:8, :8], x[8:, 16:]) and not torch.equal(x[:8, :8], x[1:9, :8])


def test_the_size_for_speed_is_as_small_as_its_paper_tells():
    """1 / 2.47 of FasterViT-0's 31.4 M."""
    assert count(build("hiera_turbo_224")) < 31.4e6 / 2.47
