"""Learned absolute positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.tokens import Tokens, sides
from plait.errors import PlaitError


class GridPositions(nn.Module):
    """A learned vector per place of a grid, and one for each of `prefix` leading special tokens; resampled to other
    grids (bicubic)."""

    def __init__(self, grid: tuple[int, int], width: int, *, prefix: int = 0):
        super().__init__()
        self.grid, self.prefix = tuple(grid), prefix
        self.table = nn.Parameter(torch.empty(1, prefix + grid[0] * grid[1], width))

    def reset(self) -> None:
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, t: Tokens) -> Tokens:
        table: Tensor = self.table
        grid = sides(t)
        # a program for all grids resamples to every one
        if not all(isinstance(side, int) for side in grid) or grid != self.grid:
            special, places = table[:, : self.prefix], table[:, self.prefix :]
            places = places.transpose(1, 2).unflatten(2, self.grid)  # (1, D, h, w)
            places = F.interpolate(places, size=grid, mode="bicubic", antialias=True)
            table = torch.cat([special, places.flatten(2).transpose(1, 2)], 1)
        return t.replace(x=t.x + table)


class SequencePositions(nn.Module):
    """A learned vector per place of a sequence of at most `length` tokens."""

    def __init__(self, length: int, width: int):
        super().__init__()
        self.length = length
        self.table = nn.Parameter(torch.empty(length, width))

    def reset(self) -> None:
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, t: Tokens) -> Tokens:
        n = t.x.shape[1]
        if n > self.length:
            raise PlaitError(
                f"a sequence of {n} tokens, but there are positions for {self.length}: cut it or build a longer model"
            )
        return t.replace(x=t.x + self.table[:n])


class Learned(nn.Module):
    """A table (N, D) of learned vectors, drawn at their usual size: questions, levels."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(count, width))

    def reset(self) -> None:
        nn.init.normal_(self.table)
