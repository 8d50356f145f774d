"""Grids cut into windows and put together again, for attention that stays inside a window.

While a program for pictures of every size is made, `cut` and `mend` decide nothing by the grid: sides that may not be
multiples are filled up, and rows and columns are merged in one step, because a program cannot prove that n windows are
no multiple of 7 n places.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import check_heads, merge_heads, split_heads
from plait.core.sizes import numbers, surely
from plait.core.tokens import Tokens, sides, whole_grid
from plait.parts.positions.relative import RelativeBias

Pair = tuple[int, int]


def pad_to(x: Tensor, size: Pair) -> Tensor:
    """(B, H, W, D) with zeros below and at the right, so that both sides are multiples of `size`."""
    below, right = ((side + s - 1) // s * s - side for side, s in zip(x.shape[1:3], size))
    if all(surely(side % s == 0) for side, s in zip(x.shape[1:3], size)):
        return x
    return F.pad(x, (0, 0, 0, right, 0, below))


def pad_map(x: Tensor, size: Pair) -> Tensor:
    """As `pad_to`, of a map (B, C, H, W)."""
    return pad_to(x.permute(0, 2, 3, 1), size).permute(0, 3, 1, 2)


def cut(t: Tokens, size: Pair) -> tuple[Tensor, Pair]:
    """Tokens of a grid (B, N, D), filled up with zeros, as windows (B * H/h * W/w, h * w, D) of `size` = (h, w); the
    filled grid (H, W)."""
    x = pad_to(whole_grid(t).x.unflatten(1, t.grid), size)
    return to_windows(x, size), (x.shape[1], x.shape[2])


def mend(t: Tokens, y: Tokens, size: Pair, grid: Pair) -> Tokens:
    """`t` with what became of its windows, x (B * H/h * W/w, h * w, D) on the filled grid (H, W): undoes `cut`."""
    x = y.x.view(-1, grid[0] // size[0], grid[1] // size[1], size[0], size[1], y.x.shape[-1])
    return crop(t, y.replace(x=x.transpose(2, 3).flatten(1, 4)), grid)


def crop(t: Tokens, y: Tokens, grid: Pair) -> Tokens:
    """`t` as `y` has it, x (B, H * W, D) of a grid (H, W) that was filled up, without what it was filled with."""
    x = y.x
    own = sides(t)
    if not all(surely(a == b) for a, b in zip(own, grid)):
        row, column = (torch.arange(side, device=x.device) for side in own)
        x = x.index_select(1, (row[:, None] * grid[1] + column).flatten())
    return t.carry(y, x)


class InWindows(nn.Module):
    """`f` of Tokens, such as an `Attention`, inside each window of `size` = (h, w): Tokens of a grid (B, N, D) -> the
    same.

    Grids are filled up with zeros, which take part.
    """

    on_grid = True

    def __init__(self, f: nn.Module, size: Pair):
        super().__init__()
        self.f, self.size = f, (size[0], size[1])

    def forward(self, t: Tokens) -> Tokens:
        x, grid = cut(t, self.size)
        return mend(t, self.f(t.inside(x, grid=self.size)), self.size, grid)


class WindowAttention(nn.Module):
    """Self-attention inside the windows (h, w) of a grid, with a learned bias per offset (Swin, arXiv:2103.14030):
    Tokens (B, N, D) -> the same."""

    on_grid = True

    def __init__(self, width: int, heads: int, window: tuple[int, int]):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.window, self.attend = heads, window, Attend()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = RelativeBias(window, heads)

    def mix(self, windows: Tokens, bias: Tensor) -> Tokens:
        """Windows (M, h w, D) and what is added to their scores, broadcastable to (M, H, h w, h w) -> windows."""
        q, k, v = split_heads(self.qkv(windows.x), 3, self.heads)  # each (M, H, h w, E)
        y = self.attend(windows, q, k, v, bias=bias)
        return y.replace(x=self.out(merge_heads(y.x)))

    def forward(self, t: Tokens) -> Tokens:
        x, grid = cut(t, self.window)
        return mend(t, self.mix(t.inside(x), self.bias()), self.window, grid)


def to_windows(x: Tensor, size: Pair) -> Tensor:
    """(B, H, W, D) -> (B * H/h * W/w, h * w, D), windows in reading order; both sides must be multiples of `size` = (h,
    w)."""
    if not numbers(*x.shape[1:3]):  # a gather asks nothing about the grid
        starts = (torch.arange(0, n // s * s, s, device=x.device) for n, s in zip(x.shape[1:3], size))
        row, column = (start[:, None] + torch.arange(s, device=x.device) for start, s in zip(starts, size))
        places = row[:, None, :, None] * x.shape[2] + column[None, :, None, :]  # (H/h, W/w, h, w)
        return x.flatten(1, 2).index_select(1, places.flatten()).view(-1, size[0] * size[1], x.shape[3])
    x = x.unflatten(2, (-1, size[1])).unflatten(1, (-1, size[0]))  # (B, H/h, h, W/w, w, D)
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(x: Tensor, size: Pair, grid: Pair) -> Tensor:
    """(B * H/h * W/w, h * w, D) -> (B, H, W, D) for a grid (H, W): undoes `to_windows`."""
    x = x.view(-1, grid[0] // size[0], grid[1] // size[1], size[0], size[1], x.shape[-1])
    return x.transpose(2, 3).reshape(-1, grid[0], grid[1], x.shape[-1])
