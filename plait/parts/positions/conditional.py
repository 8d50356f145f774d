"""Positions made of what stands around a place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.init import kaiming_normal
from plait.core.tokens import Tokens
from plait.parts.maps import to_map


class Beside(nn.Conv2d):
    """x + a depthwise convolution of it, (B, C, H, W) -> the same: one convolution, whose middle weight is one more."""

    one: Tensor

    def __init__(self, channels: int, kernel: int):
        super().__init__(channels, channels, kernel, 1, kernel // 2, groups=channels)
        self.register_buffer("one", torch.empty(kernel, kernel), persistent=False)

    def reset(self) -> None:
        kaiming_normal(self)
        self.one.zero_()[self.one.shape[0] // 2, self.one.shape[1] // 2] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight + self.one, self.bias)


class ConditionalPositions(nn.Module):
    """x + a depthwise convolution of it over the grid: Tokens (B, N, D) -> the same; special tokens pass.

    Its zero border says where the edges are. Source: the position encoding generator of CPVT (arXiv:2102.10882).
    """

    on_grid = True

    def __init__(self, width: int, kernel: int = 3):
        super().__init__()
        self.conv = Beside(width, kernel)

    def forward(self, t: Tokens) -> Tokens:
        x = self.conv(to_map(t)).flatten(2).transpose(1, 2)
        return t.replace(x=torch.cat([t.x[:, : t.prefix], x], 1) if t.prefix else x)
