"""TinyViT: Fast Pretraining Distillation for Small Vision Transformers. Wu, Zhang, Peng, Liu, Xiao, Fu, Yuan, 2022.
arXiv:2207.10666.

New here: a hierarchy small enough for a phone, cut down step by step from a larger one: convolutions with an inverted
bottleneck at the finest resolution, then attention in windows whose biases depend on the distance alone, with a
depthwise convolution between attention and feed-forward that carries what windows keep apart. It was made to be taught
by stored answers of a large model.

Differs: branches start with batch norms of one, not of zero. The store of a large model's best answers to each view of
a picture, and learning from it, are the trainer's matter and not here.
"""

from __future__ import annotations

from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Block, DropPath, FeedForward, Pre, Stack, check_heads, merge_heads, stage_rates
from plait.core.schemes import VIT, ZERO, Paper
from plait.core.tokens import Tokens
from plait.core.weights import Drop, Rename
from plait.parts.convs import ChannelsLast, ConvNorm
from plait.parts.maps import OnMap, OnTokens
from plait.parts.mixers.windows import cut, mend
from plait.parts.positions.relative import DistanceBias
from plait.parts.towers.backbone import norm_of_mean
from plait.parts.towers.layouts import conv_norm
from plait.parts.towers.pyramid import Pyramid


class WindowAttention(nn.Module):
    """Norm, then attention inside windows of side * side places: Tokens of a grid (B, N, D), filled up with zeros ->
    the same."""

    on_grid = True

    def __init__(self, width: int, heads: int, side: int):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.side, self.attend = heads, side, Attend()
        self.norm, self.bias = nn.LayerNorm(width), DistanceBias(heads, (side, side))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, t: Tokens) -> Tokens:
        size = (self.side, self.side)
        x, grid = cut(t, size)
        x = self.norm(x)  # after the filling: a place without a picture is read as the norm's bias
        # each (B * windows, H, side^2, E)
        q, k, v = self.qkv(x).view(*x.shape[:2], self.heads, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)
        y = self.attend(t.inside(x), q, k, v, bias=self.bias())
        return mend(t, y.replace(x=self.out(merge_heads(y.x))), size, grid)


class Bottleneck(nn.Module):
    """An inverted bottleneck: wider, a depthwise convolution, narrower, and the residual before the last activation."""

    def __init__(self, channels: int, ratio: int, drop: float):
        super().__init__()
        hidden = channels * ratio
        self.up = ConvNorm(channels, hidden, act=nn.GELU)
        self.spread = ConvNorm(hidden, hidden, 3, groups=hidden, act=nn.GELU)
        self.down, self.drop, self.act = ConvNorm(hidden, channels), DropPath(drop), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.drop(self.down(self.spread(self.up(x)))))


def halve(channels: int, out: int) -> nn.Sequential:
    """Half the height and width, between two mixtures of the channels."""
    return nn.Sequential(
        ConvNorm(channels, out, act=nn.GELU), ConvNorm(out, out, 3, 2, groups=out, act=nn.GELU), ConvNorm(out, out)
    )


def layer(width: int, heads: int, side: int, drop: float) -> Block:
    """Attention in windows; then a depthwise convolution across their borders and the feed-forward step."""
    feed = Pre(nn.LayerNorm(width), FeedForward(width, 4 * width), DropPath(drop))
    return Block(
        mix=Pre(nn.Identity(), WindowAttention(width, heads, side), DropPath(drop)),
        feed=nn.Sequential(OnMap(ConvNorm(width, width, 3, groups=width)), feed),
    )


