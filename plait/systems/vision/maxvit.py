"""MaxViT: Multi-Axis Vision Transformer. Tu, Talebi, Zhang, Yang, Milanfar, Bovik, Li, 2022. arXiv:2204.01697.

New here: after attention inside windows, attention over a coarse grid whose places lie one in every part of the map, so
that two layers connect any two places at a cost linear in their number. Each pair of them follows an inverted
bottleneck, in every stage alike.

Differs: maps that windows do not divide are filled up with zeros, which take part; the sizes "tf" are the authors' own.
"""

from __future__ import annotations

import math
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Block, DropPath, FeedForward, Stack, stage_rates
from plait.core.schemes import FAINT, FAN_OUT, TABLES, ZERO, Paper, evenly, xavier
from plait.core.tokens import Tokens, mean, whole_grid
from plait.core.weights import Drop, Rename, Rule
from plait.parts.convs import ChannelsLast, ConvNorm, Pointwise, SqueezeExcite
from plait.parts.maps import OnTokens
from plait.parts.mixers.windows import WindowAttention, crop, pad_to
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.layouts import timm_blocks
from plait.parts.towers.pyramid import Pyramid

Gelu = partial(nn.GELU, approximate="tanh")
EPS = 1e-3  # of batch norms


class GridAttention(WindowAttention):
    """Self-attention among h x w places, one in each part of the map, spread evenly, with a learned bias per offset."""

    on_grid = True

    def forward(self, t: Tokens) -> Tokens:
        (h, w), x = self.window, pad_to(whole_grid(t).x.unflatten(1, t.grid), self.window)
        grid = (x.shape[1], x.shape[2])
        x = x.unflatten(2, (w, -1)).unflatten(1, (h, -1)).permute(0, 2, 4, 1, 3, 5)  # (B, H/h, W/w, h, w, D)
        y = self.mix(t.inside(x.flatten(3, 4).flatten(0, 2)), self.bias())
        return crop(t, y.replace(x=y.x.view(x.shape).permute(0, 3, 1, 4, 2, 5).flatten(1, 4)), grid)


def halved(x: Tensor) -> Tensor:
    """A map with a zero below and at the right: what TensorFlow's 3 x 3 convolutions of stride 2 read of even sides."""
    return F.pad(x, (0, 1, 0, 1))


class MBConv(nn.Module):
    """Norm, then an inverted bottleneck whose channels weigh each other: (B, C, H, W) -> (B, C', H/s, W/s)."""

    def __init__(self, channels: int, out: int, stride: int, drop: float):
        super().__init__()
        hidden = 4 * out
        self.norm, self.up = nn.BatchNorm2d(channels, eps=EPS), ConvNorm(channels, hidden, act=Gelu, eps=EPS)
        self.spread = nn.Conv2d(hidden, hidden, 3, stride, stride % 2, groups=hidden, bias=False)
        self.spread_norm, self.act = nn.BatchNorm2d(hidden, eps=EPS), Gelu()
        self.weigh, self.down = SqueezeExcite(hidden, out // 4, act=nn.SiLU), Pointwise(hidden, out)
        self.drop, self.shortcut = DropPath(drop), nn.Identity()
        if stride == 2:
            widen = nn.Identity() if channels == out else Pointwise(channels, out)
            self.shortcut = nn.Sequential(nn.AvgPool2d(2), widen)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.norm(x))
        y = self.spread(y if self.spread.padding[0] else halved(y))
        return self.shortcut(x) + self.drop(self.down(self.weigh(self.act(self.spread_norm(y)))))


class Stem(nn.Module):
    """Two convolutions: (B, 3, H, W) -> (B, D, H / 2, W / 2)."""

    def __init__(self, width: int):
        super().__init__()
        self.last, self.conv1, self.conv2 = ChannelsLast(), nn.Conv2d(3, width, 3, 2), nn.Conv2d(width, width, 3, 1, 1)
        self.norm, self.act = nn.BatchNorm2d(width, eps=EPS), Gelu()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.act(self.norm(self.conv1(self.last(halved(x))))))


def block(width: int, mix: nn.Module, drop: float) -> Block:
    return pre_norm(width, mix, FeedForward(width, 4 * width, act=Gelu), drop=drop)


