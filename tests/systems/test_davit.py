"""DaViT: channels that attend see every place, at a cost linear in the places; positions are one convolution."""

from __future__ import annotations

import torch

import plait
from plait.core.attend import recorded
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.parts.maps import to_map
from plait.parts.positions.conditional import ConditionalPositions
from plait.systems.vision.davit import ChannelAttention


@torch.no_grad()
def test_one_channel_layer_connects_any_two_places_and_windows_do_not():
    x = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[0, 63] += 1
    grid = (8, 8)
    channels = initialise(ChannelAttention(16, 2))
    window = plait.create_model("davit_toy").eval().stages[0][1].f.blocks[0].blocks[0].mix[1].f
    seen = [(f(Tokens(x, grid=grid)).x != f(Tokens(other, grid=grid)).x).any(-1).view(grid) for f in (channels, window)]
    assert seen[0].all() and seen[1].sum() == 16 and seen[1][4:, 4:].all()


@torch.no_grad()
def test_the_maps_of_channels_do_not_grow_with_the_picture():
    model = plait.create_model("davit_toy").eval()
    shapes = []
    for side in (32, 64):
        watched, maps = recorded(model)
        watched(torch.rand(1, 3, side, side))
        shapes.append([m.shape for m in maps])
    assert shapes[0][1] == shapes[1][1] == (1, 2, 8, 8)  # a group of 8 channels
    assert shapes[1][0].numel() == 4 * shapes[0][0].numel()  # windows: more of them


@torch.no_grad()
def test_channel_attention_is_what_the_paper_writes():
    f = initialise(ChannelAttention(12, 3))
    x = torch.randn(2, 10, 12, generator=torch.Generator().manual_seed(0))
    watched, maps = recorded(f)
    got = watched(Tokens(x)).x
    k, v, q = f.qkv(x).split(12, -1)  # who asks, who is asked, what is looked up
    for g in range(3):
        k_g, v_g, q_g = (part[..., 4 * g : 4 * g + 4] for part in (k, v, q))
        torch.testing.assert_close(maps[0][:, g], (k_g.mT @ v_g / 2).softmax(-1))
        q_g.copy_((maps[0][:, g] @ q_g.mT).mT)
    torch.testing.assert_close(got, f.out(q))


@torch.no_grad()
def test_positions_are_a_sum_and_leave_special_tokens_alone():
    f = initialise(ConditionalPositions(6))
    x = torch.randn(2, 13, 6, generator=torch.Generator().manual_seed(0))
    t = Tokens(x, grid=(3, 4), prefix=1)
    got = f(t).x
    assert torch.equal(got[:, 0], x[:, 0])
    around = torch.nn.functional.conv2d(to_map(t), f.conv.weight, f.conv.bias, padding=1, groups=6)
    torch.testing.assert_close(got[:, 1:], x[:, 1:] + around.flatten(2).transpose(1, 2))
