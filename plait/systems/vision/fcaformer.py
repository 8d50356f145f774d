"""FcaFormer: Forward Cross Attention in Hybrid Vision Transformer. Zhang, Hu, Wang, 2022. arXiv:2211.07198.

New here: attention grows denser with depth instead of sparser. Each layer leaves a few cross tokens behind, patches of
its map merged by a wide strided convolution, and all later layers of the stage also ask those, scaled by factors that
are learned for each of them. A second convolution enhances what goes on. The first two stages are convolutions.

Differs: nothing on purpose. Factors and biases belong to places: only pictures of the model's own size are read.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Block, FeedForward, Pre, Stack, check_heads, merge_heads, split_heads, stage_rates
from plait.core.tokens import Tokens, whole_grid
from plait.core.weights import Rename, Rule
from plait.parts.convs import ChannelsLast, ConvNorm
from plait.parts.maps import OnMap, OnTokens
from plait.parts.mixers.convnext import ConvLayer, depthwise
from plait.parts.positions.relative import DistanceBias
from plait.parts.positions.resample import bound
from plait.parts.tokenizers.patches import OfSize
from plait.parts.towers.backbone import norm_of_mean
from plait.parts.towers.encoder import after
from plait.parts.towers.pyramid import Pyramid

Pair = tuple[int, int]
STEP = 4  # places of a grid to one cross token, along each side


class Recall(nn.Module):
    """Cross tokens (B, M, D), each scaled by its factor, then normed; `bias` (1, H, 1, M) is added to their scores."""

    def __init__(self, width: int, heads: int, count: int):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.empty(1, count, 1)), nn.Parameter(torch.empty(1, heads, 1, count))
        self.norm = nn.LayerNorm(width)

    def reset(self) -> None:
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.bias)

    def refit(self, key: str, tensor: Tensor) -> None:
        if key in ("scale", "bias"):
            raise bound("what is learned of each cross token", tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x * self.scale)


class ForwardCrossAttention(nn.Module):
    """Self-attention of a grid (B, N, D) -> the same, which also asks the `count` cross tokens of the layers before."""

    on_grid = True
    reads = ("layers",)

    def __init__(self, width: int, heads: int, grid: Pair, count: int):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.bias, self.attend = heads, DistanceBias(heads, grid), Attend()
        self.recall = Recall(width, heads, count) if count else None
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, t: Tokens) -> Tokens:
        asked, bias, n = whole_grid(t).x, self.bias(), t.x.shape[1]
        if self.recall is not None:
            asked = torch.cat([asked, self.recall(torch.cat([c.x for c in t.read("layers")], 1))], 1)
            bias = torch.cat([bias, self.recall.bias.expand(-1, -1, n, -1)], 3)
        q, k, v = split_heads(self.qkv(asked), 3, self.heads)  # each (B, H, N + M, E)
        t = self.attend(t, q[:, :, :n], k, v, to=Tokens(asked), bias=bias)
        return t.replace(x=self.out(merge_heads(t.x)))


class FcaBlock(Block):
    """Attention, a convolution that enhances, a feed-forward step: Tokens of a grid (B, N, D) -> the same. The context
    names the cross tokens of the stage's layers so far; this one, unless it is the `last`, hands it on with its own.

    number: how many layers of the stage come before.
    """

    def __init__(self, width: int, heads: int, grid: Pair, number: int, last: bool, drop: float):
        count = number * math.prod(-(-side // STEP) for side in grid)
        norms = nn.Sequential(nn.LayerNorm(width), nn.LayerNorm(width))  # one after the other, as published
        attention = ForwardCrossAttention(width, heads, grid, count)
        mix = Pre(nn.LayerNorm(width), attention, after(width, drop, 1e-6))
        super().__init__(mix, feed=Pre(norms, FeedForward(width, 4 * width), after(width, drop, 1e-6)))
        self.merge = None if last else OnMap(nn.Conv2d(width, width, 7, STEP, 3, groups=width, bias=False))
        self.enhance = OnMap(ConvNorm(width, width, 3, groups=width))

    def forward(self, t: Tokens) -> Tokens:
        t = self.mix(t)
        if self.merge is not None:
            t = t.reading(layers=(*t.read("layers"), self.merge(t)))
        return self.feed(self.enhance(t))


class FcaStack(Stack):
    """A stage's blocks, each of which also sees what those before it left: Tokens of a grid (B, N, D) -> the same."""

    def __init__(self, *blocks: FcaBlock):
        super().__init__(*blocks, gives=("layers",))

    def forward(self, t: Tokens) -> Tokens:
        return super().forward(t.reading(layers=())).replace(context=t.context)


def halving(channels: int, width: int) -> nn.Sequential:
    """(B, C, H, W) -> (B, D, H / 2, W / 2), rounded up."""
    half = ConvNorm(width, width, 3, 2, groups=width, act=nn.GELU)
    return nn.Sequential(ConvNorm(channels, width, act=nn.GELU), half, ConvNorm(width, width))