class MaxViT(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K). Sides are multiples of 2^(1 + stages).

    stem: channels before the first stage. head: channels of a head. window: places a side, of windows and grids alike.
    """

    def __init__(self, *, stem, widths, depths, head=32, window=7, num_classes=1000, drop_path=0.0):
        stages, channels, kinds = [], stem, (WindowAttention, GridAttention)
        for d, rates in zip(widths, stage_rates(drop_path, depths)):
            layers = []
            for i, rate in enumerate(rates):
                pair = (block(d, kind(d, d // head, (window, window)), rate) for kind in kinds)
                conv = MBConv(d if i else channels, d, 1 if i else 2, rate)
                layers.append(nn.Sequential(conv, OnTokens(Stack(*pair))))
            stages.append(nn.Sequential(*layers))
            channels = d
        super().__init__(Stem(stem), stages, nn.LayerNorm(d), d, num_classes)
        self.multiple = 2 ** (1 + len(widths))
        self.hidden = nn.Sequential(nn.Linear(d, d), nn.Tanh())

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): a layer on the norm of the mean token."""
        return self.hidden(self.norm(mean(t)))


TINY = dict(stem=64, widths=(64, 128, 256, 512), depths=(2, 2, 5, 2))
SMALL = dict(stem=64, widths=(96, 192, 384, 768), depths=(2, 2, 5, 2))
BASE = dict(stem=64, widths=(96, 192, 384, 768), depths=(2, 6, 14, 2))
LARGE = dict(stem=128, widths=(128, 256, 512, 1024), depths=(2, 6, 14, 2))
XLARGE = dict(stem=192, widths=(192, 384, 768, 1536), depths=(2, 6, 14, 2))
W12 = dict(window=12)
W16 = dict(window=16)
IN21K = dict(num_classes=21843)

PAPER = Paper(
    (
        *TABLES,
        *FAN_OUT,
        ("head.*", evenly),
        ("hidden.*", evenly),
        ("*.feed.f.*.bias", FAINT),
        ("Linear.weight", xavier),
        ("Linear.bias", ZERO),
    ),
    {"tiny*": 0.2, "small*": 0.3, "base*": 0.4, "large*": 0.6},
)

MODEL = MaxViT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(stem=8, widths=(16, 32), depths=(1, 1), head=8, window=4, num_classes=10),
    "nano": dict(stem=16, widths=(32, 64, 96), depths=(1, 1, 2), head=16, window=4, drop_path=0.1),
    "tiny_tf_224": TINY,
    "tiny_tf_384": TINY | W12,
    "tiny_tf_512": TINY | W16,
    "small_tf_224": SMALL,
    "small_tf_384": SMALL | W12,
    "small_tf_512": SMALL | W16,
    "base_tf_224": BASE,
    "base_tf_224_in21k": BASE | IN21K,
    "base_tf_384": BASE | W12,
    "base_tf_512": BASE | W16,
    "large_tf_224": LARGE,
    "large_tf_224_in21k": LARGE | IN21K,
    "large_tf_384": LARGE | W12,
    "large_tf_512": LARGE | W16,
    "xlarge_tf_224_in21k": XLARGE | IN21K,
    "xlarge_tf_384": XLARGE | W12,
    "xlarge_tf_512": XLARGE | W16,
}

