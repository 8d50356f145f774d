"""Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles. Ryali et al., 2023. arXiv:2306.00989.

New here: a pyramid of plain transformer layers. The first two stages attend inside the units of 8 x 8 places that
pre-training hides, the others everywhere; in the first layer of a stage, which still reads as those before it, queries
are the maximum of 2 x 2 places, and what goes past them is pooled alike. No convolution, no relative position, no
shifted window: what those gave is learnt by hiding.

Differs: pictures of other multiples of 32 than `image` are read. The "abswin" sizes have positions that are the sum of
one table for the whole picture and one for every unit (arXiv:2311.05613). Hiding units in pre-training is not here.
"turbo_224" stands for TurboViT (arXiv:2308.11421), which a search for speed found among such layers: its table is not
published, this one is ours, of the size that its paper tells (12.7 M weights, 0.4 of FasterViT-0's).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import (
    Attention,
    Block,
    FeedForward,
    Pre,
    Stack,
    check_heads,
    drop_rates,
    merge_heads,
    split_heads,
)
from plait.core.schemes import VIT, ZERO, Paper, constant, trunc
from plait.core.tokens import Tokens, sides, whole_grid
from plait.core.weights import Rename
from plait.parts.maps import to_map, to_tokens
from plait.parts.mixers.windows import from_windows, to_windows
from plait.parts.positions.learned import GridPositions
from plait.parts.positions.resample import resample
from plait.parts.towers.backbone import Backbone, norm_of_mean
from plait.parts.towers.encoder import after
from plait.parts.towers.layouts import timm_blocks
from plait.parts.towers.pyramid import Pyramid

PATCH, UNIT = 4, 8  # pixels of a place, places of a unit
Norm = partial(nn.LayerNorm, eps=1e-6)


def fours(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(..., H * W, C) of a grid -> (..., H/2 * W/2, C, 4): the places of each 2 x 2."""
    x = x.unflatten(-2, (grid[0] // 2, 2, grid[1] // 2, 2))
    return x.movedim((-4, -2), (-2, -1)).flatten(-2).flatten(-4, -3)


class UnitAttention(nn.Module):
    """Self-attention inside the units of a grid, of `unit` places a side: Tokens (B, N, C) -> Tokens (B, N, D).

    unit: None is the whole grid. pool: the queries are the maximum of 2 x 2 places: -> Tokens (B, N / 4, D) of half the
    grid.
    """

    on_grid = True

    def __init__(self, width: int, out: int, heads: int, unit: int | None, pool: bool):
        super().__init__()
        check_heads(out, heads)
        self.heads, self.unit, self.pool, self.attend = heads, unit, pool, Attend()
        self.qkv, self.out = nn.Linear(width, 3 * out), nn.Linear(out, out)

    def forward(self, t: Tokens) -> Tokens:
        grid = sides(whole_grid(t))
        size = grid if self.unit is None else (self.unit, self.unit)
        inner = t if self.unit is None else t.inside(to_windows(t.x.unflatten(1, grid), size))  # (units, n, C)
        q, k, v = split_heads(self.qkv(inner.x), 3, self.heads)  # each (units, H, n, E)
        if self.pool:
            q = fours(q, size).amax(-1)
            size, grid = (size[0] // 2, size[1] // 2), (grid[0] // 2, grid[1] // 2)
        y = self.attend(inner, q, k, v, to=inner)
        x = self.out(merge_heads(y.x))
        return t.carry(y, x if self.unit is None else from_windows(x, size, grid).flatten(1, 2), grid=grid)


class PoolStep(nn.Module):
    """pool(past(norm(x))) + after(f(norm(x))), where f halves the grid: Tokens (B, N, C) -> Tokens (B, N / 4, D).

    past: to D channels; None lays the maximum and the mean of x side by side.
    """

    on_grid = True

    def __init__(self, norm: nn.Module, f: nn.Module, after: nn.Module, past: nn.Module | None):
        super().__init__()
        self.norm, self.f, self.after, self.past = norm, f, after, past

    def forward(self, t: Tokens) -> Tokens:
        grid, normed = sides(whole_grid(t)), self.norm(t.x)
        if self.past is None:
            places = fours(t.x, grid)
            x = torch.cat([places.amax(-1), places.mean(-1)], 2)
        else:
            x = fours(self.past(normed), grid).amax(-1)
        y = self.f(t.replace(x=normed))
        return t.carry(y, x + self.after(y.x), grid=y.grid)


class UnitPositions(nn.Module):
    """A learned table of a grid, resampled to every other, and one of a unit, the same in all: Tokens (B, N, D) of a
    grid -> the same."""

    def __init__(self, grid: tuple[int, int], width: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, width, *grid))
        self.unit = nn.Parameter(torch.empty(1, width, UNIT, UNIT))

    def reset(self) -> None:
        nn.init.trunc_normal_(self.table, std=0.02)
        nn.init.trunc_normal_(self.unit, std=0.02)

    def refit(self, key: str, tensor: Tensor) -> Tensor | None:
        """A published table of another grid, as one of this grid."""
        return resample(tensor, self.table.shape[2:], antialias=True) if key == "table" else None

    def forward(self, t: Tokens) -> Tokens:
        h, w = sides(t)
        whole = resample(self.table, (h, w), antialias=True)
        return t.replace(x=t.x + to_tokens(whole + self.unit.tile(1, 1, h // UNIT, w // UNIT)).x)


class Patches(nn.Module):
    """(B, 3, H, W) -> Tokens (B, H/4 * W/4, D) of a grid, from patches of 7 x 7 that overlap."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, 7, PATCH, 3)

    def forward(self, x: Tensor) -> Tokens:
        return to_tokens(self.proj(x))


class Hiera(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K). Sides are multiples of 32.

    image: the (H, W) that positions are learned for. width, heads: of the first stage; both double with each. table:
    the grid of a table for all pictures, with one of a unit beside; None: each place of `image` has its own. scale:
    where layer scale starts. project: whether what goes past a pooling attention is projected.
    """

    fits = ("image",)
    multiple = PATCH * UNIT
    strides = (4, 8, 16, 32)
    beyond = ("norm", "head")
    pool = norm_of_mean

    def __init__(
        self, *, image=(224, 224), width, heads, depths, table=None, scale=None, project=True,
        num_classes=1000, drop_path=0.0,
    ):  # fmt: skip
        super().__init__()
        grid = (image[0] // PATCH, image[1] // PATCH)
        self.stem = Patches(width)
        self.positions = GridPositions(grid, width) if table is None else UnitPositions(table, width)
        blocks, rates, self.ends = [], iter(drop_rates(drop_path, sum(depths))), []
        for s, depth in enumerate(depths):
            for i in range(depth):
                pool, out, rate = s > 0 and i == 0, width * (2 if s > 0 and i == 0 else 1), next(rates)
                h, unit = heads * 2**s, UNIT // 2 ** (s - pool) if s - pool < 2 else None
                blocks.append(layer(width, out, h, unit, pool, rate, scale, project))
                width = out
            self.ends.append(len(blocks))
        self.width, self.stack, self.norm = width, Stack(*blocks), Norm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, N, D) of the last stage with their grid, before the last norm."""
        return self.stack(self.positions(self.stem(x)))

    def maps(self, x: Tensor) -> list[Tensor]:
        """Each stage's map (B, C_i, H_i, W_i), finest first."""
        t, found = self.positions(self.stem(x)), []
        for i, block in enumerate(self.stack.blocks, 1):
            t = block(t)
            if i in self.ends:
                found.append(to_map(t))
        return found

    seen = Pyramid.seen


def deeper(t: Tensor, _module: nn.Module, name: str) -> None:
    """What a branch ends in begins the smaller, the deeper it lies: 0.02 over the root of twice the layer's number."""
    number = int(name.split(".")[2]) + 1
    nn.init.trunc_normal_(t, std=0.02).div_((2.0 * number) ** 0.5)


def layer(
    width: int, out: int, heads: int, unit: int | None, pool: bool, rate: float, scale: float | None, project: bool
) -> Block:
    """A plain layer whose attention, if it is to pool, also widens."""
    plain = unit is None and not pool
    f = Attention(width, heads) if plain else UnitAttention(width, out, heads, unit, pool)
    feed = Pre(Norm(out), FeedForward(out, 4 * out), after(out, rate, scale))
    if not pool:
        return Block(Pre(Norm(width), f, after(out, rate, scale)), feed)
    return Block(PoolStep(Norm(width), f, after(out, rate, scale), nn.Linear(width, out) if project else None), feed)


NARROW = dict(width=96, heads=1)
ABSWIN = NARROW | dict(image=(256, 256), scale=1e-5)

PAPER = Paper(
    (
        ("head.*", ZERO),
        ("*.mix.f.out.weight", deeper),
        ("*.feed.f.down.weight", deeper),
        ("Conv2d.weight", trunc(0.02)),
        ("Linear.bias", constant(0.02)),
        *VIT,
    )
)

MODEL = Hiera
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), width=8, heads=1, depths=(1, 1, 1, 1), num_classes=10),
    "nano": dict(image=(64, 64), width=32, heads=1, depths=(1, 2, 4, 1), drop_path=0.1),
    "turbo_224": dict(width=64, heads=1, depths=(1, 2, 7, 2)),
    "tiny_224": NARROW | dict(depths=(1, 2, 7, 2)),
    "small_224": NARROW | dict(depths=(1, 2, 11, 2)),
    "base_224": NARROW | dict(depths=(2, 3, 16, 3)),
    "base_plus_224": dict(width=112, heads=2, depths=(2, 3, 16, 3)),
    "large_224": dict(width=144, heads=2, depths=(2, 6, 36, 4)),
    "huge_224": dict(width=256, heads=4, depths=(2, 6, 36, 4)),
    "small_abswin_256": ABSWIN | dict(depths=(1, 2, 11, 2), table=(16, 16), project=False),
    "base_abswin_256": ABSWIN | dict(depths=(2, 3, 16, 3), table=(14, 14)),
}

MAE = dict(licence="cc-by-nc-4.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=0.9)
OPEN = MAE | dict(licence="apache-2.0", crop_pct=0.95)
WEIGHTS = {
    "tiny_224": MAE | dict(hub="timm/hiera_tiny_224.mae_in1k_ft_in1k"),
    "small_224": MAE | dict(hub="timm/hiera_small_224.mae_in1k_ft_in1k"),
    "base_224": MAE | dict(hub="timm/hiera_base_224.mae_in1k_ft_in1k"),
    "base_plus_224": MAE | dict(hub="timm/hiera_base_plus_224.mae_in1k_ft_in1k"),
    "large_224": MAE | dict(hub="timm/hiera_large_224.mae_in1k_ft_in1k"),
    "huge_224": MAE | dict(hub="timm/hiera_huge_224.mae_in1k_ft_in1k"),
    "small_abswin_256": OPEN | dict(hub="timm/hiera_small_abswin_256.sbb2_e200_in12k_ft_in1k"),
    "base_abswin_256": dict(timm="hiera_base_abswin_256"),
}
BARE = dict(num_classes=0)
IN12K = dict(num_classes=11821)
TAGS = {
    "tiny_224.mae": BARE,
    "small_224.mae": BARE,
    "base_224.mae": BARE,
    "base_plus_224.mae": BARE,
    "large_224.mae": BARE,
    "huge_224.mae": BARE,
    "small_abswin_256.sbb2_pd_e200_in12k_ft_in1k": dict(),
    "small_abswin_256.sbb2_e200_in12k": IN12K,
    "small_abswin_256.sbb2_pd_e200_in12k": IN12K,
}
RULES = {
    "timm": [
        Rename("patch_embed.proj.{p}", "stem.proj.{p}"),
        Rename("pos_embed", "positions.table"),
        Rename("pos_embed_win", "positions.unit"),
        *timm_blocks(),
        Rename("blocks.{i}.proj.{p}", "stack.blocks.{i}.mix.past.{p}"),
        Rename("head.norm.{p}", "norm.{p}"),
        Rename("head.fc.{p}", "head.{p}"),
    ]
}
