"""Grids cut into windows and put together again, for attention that stays inside a window."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pad_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W, D) with zeros below and at the right, so that both sides are multiples of `size`."""
    h, w = x.shape[1:3]
    below, right = -h % size[0], -w % size[1]
    return F.pad(x, (0, 0, 0, right, 0, below))


def to_windows(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W, D) -> (B * H/h * W/w, h * w, D), windows in reading order; both sides must be multiples of `size` = (h, w)."""
    b, high, wide, d = x.shape
    x = x.view(b, high // size[0], size[0], wide // size[1], size[1], d)
    return x.transpose(2, 3).reshape(-1, size[0] * size[1], d)


def from_windows(x: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """(B * H/h * W/w, h * w, D) -> (B, H, W, D) for a grid (H, W): undoes `to_windows`."""
    x = x.view(-1, grid[0] // size[0], grid[1] // size[1], size[0], size[1], x.shape[-1])
    return x.transpose(2, 3).reshape(-1, grid[0], grid[1], x.shape[-1])
