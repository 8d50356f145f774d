"""Learned grids for grids of other sides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core.precision import wide


def resample(table: Tensor, size: Sequence[int], mode: str = "bicubic", **how: bool) -> Tensor:
    """(B, C, h, w) -> (B, C, *size) as `F.interpolate` does it, in float32 also of half precision.

    What it does is linear in each side alone, so that only its weights are asked of it: of its own backward pass with
    antialiasing torch knows no program for all sizes.
    """
    x = wide(table)
    down, across = (_weights(x, side, n, mode, how) for side, n in zip((2, 3), size, strict=True))
    return ((x @ across).mT @ down).mT.to(table.dtype)


def _weights(x: Tensor, side: int, n: int, mode: str, how: dict[str, bool]) -> Tensor:
    """(m, n): what each of the m places of a side of `x` gives to each of the n new ones."""
    places = torch.eye(x.shape[side], dtype=x.dtype, device=x.device)[None, :, None]  # each a map of one row
    return F.interpolate(places, size=(1, n), mode=mode, **how)[0, :, 0]


def square(count: int) -> tuple[int, int] | None:
    """The sides of a grid of `count` places, where it is square."""
    side = round(count**0.5)
    return (side, side) if side * side == count else None
