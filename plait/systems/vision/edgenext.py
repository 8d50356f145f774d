"""EdgeNeXt: Efficiently Amalgamated CNN-Transformer Architecture for Mobile Vision Applications. Maaz et al., 2022.
arXiv:2206.10589.

New here: every stage but the first ends in one layer that sees the whole picture at a cost linear in its size. It cuts
the channels into groups that pass depthwise convolutions one after the other, each group adding what the one before it
became, and then lets channels attend to channels. All other layers are depthwise convolutions whose kernels grow with
depth, from 3 to 9.

Differs: nothing on purpose.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from plait.core.attend import Attend
from plait.core.block import FeedForward, Layer, Pre, stage_rates
from plait.core.schemes import ONE, ZERO, Paper, clipped, constant
from plait.core.tokens import Tokens, refuse
from plait.core.weights import Rename, View
from plait.parts.convs import ChannelsLast, LayerNorm2d
from plait.parts.maps import OnMap, OnTokens
from plait.parts.mixers.convnext import ConvLayer, depthwise
from plait.parts.positions.sine import in_turn
from plait.parts.towers.backbone import norm_of_mean
from plait.parts.towers.encoder import after
from plait.parts.towers.pyramid import Pyramid

Norm = partial(nn.LayerNorm, eps=1e-6)
Norm2d = partial(LayerNorm2d, eps=1e-6)
BANDS = 32  # numbers for each axis of a position


class ChannelAttention(nn.Module):
    """Channels attend to channels of their head by how alike they run over the picture: Tokens -> the same, in O(N)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.attend = heads, Attend()
        self.temperature = nn.Parameter(torch.empty(heads, 1, 1))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def reset(self) -> None:
        nn.init.ones_(self.temperature)

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "keep", "weight", "lengths", why="channels attend to channels over all places alike")
        q, k, v = self.qkv(t.x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 4, 1).unbind(0)  # each (B, H, E, N)
        y = self.attend.mix(F.normalize(q, dim=-1) * self.temperature, F.normalize(k, dim=-1), v, scale=1.0)
        return t.replace(x=self.out(y.permute(0, 3, 1, 2).flatten(2)))


class Cascade(nn.Module):
    """Groups of channels, convolved in turn, each with what the one before became added; the last stays as it is."""

    def __init__(self, width: int, groups: int, bias: bool):
        super().__init__()
        self.share = -(-width // groups)
        self.convs = nn.ModuleList(OnMap(depthwise(self.share, self.share, 3, bias=bias)) for _ in range(groups - 1))

    def forward(self, t: Tokens) -> Tokens:
        *shares, last = t.x.split(self.share, 2)
        said = [self.convs[0](t.replace(x=shares[0])).x]
        for share, conv in zip(shares[1:], self.convs[1:]):
            said.append(conv(t.replace(x=share + said[-1])).x)
        return t.replace(x=torch.cat([*said, last], 2))


class Positions(nn.Module):
    """Sines and cosines of both coordinates, projected and added to Tokens of any grid."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Linear(2 * BANDS, width)

    def forward(self, t: Tokens) -> Tokens:
        rate = 1e4 ** (torch.arange(0, BANDS, 2, device=t.x.device) / -BANDS)
        places = (torch.arange(1, n + 1, device=t.x.device)[:, None] * (2 * math.pi / (n + 1e-6)) for n in t.grid)
        rows, columns = (in_turn(place * rate) for place in places)  # one full circle over all places
        rows, columns = torch.broadcast_tensors(rows[:, None], columns[None])  # each (h, w, BANDS)
        return t.replace(x=t.x + self.proj(torch.cat([rows, columns], 2).flatten(0, 1).to(t.x.dtype)))


class SplitLayer(Layer):
    """The layer that sees everything: cascade, positions, channel attention, feed-forward; a residual around all."""

    def __init__(self, width: int, heads: int, groups: int, positions: bool, bias: bool, drop: float):
        super().__init__()
        self.cascade, self.positions = Cascade(width, groups, bias), Positions(width) if positions else nn.Identity()
        self.mix = Pre(Norm(width), ChannelAttention(width, heads), after(width, drop, 1e-6))
        self.norm, self.feed, self.after = Norm(width), FeedForward(width, 4 * width), after(width, drop, 1e-6)

    def forward(self, t: Tokens) -> Tokens:
        y = self.mix(self.positions(self.cascade(t)))
        y = self.feed(y.replace(x=self.norm(y.x)))
        return t.carry(y, t.x + self.after(y.x))


class EdgeNeXt(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K). groups: of the last layer's channels in every stage but the first.

    soft: an overlapping stem, and convolutions without biases; the first of each stage itself halves the grid.
    """

    def __init__(
        self, *, widths, depths, heads, kernels=(3, 5, 7, 9), groups=(2, 3, 4), soft=False, num_classes=1000,
        drop_path=0.0,
    ):  # fmt: skip
        first = nn.Conv2d(3, widths[0], 9, 4, 4, bias=False) if soft else nn.Conv2d(3, widths[0], 4, 4)
        stages, before = [], widths[0]
        for i, (width, kernel, rates) in enumerate(zip(widths, kernels, stage_rates(drop_path, depths))):
            down = nn.Sequential(Norm2d(before), nn.Conv2d(before, width, 2, 2)) if i and not soft else nn.Identity()
            convs = [depthwise(width, width, kernel, bias=not soft) for _ in rates]
            if i and soft:
                convs[0] = depthwise(before, width, kernel, 2, bias=False)
            layers = [ConvLayer(conv, rate) for conv, rate in zip(convs, rates)]
            if i:
                layers[-1] = SplitLayer(width, heads, groups[i - 1], i == 1, not soft, rates[-1])
            stages.append(nn.Sequential(down, OnTokens(nn.Sequential(*layers))))
            before = width
        stem = nn.Sequential(ChannelsLast(), first, Norm2d(widths[0]))
        super().__init__(stem, stages, Norm(before), before, num_classes)

    pool = norm_of_mean


PAPER = Paper(
    (
        ("LayerScale.gamma", constant(1e-6)),
        ("*.temperature", ONE),
        ("Linear.weight", clipped(0.02)),
        ("Conv2d.weight", clipped(0.02)),
        ("*.bias", ZERO),
    )
)

MODEL = EdgeNeXt
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(widths=(8, 16, 24), depths=(1, 2, 2), heads=2, kernels=(3, 5, 5), num_classes=10),
    "nano": dict(widths=(32, 64, 96, 160), depths=(2, 2, 4, 2), heads=4, kernels=(3, 3, 5, 5)),
    "xx_small": dict(widths=(24, 48, 88, 168), depths=(2, 2, 6, 2), heads=4),
    "x_small": dict(widths=(32, 64, 100, 192), depths=(3, 3, 9, 3), heads=4),
    "small": dict(widths=(48, 96, 160, 304), depths=(3, 3, 9, 3), heads=8),
    "small_rw": dict(widths=(48, 96, 192, 384), depths=(3, 3, 9, 3), heads=8, soft=True),
    "base": dict(widths=(80, 160, 288, 584), depths=(3, 3, 9, 3), heads=8),
}

