"""Learned absolute positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.tokens import Tokens, sides
from plait.errors import PlaitError
from plait.parts.positions.resample import resample, square


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
            table = torch.cat([special, self.laid(places, self.grid, grid)], 1)
        return t.replace(x=t.x + table)

    def laid(self, places: Tensor, grid: tuple[int, ...], onto: tuple[int, ...]) -> Tensor:
        """(1, N, D) of `grid` -> (1, M, D) of the grid `onto`."""
        places = places.transpose(1, 2).unflatten(2, grid)  # (1, D, h, w)
        return resample(places, onto, antialias=True).flatten(2).transpose(1, 2)

    def refit(self, key: str, tensor: Tensor) -> Tensor | None:
        """A published table of another square grid, as one of this grid."""
        if (grid := square(tensor.shape[1] - self.prefix)) is None or tensor.shape[2] != self.table.shape[2]:
            return None
        return torch.cat([tensor[:, : self.prefix], self.laid(tensor[:, self.prefix :], grid, self.grid)], 1)


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
