"""The layer of ConvNeXt (arXiv:2201.03545), which hybrids have where they do not attend."""

from __future__ import annotations

from torch import nn

from plait.core.block import FeedForward, Layer
from plait.core.tokens import Tokens
from plait.parts.maps import OnMap
from plait.parts.towers.encoder import after


def depthwise(channels: int, out: int, kernel: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A convolution that keeps the channels apart."""
    return nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=channels, bias=bias)


class ConvLayer(Layer):
    """A depthwise convolution, then a feed-forward step at every place: Tokens (B, N, D) -> the same, or half the grid
    and D' channels. The residual starts before the convolution, and behind it where it changes the shape."""

    def __init__(self, conv: nn.Conv2d, drop: float):
        super().__init__()
        width = conv.out_channels
        self.conv, self.norm, self.feed = OnMap(conv), nn.LayerNorm(width, eps=1e-6), FeedForward(width, 4 * width)
        self.after, self.keeps = after(width, drop, 1e-6), conv.stride == (1, 1) and conv.in_channels == width

    def forward(self, t: Tokens) -> Tokens:
        y = self.conv(t)
        fed = self.feed(y.replace(x=self.norm(y.x)))
        return y.carry(fed, (t if self.keeps else y).x + self.after(fed.x))
