"""Frames of features to frames of a transformer, whole or as they come (Zipformer, arXiv:2310.11230)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.parts.swoosh import BiasNorm, SharedDropout, SwooshL, SwooshR


class FrameStem(nn.Module):
    """Features (B, T, mels) -> (B, N, D), N = (T - 7) // 2: three convolutions, then a ConvNeXt layer over time and
    pitch."""

    def __init__(self, mels: int, width: int, channels: tuple[int, int, int], dropout: float):
        super().__init__()
        a, b, c = channels
        self.bands = ((mels - 1) // 2 - 1) // 2
        self.convs = nn.Sequential(
            nn.Conv2d(1, a, 3, padding=(0, 1)), SwooshR(), nn.Conv2d(a, b, 3, 2), SwooshR(),
            nn.Conv2d(b, c, 3, (1, 2)), SwooshR(),
        )  # fmt: skip
        self.depth = nn.Conv2d(c, c, 7, padding=(0, 3), groups=c)
        self.up, self.act, self.down = nn.Conv2d(c, 3 * c, 1), SwooshL(), nn.Conv2d(3 * c, c, 1)
        self.out, self.norm, self.drop = nn.Linear(self.bands * c, width), BiasNorm(width), SharedDropout(dropout)

    def begin(self, x: Tensor) -> Tensor:
        """What precedes a stream of features x (B, T, mels): (B, C, 3, bands) zeros."""
        return x.new_zeros(x.shape[0], self.depth.in_channels, 3, self.bands)

    def forward(self, x: Tensor, keep: Tensor | None, past: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """keep (B, T) -> frames beyond the end are zero. past: (B, C, 3, bands) frames before; the last 3 of x then
        only look ahead."""
        x = self.convs(x[..., None].permute(0, 3, 1, 2))  # (B, C, N, bands) in channels-last memory
        if keep is not None:
            x = x.masked_fill(~stem_keep(keep)[:, None, :, None], 0.0)
        if past is None:
            y = self.depth(F.pad(x, (0, 0, 3, 3)))
        else:
            ready = x.shape[2] - 3
            y = torch.cat([past, x], 2)
            x, past, y = x[:, :, :ready], y[:, :, ready : ready + 3], self.depth(y)
        x = x + self.down(self.act(self.up(y)))
        return self.drop(self.norm(self.out(x.transpose(1, 2).flatten(2)))), past


def stem_keep(keep: Tensor) -> Tensor:
    """keep (B, T) of the features -> (B, N) of the stem's frames, each real where all it reads is (but for the
    ConvNeXt's sides)."""
    return keep[:, 8::2]
