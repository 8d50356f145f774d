"""DaViT: Dual Attention Vision Transformers. Ding, Xiao, Codella, Luo, Wang, Yuan, 2022. arXiv:2204.03645.

New here: every second layer turns attention on its side. The channels of a group are the tokens and all places their
features, so that the layer sees the whole picture at a cost that is linear in the places. The others read windows.

Differs: the Florence-2 variants (arXiv:2311.06242) give features alone: their last norm's weights are not published.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import (
    Attention,
    Block,
    DropPath,
    FeedForward,
    Pre,
    Stack,
    check_heads,
    merge_heads,
    split_heads,
    stage_rates,
)  # fmt: skip
from plait.core.schemes import VIT, Paper
from plait.core.tokens import Tokens, refuse
from plait.core.weights import Rename, Rule
from plait.parts.convs import ChannelsLast, LayerNorm2d
from plait.parts.maps import OnTokens
from plait.parts.mixers.windows import InWindows, pad_map
from plait.parts.positions.conditional import ConditionalPositions
from plait.parts.towers.backbone import norm_of_mean
from plait.parts.towers.pyramid import Pyramid


class ChannelAttention(nn.Module):
    """Self-attention among the channels of each of G groups: Tokens (B, N, D) -> the same, at the cost of N D^2 / G.

    by_places: scores are divided by the root of N and not of the channels in a group, as in Florence-2.
    """

    def __init__(self, width: int, groups: int, by_places: bool = False):
        super().__init__()
        check_heads(width, groups)
        self.groups, self.by_places, self.attend = groups, by_places, Attend()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "keep", "weight", "lengths", why="channels attend to channels over all places alike")
        q, k, v = split_heads(self.qkv(t.x), 3, self.groups)  # each (B, G, N, C)
        scale = (q.shape[2] if self.by_places else q.shape[3]) ** -0.5
        maps = self.attend.weights(q.mT, k.mT, scale=scale).to(v.dtype)  # (B, G, C, C)
        return t.replace(x=self.out(merge_heads(v @ maps.mT)))


class Halve(nn.Module):
    """Norm, then a convolution of stride 2: (B, C, H, W) -> (B, C', H / 2, W / 2), rounded up."""

    def __init__(self, channels: int, out: int, kernel: int):
        super().__init__()
        self.norm = LayerNorm2d(channels)
        self.conv = nn.Conv2d(channels, out, kernel, 2, kernel // 2 if kernel % 2 else 0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.conv(x if self.conv.padding[0] else pad_map(x, self.conv.kernel_size))


class Stem(nn.Module):
    """Patches of 7 every `stride` pixels, normed: (B, 3, H, W) -> (B, D, H / stride, W / stride), rounded up."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.last, self.conv, self.norm = ChannelsLast(), nn.Conv2d(3, width, 7, stride, 3), LayerNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.last(pad_map(x, self.conv.stride))))


def block(width: int, mix: nn.Module, drop: float) -> Block:
    """A pre-norm layer with positions before either step."""

    def step(f: nn.Module) -> nn.Sequential:
        return nn.Sequential(ConditionalPositions(width), Pre(nn.LayerNorm(width), f, DropPath(drop)))

    return Block(mix=step(mix), feed=step(FeedForward(width, 4 * width)))


class DaViT(Pyramid):
    """Pictures (B, 3, H, W) of any size -> logits (B, K). depths: pairs of a layer of windows and one of channels.

    stride: of the stem. halving: the kernel between stages. florence: channels attend as in Florence-2.
    """

    def __init__(
        self, *, stride=4, widths, depths, heads, window=7, halving=2, florence=False, num_classes=1000, drop_path=0.0
    ):
        def pair(width: int, heads: int, drop: float) -> Stack:
            near, far = InWindows(Attention(width, heads), (window, window)), ChannelAttention(width, heads, florence)
            return Stack(block(width, near, drop), block(width, far, drop))

        stages = []
        for s, (d, h, rates) in enumerate(zip(widths, heads, stage_rates(drop_path, depths))):
            down = Halve(widths[s - 1], d, halving) if s else nn.Identity()
            stages.append(nn.Sequential(down, OnTokens(Stack(*(pair(d, h, rate) for rate in rates)))))
        super().__init__(Stem(widths[0], stride), stages, nn.LayerNorm(widths[-1]), widths[-1], num_classes)

    pool = norm_of_mean


THREE = dict(depths=(1, 1, 3, 1))
NINE = dict(depths=(1, 1, 9, 1))
TINY = dict(widths=(96, 192, 384, 768), heads=(3, 6, 12, 24))
BASE = dict(widths=(128, 256, 512, 1024), heads=(4, 8, 16, 32))
LARGE = dict(widths=(192, 384, 768, 1536), heads=(6, 12, 24, 48))
HUGE = dict(widths=(256, 512, 1024, 2048), heads=(8, 16, 32, 64))
GIANT = dict(widths=(384, 768, 1536, 3072), heads=(12, 24, 48, 96))
FLORENCE = dict(window=12, halving=3, florence=True, num_classes=0)

PAPER = Paper(VIT)

MODEL = DaViT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(stride=2, widths=(16, 32), depths=(1, 1), heads=(2, 4), window=4, num_classes=10),
    "nano": dict(stride=2, widths=(32, 64, 128), depths=(1, 1, 1), heads=(1, 2, 4), window=4, drop_path=0.1),
    "tiny": TINY | THREE,
    "small": TINY | NINE,
    "base": BASE | NINE,
    "large": LARGE | NINE,
    "huge": HUGE | NINE,
    "giant": GIANT | dict(depths=(1, 1, 12, 3)),
    "base_fl": BASE | NINE | FLORENCE,
    "huge_fl": HUGE | NINE | FLORENCE,
}

CROP = dict(image=(224, 224), crop_pct=0.95)
TIMM = CROP | dict(licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "tiny": TIMM | dict(hub="timm/davit_tiny.msft_in1k"),
    "small": TIMM | dict(hub="timm/davit_small.msft_in1k"),
    "base": TIMM | dict(hub="timm/davit_base.msft_in1k"),
    "large": dict(timm="davit_large"),
    "huge": dict(timm="davit_huge"),
    "giant": dict(timm="davit_giant"),
    "base_fl": dict(timm="davit_base_fl"),
    "huge_fl": dict(timm="davit_huge_fl"),
}


def layer(theirs: str, ours: str) -> list[Rule]:
    """A layer of either kind, but for its qkv."""
    return [
        Rename(f"{theirs}.cpe1.proj.{{p}}", f"{ours}.mix.0.conv.{{p}}"),
        Rename(f"{theirs}.norm1.{{p}}", f"{ours}.mix.1.norm.{{p}}"),
        Rename(f"{theirs}.cpe2.proj.{{p}}", f"{ours}.feed.0.conv.{{p}}"),
        Rename(f"{theirs}.norm2.{{p}}", f"{ours}.feed.1.norm.{{p}}"),
        Rename(f"{theirs}.mlp.fc1.{{p}}", f"{ours}.feed.1.f.up.{{p}}"),
        Rename(f"{theirs}.mlp.fc2.{{p}}", f"{ours}.feed.1.f.down.{{p}}"),
    ]


def turned(by: int):
    """The thirds of a fused projection in another order."""
    return lambda ts: [torch.roll(ts[0], by * (ts[0].shape[0] // 3), 0)]


PAIRS, OURS = "stages.{s}.blocks.{i}", "stages.{s}.1.f.blocks.{i}.blocks"
RULES = {
    "timm": [
        Rename("stem.{p}.{q}", "stem.{p}.{q}"),
        Rename("stages.{s}.downsample.{p}.{q}", "stages.{s}.0.{p}.{q}"),
        *(rule for name in ("0", "spatial_block") for rule in layer(f"{PAIRS}.{name}", f"{OURS}.0")),
        *(rule for name in ("1", "channel_block") for rule in layer(f"{PAIRS}.{name}", f"{OURS}.1")),
        *(Rename(f"{PAIRS}.{name}.attn.qkv.{{p}}", f"{OURS}.0.mix.1.f.f.qkv.{{p}}") for name in ("0", "spatial_block")),
        *(
            Rename(f"{PAIRS}.{name}.attn.proj.{{p}}", f"{OURS}.0.mix.1.f.f.out.{{p}}")
            for name in ("0", "spatial_block")
        ),
        # The first layout says q to what is looked up, k to what asks and v to what is asked.
        Rule((f"{PAIRS}.1.attn.qkv.{{p}}",), (f"{OURS}.1.mix.1.f.qkv.{{p}}",), turned(-1), turned(1)),
        Rename(f"{PAIRS}.channel_block.attn.qkv.{{p}}", f"{OURS}.1.mix.1.f.qkv.{{p}}"),
        *(Rename(f"{PAIRS}.{name}.attn.proj.{{p}}", f"{OURS}.1.mix.1.f.out.{{p}}") for name in ("1", "channel_block")),
        Rename("head.norm.{p}", "norm.{p}"),
        Rename("head.fc.{p}", "head.{p}"),
    ],
}