class FcaFormer(Pyramid):
    """Pictures (B, 3, H, W) of just the size `image` -> logits (B, K). heads: of each stage, 0 for convolutions."""

    multiple = None
    fits = ("image",)

    def __init__(self, *, image=(224, 224), widths, depths, heads, num_classes=1000, drop_path=0.0):
        stages, grid = [], tuple(-(-side // 4) for side in image)
        for s, (d, h, rates) in enumerate(zip(widths, heads, stage_rates(drop_path, depths))):
            grid = tuple(-(-side // 2) for side in grid) if s else grid
            if h:
                last = len(rates) - 1
                stack = FcaStack(*(FcaBlock(d, h, grid, i, i == last, rate) for i, rate in enumerate(rates)))
            else:
                stack = nn.Sequential(*(ConvLayer(depthwise(d, d, 7), rate) for rate in rates))
            stages.append(nn.Sequential(halving(widths[s - 1], d) if s else nn.Identity(), OnTokens(stack)))
        first = widths[0] // 2
        stem = OfSize(image), ChannelsLast(), ConvNorm(3, first, 3, 2, act=nn.GELU), ConvNorm(first, widths[0], 3, 2)
        super().__init__(nn.Sequential(*stem), stages, nn.LayerNorm(d), d, num_classes)

    pool = norm_of_mean


MODEL = FcaFormer
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), widths=(16, 32), depths=(1, 3), heads=(0, 2), num_classes=10),
    "nano": dict(image=(64, 64), widths=(32, 96, 144), depths=(2, 3, 2), heads=(0, 3, 6), drop_path=0.05),
    "l1": dict(widths=(64, 128, 192, 320), depths=(2, 2, 6, 2), heads=(0, 0, 6, 10)),
    "l2": dict(widths=(96, 192, 320, 480), depths=(2, 2, 7, 2), heads=(0, 0, 10, 15), drop_path=0.1),
    "l3": dict(widths=(96, 192, 320, 512), depths=(3, 6, 12, 3), heads=(0, 0, 10, 16), drop_path=0.1),
    "l4": dict(widths=(128, 256, 512, 768), depths=(3, 6, 12, 3), heads=(0, 0, 16, 24), drop_path=0.1),
}

WEIGHTS = {
    "l1": dict(github="hkzhang-git/FcaFormer fcaformer_l1"),
    "l2": dict(github="hkzhang-git/FcaFormer fcaformer_l2"),
    "l3": dict(github="hkzhang-git/FcaFormer fcaformer_l3"),
    "l4": dict(github="hkzhang-git/FcaFormer fcaformer_l4"),
}


def layer(theirs: str, ours: str, names: dict[str, str]) -> list[Rule]:
    return [Rename(f"{theirs}.{public}", f"{ours}.{name}") for public, name in names.items()]


CONV = {"c.weight": "conv.weight", "bn.{p}": "norm.{p}"}
CONVOLVED = {
    "dwconv.{p}": "conv.f.{p}",
    "norm.{p}": "norm.{p}",
    "pwconv1.{p}": "feed.up.{p}",
    "pwconv2.{p}": "feed.down.{p}",
    "gamma": "after.0.gamma",
}
ATTENDED = {
    "norm1.{p}": "mix.norm.{p}",
    "qkv.{p}": "mix.f.qkv.{p}",
    "attention_biases": "mix.f.bias.table",
    "s_scale_factors": "mix.f.recall.scale",
    "s_token_bias": "mix.f.recall.bias",
    "s_norm.{p}": "mix.f.recall.norm.{p}",
    "proj.{p}": "mix.f.out.{p}",
    "gamma_1": "mix.after.0.gamma",
    "dw_conv.weight": "merge.f.weight",
    "local_conv.c.weight": "enhance.f.conv.weight",
    "local_conv.bn.{p}": "enhance.f.norm.{p}",
    "norm2.{p}": "feed.norm.0.{p}",
    "mlp.norm.{p}": "feed.norm.1.{p}",
    "mlp.fc1.{p}": "feed.f.up.{p}",
    "mlp.fc2.{p}": "feed.f.down.{p}",
    "gamma_2": "feed.after.0.gamma",
}
RULES = {
    "official": [
        *(rule for n in (0, 2) for rule in layer(f"patch_embed.seq.{n}", f"stem.{2 + n // 2}", CONV)),
        *(
            rule
            for s in range(3)
            for n in range(3)
            for rule in layer(f"layer_{s}.downsample.conv{n + 1}", f"stages.{s + 1}.0.{n}", CONV)
        ),
        *(
            rule
            for s in range(4)
            for rule in layer(f"layer_{s}.blocks.{{i}}", f"stages.{s}.1.f.blocks.{{i}}", ATTENDED)
        ),
        *(rule for s in range(4) for rule in layer(f"layer_{s}.blocks.{{i}}", f"stages.{s}.1.f.{{i}}", CONVOLVED)),
        Rename("norm_head.{p}", "norm.{p}"),
        Rename("head.{p}", "head.{p}"),
    ]
}
