"""HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions. Rao et al., 2022.
arXiv:2207.14284.

New here: interactions of any order without attention. One thin share of the channels is multiplied by what a large
depthwise convolution says of its neighbours, projected to the width of the next share, multiplied by that, and so on:
n products of n gates, each twice as wide as the one before, at about the cost of the one convolution. The GF variants
see the whole map through a learned filter of frequencies.

Differs: the same gates in the neck of a detector (HorFPN) are not here. A detector reads its maps as those of any
backbone: `create_model("detr_nano", backbone="hornet_nano")`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import FeedForward, Stack, stage_rates
from plait.core.precision import wide
from plait.core.tokens import Tokens
from plait.core.weights import Rename, Rule
from plait.errors import PlaitError
from plait.parts.convs import ChannelsLast, LayerNorm2d
from plait.parts.maps import OnMap, OnTokens
from plait.parts.positions.resample import resample
from plait.parts.towers.backbone import norm_of_mean
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.pyramid import Pyramid

Norm = partial(nn.LayerNorm, eps=1e-6)
Norm2d = partial(LayerNorm2d, eps=1e-6)


class GlobalFilter(nn.Module):
    """Half of the channels convolved, half filtered in the frequencies of the whole map, then shuffled: (B, C, H, W) ->
    the same. grid: (h, w) of the learned filter, w of a real signal's frequencies; resampled for other maps."""

    def __init__(self, channels: int, grid: tuple[int, int]):
        super().__init__()
        half = channels // 2
        self.near = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.filter = nn.Parameter(torch.empty(half, *grid, 2))
        self.before, self.after = Norm2d(channels), Norm2d(channels)

    def reset(self) -> None:
        nn.init.trunc_normal_(self.filter, std=0.02)

    def refit(self, key: str, tensor: Tensor) -> Tensor | None:
        """A published filter of another grid, as one of this grid."""
        return self.laid(tensor, self.filter.shape[1:3]) if key == "filter" else None

    def laid(self, weight: Tensor, grid: Sequence[int]) -> Tensor:
        """(C, h, w, 2) -> (C, *grid, 2)."""
        return resample(weight.permute(3, 0, 1, 2), grid, "bilinear", align_corners=True).permute(1, 2, 3, 0)

    def forward(self, x: Tensor) -> Tensor:
        near, far = self.before(x).chunk(2, 1)
        waves, weight = torch.fft.rfft2(wide(far), norm="ortho"), self.filter
        if weight.shape[1:3] != waves.shape[2:]:
            weight = self.laid(weight, waves.shape[2:])
        waves = waves * torch.view_as_complex(wide(weight).contiguous())
        far = torch.fft.irfft2(waves, s=x.shape[2:], norm="ortho").to(near.dtype)
        return self.after(torch.stack([self.near(near), far], 2).flatten(1, 2))


