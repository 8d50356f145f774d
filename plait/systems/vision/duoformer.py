"""DuoFormer: Leveraging Hierarchical Representations by Local and Global Attention Vision Transformer. Tang et al.,
2025. arXiv:2506.12982.

New here: the maps of a convolutional network, of all its scales, are cut at once: each place of the coarsest owns the
places beneath it, 1 + 4 + 16 + 64 of them. The tokens of one place attend to each other across the scales, and a scale
token among them gathers what they say; these, one a place, with a class token, then attend to each other across the
picture. Local attention costs N * 86^2, not (N * 86)^2.

Differs: the scale token is learned; the one that convolutions make of all maps is left out. As in the authors' code,
global layers are bare attention, with neither norm nor residual nor feed-forward, and no norm stands before the
classifier (theirs is computed and never used). Other picture sizes than `image` are read. The authors list the four
finer places of scale two by columns; the rules reorder them.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, Block, Stack
from plait.core.tokens import Tokens, prepend
from plait.core.weights import Drop, Rename, Rule, View
from plait.errors import PlaitError
from plait.parts.convs import ChannelsLast, ConvNorm, Relu
from plait.parts.mixers.windows import to_windows
from plait.parts.positions.learned import SequencePositions
from plait.parts.tokenizers.patch_embed import PatchEmbed
from plait.parts.towers.backbone import Backbone
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import timm_blocks

Active = partial(ConvNorm, act=Relu)


class Unit(nn.Module):
    """relu(x + f(x)), a step of a ResNet (arXiv:1512.03385); x is projected where f changes its shape.

    f: two convolutions of 3 x 3; with a bottleneck, one of them on so many times fewer channels, between two of 1 x 1.
    """

    def __init__(self, channels: int, out: int, stride: int, bottleneck: int):
        super().__init__()
        thin = out // bottleneck
        if bottleneck == 1:
            self.f = nn.Sequential(Active(channels, out, 3, stride), ConvNorm(out, out, 3))
        else:
            self.f = nn.Sequential(Active(channels, thin), Active(thin, thin, 3, stride), ConvNorm(thin, out))
        self.same = nn.Identity() if channels == out and stride == 1 else ConvNorm(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.f(x) + self.same(x))


class ResNet(nn.Module):
    """(B, 3, H, W) -> a map (B, C_i, H / 4 / 2^i, W / 4 / 2^i) of each stage, finest first. widths, depths: of them."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], bottleneck: int):
        super().__init__()
        channels = widths[0] // bottleneck
        self.stem = nn.Sequential(ChannelsLast(), Active(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.ModuleList()
        for s, (out, depth) in enumerate(zip(widths, depths, strict=True)):
            first = Unit(channels, out, 2 if s else 1, bottleneck)
            self.stages.append(nn.Sequential(first, *(Unit(out, out, 1, bottleneck) for _ in range(depth - 1))))
            channels = out

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class ScaleTokens(nn.Module):
    """Maps, each twice as fine as the next -> Tokens (B, N, D), one for each place of the last, made by attention
    across the scales. widths: channels of the maps that are read, the last of those given."""

    def __init__(self, widths: tuple[int, ...], width: int, depth: int, heads: int):
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1) for c in reversed(widths))
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = SequencePositions(1 + sum(4**i for i in range(len(widths))), width)
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, 4 * width, norm=partial(nn.LayerNorm, eps=1e-6)))

    def reset(self) -> None:
        nn.init.trunc_normal_(self.token, std=0.02)

    def places(self, maps: list[Tensor]) -> Tokens:
        """(B * N, 1 + M, D): of every place the scale token, then what it owns, coarse to fine; with positions."""
        projected = (project(x).permute(0, 2, 3, 1) for project, x in zip(self.project, reversed(maps)))
        owned = [to_windows(x, (2**i, 2**i)) for i, x in enumerate(projected)]
        return self.positions(prepend(self.token, Tokens(torch.cat(owned, 1))))

    def forward(self, maps: list[Tensor]) -> Tokens:
        b, _, h, w = maps[-1].shape
        t = self.stack(self.places(maps))
        return t.inside(t.x[:, 0].view(b, h * w, t.x.shape[2]), grid=(h, w))


