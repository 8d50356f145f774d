"""Learned grids for grids of other sides."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from plait.core.precision import wide


def resample(table: Tensor, size: Sequence[int], mode: str = "bicubic", **how: bool) -> Tensor:
    """(B, C, h, w) -> (B, C, *size) as `F.interpolate` does it, in float32 also of half precision."""
    return F.interpolate(wide(table), size=tuple(size), mode=mode, **how).to(table.dtype)


def square(count: int) -> tuple[int, int] | None:
    """The sides of a grid of `count` places, where it is square."""
    side = round(count**0.5)
    return (side, side) if side * side == count else None