class GatedConv(nn.Module):
    """The recursive gated convolution of a given order: Tokens -> the same. grid: of a `GlobalFilter`, None for a
    convolution."""

    def __init__(self, width: int, order: int, grid: tuple[int, int] | None, scale: float = 1 / 3):
        super().__init__()
        least = 2 ** (order - 1)
        if width % least:
            raise PlaitError(
                f"width {width} cannot be halved {order - 1} times: choose a lower order or a multiple of {least}"
            )
        self.shares = [width // 2**i for i in reversed(range(order))]
        total = sum(self.shares)
        self.scale, self.proj, self.out = scale, nn.Linear(width, 2 * width), nn.Linear(width, width)
        near = nn.Conv2d(total, total, 7, padding=3, groups=total) if grid is None else GlobalFilter(total, grid)
        self.look = OnMap(near)
        self.widen = nn.ModuleList(nn.Linear(a, b) for a, b in zip(self.shares, self.shares[1:]))

    def forward(self, t: Tokens) -> Tokens:
        x, rest = self.proj(t.x).split([self.shares[0], sum(self.shares)], 2)
        first, *gates = (self.look(t.replace(x=rest)).x * self.scale).split(self.shares, 2)
        x = x * first
        for widen, gate in zip(self.widen, gates):
            x = widen(x) * gate
        return t.replace(x=self.out(x))


class HorNet(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K). width: of the first stage, then doubled. order: of its gates, then one
    higher each. grids: for each stage the (h, w) of its global filters, None for convolutions."""

    attends = False

    def __init__(self, *, width, depths, order=2, grids=(None, None, None, None), num_classes=1000, drop_path=0.0):
        stages = []
        for s, (grid, rates) in enumerate(zip(grids, stage_rates(drop_path, depths))):
            d = width * 2**s
            down = nn.Sequential(Norm2d(d // 2), nn.Conv2d(d // 2, d, 2, 2)) if s else nn.Identity()
            steps = ((GatedConv(d, order + s, grid), FeedForward(d, 4 * d), rate) for rate in rates)
            blocks = (pre_norm(d, mix, feed, norm=Norm, drop=rate, scale=1e-6) for mix, feed, rate in steps)
            stages.append(nn.Sequential(down, OnTokens(Stack(*blocks))))
        stem = nn.Sequential(ChannelsLast(), nn.Conv2d(3, width, 4, 4), Norm2d(width))
        super().__init__(stem, stages, Norm(d), d, num_classes)

    pool = norm_of_mean


DEPTHS = dict(depths=(2, 3, 18, 2))
TINY = DEPTHS | dict(width=64, drop_path=0.2)
SMALL = DEPTHS | dict(width=96, drop_path=0.4)
BASE = DEPTHS | dict(width=128, drop_path=0.5)
LARGE = DEPTHS | dict(width=192)
GF = dict(grids=(None, None, (14, 8), (7, 4)))
GF384 = dict(grids=(None, None, (24, 13), (12, 7)))

MODEL = HorNet
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(width=16, depths=(1, 1, 2), num_classes=10),
    "nano": dict(width=32, depths=(1, 2, 4), drop_path=0.05),
    "tiny_7x7": TINY,
    "tiny_gf": TINY | GF,
    "small_7x7": SMALL,
    "small_gf": SMALL | GF,
    "base_7x7": BASE,
    "base_gf": BASE | GF,
    "base_gf_img384": BASE | GF384,
    "large_7x7": LARGE,
    "large_gf": LARGE | GF,
    "large_gf_img384": LARGE | GF384,
}

CROP = dict(image=(224, 224), crop_pct=0.875)
OFFICIAL = CROP | dict(source="official", licence="mit", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SQUASH = OFFICIAL | dict(image=(384, 384), crop_pct=1.0, crop_mode="squash")
WEIGHTS = {
    "tiny_7x7": OFFICIAL | dict(github="raoyongming/HorNet hornet_tiny_7x7"),
    "tiny_gf": OFFICIAL | dict(github="raoyongming/HorNet hornet_tiny_gf"),
    "small_7x7": OFFICIAL | dict(github="raoyongming/HorNet hornet_small_7x7"),
    "small_gf": OFFICIAL | dict(github="raoyongming/HorNet hornet_small_gf"),
    "base_7x7": OFFICIAL | dict(github="raoyongming/HorNet hornet_base_7x7"),
    "base_gf": OFFICIAL | dict(github="raoyongming/HorNet hornet_base_gf"),
    "base_gf_img384": SQUASH | dict(github="raoyongming/HorNet hornet_base_gf_img384"),
    "large_7x7": OFFICIAL | dict(github="raoyongming/HorNet hornet_large_7x7"),
    "large_gf": OFFICIAL | dict(github="raoyongming/HorNet hornet_large_gf"),
    "large_gf_img384": SQUASH | dict(github="raoyongming/HorNet hornet_large_gf_img384"),
}


def pointwise(public: str, ours: str) -> list[Rule]:
    """A convolution of one place, which is a linear layer here."""
    weight = Rule(
        (f"{public}.weight",), (f"{ours}.weight",), lambda ts: [ts[0].flatten(1)], lambda ts: [ts[0][:, :, None, None]]
    )
    return [weight, Rename(f"{public}.bias", f"{ours}.bias")]


THEIRS, OURS = "stages.{s}.{i}", "stages.{s}.1.f.blocks.{i}"
RULES = {
    "official": [
        Rename("downsample_layers.0.0.{p}", "stem.1.{p}"),
        Rename("downsample_layers.0.1.{p}", "stem.2.{p}"),
        Rename("downsample_layers.{s}.{n}.{p}", "stages.{s}.0.{n}.{p}"),
        Rename(f"{THEIRS}.norm1.{{p}}", f"{OURS}.mix.norm.{{p}}"),
        Rename(f"{THEIRS}.gamma1", f"{OURS}.mix.after.0.gamma"),
        *pointwise(f"{THEIRS}.gnconv.proj_in", f"{OURS}.mix.f.proj"),
        Rename(f"{THEIRS}.gnconv.dwconv.complex_weight", f"{OURS}.mix.f.look.f.filter"),
        Rename(f"{THEIRS}.gnconv.dwconv.dw.{{p}}", f"{OURS}.mix.f.look.f.near.{{p}}"),
        Rename(f"{THEIRS}.gnconv.dwconv.pre_norm.{{p}}", f"{OURS}.mix.f.look.f.before.{{p}}"),
        Rename(f"{THEIRS}.gnconv.dwconv.post_norm.{{p}}", f"{OURS}.mix.f.look.f.after.{{p}}"),
        Rename(f"{THEIRS}.gnconv.dwconv.{{p}}", f"{OURS}.mix.f.look.f.{{p}}"),
        *pointwise(f"{THEIRS}.gnconv.pws.{{n}}", f"{OURS}.mix.f.widen.{{n}}"),
        *pointwise(f"{THEIRS}.gnconv.proj_out", f"{OURS}.mix.f.out"),
        Rename(f"{THEIRS}.norm2.{{p}}", f"{OURS}.feed.norm.{{p}}"),
        Rename(f"{THEIRS}.gamma2", f"{OURS}.feed.after.0.gamma"),
        Rename(f"{THEIRS}.pwconv1.{{p}}", f"{OURS}.feed.f.up.{{p}}"),
        Rename(f"{THEIRS}.pwconv2.{{p}}", f"{OURS}.feed.f.down.{{p}}"),
        Rename("norm.{p}", "norm.{p}"),
        Rename("head.{p}", "head.{p}"),
    ]
}
