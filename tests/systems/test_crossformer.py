"""CrossFormer: near groups and far ones, nobody sees what fills a group up, and one network of biases serves groups of
any size."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.systems.vision.crossformer import CrossScale, DynamicBias, GroupAttention


@torch.no_grad()
@pytest.mark.parametrize("grid", [(8, 12), (7, 10), (9, 4), (3, 2)])
@pytest.mark.parametrize("interval", [1, 2])
def test_a_place_sees_its_group_and_nothing_that_fills_it_up(grid, interval):
    """Groups of 4 x 4: neighbours, or places of one residue within a span; a side of up to 4 places is one group."""
    f = initialise(GroupAttention(64, 2, 4, interval)).eval()
    x = torch.randn(1, grid[0] * grid[1], 64, generator=torch.Generator().manual_seed(0))
    got = f(Tokens(x, grid=grid)).x[0].view(*grid, -1)
    rows, columns = (places(n, interval) for n in grid)
    bias = f.bias()[0].view(-1, 4, 4, 4, 4)
    for group_r, inside_r in rows:
        for group_c, inside_c in columns:
            part = x[0].view(*grid, -1)[group_r][:, group_c].flatten(0, 1)
            q, k, v = (p.transpose(0, 1) for p in f.qkv(part).unflatten(1, (3, 2, 32)).unbind(1))
            offset = bias[:, inside_r][:, :, inside_c][:, :, :, inside_r][..., inside_c].flatten(3).flatten(1, 2)
            y = f.out(((q @ k.mT / 32**0.5 + offset).softmax(-1) @ v).transpose(0, 1).flatten(1))
            torch.testing.assert_close(got[group_r][:, group_c].flatten(0, 1), y, rtol=1e-4, atol=1e-5)


def places(side: int, interval: int) -> list[tuple[list[int], list[int]]]:
    """The groups of one side: which places, and where in a group of 4 they stand."""
    step = interval if side > 4 else 1
    groups = [
        list(range(start + i, min(start + 4 * step, side), step))
        for start in range(0, side, 4 * step)
        for i in range(step)
    ]
    return [(group, list(range(len(group)))) for group in groups if group]


@torch.no_grad()
def test_biases_of_one_network_serve_groups_of_any_size():
    small, large = initialise(DynamicBias(4, 2, 4)), initialise(DynamicBias(4, 2, 7))
    large.net.load_state_dict(small.net.state_dict())
    part = large().view(2, 7, 7, 7, 7)[:, :4, :4, :4, :4].reshape(1, 2, 16, 16)
    torch.testing.assert_close(small(), part)
    assert small().std() > 0


def test_larger_kernels_get_fewer_channels_and_all_look_at_the_same_place():
    eyes = CrossScale(3, 64, (4, 8, 16, 32)).eyes
    assert [e.out_channels for e in eyes] == [32, 16, 8, 8]
    x = torch.zeros(1, 3, 64, 64)
    x[:, :, 32, 32] = 1.0
    for eye in eyes:
        # middles of the patches that see this pixel
        seen = (eye(x) - eye(torch.zeros_like(x))).abs().sum(1)[0].nonzero() * 4 + 1.5
        assert seen.sub(32).abs().max() <= eye.kernel_size[0] / 2


@pytest.mark.parametrize("size, parameters", [("tiny", 27.8), ("small", 30.7), ("base", 52.0), ("large", 92.0)])
def test_published_sizes(size, parameters):
    assert round(plait.model_info(f"crossformer_{size}").parameters / 1e6, 1) == parameters
