"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows. Liu, Lin, Cao, Hu, Wei, Zhang, Lin, Guo,
2021. arXiv:2103.14030.

New here: attention inside windows of a few places a side, so that its cost grows with the picture and not with its
square; every second layer cuts the grid half a window further, so that neighbours who were apart meet. Between stages
four neighbours become one.

Differs: every picture size is read: grids are filled up with zeros below and at the right, as in the authors' code for
dense tasks, and a side that is one window is not shifted, as in their code for classification.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.block import Block, FeedForward, Stack, stage_rates
from plait.core.schemes import VIT, Paper
from plait.core.sizes import least
from plait.core.tokens import Tokens, whole_grid
from plait.core.weights import Drop, Join, Rename
from plait.parts.maps import OnTokens
from plait.parts.mixers.windows import WindowAttention, pad_to
from plait.parts.tokenizers.patches import PatchMap
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.layouts import timm_blocks
from plait.parts.towers.pyramid import Pyramid


class ShiftedWindowAttention(WindowAttention):
    """The same with windows that begin half a window further, along each side that has more than one. The grid is a
    ring: its last windows hold places of both ends, which do not see each other."""

    def forward(self, t: Tokens) -> Tokens:
        x = pad_to(whole_grid(t).x.unflatten(1, t.grid), self.window)
        sides, area = zip(x.shape[1:3], self.window), self.window[0] * self.window[1]
        high, wide = (Ring(side, window, x.device) for side, window in sides)
        # One gather cuts and shifts, one puts together: rolling the grid would copy it once more each way.
        index = high.places[:, None, :, None] * x.shape[2] + wide.places[None, :, None, :]  # (H/h, W/w, h, w)
        part = 2 * high.behind[:, None, :, None] + wide.behind[None, :, None, :]
        part = part.flatten(2).flatten(0, 1)  # (windows, h w): which end of the ring, or of both
        # (windows, H, h w, h w)
        bias = self.bias().masked_fill(part[:, None, :, None] != part[:, None, None, :], float("-inf"))
        windows = x.flatten(1, 2).index_select(1, index.flatten()).unflatten(1, (-1, area)).flatten(0, 1)
        y = self.mix(t.inside(windows), bias.expand(x.shape[0], -1, -1, -1, -1).flatten(0, 1))
        (row, down), (column, right) = (ring.find(n) for ring, n in zip((high, wide), t.grid))
        back = (row[:, None] * wide.count + column) * area + down[:, None] * self.window[1] + right
        return t.carry(y, y.x.unflatten(0, (x.shape[0], -1)).flatten(1, 2).index_select(1, back.flatten()))


