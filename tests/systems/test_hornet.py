"""HorNet: gates of the first order are a gated depthwise convolution, and each order multiplies once more."""

from __future__ import annotations

import torch

import plait
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.parts.maps import to_map, to_tokens
from plait.systems.vision.hornet import GatedConv
from tests.parity.compare import perturb


def gated(order: int) -> tuple[GatedConv, Tokens]:
    f = perturb(initialise(GatedConv(16, order, None)))
    return f, Tokens(torch.randn(2, 63, 16, generator=torch.Generator().manual_seed(0)), grid=(7, 9))


@torch.no_grad()
def test_of_the_first_order_it_is_a_gated_depthwise_convolution():
    f, t = gated(1)
    value, gate = f.proj(t.x).chunk(2, 2)
    conv = torch.nn.functional.conv2d(to_map(t.replace(x=gate)), f.look.f.weight, f.look.f.bias, padding=3, groups=16)
    torch.testing.assert_close(f(t).x, f.out(value * to_tokens(conv / 3).x), rtol=1e-6, atol=1e-6)
    assert not f.widen


@torch.no_grad()
def test_an_order_more_is_a_factor_more():
    """Without biases, and up to the last projection, order n is homogeneous of degree n + 1 in what it reads."""
    for order in (1, 2, 3):
        f, t = gated(order)
        for layer in (f.proj, f.look.f, f.out, *f.widen):
            layer.bias.zero_()
        torch.testing.assert_close(f(t.replace(x=2 * t.x)).x, 2.0 ** (order + 1) * f(t).x, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_detector_reads_its_maps():
    model = plait.create_model("detr_toy", backbone="hornet_toy", labels=3, seed=0).eval()
    x = torch.rand(2, 3, 64, 64)
    found, other = model.detect(x), model.detect(x.flip(3))
    assert found["logits"].shape[3] == 4 and found["boxes"].shape[:3] == found["logits"].shape[:3]
    assert not torch.allclose(found["boxes"], other["boxes"], atol=1e-4)