class DuoFormer(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K), read from a class token; the coarsest map's stride divides H and W.

    image: the (H, W) that positions are learned for. widths, depths, bottleneck: of the ResNet's stages. scales: how
    many of its maps are read, from the coarsest on. depth: how many local layers there are, and how many global ones.
    """

    fits = ("image",)

    def __init__(
        self, *, image=(224, 224), widths, depths, bottleneck=1, scales, width, depth, heads, num_classes=1000
    ):
        super().__init__()
        if not 1 <= scales <= len(widths):
            raise PlaitError(f"got scales={scales} of {len(widths)} stages: expected between 1 and {len(widths)}")
        self.width, self.multiple = width, 2 ** (len(widths) + 1)
        local = ScaleTokens(widths[-scales:], width, depth, heads)
        grid = (image[0] // self.multiple, image[1] // self.multiple)
        self.patch_embed = PatchEmbed(nn.Sequential(ResNet(widths, depths, bottleneck), local), grid, width)
        self.stack = Stack(*(Block(mix=Attention(width, heads), feed=nn.Identity()) for _ in range(depth)))
        self.norm = nn.Identity()
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()


R18 = dict(widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), width=384, depth=6, heads=6, num_classes=2)
R50 = dict(
    widths=(256, 512, 1024, 2048), depths=(3, 4, 6, 3), bottleneck=4, width=768, depth=12, heads=12, num_classes=2
)

MODEL = DuoFormer
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), widths=(16, 32), depths=(1, 1), scales=2, width=32, depth=1, heads=2, num_classes=10),
    "nano": dict(image=(64, 64), widths=(32, 64, 128), depths=(2, 2, 2), scales=3, width=96, depth=2, heads=4),
    "r18_2": R18 | dict(scales=2),
    "r18_4": R18 | dict(scales=4),
    "r50_2": R50 | dict(scales=2),
    "r50_3": R50 | dict(scales=3),
    "r50_4": R50 | dict(scales=4),
}

OFFICIAL = dict(source="official", licence="mit", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "r18_2": OFFICIAL | dict(github="AliSerwat/Refactored-DuoFormer resnet18, 2 scales"),
    "r18_4": OFFICIAL | dict(github="AliSerwat/Refactored-DuoFormer resnet18, 4 scales"),
    "r50_2": OFFICIAL | dict(github="AliSerwat/Refactored-DuoFormer resnet50, 2 scales"),
    "r50_3": OFFICIAL | dict(github="AliSerwat/Refactored-DuoFormer resnet50, 3 scales"),
    "r50_4": OFFICIAL | dict(github="AliSerwat/Refactored-DuoFormer resnet50, 4 scales"),
}


def _rows(table: Tensor) -> Tensor:
    """The four places of the second scale by rows, where they were by columns, and the other way round."""
    return torch.cat([table[:3], table[3:5].flip(0), table[5:]])


def _shown(ours: list[Tensor]) -> list[Tensor]:
    return [_rows(ours[0])[None, None]]


THEIRS, CNN, LOCAL = "vision_transformer", "patch_embed.stem.0", "patch_embed.stem.1"
UNITS = [(f"resnet_projector.{s + 4}.{{j}}", f"{CNN}.stages.{s}.{{j}}") for s in range(4)]
RULES = {
    "official": [
        Rename("resnet_projector.0.weight", f"{CNN}.stem.1.conv.weight"),
        Rename("resnet_projector.1.{p}", f"{CNN}.stem.1.norm.{{p}}"),
        *(Rename(f"{a}.conv{k + 1}.weight", f"{b}.f.{k}.conv.weight") for a, b in UNITS for k in range(3)),
        *(Rename(f"{a}.bn{k + 1}.{{p}}", f"{b}.f.{k}.norm.{{p}}") for a, b in UNITS for k in range(3)),
        *(Rename(f"{a}.downsample.0.weight", f"{b}.same.conv.weight") for a, b in UNITS),
        *(Rename(f"{a}.downsample.1.{{p}}", f"{b}.same.norm.{{p}}") for a, b in UNITS),
        *(Rename(f"projection.proj_heads{3 - i}.{{p}}", f"{LOCAL}.project.{i}.{{p}}") for i in range(4)),
        View("channel_token", f"{LOCAL}.token", (1, 1, -1), (1, 1, 1, -1)),
        Rule(
            (f"{THEIRS}.pos_embed_for_scale",), (f"{LOCAL}.positions.table",), lambda ts: [_rows(ts[0][0, 0])], _shown
        ),
        *timm_blocks(f"{THEIRS}.scale_blocks.{{i}}", f"{LOCAL}.stack.blocks.{{i}}"),
        Rename(f"{THEIRS}.cls_token", "patch_embed.cls"),
        Rename(f"{THEIRS}.pos_embed", "patch_embed.positions.table"),
        Rename(f"{THEIRS}.blocks.{{i}}.attn.qkv.{{p}}", "stack.blocks.{i}.mix.qkv.{p}"),
        Rename(f"{THEIRS}.blocks.{{i}}.attn.proj.{{p}}", "stack.blocks.{i}.mix.out.{p}"),
        Rename(f"{THEIRS}.head.{{p}}", "head.{p}"),
        Drop(f"{THEIRS}.fc_norm.{{p}}"),
    ]
}