CROP = dict(image=(256, 256), crop_pct=0.9)
TIMM = CROP | dict(licence="mit", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CROP_95 = TIMM | dict(crop_pct=0.95)
WEIGHTS = {
    "xx_small": TIMM | dict(hub="timm/edgenext_xx_small.in1k"),
    "x_small": TIMM | dict(hub="timm/edgenext_x_small.in1k"),
    "small": CROP_95 | dict(hub="timm/edgenext_small.usi_in1k"),
    "small_rw": TIMM | dict(hub="timm/edgenext_small_rw.sw_in1k"),
    "base": CROP_95 | dict(hub="timm/edgenext_base.usi_in1k"),
}
TAGS = {
    "base.in21k_ft_in1k": dict(),
}
THEIRS, OURS = "stages.{s}.blocks.{i}", "stages.{s}.1.f.{i}"
RULES = {
    "timm": [
        Rename("stem.0.{p}", "stem.1.{p}"),
        Rename("stem.1.{p}", "stem.2.{p}"),
        Rename("stages.{s}.downsample.{n}.{p}", "stages.{s}.0.{n}.{p}"),
        Rename(f"{THEIRS}.conv_dw.{{p}}", f"{OURS}.conv.f.{{p}}"),
        Rename(f"{THEIRS}.convs.{{n}}.{{p}}", f"{OURS}.cascade.convs.{{n}}.f.{{p}}"),
        View(
            f"{THEIRS}.pos_embd.token_projection.weight",
            f"{OURS}.positions.proj.weight",
            (-1, 2 * BANDS),
            (-1, 2 * BANDS, 1, 1),
        ),
        Rename(f"{THEIRS}.pos_embd.token_projection.bias", f"{OURS}.positions.proj.bias"),
        Rename(f"{THEIRS}.norm_xca.{{p}}", f"{OURS}.mix.norm.{{p}}"),
        Rename(f"{THEIRS}.xca.temperature", f"{OURS}.mix.f.temperature"),
        Rename(f"{THEIRS}.xca.qkv.{{p}}", f"{OURS}.mix.f.qkv.{{p}}"),
        Rename(f"{THEIRS}.xca.proj.{{p}}", f"{OURS}.mix.f.out.{{p}}"),
        Rename(f"{THEIRS}.gamma_xca", f"{OURS}.mix.after.0.gamma"),
        Rename(f"{THEIRS}.norm.{{p}}", f"{OURS}.norm.{{p}}"),
        Rename(f"{THEIRS}.mlp.fc1.{{p}}", f"{OURS}.feed.up.{{p}}"),
        Rename(f"{THEIRS}.mlp.fc2.{{p}}", f"{OURS}.feed.down.{{p}}"),
        Rename(f"{THEIRS}.gamma", f"{OURS}.after.0.gamma"),
        Rename("head.norm.{p}", "norm.{p}"),
        Rename("head.fc.{p}", "head.{p}"),
    ]
}
