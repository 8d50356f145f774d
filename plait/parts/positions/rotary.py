"""Rotary positions: queries and keys are turned by angles of where they stand, so that their product knows only the
difference.

RoFormer (arXiv:2104.09864). On a grid, half of the angles tell the row and half the column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plait.core.tokens import Tokens
from plait.errors import PlaitError


class GridRotary(nn.Module):
    """The turns of every place of a grid, for heads of `width` E (a multiple of 4): (rows, columns) -> (rows * columns,
    2, E/2).

    [:, 0] is the cosine and [:, 1] the sine of each angle: E/4 angles of the row, then E/4 of the column, which fall
    geometrically from one radian a place to 1 / base. Nothing is learned, and grids of any size are read.
    """

    rates: Tensor

    def __init__(self, width: int, base: float = 10_000.0):
        super().__init__()
        if width % 4:
            raise PlaitError(f"rotary positions on a grid: got heads of width {width}, expected a multiple of 4")
        self.width, self.base = width, base
        self.register_buffer("rates", torch.empty(width // 4), persistent=False)

    def reset(self) -> None:
        powers = torch.arange(self.width // 4, device=self.rates.device, dtype=torch.float32) / (self.width // 4)
        self.rates.copy_(self.base**-powers)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        rows, columns = (torch.arange(n, device=self.rates.device)[:, None] * self.rates for n in grid)  # (side, E/4)
        angles = torch.cat([rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)], 2).flatten(
            0, 1
        )
        return torch.stack([angles.cos(), angles.sin()], 1)


class Rotary(nn.Module):
    """The turns of places in a sequence, for heads of `width` E: (..., N) -> (..., N, 2, E), float32, as `Turned` takes
    them: cosines twice, then sines with a minus and without. Nothing is learned or kept: E/2 angles, which fall
    geometrically from one radian a place to 1 / base.

    stretch (factor, low, high, length): Llama 3.1's. What turns less than `low` times within `length` places turns
    `factor` times slower, what turns more than `high` times as it was; between them goes over from one to the other.
    """

    def __init__(self, width: int, base: float = 10_000.0, stretch: Sequence[float] | None = None):
        super().__init__()
        if width % 2:
            raise PlaitError(f"rotary positions: got heads of width {width}, expected an even one")
        self.width, self.base, self.stretch = width, base, stretch

    def forward(self, places: Tensor) -> Tensor:
        powers = torch.arange(0, self.width, 2, device=places.device, dtype=torch.float32) / self.width
        rates = 1.0 / self.base**powers
        if self.stretch is not None:
            factor, low, high, length = self.stretch
            as_it_was = ((length * rates / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
            rates = rates * ((1 - as_it_was) / factor + as_it_was)
        angles = places[..., None].float() * rates
        cos, sin = angles.cos(), angles.sin()
        return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], -2)


class Turned(nn.Module):
    """`Attention`'s rotary step: queries and keys (B, N, H, E) turned as by `turn`, together and in as few operations
    as can be, by the tokens' `pos`, which `Rotary` made."""

    def forward(self, q: Tensor, k: Tensor, t: Tokens) -> tuple[Tensor, Tensor]:
        if t.pos is None:
            raise PlaitError("got tokens without positions, expected turns as `Rotary` makes them: t.replace(pos=...)")
        cos, sin = t.pos.to(q.dtype)[..., None, :].unbind(-3)  # ((B,) N, 1, E)
        x = torch.cat([q, k], 2)
        x = torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
        y, z = x.split([q.shape[2], k.shape[2]], 2)
        return y, z


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Each pair (x[i], x[i + E/2]) of every head, as a complex number, times e^(i angle).

    x (B, N, ..., E), turns (N, 2, E/2) or (B, N, 2, E/2) -> as x.
    """
    between = [None] * (x.dim() - 3)
    cos, sin = (turns[..., i, :].to(x.dtype)[(..., *between, slice(None))] for i in (0, 1))  # ((B,) N, 1..., E/2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
