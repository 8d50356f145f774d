"""LIT: early stages do not attend, what is merged may lie anywhere, and nothing learned yet means an ordinary strided
convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import plait
from plait.core.attend import recorded
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.systems.vision.lit import GlobalAttention, Warp
from tests.parity.compare import perturb


def a_map(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 6, height, width, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )


@torch.no_grad()
def test_without_offsets_merging_is_a_strided_convolution():
    x = a_map(8, 12)
    warp = initialise(Warp(6, 2))
    assert torch.equal(warp(x), x)
    merge = perturb(plait.create_model("lit_toy")).stages[1][0]
    merge[0].reset()
    y = torch.randn(2, 8, 8, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(merge(y), F.gelu(merge[2](F.conv2d(y, merge[1].weight, merge[1].bias, 2))))


@torch.no_grad()
def test_offsets_are_those_of_bilinear_sampling_with_zeros_outside():
    warp = perturb(initialise(Warp(6, 2)))
    warp.offset.weight.mul_(40)
    x = a_map(8, 12)
    offset = warp.offset(x)
    assert 1 < offset.std() < 6  # many beyond the border
    expected = torch.zeros_like(x)
    for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(8), torch.arange(12)).tolist():
        tap = 2 * (2 * (i % 2) + j % 2)
        row, column = (float(offset[b, tap + n, i // 2, j // 2]) + start for n, start in ((0, i), (1, j)))
        for r in range(8):
            for c in range(12):
                expected[b, :, i, j] += x[b, :, r, c] * max(0.0, 1 - abs(row - r)) * max(0.0, 1 - abs(column - c))
    torch.testing.assert_close(warp(x), expected, rtol=1e-4, atol=1e-4)


def test_offsets_learn_where_to_look():
    """The gradient of an offset is the difference of the two places around, here of a map whose values are the
    columns."""
    warp = initialise(Warp(6, 2))
    warp.offset.bias.data.fill_(0.25)
    x = torch.arange(8.0).expand(1, 6, 4, 8)
    warp(x)[..., :-1, 1:-1].sum().backward()
    slopes = warp.offset.bias.grad.view(4, 2)
    torch.testing.assert_close(slopes, torch.tensor([[0.0, 36], [0.0, 36], [0.0, 18], [0.0, 18]]))


@torch.no_grad()
def test_only_the_last_two_stages_attend_and_to_the_whole_map():
    model = plait.create_model("lit_toy").eval()
    watched, maps = recorded(model)
    watched(torch.rand(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(2, 16, 16), (2, 16, 16), (4, 4, 4)]


@torch.no_grad()
def test_biases_of_another_grid_know_only_the_offset_and_grow_smoothly():
    f = initialise(GlobalAttention(8, 2, (4, 4))).eval()
    step = torch.arange(-3.0, 4)
    f.bias.table.copy_((step[:, None] + 0.1 * step).flatten()[:, None].expand(-1, 2))  # linear in the offset
    seen = []
    f.mix = lambda t, bias: seen.append(bias) or t
    f(Tokens(torch.zeros(1, 4, 8), grid=(2, 2)))
    f(Tokens(torch.zeros(1, 21, 8), grid=(3, 7)))
    for bias, (h, w) in zip(seen, ((2, 2), (3, 7))):
        row, column = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
        down, right = ((p[:, None] - p[None]).float() for p in (row, column))
        assert bias.shape == (1, 2, h * w, h * w)
        for n in range(h * w):  # the same offset, the same bias
            for m in range(h * w):
                same = (down == down[n, m]) & (right == right[n, m])
                torch.testing.assert_close(bias[0, 0][same], bias[0, 0, n, m].expand(int(same.sum())))
        torch.testing.assert_close(bias[0, 0, 0, -1], torch.tensor(-3.3))  # the ends stay the ends


@pytest.mark.parametrize("size, millions", [("ti", 19.9), ("small", 28.0), ("medium", 49.4), ("base", 87.3)])
def test_sizes_are_those_of_the_public_code(size, millions):
    assert round(plait.model_info(f"lit_{size}").parameters / 1e6, 1) == millions
