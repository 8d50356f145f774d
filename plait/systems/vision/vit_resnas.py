"""Searching for Efficient Multi-Stage Vision Transformers (ViT-ResNAS). Liao, Karaman, Sze, 2021. arXiv:2109.00642.

New here: a class-token ViT in stages. Where the tokens become fewer, a strided convolution of the normed map is added
to the map itself, averaged over pairs of places and filled up with zero channels, so that the sum of residuals runs
unbroken from the first layer to the last. How wide, how deep, of how many heads and hidden places each layer is was
searched among the slices of one supernet.

Differs: the second classifier, which the authors train on the tokens of mixed pictures, is left out, and so is the
search; its slices are `plait.systems.vision.s3_autoformer_v2.subnet(supernet, small, PIECES)`. Positions are resampled
to other picture sizes.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, Block, FeedForward, drop_rates
from plait.core.tokens import Tokens
from plait.core.weights import Drop, Rename
from plait.errors import PlaitError
from plait.parts.convs import ChannelsLast, ConvNorm, Relu, Skip
from plait.parts.maps import flat, to_map, to_tokens
from plait.parts.positions.learned import GridPositions
from plait.parts.tokenizers.patch_embed import PatchEmbed
from plait.parts.towers.backbone import Backbone
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.layouts import conv_norm, timm_blocks
from plait.parts.towers.pyramid import Pyramid

Norm = partial(nn.LayerNorm, eps=1e-6)
PIECES = {r".*\.qkv\..*": (3, 1)}


class Reduce(nn.Module):
    """Half as many rows and columns, more channels: Tokens (B, 1 + N, C) of a grid -> Tokens (B, 1 + N / 4, D).

    grid: the (rows, columns) of what comes out, for which positions are learned.
    """

    on_grid = True

    def __init__(self, width: int, out: int, grid: tuple[int, int]):
        super().__init__()
        if out < width:
            raise PlaitError(
                f"a reduction from {width} to {out} channels: expected no fewer, for what was there is added"
            )
        self.more, self.norm = out - width, Norm(width)
        self.conv, self.positions = nn.Conv2d(width, out, 3, 2, 1), GridPositions(grid, out)
        self.cls = nn.Linear(width, out)

    def forward(self, t: Tokens) -> Tokens:
        normed = t.replace(x=self.norm(t.x))
        new = self.positions(to_tokens(self.conv(to_map(normed))))
        old = torch.cat([t.x[:, : t.prefix], flat(F.avg_pool2d(to_map(t), 2))], 1)
        x = torch.cat([self.cls(normed.x[:, : t.prefix]), new.x], 1)
        return new.with_losses(t).replace(x=x + F.pad(old, (0, self.more)), prefix=t.prefix)


class Patches(nn.Sequential):
    """Three convolutions, the later two a residual step, then patches: (B, 3, H, W) -> Tokens (B, H/P * W/P, D) of a
    grid."""

    def __init__(self, width: int, patch: int, channels: int):
        conv = partial(ConvNorm, out=channels, kernel=3, act=Relu)
        near = Skip(nn.Sequential(conv(channels), conv(channels)))
        patches = nn.Conv2d(channels, width, patch // 2, patch // 2)
        super().__init__(ChannelsLast(), conv(3, stride=2), near, patches)

    def forward(self, x: Tensor) -> Tokens:
        return to_tokens(super().forward(x))


class ViTRes(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K), read from a class token. Sides are multiples of what the stem and the
    reductions make one.

    image: the (H, W) that positions are learned for. widths: of each stage; head: of each stage's heads. heads, hidden:
    for each stage a tuple with the number of heads and the feed-forward's width of every layer; a layer without heads
    is left out, its number stays.
    """

    fits = ("image",)

    def __init__(
        self, *, image=(224, 224), patch=14, channels=24, widths, head=(32, 48, 64), heads, hidden,
        num_classes=1000, drop_path=0.0,
    ):  # fmt: skip
        def layer(d: int, h: int, e: int, wide: int, drop: float) -> Block:
            return pre_norm(d, Attention(d, h, head_width=e), FeedForward(d, wide), norm=Norm, drop=drop)

        super().__init__()
        drops = iter(drop_rates(drop_path, sum(h > 0 for stage in heads for h in stage)))
        grid, blocks = (image[0] // patch, image[1] // patch), []
        self.stem = PatchEmbed(Patches(widths[0], patch, channels), grid, widths[0])
        for s, d in enumerate(widths):
            if s:
                grid = (grid[0] // 2, grid[1] // 2)
                blocks.append(Reduce(widths[s - 1], d, grid))
            for h, wide in zip(heads[s], hidden[s], strict=True):
                blocks.append(layer(d, h, head[s], wide, next(drops)) if h else nn.Identity())
        self.width, self.multiple = d, patch * 2 ** (len(widths) - 1)
        self.blocks, self.norm = nn.Sequential(*blocks), Norm(d)
        self.head = nn.Linear(d, num_classes) if num_classes else nn.Identity()

    def maps(self, x: Tensor) -> list[Tensor]:
        """Each stage's map (B, C_i, H_i, W_i), finest first, without the class token."""
        t, found = self.stem(x), []
        for step in self.blocks:
            if isinstance(step, Reduce):
                found.append(to_map(t))
            t = step(t)
        return [*found, to_map(t)]

    seen, beyond = Pyramid.seen, Pyramid.beyond

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, 1 + N, D) of the last stage, the class token first, before the last norm."""
        return self.blocks(self.stem(x))


MEDIUM = dict(
    widths=(240, 640, 880),
    heads=((7, 6, 7, 8, 7, 8, 6), (10, 14, 14, 16, 14, 16, 16), (16, 10, 16, 12, 16, 14)),
    hidden=(
        (960, 960, 800, 960, 880, 880, 800),
        (1120, 1760, 1920, 1760, 1440, 1760, 1920),
        (3200, 3840, 3840, 3200, 3520, 3520),
    ),
)

MODEL = ViTRes
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
TOY = dict(image=(32, 32), patch=4, channels=8, widths=(16, 24, 40), head=(8, 12, 16))
NANO = dict(image=(64, 64), patch=4, widths=(48, 96, 160), head=(16, 24, 32), heads=((3, 3), (4, 4), (5, 5)))
RES_TINY_HIDDEN = ((768, 768, 768, 768), (1536, 1536, 1536, 1536), (3072, 3072, 3072, 3072))
RES_TINY = dict(widths=(192, 384, 768), head=(64, 64, 64), heads=((3, 3, 3, 3), (6, 6, 6, 6), (12, 12, 12, 12)))
TINY_HEADS = ((3, 3, 3, 4, 4), (10, 8, 8, 8, 10, 10), (10, 10, 10, 8, 8))
TINY_HIDDEN = ((704, 576, 640, 576, 704), (1408, 1408, 1280, 1408, 1280, 1024), (2560, 1792, 2816, 2816, 2560))
SMALL_HEADS = ((5, 5, 7, 5, 5, 5), (10, 10, 10, 10, 12, 12), (16, 12, 16, 12, 14))
SMALL_HIDDEN = ((880, 880, 800, 720, 720, 720), (1760, 1440, 1920, 1600, 1600, 1440), (3200, 3200, 2880, 2240, 2560))
SIZES = {
    "toy": TOY | dict(heads=((2, 3), (2,), (1, 2)), hidden=((32, 24), (40,), (48, 56)), num_classes=10),
    "nano": NANO | dict(hidden=((144, 144), (288, 288), (400, 400)), drop_path=0.1),
    "res_tiny": RES_TINY | dict(hidden=RES_TINY_HIDDEN, drop_path=0.2),
    "tiny": dict(widths=(176, 352, 704), heads=TINY_HEADS, hidden=TINY_HIDDEN, drop_path=0.2),
    "small": dict(widths=(220, 440, 880), heads=SMALL_HEADS, hidden=SMALL_HIDDEN, drop_path=0.3),
    "medium": MEDIUM | dict(drop_path=0.3),
    "medium_280": MEDIUM | dict(image=(280, 280), drop_path=0.75),
    "medium_336": MEDIUM | dict(image=(336, 336), drop_path=0.75),
    "medium_392": MEDIUM | dict(image=(392, 392), drop_path=0.75),
}

OFFICIAL = dict(source="official", licence="cc-by-nc-4.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "res_tiny": OFFICIAL | dict(github="yilunliao/vit-search reference_net/tiny"),
    "tiny": OFFICIAL | dict(github="yilunliao/vit-search searched_net/tiny"),
    "small": OFFICIAL | dict(github="yilunliao/vit-search searched_net/small_mac@2.9G"),
    "medium": OFFICIAL | dict(github="yilunliao/vit-search searched_net/medium_mac@4.6G"),
    "medium_280": OFFICIAL | dict(github="yilunliao/vit-search finetune/medium_img-size@280"),
    "medium_336": OFFICIAL | dict(github="yilunliao/vit-search finetune/medium, 336"),
    "medium_392": OFFICIAL | dict(github="yilunliao/vit-search finetune/medium_img-size@392"),
}

RULES = {
    "official": [
        Rename("tokens", "stem.cls"),
        Rename("pos_embed", "stem.positions.table"),
        *conv_norm("patch_embed.conv1", "stem.stem.1"),
        *(rule for i in (2, 3) for rule in conv_norm(f"patch_embed.conv{i}", f"stem.stem.2.f.{i - 2}")),
        Rename("patch_embed.conv_proj.{p}", "stem.stem.3.{p}"),
        Rename("blocks.{i}.norm.{p}", "blocks.{i}.norm.{p}"),
        Rename("blocks.{i}.patch_reduce.{p}", "blocks.{i}.conv.{p}"),
        Rename("blocks.{i}.token_transform.{p}", "blocks.{i}.cls.{p}"),
        Rename("blocks.{i}.pos_embed", "blocks.{i}.positions.table"),
        *timm_blocks("blocks.{i}", "blocks.{i}"),
        Rename("norm.{p}", "norm.{p}"),
        Rename("cls_head.{p}", "head.{p}"),
        Drop("patch_head.{p}"),
    ]
}
