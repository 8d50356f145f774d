"""Positions made of what stands around a place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.tokens import Tokens
from plait.parts.maps import to_map


class ConditionalPositions(nn.Module):
    """x + a depthwise convolution of it over the grid: Tokens (B, N, D) -> the same; special tokens pass.

    Its zero border says where the edges are. Source: the position encoding generator of CPVT (arXiv:2102.10882).
    The sum is one convolution, whose middle weight is one more.
    """

    on_grid = True

    one: Tensor

    def __init__(self, width: int, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel, 1, kernel // 2, groups=width)
        self.register_buffer("one", torch.empty(kernel, kernel), persistent=False)

    def reset(self) -> None:
        self.one.zero_()[self.one.shape[0] // 2, self.one.shape[1] // 2] = 1.0

    def forward(self, t: Tokens) -> Tokens:
        conv = self.conv
        x = (
            F.conv2d(to_map(t), conv.weight + self.one, conv.bias, 1, conv.padding, 1, conv.groups)
            .flatten(2)
            .transpose(1, 2)
        )
        return t.replace(x=torch.cat([t.x[:, : t.prefix], x], 1) if t.prefix else x)
