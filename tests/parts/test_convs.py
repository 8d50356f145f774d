"""Parts made of convolutions, held to torch's own layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from plait.parts.convs import ConvNorm, Pointwise, Relu


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_of_one_place_and_its_gradients(layout, bias):
    torch.manual_seed(0)
    ours, theirs = Pointwise(5, 7, bias=bias).double(), nn.Conv2d(5, 7, 1, bias=bias).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64).contiguous(memory_format=layout)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    found = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        out.square().sum().backward()
        found.append([out, leaf.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(*found)


def test_a_relu_in_place_spoils_nothing_that_gradients_need():
    torch.manual_seed(0)
    ours = ConvNorm(3, 8, 3, act=Relu).double()
    plain = nn.Sequential(copy.deepcopy(ours.conv), copy.deepcopy(ours.norm), nn.ReLU())
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    found = []
    for layer in (ours, plain):
        leaf = x.clone().requires_grad_()
        layer(leaf).square().sum().backward()
        found.append([leaf.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(*found)
