"""Learned grids for grids of other sides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core.precision import wide
from plait.errors import PlaitError


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


def stretch(table: Tensor, size: Sequence[int]) -> Tensor:
    """(C, h, w) -> (C, *size), odd sides with their middles in common: near the middle values stay nearly where they
    are, and further out they lie further apart, in geometric steps that make the ends meet; linear between them.

    Source: BEiT (arXiv:2106.08254), for tables of relative positions in larger windows.
    """
    rows, columns = (_between(old, new).to(table.device) for old, new in zip(table.shape[1:], size))
    return (rows @ wide(table) @ columns.mT).to(table.dtype)


def _between(old: int, new: int) -> Tensor:
    """(new, old): what of each old value each new one is made of."""
    if old == new:
        return torch.eye(old)
    half = old // 2
    low, high = 1.01, 1.5
    while high - low > 1e-6:  # the ratio of the steps, whose sum is half of the new side
        ratio = (low + high) / 2
        low, high = (low, ratio) if (1 - ratio**half) / (1 - ratio) > new // 2 else (ratio, high)
    steps = torch.tensor([ratio**i for i in range(half)]).cumsum(0)
    places = torch.cat([-steps.flip(0), torch.zeros(1), steps])
    wanted = (torch.arange(new) - float(new // 2)).clamp(places[0], places[-1])
    right = torch.bucketize(wanted, places).clamp(1, old - 1)
    share = (wanted - places[right - 1]) / (places[right] - places[right - 1])
    eye = torch.eye(old)
    return torch.lerp(eye[right - 1], eye[right], share[:, None])


def bound(what: str, tensor: Tensor) -> PlaitError:
    """What to say of weights that are for one grid of places only."""
    return PlaitError(
        f"{what} is for pictures of one size, and cannot be resampled: got a tensor of shape {tuple(tensor.shape)}; "
        "build the model for the size that the file is for (image=(H, W)) and resize the pictures"
    )


def square(count: int) -> tuple[int, int] | None:
    """The sides of a grid of `count` places, where it is square."""
    side = round(count**0.5)
    return (side, side) if side * side == count else None
