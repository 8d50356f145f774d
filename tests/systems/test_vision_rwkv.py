"""Vision-RWKV: Bi-WKV in linear time is its definition, forward and backward; the published sizes have their keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.attend import with_backend
from plait.core.catalog import build
from plait.core.tokens import Tokens
from plait.parts.mixers.wkv import bi_wkv
from plait.systems.vision.vision_rwkv import q_shift
from tests.parity.recorded import same_keys
from tests.parity.vision_rwkv import NUMBERS

PUBLISHED = {"tiny": 6.2, "small": 23.8, "base": 93.7, "large": 334.9}  # million parameters, as the paper gives them


def definition(decay: Tensor, first: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every pair of tokens, (B, N, N, C)."""
    place = torch.arange(k.shape[1])
    far = (place[:, None] - place).abs()[None, :, :, None]
    weight = torch.where(far == 0, (k + first)[:, None], k[:, None] - (far - 1) * decay).softmax(2)
    return (weight * v[:, None]).sum(2)


@pytest.mark.parametrize("count", [1, 2, 50, 197])
@pytest.mark.parametrize("keys", [0.1, 3.0, 60.0])  # from nearly equal to so unlike that most exponentials underflow
def test_running_sums_equal_the_definition_forward_and_backward(count, keys):
    g = torch.Generator().manual_seed(count)
    decay, first = torch.linspace(-5, 10, 12) / count, torch.randn(12, generator=g)
    k, v, seen = (torch.randn(2, count, 12, generator=g) for _ in range(3))
    mine = [t.clone().requires_grad_() for t in (decay, first, keys * k, v)]
    truth = [t.detach().double().requires_grad_() for t in mine]
    ours, theirs = bi_wkv(*mine), definition(*truth)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    (ours * seen).sum().backward()
    (theirs * seen).sum().backward()
    for a, b in zip(mine, truth):
        scale = b.grad.abs().max().clamp(min=1)
        torch.testing.assert_close(a.grad.double() / scale, b.grad / scale, rtol=1e-5, atol=1e-5)


class Written(TorchDispatchMode):
    """Counts the numbers that all operations write."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.total += sum(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))
        return out


@torch.no_grad()
def test_what_it_costs_grows_with_the_pixels_where_a_vit_grows_with_their_square():
    """From 1024 to 2048 pixels a side, in multiply-adds of products and in numbers written, of eight layers: their
    positions, once, take less than that."""
    grown = {}
    for name in ("vision_rwkv_tiny", "vit_tiny_patch16_224"):
        model, products, numbers = build(name, depth=8).eval(), [], []
        if "vit" in name:
            model = with_backend(model, "eager")
        for side in (1024, 2048):
            with FlopCounterMode(display=False) as counter, Written() as written:
                model(torch.empty(1, 3, side, side, device="meta"))
            products.append(counter.get_total_flops())
            numbers.append(written.total)
        grown[name] = [b / a for a, b in (products, numbers)], products[1], numbers[1]
    ours, theirs = grown.values()
    assert all(growth == pytest.approx(4, rel=0.01) for growth in ours[0])
    assert all(growth > 9 for growth in theirs[0])
    assert ours[1] < theirs[1] and ours[2] < theirs[2]


def test_each_quarter_of_the_channels_comes_from_its_neighbour():
    x = torch.arange(12.0).view(1, 12, 1).repeat(1, 1, 9)  # three rows of four
    shifted = q_shift(Tokens(x, grid=(3, 4)))[0].view(3, 4, 9)
    assert shifted[1, 1].tolist() == [4, 4, 6, 6, 1, 1, 9, 9, 5]
    assert shifted[0, 0].tolist() == [0, 0, 1, 1, 0, 0, 4, 4, 0]


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_have_the_official_keys(size):
    assert same_keys(f"vision_rwkv_{size}", "official", NUMBERS[size]["keys"])
    assert plait.model_info(f"vision_rwkv_{size}").parameters == NUMBERS[size]["parameters"]
    assert abs(NUMBERS[size]["parameters"] / 1e6 - PUBLISHED[size]) < 0.06
