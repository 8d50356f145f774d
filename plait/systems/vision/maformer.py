"""MAFormer: A Transformer Network with Multi-scale Attention Fusion for Visual Recognition. Wang, Sun, Wang, Zhang, Li,
Xin, Zhang, Ding, Han, 2022. arXiv:2209.01620.

New here: fine and coarse at once. In every layer of the first three stages windows attend to themselves, while one
matrix over places distils the whole map to half as many tokens, learnt, not pooled; each windowed token then asks the
distilled ones, so that the picture decides how much of the whole goes where. The last stage just attends to itself.

Differs: no code was published; this follows public accounts of the method, not the paper's tables, and the sizes below
are ours. A matrix over places belongs to one picture size: maps of other pictures are resampled to its grid first, for
the coarse tokens alone. Decided here: the distilled tokens get learnt positions; what windows found and what they were
answered are added, both to the residual.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, CrossAttention, FeedForward, Stack, stage_rates
from plait.core.tokens import Tokens
from plait.parts.maps import OnTokens, flat, to_map
from plait.parts.mixers.windows import WindowAttention
from plait.parts.positions.resample import bound
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.pyramid import Pyramid
from plait.systems.vision.davit import Halve, Stem


class Distil(nn.Module):
    """All tokens of a grid in half as many, by a learnt matrix over places: Tokens (B, N, D) -> Tokens (B, N/2, D)."""

    on_grid = True

    def __init__(self, width: int, grid: tuple[int, int]):
        super().__init__()
        self.grid, count = grid, grid[0] * grid[1]
        self.places, self.positions = nn.Linear(count, count // 2), nn.Parameter(torch.empty(1, count // 2, width))

    def reset(self) -> None:
        nn.init.trunc_normal_(self.positions, std=0.02)

    def refit(self, key: str, tensor: Tensor) -> None:
        raise bound("the matrix over the places of a map", tensor)

    def forward(self, t: Tokens) -> Tokens:
        x = flat(F.interpolate(to_map(t), size=self.grid, mode="bilinear"))
        return Tokens(self.places(x.mT).mT + self.positions)


class Fusion(nn.Module):
    """Windows, and what they ask of the whole map: Tokens of a grid (B, N, D) -> the same."""

    gives = ("stream",)

    def __init__(self, width: int, heads: int, window: int, grid: tuple[int, int]):
        super().__init__()
        self.local, self.distil = WindowAttention(width, heads, (window, window)), Distil(width, grid)
        self.ask = CrossAttention(width, heads)

    def forward(self, t: Tokens) -> Tokens:
        fine = self.local(t)
        said = self.ask(fine.reading(stream=self.distil(t)))
        return t.carry(said, fine.x + said.x)


class MAFormer(Pyramid):
    """Pictures (B, 3, H, W) of any size -> logits (B, K). image: (H, W) of the coarse tokens. stride: of the stem."""

    fits = ("image",)

    def __init__(self, *, image=(224, 224), stride=4, widths, depths, heads, window=7, num_classes=1000, drop_path=0.0):
        stages, grid = [], tuple(-(-side // stride) for side in image)
        for s, (d, h, rates) in enumerate(zip(widths, heads, stage_rates(drop_path, depths))):
            last = s == len(widths) - 1
            mixers = (Attention(d, h) if last else Fusion(d, h, window, grid) for _ in rates)
            blocks = (pre_norm(d, mix, FeedForward(d, 4 * d), drop=rate) for mix, rate in zip(mixers, rates))
            stages.append(nn.Sequential(Halve(widths[s - 1], d, 3) if s else nn.Identity(), OnTokens(Stack(*blocks))))
            grid = tuple(-(-side // 2) for side in grid)
        super().__init__(Stem(widths[0], stride), stages, nn.LayerNorm(d), d, num_classes)


MODEL = MAFormer
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
TOY = dict(image=(32, 32), stride=2, widths=(8, 16, 16, 32), depths=(1, 1, 1, 1))
NANO = dict(image=(64, 64), widths=(32, 64, 96, 128), depths=(2, 2, 2, 1))
SIZES = {
    "toy": TOY | dict(heads=(1, 2, 2, 4), window=4, num_classes=10),
    "nano": NANO | dict(heads=(1, 2, 3, 4), window=4, drop_path=0.1),
}
WEIGHTS = {}
