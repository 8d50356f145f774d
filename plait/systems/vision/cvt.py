"""CvT: Introducing Convolutions to Vision Transformers. Wu, Xiao, Codella, Liu, Dai, Yuan, Zhang, 2021.
arXiv:2103.15808.

New here: what makes a convolution good with places is put where a transformer lacks it: each stage begins with
overlapping, strided patches of the map before it, and queries, keys and values are depthwise convolutions of the
tokens' map, keys and values at half the resolution. That tells places: there are no positions to learn or resample.

Differs: the last layer's convolution of queries, which no logit depends on, takes no gradient until asked to. Scores
are scaled by the whole width, not a head's, as in the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import FeedForward, Stack, check_heads, merge_heads, split_heads
from plait.core.tokens import Tokens, prepend
from plait.core.weights import Rename
from plait.parts.convs import ChannelsLast, ConvNorm, LayerNorm2d
from plait.parts.maps import flat, to_map, to_tokens
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.pyramid import Pyramid


class ConvAttention(nn.Module):
    """Attention among convolved tokens, keys and values of half the grid: Tokens (B, S + N, D), S special."""

    on_grid = True

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.scale, self.attend = heads, width**-0.5, Attend()
        self.convs = nn.ModuleList(ConvNorm(width, width, 3, stride, groups=width) for stride in (1, 2, 2))
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, t: Tokens) -> Tokens:
        x, special = to_map(t), t.x[:, : t.prefix]
        seen = (torch.cat([special, flat(conv(x))], 1) if t.prefix else flat(conv(x)) for conv in self.convs)
        q, k, v = (split_heads(f(y), 1, self.heads)[0] for f, y in zip((self.q, self.k, self.v), seen))  # (B, H, ., E)
        t = self.attend(t, q, k, v, to=Tokens(k), scale=self.scale)
        return t.replace(x=self.out(merge_heads(t.x)))


class Stage(nn.Module):
    """Overlapping patches of a map (B, C, H, W), then blocks: -> Tokens (B, N, D)."""

    def __init__(self, channels: int, width: int, depth: int, heads: int, patch: tuple[int, int, int], drop: float):
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(channels, width, *patch), LayerNorm2d(width))
        steps = ((ConvAttention(width, heads), FeedForward(width, 4 * width)) for _ in range(depth))
        self.blocks = Stack(*(pre_norm(width, mix, feed, drop=drop) for mix, feed in steps))

    def forward(self, x: Tensor) -> Tokens:
        return self.blocks(to_tokens(self.embed(x)))


class LastStage(Stage):
    """The stage that a class token comes to: -> Tokens (B, 1 + N, D)."""

    def __init__(self, channels: int, width: int, *shape):
        super().__init__(channels, width, *shape)
        self.cls = nn.Parameter(torch.empty(1, 1, width))

    def reset(self) -> None:
        nn.init.trunc_normal_(self.cls, std=0.02)

    def forward(self, x: Tensor) -> Tokens:
        return self.blocks(prepend(self.cls, to_tokens(self.embed(x))))


class CvT(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K), read from the class token.

    patches: (kernel, stride, padding) of each stage. drop_path: of the last stage's layers, the same for all.
    """

    def __init__(
        self, *, widths, depths, heads, patches=((7, 4, 2), (3, 2, 1), (3, 2, 1)), num_classes=1000, drop_path=0.1
    ):
        kinds = [Stage] * (len(widths) - 1) + [LastStage]
        rates = [0.0] * (len(widths) - 1) + [drop_path]
        stages = (kind(*shape) for kind, *shape in zip(kinds, (3, *widths), widths, depths, heads, patches, rates))
        super().__init__(ChannelsLast(), stages, nn.LayerNorm(widths[-1]), widths[-1], num_classes)
        # the class token, alone read at the end, passes it by
        self.stages[-1].blocks.blocks[-1].mix.f.convs[0].requires_grad_(False)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Each stage's map (B, C_i, H_i, W_i), finest first; the last without the class token."""
        x, found = self.stem(x), []
        for stage in self.stages:
            x = to_map(stage(x))
            found.append(x)
        return found

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, 1 + N, D) of the last stage, the class token first, before the last norm."""
        x, before = self.stem(x), []
        for stage in self.stages[:-1]:
            before.append(stage(x))
            x = to_map(before[-1])
        return self.stages[-1](x).with_losses(*before)


C13 = dict(widths=(64, 192, 384), depths=(1, 2, 10), heads=(1, 3, 6))
C21 = dict(widths=(64, 192, 384), depths=(1, 4, 16), heads=(1, 3, 6))
W24 = dict(widths=(192, 768, 1024), depths=(2, 2, 20), heads=(3, 12, 16), drop_path=0.3)

MODEL = CvT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
TOY = dict(widths=(16, 32), depths=(1, 2), heads=(1, 2))
SIZES = {
    "toy": TOY | dict(patches=((7, 4, 2), (3, 2, 1)), num_classes=10, drop_path=0.0),
    "nano": dict(widths=(32, 64, 128), depths=(1, 1, 4), heads=(1, 2, 4), patches=((5, 2, 2), (3, 2, 1), (3, 2, 1))),
    "13": C13,
    "13_384": C13,
    "21": C21,
    "21_384": C21,
    "w24_384": W24,
}

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CROP = dict(image=(224, 224), crop_pct=0.875)
MICROSOFT = CROP | IMAGENET | dict(source="transformers", licence="apache-2.0", transformers=True)
SQUASH = MICROSOFT | dict(image=(384, 384), crop_pct=1.0, crop_mode="squash")
WEIGHTS = {
    "13": MICROSOFT | dict(hub="microsoft/cvt-13"),
    "13_384": SQUASH | dict(hub="microsoft/cvt-13-384"),
    "21": MICROSOFT | dict(hub="microsoft/cvt-21"),
    "21_384": SQUASH | dict(hub="microsoft/cvt-21-384"),
    "w24_384": SQUASH | dict(hub="microsoft/cvt-w24-384-22k"),
}


STAGE, LAYER, MINE = "cvt.encoder.stages.{s}", "cvt.encoder.stages.{s}.layers.{i}", "stages.{s}.blocks.blocks.{i}"
CONV = f"{LAYER}.attention.attention.convolution_projection_"
RULES = {
    "transformers": [
        Rename(f"{STAGE}.cls_token", "stages.{s}.cls"),
        Rename(f"{STAGE}.embedding.convolution_embeddings.projection.{{p}}", "stages.{s}.embed.0.{p}"),
        Rename(f"{STAGE}.embedding.convolution_embeddings.normalization.{{p}}", "stages.{s}.embed.1.{p}"),
        *(
            rule
            for n, name in enumerate(("query", "key", "value"))
            for rule in (
                Rename(
                    f"{CONV}{name}.convolution_projection.convolution.weight", f"{MINE}.mix.f.convs.{n}.conv.weight"
                ),
                Rename(
                    f"{CONV}{name}.convolution_projection.normalization.{{p}}", f"{MINE}.mix.f.convs.{n}.norm.{{p}}"
                ),
                Rename(f"{LAYER}.attention.attention.projection_{name}.{{p}}", f"{MINE}.mix.f.{name[0]}.{{p}}"),
            )
        ),
        Rename(f"{LAYER}.attention.output.dense.{{p}}", f"{MINE}.mix.f.out.{{p}}"),
        Rename(f"{LAYER}.layernorm_before.{{p}}", f"{MINE}.mix.norm.{{p}}"),
        Rename(f"{LAYER}.layernorm_after.{{p}}", f"{MINE}.feed.norm.{{p}}"),
        Rename(f"{LAYER}.intermediate.dense.{{p}}", f"{MINE}.feed.f.up.{{p}}"),
        Rename(f"{LAYER}.output.dense.{{p}}", f"{MINE}.feed.f.down.{{p}}"),
        Rename("layernorm.{p}", "norm.{p}"),
        Rename("classifier.{p}", "head.{p}"),
    ]
}