class TinyViT(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K). widths, depths: of each stage; heads, sides (of the windows): of all but
    the first."""

    pool = norm_of_mean

    def __init__(self, *, widths, depths, heads, sides, num_classes=1000, drop_path=0.0):
        first, *later = stage_rates(drop_path, depths)
        stages = [nn.Sequential(*(Bottleneck(widths[0], 4, drop) for drop in first))]
        for before, width, h, side, rates in zip(widths, widths[1:], heads, sides, later):
            stack = Stack(*(layer(width, h, side, drop) for drop in rates))
            stages.append(nn.Sequential(halve(before, width), OnTokens(stack)))
        thin = widths[0] // 2
        stem = nn.Sequential(ChannelsLast(), ConvNorm(3, thin, 3, 2, act=nn.GELU), ConvNorm(thin, widths[0], 3, 2))
        super().__init__(stem, stages, nn.LayerNorm(widths[-1]), widths[-1], num_classes)


M5 = dict(widths=(64, 128, 160, 320), depths=(2, 2, 6, 2), heads=(4, 5, 10))
M11 = dict(widths=(64, 128, 256, 448), depths=(2, 2, 6, 2), heads=(4, 8, 14), drop_path=0.1)
M21 = dict(widths=(96, 192, 384, 576), depths=(2, 2, 6, 2), heads=(6, 12, 18), drop_path=0.2)
I224 = dict(sides=(7, 14, 7))
I384 = dict(sides=(12, 24, 12), drop_path=0.1)
I512 = dict(sides=(16, 32, 16), drop_path=0.1)
IN22K = dict(num_classes=21841)

PAPER = Paper((("DistanceBias.table", ZERO), ("*.down.norm.weight", ZERO), *VIT))

MODEL = TinyViT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(widths=(8, 16, 32), depths=(1, 1, 2), heads=(2, 4), sides=(3, 2), num_classes=10),
    "nano": dict(widths=(32, 64, 96, 160), depths=(1, 1, 3, 1), heads=(2, 3, 5), sides=(4, 4, 2), drop_path=0.05),
    "5m_224": M5 | I224,
    "5m_224_22k": M5 | I224 | IN22K,
    "11m_224": M11 | I224,
    "11m_224_22k": M11 | I224 | IN22K,
    "21m_224": M21 | I224,
    "21m_224_22k": M21 | I224 | IN22K,
    "21m_384": M21 | I384,
    "21m_512": M21 | I512,
}

CROP = dict(image=(224, 224), crop_pct=0.95)
TIMM = CROP | dict(licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WHOLE = TIMM | dict(image=(384, 384), crop_pct=1.0)
SQUASH = TIMM | dict(image=(512, 512), crop_pct=1.0, crop_mode="squash")
WEIGHTS = {
    "5m_224": TIMM | dict(hub="timm/tiny_vit_5m_224.dist_in22k_ft_in1k", timm="tiny_vit_5m_224.in1k"),
    "5m_224_22k": TIMM | dict(hub="timm/tiny_vit_5m_224.dist_in22k", timm="tiny_vit_5m_224.dist_in22k"),
    "11m_224": TIMM | dict(hub="timm/tiny_vit_11m_224.dist_in22k_ft_in1k", timm="tiny_vit_11m_224.in1k"),
    "11m_224_22k": TIMM | dict(hub="timm/tiny_vit_11m_224.dist_in22k", timm="tiny_vit_11m_224.dist_in22k"),
    "21m_224": TIMM | dict(hub="timm/tiny_vit_21m_224.dist_in22k_ft_in1k", timm="tiny_vit_21m_224.in1k"),
    "21m_224_22k": TIMM | dict(hub="timm/tiny_vit_21m_224.dist_in22k", timm="tiny_vit_21m_224.dist_in22k"),
    "21m_384": WHOLE | dict(hub="timm/tiny_vit_21m_384.dist_in22k_ft_in1k"),
    "21m_512": SQUASH | dict(hub="timm/tiny_vit_21m_512.dist_in22k_ft_in1k"),
}
TAGS = {
    "5m_224.in1k": dict(),
    "11m_224.in1k": dict(),
    "21m_224.in1k": dict(),
}
RULES = {
    "timm": [
        *conv_norm("patch_embed.conv1", "stem.1"),
        *conv_norm("patch_embed.conv2", "stem.2"),
        *conv_norm("stages.0.blocks.{i}.conv1", "stages.0.{i}.up"),
        *conv_norm("stages.0.blocks.{i}.conv2", "stages.0.{i}.spread"),
        *conv_norm("stages.0.blocks.{i}.conv3", "stages.0.{i}.down"),
        *(rule for n in range(3) for rule in conv_norm(f"stages.{{s}}.downsample.conv{n + 1}", f"stages.{{s}}.0.{n}")),
        Rename("stages.{s}.blocks.{i}.attn.attention_biases", "stages.{s}.1.f.blocks.{i}.mix.f.bias.table"),
        Drop("stages.{s}.blocks.{i}.attn.attention_bias_idxs"),
        Rename("stages.{s}.blocks.{i}.attn.norm.{p}", "stages.{s}.1.f.blocks.{i}.mix.f.norm.{p}"),
        Rename("stages.{s}.blocks.{i}.attn.qkv.{p}", "stages.{s}.1.f.blocks.{i}.mix.f.qkv.{p}"),
        Rename("stages.{s}.blocks.{i}.attn.proj.{p}", "stages.{s}.1.f.blocks.{i}.mix.f.out.{p}"),
        *conv_norm("stages.{s}.blocks.{i}.local_conv", "stages.{s}.1.f.blocks.{i}.feed.0.f"),
        Rename("stages.{s}.blocks.{i}.mlp.norm.{p}", "stages.{s}.1.f.blocks.{i}.feed.1.norm.{p}"),
        Rename("stages.{s}.blocks.{i}.mlp.fc1.{p}", "stages.{s}.1.f.blocks.{i}.feed.1.f.up.{p}"),
        Rename("stages.{s}.blocks.{i}.mlp.fc2.{p}", "stages.{s}.1.f.blocks.{i}.feed.1.f.down.{p}"),
        Rename("head.norm.{p}", "norm.{p}"),
        Rename("head.fc.{p}", "head.{p}"),
    ]
}
