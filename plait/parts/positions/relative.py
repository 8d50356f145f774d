"""Relative positions inside a window, a grid or a text."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from plait.parts.positions.resample import resample, square, stretch


def offsets(window: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """(h w, h w) int64: for each pair of places (query, key) of a window (h, w) the number of their offset, 0 to
    (2h-1)(2w-1) - 1."""
    sides = (torch.arange(side, device=device) for side in window)
    rows, columns = (at[:, None] - at[None] + at.shape[0] - 1 for at in sides)  # from 0 to 2 side - 2
    number = rows[:, None, :, None] * (2 * window[1] - 1) + columns[None, :, None, :]  # (h, w, h, w)
    return number.flatten(2).flatten(0, 1)


class RelativeBias(nn.Module):
    """A learned number per head and offset between two places of a window (h, w): () -> (1, H, h w, h w), additive in
    attention.

    Source: Swin (arXiv:2103.14030). The table is ((2h-1)(2w-1), H), offsets in the order of `offsets`.
    """

    index: Tensor

    def __init__(self, window: tuple[int, int], heads: int):
        super().__init__()
        self.window = window[0], window[1]
        self.table = nn.Parameter(torch.empty((2 * window[0] - 1) * (2 * window[1] - 1), heads))
        self.register_buffer("index", torch.empty((window[0] * window[1]) ** 2, dtype=torch.int64), persistent=False)

    def reset(self) -> None:
        nn.init.trunc_normal_(self.table, std=0.02)
        self.index.copy_(offsets(self.window).flatten())

    def forward(self) -> Tensor:
        n = self.window[0] * self.window[1]
        return self.table.T.index_select(1, self.index).view(1, -1, n, n)

    def laid(self, table: Tensor, window: tuple[int, int]) -> Tensor:
        """(H, 2h-1, 2w-1) -> that of another window, as BEiT and timm do it."""
        return stretch(table, [2 * side - 1 for side in window])

    def refit(self, key: str, tensor: Tensor) -> Tensor | None:
        """A published table of another square window, as one of this window."""
        if (sides := square(len(tensor))) is None or sides[0] % 2 == 0:
            return None
        return self.laid(tensor.T.unflatten(1, sides), self.window).flatten(1).T


class DistanceBias(nn.Module):
    """A learned number per head and distance (|rows|, |columns|) of two places of a grid: () -> (1, H, N, N), additive
    in attention. The table is (H, N), distances row by row."""

    index: Tensor

    def __init__(self, heads: int, grid: tuple[int, int]):
        super().__init__()
        self.grid, count = grid, grid[0] * grid[1]
        self.table = nn.Parameter(torch.empty(heads, count))
        self.register_buffer("index", torch.empty(count**2, dtype=torch.int64), persistent=False)

    def reset(self) -> None:
        nn.init.zeros_(self.table)
        down, right = ((torch.arange(n)[:, None] - torch.arange(n)).abs() for n in self.grid)
        self.index.copy_((down[:, None, :, None] * self.grid[1] + right[None, :, None, :]).flatten())

    def refit(self, key: str, tensor: Tensor) -> Tensor | None:
        """A published table of another square grid, as one of this grid: resampled as TinyViT's (arXiv:2207.10666)."""
        if (sides := square(tensor.shape[1])) is None:
            return None
        return resample(tensor.unflatten(1, sides)[None], self.grid, antialias=True)[0].flatten(1)

    def forward(self) -> Tensor:
        count = self.grid[0] * self.grid[1]
        return self.table.index_select(1, self.index).view(1, -1, count, count)

    def fold(self) -> nn.Module:
        return Constant(self())


class Distances(nn.Module):
    """A learned number per head and distance: how far each key lies behind its query (B, N, M) -> (B, H, N, M), added
    to scores. Of `count` numbers half are of single distances and half of ranges up to `far`, which grow geometrically.
    ahead: keys may lie ahead, and have half of the numbers.

    Source: T5 (arXiv:1910.10683).
    """

    def __init__(self, heads: int, ahead: bool, count: int = 32, far: int = 128):
        super().__init__()
        self.ahead, self.count, self.far = ahead, count, far
        self.table = nn.Embedding(count, heads)

    def reset(self) -> None:
        nn.init.normal_(self.table.weight, std=0.05)

    def forward(self, behind: Tensor) -> Tensor:
        count = self.count // 2 if self.ahead else self.count
        first = (behind < 0) * count if self.ahead else 0
        away = behind.abs() if self.ahead else behind.clamp(min=0)
        single = count // 2
        share = (away.clamp(min=1).float() / single).log() / math.log(self.far / single)
        ranged = (single + (share * (count - single)).long()).clamp(max=count - 1)
        return self.table(first + torch.where(away < single, away, ranged)).permute(0, 3, 1, 2)


class Constant(nn.Module):
    """Numbers that were computed once."""

    value: Tensor

    def __init__(self, value: Tensor):
        super().__init__()
        self.register_buffer("value", value.detach().clone())

    def forward(self) -> Tensor:
        return self.value
