"""Pictures to patch tokens."""

from __future__ import annotations

from torch import Tensor, nn

from plait.core.tokens import Tokens


class PatchTokens(nn.Module):
    """Non-overlapping patches, each projected to one token: (B, C, H, W) -> Tokens (B, H/P * W/P, D) with its grid."""

    def __init__(self, width: int, patch: int, *, channels: int = 3, bias: bool = True):
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, patch, patch, bias=bias)

    def forward(self, x: Tensor) -> Tokens:
        h, w = x.shape[-2:]
        if h % self.patch or w % self.patch:
            raise ValueError(
                f"pictures of {h} x {w} do not divide into patches of {self.patch}: resize or pad them to a multiple"
            )
        x = self.proj(x)
        return Tokens(x.flatten(2).transpose(1, 2), grid=(x.shape[-2], x.shape[-1]))  # (B, D, h, w) -> (B, N, D)
