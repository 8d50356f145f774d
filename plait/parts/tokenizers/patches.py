"""Pictures to patch tokens."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from plait.core.tokens import Tokens
from plait.errors import PlaitError
from plait.parts.convs import ChannelsLast, LayerNorm2d
from plait.parts.mixers.windows import Pair, pad_map


def patch_grid(x: Tensor, patch: int) -> tuple[int, int]:
    """The (rows, columns) of patches of `patch` pixels a side in pictures (..., H, W). Raises ValueError for pictures
    that do not divide into them."""
    h, w = x.shape[-2:]
    if h % patch or w % patch:
        raise PlaitError(
            f"pictures of {h} x {w} do not divide into patches of {patch}: resize or pad them to a multiple"
        )
    return h // patch, w // patch


class PatchTokens(nn.Module):
    """Non-overlapping patches, each projected to one token: (B, C, H, W) -> Tokens (B, H/P * W/P, D) with its grid."""

    def __init__(self, width: int, patch: int, *, channels: int = 3, bias: bool = True):
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, patch, patch, bias=bias)

    def forward(self, x: Tensor) -> Tokens:
        patch_grid(x, self.patch)
        x = self.proj(x)
        return Tokens(x.flatten(2).transpose(1, 2), grid=(x.shape[-2], x.shape[-1]))  # (B, D, h, w) -> (B, N, D)


class OfSize(nn.Module):
    """Pictures of just the size `image` = (H, W), unchanged. Raises ValueError for others."""

    def __init__(self, image: tuple[int, int]):
        super().__init__()
        self.image = tuple(image)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.image:
            raise PlaitError(
                f"got pictures of {x.shape[2]} x {x.shape[3]}, expected {self.image[0]} x {self.image[1]}: resize them"
            )
        return x


class PatchMap(nn.Module):
    """Non-overlapping patches, projected and normed: (B, C, H, W) -> (B, D, H / P, W / P), rounded up."""

    def __init__(self, width: int, patch: int, channels: int = 3, *, eps: float = 1e-5):
        super().__init__()
        self.last, self.proj = ChannelsLast(), nn.Conv2d(channels, width, patch, patch)
        self.norm = LayerNorm2d(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(self.last(pad_map(x, cast(Pair, self.proj.kernel_size)))))
