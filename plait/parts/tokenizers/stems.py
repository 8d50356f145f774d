"""Convolutional stems: with little data, a few convolutions see edges long before a patch projection learns to."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Make
from plait.core.tokens import Tokens
from plait.parts.convs import LayerNorm2d

ALIKE = 8  # rows of about the same length that are trained together: few enough to stay in a processor's cache


def channel_norm(channels: int) -> nn.Sequential:
    """A layer norm over channels: padding elsewhere cannot change it."""
    return nn.Sequential(OrderedDict(norm=LayerNorm2d(channels)))


def group_norm(channels: int) -> nn.GroupNorm:
    """Over places, too: of pictures on an even ground it leaves what is on it, where a norm over channels alone makes
    the ground as large as all else, and learning waits for hundreds of steps."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


def halving(channels: int, out: int, norm: Make) -> nn.Sequential:
    """Half the height and width: a strided convolution, then one at the new size; norm(channels) makes the norms."""
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, 2, 1),
        norm(out),
        nn.GELU(),
        nn.Conv2d(out, out, 3, 1, 1),
        norm(out),
        nn.GELU(),
    )


class ImageStem(nn.Module):
    """Pictures (B, 3, H, W) -> Tokens of a grid of 4 to 7 places a side for pictures of about `size` = (H, W).

    Channels double with each halving, up to the width: so few tokens are left that the layers above them cost little.
    """

    def __init__(self, width: int, size: tuple[int, int]):
        super().__init__()
        halvings = max(1, int(math.log2(max(size) / 4)))
        channels = [3, *(max(32, width // 2 ** (halvings - 1 - i)) for i in range(halvings))]
        self.stages = nn.Sequential(*(halving(a, b, group_norm) for a, b in zip(channels, channels[1:])))
        self.proj = nn.Conv2d(channels[-1], width, 1)
        self.grid = tuple(math.ceil(s / 2**halvings) for s in size)

    def forward(self, x: Tensor) -> Tokens:
        x = self.proj(self.stages(x))
        return Tokens(x.flatten(2).transpose(1, 2), grid=(x.shape[-2], x.shape[-1]))  # (B, D, h, w) -> (B, N, D)


class SpectrogramStem(nn.Module):
    """Spectrograms (B, T, F) with keep (B, T) -> Tokens (B, T/4, D): two halvings of time and pitch, then pitch becomes
    width.

    Frames that are not real are set to zero before every convolution, so that a row's tokens do not depend on its
    padding.
    """

    def __init__(self, width: int, bands: int):
        super().__init__()
        channels = [1, 32, 64]
        self.stages = nn.ModuleList(halving(a, b, channel_norm) for a, b in zip(channels, channels[1:]))
        self.proj = nn.Linear(channels[-1] * math.ceil(bands / 4), width)

    def forward(self, x: Tensor, keep: Tensor) -> Tokens:
        apart = self.training and x.device.type == "cpu" and len(x) > ALIKE and not torch.compiler.is_compiling()
        return self.by_length(x, keep) if apart else self.whole(x, keep)

    def by_length(self, x: Tensor, keep: Tensor) -> Tokens:
        """The same tokens, those of padding aside, with less padding to compute."""
        frames = (keep * torch.arange(1, keep.shape[1] + 1)).amax(1)
        order, count, found = frames.argsort(), math.ceil(keep.shape[1] / 4), []
        for rows in order.split(ALIKE):
            most = max(4 * math.ceil(int(frames[rows[-1]]) / 4), 4)
            t = self.whole(x[rows, :most], keep[rows, :most]).x
            found.append(F.pad(t, (0, 0, 0, count - t.shape[1])))
        return Tokens(torch.cat(found)[order.argsort()], keep=keep[:, ::2][:, ::2])

    def whole(self, x: Tensor, keep: Tensor) -> Tokens:
        x = x[:, None]  # (B, 1, T, F)
        for stage in self.stages:
            for layer in stage.children():
                if isinstance(layer, nn.Conv2d):
                    # `masked_fill` would change the memory's order, and all that follows would be several times slower
                    x = torch.where(keep[:, None, :, None], x, 0.0)
                    if layer.stride[0] == 2:
                        keep = keep[:, ::2]
                x = layer(x)
        return Tokens(self.proj(x.transpose(1, 2).flatten(2)), keep=keep)  # (B, C, T, F) -> (B, T, C * F)
