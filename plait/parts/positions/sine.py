"""Fixed positions: sines and cosines of angles that fall geometrically (Vaswani et al. 2017). Nothing is learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from plait.core.sizes import surely
from plait.core.tokens import Tokens
from plait.parts.positions.resample import resample, square


def waves(places: Tensor, width: int, base: float = 10_000.0) -> Tensor:
    """(...) places -> (..., D) float64: sine and cosine of each angle side by side, which fall from the place itself to
    1 / base of it."""
    powers = torch.arange(0, width, 2, device=places.device, dtype=torch.float64) / width
    return in_turn(places.double()[..., None] * base**-powers)


def in_turn(angles: Tensor) -> Tensor:
    """(..., A) -> (..., 2 A): sine and cosine of each angle side by side."""
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """(N, D): all sines of the places 0 to N - 1, then all cosines."""
    place = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(1e4) / width))
    return torch.cat([(place * rate).sin(), (place * rate).cos()], 1)


def grid_waves(keep: Tensor, width: int, back: float = 0.0) -> Tensor:
    """keep (B, H, W) -> (B, H, W, D): `waves` of where each place lies, half of them of its row and half of its column,
    up to 2 pi at the last real one; back: so much of a place less, 0.5 for the middles."""
    turns = [keep.cumsum(dim, dtype=torch.float32) for dim in (1, 2)]
    rows, columns = (turns[0] - back) / (turns[0][:, -1:] + 1e-6), (turns[1] - back) / (turns[1][:, :, -1:] + 1e-6)
    return torch.cat([waves(2 * math.pi * places, width // 2) for places in (rows, columns)], -1)


class SequenceWaves(nn.Module):
    """Adds `waves` of each token's place in the sequence: Tokens (B, N, D) -> Tokens (B, N, D).

    Those of the grid (rows, columns) and of `prefix` special tokens before it lie ready, and are saved with the
    weights, where public layouts expect them.
    """

    table: Tensor

    def __init__(self, grid: tuple[int, int], width: int, *, prefix: int = 0):
        super().__init__()
        self.grid, self.prefix, self.length, self.width = grid, prefix, prefix + grid[0] * grid[1], width
        self.register_buffer("table", torch.empty(1, self.length, width))

    def refit(self, key: str, tensor: Tensor) -> Tensor | None:
        """Those of another square grid as its layers learned to read them: resampled, as T2T-ViT's authors do it."""
        special, places = tensor[:, : self.prefix], tensor[:, self.prefix :]
        if (grid := square(places.shape[1])) is None:
            return None
        places = resample(places.transpose(1, 2).unflatten(2, grid), self.grid)
        return torch.cat([special, places.flatten(2).transpose(1, 2)], 1)

    def reset(self) -> None:
        self.table.copy_(waves(torch.arange(self.length, device=self.table.device), self.width)[None])

    def forward(self, t: Tokens) -> Tokens:
        n, table = t.x.shape[1], self.table
        if not surely(n == self.length):
            table = waves(torch.arange(n, device=table.device), self.width)
        return t.replace(x=t.x + table.to(t.x.dtype))