class Ring:
    """One side of a grid, cut half a window further than its beginning if it is longer than a window.

    places, behind: (windows, window) int64, which place stands there, and 1 where it lies behind the ring's seam.
    """

    def __init__(self, side: int, window: int, device: torch.device):
        self.side, self.window, self.count = side, window, side // window
        self.shift = window // 2 * least(self.count - 1, 1)
        places = torch.arange(side, device=device) + self.shift
        self.places, self.behind = (x.unflatten(0, (-1, window)) for x in (places % side, places // side))

    def find(self, count: int) -> tuple[Tensor, Tensor]:
        """For the first `count` places the number of their window and their place in it, (count,) int64 each."""
        places = (torch.arange(count, device=self.places.device) - self.shift) % self.side
        return places // self.window, places % self.window


class Merge(nn.Module):
    """Four neighbours become one: (B, C, H, W) -> (B, 2 C, H / 2, W / 2), rounded up."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to(x.permute(0, 2, 3, 1), (2, 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5)  # (B, H/2, W/2, column, row, C)
        return self.proj(self.norm(x.flatten(3))).permute(0, 3, 1, 2)


class Swin(Pyramid):
    """Pictures (B, 3, H, W) of any size -> logits (B, K). width: of the first stage, doubled by each further one;
    heads: of every stage."""

    def __init__(self, *, patch=4, width, depths, heads, window=7, ratio=4, num_classes=1000, drop_path=0.0):
        def layer(d: int, h: int, i: int, drop: float) -> Block:
            mix = (ShiftedWindowAttention if i % 2 else WindowAttention)(d, h, (window, window))
            return pre_norm(d, mix, FeedForward(d, ratio * d), drop=drop)

        stages, d = [], width
        for h, rates in zip(heads, stage_rates(drop_path, depths)):
            stack = Stack(*(layer(d, h, i, drop) for i, drop in enumerate(rates)))
            stages.append(nn.Sequential(Merge(d // 2) if stages else nn.Identity(), OnTokens(stack)))
            d *= 2
        super().__init__(PatchMap(width, patch), stages, nn.LayerNorm(d // 2), d // 2, num_classes)


TINY = dict(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24))
SMALL = dict(width=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24))
BASE = dict(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32))
LARGE = dict(width=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48))

PAPER = Paper(VIT, {"tiny*": 0.2, "small*": 0.3, "base*": 0.5})

MODEL = Swin
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(patch=2, width=16, depths=(2, 2), heads=(2, 4), window=4, num_classes=10),
    "nano": dict(patch=2, width=32, depths=(2, 2, 4), heads=(1, 2, 4), window=4, drop_path=0.1),
    "tiny_patch4_window7_224": TINY,
    "small_patch4_window7_224": SMALL,
    "base_patch4_window7_224": BASE,
    "base_patch4_window12_384": BASE | dict(window=12),
    "large_patch4_window7_224": LARGE,
    "large_patch4_window12_384": LARGE | dict(window=12),
}

CROP = dict(image=(224, 224), crop_pct=0.9)
TIMM = CROP | dict(licence="mit", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WHOLE = TIMM | dict(image=(384, 384), crop_pct=1.0)
WEIGHTS = {
    "tiny_patch4_window7_224": TIMM | dict(hub="timm/swin_tiny_patch4_window7_224.ms_in1k"),
    "small_patch4_window7_224": TIMM | dict(hub="timm/swin_small_patch4_window7_224.ms_in22k_ft_in1k"),
    "base_patch4_window7_224": TIMM | dict(hub="timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k"),
    "base_patch4_window12_384": WHOLE | dict(hub="timm/swin_base_patch4_window12_384.ms_in22k_ft_in1k"),
    "large_patch4_window7_224": TIMM | dict(hub="timm/swin_large_patch4_window7_224.ms_in22k_ft_in1k"),
    "large_patch4_window12_384": WHOLE | dict(hub="timm/swin_large_patch4_window12_384.ms_in22k_ft_in1k"),
}
IN22K = dict(num_classes=21841)
TAGS = {
    "tiny_patch4_window7_224.ms_in22k_ft_in1k": dict(),
    "tiny_patch4_window7_224.ms_in22k": IN22K,
    "small_patch4_window7_224.ms_in1k": dict(),
    "small_patch4_window7_224.ms_in22k": IN22K,
    "base_patch4_window7_224.ms_in1k": dict(),
    "base_patch4_window7_224.ms_in22k": IN22K,
    "base_patch4_window12_384.ms_in1k": dict(),
    "base_patch4_window12_384.ms_in22k": IN22K,
    "large_patch4_window7_224.ms_in22k": IN22K,
    "large_patch4_window12_384.ms_in22k": IN22K,
}

THEIRS, OURS = "swin.encoder.layers.{s}.blocks.{i}", "stages.{s}.1.f.blocks.{i}"
RULES = {
    "timm": [
        Rename("patch_embed.{p}.{q}", "stem.{p}.{q}"),
        Rename("layers.{s}.downsample.norm.{p}", "stages.{s}.0.norm.{p}"),
        Rename("layers.{s}.downsample.reduction.weight", "stages.{s}.0.proj.weight"),
        Rename("layers.{s}.blocks.{i}.attn.relative_position_bias_table", f"{OURS}.mix.f.bias.table"),
        *timm_blocks("layers.{s}.blocks.{i}", OURS),
        Drop("layers.{s}.blocks.{i}.attn.relative_position_index"),
        Drop("layers.{s}.blocks.{i}.attn_mask"),
        Rename("norm.{p}", "norm.{p}"),
        Rename("head.fc.{p}", "head.{p}"),
    ],
    "transformers": [
        Rename("swin.embeddings.patch_embeddings.projection.{p}", "stem.proj.{p}"),
        Rename("swin.embeddings.norm.{p}", "stem.norm.{p}"),
        *(Rename(f"swin.encoder.layers.{s}.downsample.norm.{{p}}", f"stages.{s + 1}.0.norm.{{p}}") for s in range(3)),
        *(
            Rename(f"swin.encoder.layers.{s}.downsample.reduction.weight", f"stages.{s + 1}.0.proj.weight")
            for s in range(3)
        ),
        Rename(f"{THEIRS}.layernorm_before.{{p}}", f"{OURS}.mix.norm.{{p}}"),
        Join([f"{THEIRS}.attention.self.{n}.{{p}}" for n in ("query", "key", "value")], f"{OURS}.mix.f.qkv.{{p}}"),
        Rename(f"{THEIRS}.attention.self.relative_position_bias_table", f"{OURS}.mix.f.bias.table"),
        Drop(f"{THEIRS}.attention.self.relative_position_index"),
        Rename(f"{THEIRS}.attention.output.dense.{{p}}", f"{OURS}.mix.f.out.{{p}}"),
        Rename(f"{THEIRS}.layernorm_after.{{p}}", f"{OURS}.feed.norm.{{p}}"),
        Rename(f"{THEIRS}.intermediate.dense.{{p}}", f"{OURS}.feed.f.up.{{p}}"),
        Rename(f"{THEIRS}.output.dense.{{p}}", f"{OURS}.feed.f.down.{{p}}"),
        Rename("swin.layernorm.{p}", "norm.{p}"),
        Rename("classifier.{p}", "head.{p}"),
    ],
}
