"""MobileCLIP: Fast Image-Text Models through Multi-Modal Reinforced Training. Vasu et al., 2024. arXiv:2311.17049.

New here: picture towers made to be folded. While training, each of their steps is a sum of parallel convolutions and
norms, even tokens are mixed by one; `fold_norms` makes a single convolution of every sum. Attention is left to the
last, smallest maps. In the paper they learn from the stored answers of an ensemble of larger models.

Differs: the stored answers, made-up captions and views, and the loss that has a batch's likenesses as the larger models
had them, are the trainer's matter (`benchmarks/claims/pairs.py` has that loss in small). The convolutional text tower
of S0 is left out: 2_s0 is MobileCLIP2's, which has a plain one. Where the authors' texts are not causal, ours too are
filled up to the full length with empty words that are read like others.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, Block, Stack
from plait.core.reading import read_at
from plait.core.surgery import factors, fold_before, with_weights
from plait.core.tokens import Tokens, prepend
from plait.core.weights import Lift, Rename, View
from plait.parts.branches import Branches, unit
from plait.parts.convs import ChannelsLast, ConvNorm, MapScale, Pointwise, Skip, SqueezeExcite
from plait.parts.maps import OnTokens, to_map, to_tokens
from plait.parts.positions.learned import GridPositions
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import conv_norm, one_branches, open_clip_text, timm_blocks
from plait.parts.towers.pair import TwoTowers
from plait.parts.towers.pyramid import Pyramid
from plait.systems.pairs.clip import TextTower

Norm = partial(nn.LayerNorm, eps=1e-6)
HEAD = 32  # channels of a head


class RepMixer(nn.Module):
    """Tokens mixed by a depthwise convolution, from which the normed input is taken away: (B, C, H, W) -> the same."""

    def __init__(self, width: int):
        super().__init__()
        self.mix = Branches((width, width, 1, width), (3, 1))
        self.norm, self.scale = nn.BatchNorm2d(width), MapScale(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale(self.mix(x) - self.norm(x))

    def fold(self) -> nn.Module:
        conv, gamma = self.mix[0], self.scale.gamma
        scale, shift = factors(self.norm)
        weight = conv.weight * gamma.view(-1, 1, 1, 1) + unit(conv, 1 - gamma * scale)
        return with_weights(conv, weight, gamma * (conv.bias - shift))


class ConvPositions(Skip):
    """What stands around tells each place where it is: a depthwise convolution with its residual."""

    def __init__(self, width: int):
        super().__init__(nn.Conv2d(width, width, 7, padding=3, groups=width))

    def fold(self) -> nn.Module:
        return with_weights(self.f, self.f.weight + unit(self.f, torch.ones_like(self.f.bias)), self.f.bias)


class NormedAttention(nn.Module):
    """A batch norm, then attention among all places: (B, C, H, W) -> the same."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm, self.attention = nn.BatchNorm2d(width), OnTokens(Attention(width, heads, qkv_bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.norm(x))

    def fold(self) -> nn.Module:
        self.attention.f.qkv = fold_before(self.norm, self.attention.f.qkv)
        return self.attention


def feed(width: int, ratio: int, after: nn.Module) -> Skip:
    """A depthwise convolution, then two of one place, with their residual."""
    around, wide = ConvNorm(width, width, 7, groups=width), ratio * width
    return Skip(nn.Sequential(around, Pointwise(width, wide), nn.GELU(), Pointwise(wide, width)), after)


def layer(width: int) -> Block:
    """A layer of convolution; a block that maps flow through."""
    return Block(mix=RepMixer(width), feed=feed(width, 3, MapScale(width)))


