"""Parallel convolutions that are trained as a sum and folded into one (RepVGG, arXiv:2101.03697; MobileOne,
arXiv:2206.04040). `core.surgery.fold_norms` folds them."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.surgery import factors, with_weights
from plait.parts.convs import ConvNorm

CONV = tuple[int, int, int, int]  # channels, out, stride, groups


class Branches(nn.Module):
    """A sum of convolutions of several kernels, each with its norm, and of the normed input where that has the same
    shape; then `after`."""

    def __init__(self, conv: CONV, kernels: tuple[int, ...], after: nn.Module | None = None):
        super().__init__()
        channels, out, stride, groups = conv
        self.convs = nn.ModuleList(ConvNorm(channels, out, k, stride, groups=groups) for k in kernels)
        self.skip = nn.BatchNorm2d(channels) if channels == out and stride == 1 else None
        self.after = nn.Identity() if after is None else after

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs[0](x)
        for conv in self.convs[1:]:
            y = y + conv(x)
        return self.after(y if self.skip is None else y + self.skip(x))

    def fold(self) -> nn.Module:
        convs = cast(list[nn.Conv2d], list(self.convs))  # folded already, each with a bias
        largest = max(convs, key=lambda conv: conv.kernel_size)
        zero = largest.weight.new_zeros(())
        weight = sum((fit(conv.weight, largest) for conv in convs), zero)
        bias = sum((cast(Tensor, conv.bias) for conv in convs), zero)
        if self.skip is not None:
            scale, shift = factors(self.skip)
            weight, bias = weight + unit(largest, scale), bias + shift
        return nn.Sequential(with_weights(largest, weight, bias), self.after)


def fit(weight: Tensor, conv: nn.Conv2d) -> Tensor:
    """A smaller kernel in the middle of one of `conv`'s size."""
    margin = (conv.kernel_size[0] - weight.shape[2]) // 2
    return F.pad(weight, [margin] * 4)


def unit(conv: nn.Conv2d, scale: Tensor) -> Tensor:
    """The kernel of `conv`'s shape that multiplies each channel by `scale` (C,)."""
    weight, middle = torch.zeros_like(conv.weight), conv.kernel_size[0] // 2
    channel = torch.arange(len(scale), device=scale.device)
    weight[channel, channel % weight.shape[1], middle, middle] = scale
    return weight