CROP = dict(image=(224, 224), crop_pct=0.95)
TIMM = CROP | dict(licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = TIMM | dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TF_384 = HALF | dict(image=(384, 384), crop_pct=1.0, crop_mode="squash")
TF_512 = TF_384 | dict(image=(512, 512))
WEIGHTS = {
    "tiny_tf_224": TIMM | dict(hub="timm/maxvit_tiny_tf_224.in1k"),
    "tiny_tf_384": TF_384 | dict(hub="timm/maxvit_tiny_tf_384.in1k"),
    "tiny_tf_512": TF_512 | dict(hub="timm/maxvit_tiny_tf_512.in1k"),
    "small_tf_224": TIMM | dict(hub="timm/maxvit_small_tf_224.in1k"),
    "small_tf_384": TF_384 | dict(hub="timm/maxvit_small_tf_384.in1k"),
    "small_tf_512": TF_512 | dict(hub="timm/maxvit_small_tf_512.in1k"),
    "base_tf_224": TIMM | dict(hub="timm/maxvit_base_tf_224.in1k"),
    "base_tf_224_in21k": HALF | dict(hub="timm/maxvit_base_tf_224.in21k", timm="maxvit_base_tf_224.in21k"),
    "base_tf_384": TF_384 | dict(hub="timm/maxvit_base_tf_384.in1k"),
    "base_tf_512": TF_512 | dict(hub="timm/maxvit_base_tf_512.in1k"),
    "large_tf_224": TIMM | dict(hub="timm/maxvit_large_tf_224.in1k"),
    "large_tf_224_in21k": HALF | dict(hub="timm/maxvit_large_tf_224.in21k", timm="maxvit_large_tf_224.in21k"),
    "large_tf_384": TF_384 | dict(hub="timm/maxvit_large_tf_384.in1k"),
    "large_tf_512": TF_512 | dict(hub="timm/maxvit_large_tf_512.in1k"),
    "xlarge_tf_224_in21k": HALF | dict(hub="timm/maxvit_xlarge_tf_224.in21k"),
    "xlarge_tf_384": TF_384 | dict(hub="timm/maxvit_xlarge_tf_384.in21k_ft_in1k"),
    "xlarge_tf_512": TF_512 | dict(hub="timm/maxvit_xlarge_tf_512.in21k_ft_in1k"),
}
TAGS = {
    "base_tf_384.in21k_ft_in1k": dict(),
    "base_tf_512.in21k_ft_in1k": dict(),
    "large_tf_384.in21k_ft_in1k": dict(),
    "large_tf_512.in21k_ft_in1k": dict(),
}


def table(ts: list[Tensor]) -> list[Tensor]:
    """(H, 2h - 1, 2w - 1) by key minus query -> ((2h - 1)(2w - 1), H) by query minus key."""
    return [ts[0].flip(1, 2).flatten(1).mT.contiguous()]


def public_table(ts: list[Tensor]) -> list[Tensor]:
    """Undoes `table` for square windows."""
    side = math.isqrt(ts[0].shape[0])
    return [ts[0].mT.unflatten(1, (side, side)).flip(1, 2).contiguous()]


def layer(theirs: str, ours: str) -> list[Rule]:
    """A layer of either kind of attention."""
    bias = (f"{theirs}.attn.rel_pos.relative_position_bias_table",), (f"{ours}.mix.f.bias.table",)
    sums = (Drop(f"{theirs}.attn.rel_pos.{side}_lookup") for side in ("height", "width"))
    return [Rule(*bias, table, public_table), *sums, *timm_blocks(theirs, ours)]


THEIRS, OURS = "stages.{s}.blocks.{i}", "stages.{s}.{i}"
RULES = {
    "timm": [
        Rename("stem.norm1.{p}", "stem.norm.{p}"),
        Rename("stem.{c}.{p}", "stem.{c}.{p}"),
        Rename(f"{THEIRS}.conv.shortcut.expand.{{p}}", f"{OURS}.0.shortcut.1.{{p}}"),
        Rename(f"{THEIRS}.conv.pre_norm.{{p}}", f"{OURS}.0.norm.{{p}}"),
        Rename(f"{THEIRS}.conv.conv1_1x1.weight", f"{OURS}.0.up.conv.weight"),
        Rename(f"{THEIRS}.conv.norm1.{{p}}", f"{OURS}.0.up.norm.{{p}}"),
        Rename(f"{THEIRS}.conv.conv2_kxk.weight", f"{OURS}.0.spread.weight"),
        Rename(f"{THEIRS}.conv.norm2.{{p}}", f"{OURS}.0.spread_norm.{{p}}"),
        Rename(f"{THEIRS}.conv.se.fc1.{{p}}", f"{OURS}.0.weigh.down.{{p}}"),
        Rename(f"{THEIRS}.conv.se.fc2.{{p}}", f"{OURS}.0.weigh.up.{{p}}"),
        Rename(f"{THEIRS}.conv.conv3_1x1.{{p}}", f"{OURS}.0.down.{{p}}"),
        *layer(f"{THEIRS}.attn_block", f"{OURS}.1.f.blocks.0"),
        *layer(f"{THEIRS}.attn_grid", f"{OURS}.1.f.blocks.1"),
        Rename("head.norm.{p}", "norm.{p}"),
        Rename("head.pre_logits.fc.{p}", "hidden.0.{p}"),
        Rename("head.fc.{p}", "head.{p}"),
    ],
}
