"""Learned absolute positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.tokens import Tokens, real, sides
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


class OwnGridPositions(GridPositions):
    """The same vectors for pictures of any shape, padded or not: a patch gets that of the place which is as far down
    and across the learned grid as it is in its own picture, (rows, columns) of real patches from the upper left corner.

    Source: NaViT (arXiv:2307.06304), as Idefics2 (arXiv:2405.02246) has it.
    """

    def __init__(self, grid: tuple[int, int], width: int):
        super().__init__(grid, width)

    def forward(self, t: Tokens) -> Tokens:
        there = real(t).unflatten(1, sides(t))  # (B, h, w)
        down, across = there[:, :, 0], there[:, 0]
        places = self.near(down, 0)[:, :, None] * self.grid[1] + self.near(across, 1)[:, None]
        return t.replace(x=t.x + F.embedding(places.flatten(1), self.table[0]))

    def near(self, there: Tensor, side: int) -> Tensor:
        """(B, n) bool: which patches of a side are real -> (B, n): the learned place of each."""
        n = self.grid[side]
        share = torch.arange(there.shape[1], device=there.device) * (1.0 / there.sum(1, keepdim=True).clamp(min=1))
        edges = torch.arange(1 / n, 1.0, 1 / n, device=there.device)
        return torch.bucketize(share.clamp(max=1.0 - 1e-6), edges, right=True)


class SequencePositions(nn.Module):
    """A learned vector per place of a sequence of at most `length` tokens."""

    def __init__(self, length: int, width: int):
        super().__init__()
        self.length = length
        self.table = nn.Parameter(torch.empty(length, width))

    def reset(self) -> None:
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, t: Tokens, places: Tensor | None = None) -> Tokens:
        """places (B, N) or (N,): where the tokens stand; None: from the first place on."""
        if places is not None:
            return t.replace(x=t.x + F.embedding(places, self.table))
        n = t.x.shape[1]
        check_length(n, self.length)
        return t.replace(x=t.x + self.table[:n])


def check_length(n: int, length: int) -> None:
    """Raise PlaitError where there are more tokens than places."""
    if n > length:
        raise PlaitError(
            f"a sequence of {n} tokens, but there are positions for {length}: cut it or build a longer model"
        )


class CountedPositions(nn.Module):
    """As `SequencePositions`, but only real tokens have places, so that padding, on whichever side, changes nothing.

    Source: RoBERTa (arXiv:1907.11692), whose table begins with `FIRST` rows for padding, which nobody reads.
    """

    FIRST = 2

    def __init__(self, length: int, width: int):
        super().__init__()
        self.length = length
        self.table = nn.Parameter(torch.empty(self.FIRST + length, width))

    def reset(self) -> None:
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, t: Tokens) -> Tokens:
        n = t.x.shape[1]
        check_length(n, self.length)
        if t.keep is None:
            return t.replace(x=t.x + self.table[self.FIRST : self.FIRST + n])
        places = (t.keep.cumsum(1) - 1).clamp(min=0)
        return t.replace(x=t.x + F.embedding(self.FIRST + places, self.table))


class Learned(nn.Module):
    """A table (N, D) of learned vectors, drawn at their usual size: questions, levels."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(count, width))

    def reset(self) -> None:
        nn.init.normal_(self.table)

    def forward(self) -> Tensor:
        return self.table