def last_layer(width: int) -> Block:
    """A layer of attention. The feed's scale stands in a sequence, for public weights call it otherwise than that of
    other layers."""
    mix = Skip(NormedAttention(width, width // HEAD), MapScale(width))
    return Block(mix=mix, feed=feed(width, 3, nn.Sequential(MapScale(width))))


def halve(channels: int, out: int, squeeze: bool) -> nn.Sequential:
    """Half the height and width, by large kernels that overlap."""
    look = SqueezeExcite(out, out // 4) if squeeze else nn.Identity()
    large = Branches((channels, out, 2, channels), (7, 3), nn.Sequential(look, nn.GELU()))
    return nn.Sequential(large, Branches((out, out, 1, 1), (1,), nn.GELU()))


class MCi(Pyramid):
    """MobileCLIP's picture tower, after FastViT (arXiv:2303.14189): (B, 3, H, W) -> (B, E). The last stage attends, the
    others convolve."""

    def __init__(self, width: int, depths: tuple[int, ...], embed: int):
        stem = nn.Sequential(
            ChannelsLast(),
            Branches((3, width, 2, 1), (3, 1), nn.GELU()),
            Branches((width, width, 2, width), (3, 1), nn.GELU()),
            Branches((width, width, 1, 1), (1,), nn.GELU()),
        )
        stages = []
        for s, depth in enumerate(depths):
            c, last = width * 2**s, s == len(depths) - 1
            down = halve(c // 2, c, s > 1) if s else nn.Identity()
            blocks = nn.Sequential(*((last_layer if last else layer)(c) for _ in range(depth)))
            stages.append(nn.Sequential(down, ConvPositions(c) if last else nn.Identity(), blocks))
        super().__init__(stem, stages, nn.Identity(), 2 * c, embed)
        self.final = Branches((c, 2 * c, 1, c), (3, 1), nn.Sequential(SqueezeExcite(2 * c, 2 * c // 16), nn.GELU()))

    def pool(self, t: Tokens) -> Tensor:
        """(B, 2 D): the mean of the map, twice as wide."""
        return self.final(to_map(t)).mean((2, 3))


class ConvPatches(nn.Module):
    """Patches of 16 by three convolutions that do not overlap: (B, 3, H, W) -> Tokens (B, N, D)."""

    def __init__(self, width: int):
        super().__init__()
        thin = width // 4
        first, second = ConvNorm(3, thin, 4, 4, act=nn.GELU), ConvNorm(thin, thin, 2, 2, act=nn.GELU)
        for step in (first, second):
            step.conv.padding = (0, 0)
        self.steps = nn.Sequential(ChannelsLast(), first, second, nn.Conv2d(thin, width, 2, 2))

    def forward(self, x: Tensor) -> Tokens:
        return to_tokens(self.steps(x))


class ViTTower(nn.Module):
    """The largest picture tower, a ViT on convolved patches: (B, 3, H, W) -> (B, E)."""

    def __init__(self, image: tuple[int, int], width: int, depth: int, heads: int, embed: int):
        super().__init__()
        self.stem, self.cls = ConvPatches(width), nn.Parameter(torch.empty(1, 1, width))
        self.positions = GridPositions((image[0] // 16, image[1] // 16), width)
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, 4 * width, norm=Norm))
        self.norm, self.head = Norm(width), nn.Linear(width, embed)

    def reset(self) -> None:
        nn.init.trunc_normal_(self.cls, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        t = prepend(self.cls, self.positions(self.stem(x)))
        return self.head(self.norm(read_at(self.stack, t, 0).x[:, 0]))


class FilledTextTower(TextTower):
    """A text tower that looks both ways, at texts filled up to the full length: ids (B, N), keep (B, N) -> (B, E)."""

    def __init__(self, vocab: int, length: int, width: int, depth: int, heads: int, embed: int, act: type[nn.Module]):
        super().__init__(vocab, length, width, depth, heads, embed, act)
        for block in self.stack.blocks:
            block.mix.f.attend.causal = False

    def start(self, ids: Tensor, keep: Tensor) -> Tokens:
        ids = F.pad(ids.masked_fill(~keep, 0), (0, self.positions.length - ids.shape[1]))
        return self.positions(self.words(ids))


class MobileCLIP(TwoTowers):
    """width, depths: the picture tower, MCi, or a ViT where `heads` is given and `depths` a number. vocab, length,
    text_*: the text tower, causal beside a ViT. embed: E.
    """

    def __init__(
        self, *, image=(256, 256), width, depths, heads=None,
        vocab=49408, length=77, text_width=512, text_depth=12, text_heads=8, embed=512,
    ):  # fmt: skip
        eyes = MCi(width, depths, embed) if heads is None else ViTTower(image, width, depths, heads, embed)
        reader = FilledTextTower if heads is None else TextTower
        super().__init__(eyes, reader(vocab, length, text_width, text_depth, text_heads, embed, nn.GELU), image, embed)


MODEL = MobileCLIP
TAKES = ("image", "text")
ROLES = ("embedder",)
DEFAULT = "nano"
S2 = dict(width=80, depths=(4, 12, 24, 4))
B = dict(image=(224, 224), width=768, depths=12, heads=12)
TOY = dict(text_width=32, text_depth=2, text_heads=2, embed=16)
NANO = dict(text_width=192, text_depth=4, text_heads=3, embed=128)
SIZES = {
    "toy": TOY | dict(image=(32, 32), width=32, depths=(1, 1), vocab=64, length=16),
    "nano": NANO | dict(image=(64, 64), width=32, depths=(1, 2, 2), vocab=8192),
    "s1": dict(width=64, depths=(4, 12, 20, 4)),
    "s2": S2,
    "b": B,
    "2_s0": dict(width=64, depths=(2, 6, 10, 2)),
    "2_s2": S2,
    "2_b": B,
}

TOKENS = dict(tokenizer="openai/clip-vit-base-patch32/tokenizer.json", begin=49406, end=49407)
RAW = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_pct=1.0, interpolation="bilinear")
APPLE = TOKENS | RAW | dict(source="open_clip", licence="apple-amlr")
WEIGHTS = {
    "s1": APPLE | dict(hub="apple/MobileCLIP-S1-OpenCLIP", open_clip="MobileCLIP-S1"),
    "s2": APPLE | dict(hub="apple/MobileCLIP-S2-OpenCLIP", open_clip="MobileCLIP-S2"),
    "b": APPLE | dict(hub="apple/MobileCLIP-B-OpenCLIP", open_clip="MobileCLIP-B"),
    "2_s0": APPLE | dict(hub="timm/MobileCLIP2-S0-OpenCLIP", open_clip="MobileCLIP2-S0"),
    "2_s2": APPLE | dict(hub="timm/MobileCLIP2-S2-OpenCLIP", open_clip="MobileCLIP2-S2"),
    "2_b": APPLE | dict(hub="timm/MobileCLIP2-B-OpenCLIP", open_clip="MobileCLIP2-B"),
}


IMAGE, TEXT = "towers.image", "towers.text"
LAYER, MINE = "visual.trunk.stages.{s}.blocks.{i}", f"{IMAGE}.stages.{{s}}.2.{{i}}"
DOWN, HALF = "visual.trunk.stages.{s}.downsample.proj", f"{IMAGE}.stages.{{s}}.0"
SCALES = {
    "token_mixer.layer_scale": "mix.scale",
    "layer_scale_1": "mix.after",
    "layer_scale": "feed.after",
    "layer_scale_2": "feed.after.0",
}
RULES = {
    "open_clip": [
        Lift("logit_scale", "logit_scale"),
        *(rule for n in range(3) for rule in one_branches(f"visual.trunk.stem.{n}", f"{IMAGE}.stem.{n + 1}")),
        *conv_norm(f"{DOWN}.0.large_conv", f"{HALF}.0.convs.0"),
        *conv_norm(f"{DOWN}.0.small_conv", f"{HALF}.0.convs.1"),
        *one_branches(f"{DOWN}.0", f"{HALF}.0"),
        *one_branches(f"{DOWN}.1", f"{HALF}.1"),
        Rename("visual.trunk.stages.{s}.pos_emb.pos_enc.{p}", f"{IMAGE}.stages.{{s}}.1.f.{{p}}"),
        Rename(f"{LAYER}.token_mixer.norm.identity.{{p}}", f"{MINE}.mix.norm.{{p}}"),
        *one_branches(f"{LAYER}.token_mixer.mixer", f"{MINE}.mix.mix"),
        *(
            View(f"{LAYER}.{public}.gamma", f"{MINE}.{ours}.gamma", (-1,), (-1, 1, 1))
            for public, ours in SCALES.items()
        ),
        Rename(f"{LAYER}.norm.{{p}}", f"{MINE}.mix.f.norm.{{p}}"),
        Rename(f"{LAYER}.token_mixer.qkv.weight", f"{MINE}.mix.f.attention.f.qkv.weight"),
        Rename(f"{LAYER}.token_mixer.proj.{{p}}", f"{MINE}.mix.f.attention.f.out.{{p}}"),
        *conv_norm(f"{LAYER}.mlp.conv", f"{MINE}.feed.f.0"),
        Rename(f"{LAYER}.mlp.fc1.{{p}}", f"{MINE}.feed.f.1.{{p}}"),
        Rename(f"{LAYER}.mlp.fc2.{{p}}", f"{MINE}.feed.f.3.{{p}}"),
        *one_branches("visual.trunk.final_conv", f"{IMAGE}.final"),
        Rename("visual.trunk.head.fc.{p}", f"{IMAGE}.head.{{p}}"),
        Rename("visual.trunk.cls_token", f"{IMAGE}.cls"),
        Rename("visual.trunk.pos_embed", f"{IMAGE}.positions.table"),
        Rename("visual.trunk.head.{p}", f"{IMAGE}.head.{{p}}"),
        *(
            rule
            for n in range(2)
            for rule in conv_norm(f"visual.trunk.patch_embed.backbone.{n}", f"{IMAGE}.stem.steps.{n + 1}")
        ),
        Rename("visual.trunk.patch_embed.backbone.2.conv.{p}", f"{IMAGE}.stem.steps.3.{{p}}"),
        Rename("visual.trunk.norm.{p}", f"{IMAGE}.norm.{{p}}"),
        *timm_blocks("visual.trunk.blocks.{i}", f"{IMAGE}.stack.blocks.{{i}}"),
        *open_clip_text("text.", TEXT),
    ],
}
