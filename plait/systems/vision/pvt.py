"""Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions. Wang, Xie, Li, Fan, Song,
Liang, Lu, Luo, Shao, 2021. arXiv:2102.12122.

New here: a transformer with four resolutions, for detectors and segmenters that expect them. Attention at the fine ones
is affordable because each place asks a coarser picture: keys and values come from patches of 8, 4 and 2 places a side.

Differs: pictures that do not divide into patches are filled up with zeros; positions are resampled bicubically to other
sizes; all norms have the eps 1e-6 of transformers.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Attention, FeedForward, Make, Stack, check_heads, merge_heads, split_heads, stage_rates
from plait.core.tokens import Tokens, prepend
from plait.core.weights import Join, Rename
from plait.parts.maps import to_map, to_tokens
from plait.parts.positions.learned import GridPositions
from plait.parts.tokenizers.patches import PatchMap
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.pyramid import Pyramid

EPS = 1e-6
Norm = partial(nn.LayerNorm, eps=EPS)


class ReducedAttention(nn.Module):
    """Every place of a grid asks patches of `ratio` x `ratio` places: Tokens (B, N, D) -> the same, for N^2 / ratio^2.

    Places at the lower and right edge that fill no patch ask but are not asked. norm(width) makes the patches' norm.
    """

    on_grid = True

    def __init__(self, width: int, heads: int, ratio: int, norm: Make):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.attend = heads, Attend()
        self.shrink, self.norm = nn.Conv2d(width, width, ratio, ratio), norm(width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, t: Tokens) -> Tokens:
        (q,) = split_heads(self.q(t.x), 1, self.heads)  # (B, H, N, E)
        seen = to_tokens(self.shrink(to_map(t)))  # (B, M, D)
        k, v = split_heads(self.kv(self.norm(seen.x)), 2, self.heads)  # each (B, H, M, E)
        t = self.attend(t, q, k, v, to=seen)
        return t.replace(x=self.out(merge_heads(t.x)))


def reduced(width: int, heads: int, ratio: int, norm: Make) -> nn.Module:
    """The attention of a stage: plain where nothing is reduced."""
    return Attention(width, heads) if ratio == 1 else ReducedAttention(width, heads, ratio, norm)


class Stage(nn.Module):
    """Patches of the map before, positions, blocks: (B, C, H, W) -> Tokens (B, N, D). positions has a place for each
    special token."""

    def __init__(self, patches: nn.Module, positions: GridPositions, stack: nn.Module, width: int):
        super().__init__()
        self.patches, self.positions, self.stack = patches, positions, stack
        self.cls = nn.Parameter(torch.empty(1, positions.prefix, width)) if positions.prefix else None

    def reset(self) -> None:
        if self.cls is not None:
            nn.init.trunc_normal_(self.cls, std=0.02)

    def forward(self, x: Tensor) -> Tokens:
        t = to_tokens(self.patches(x))
        return self.stack(self.positions(t if self.cls is None else prepend(self.cls, t)))


class PVT(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K), read from a class token of the last stage.

    image: the (H, W) that positions are learned for. patches: of the stem, then of each stage's map. ratios: by how
    much the sides of what is asked are reduced in each stage. hidden: the feed-forward widths in widths.
    """

    fits = ("image",)

    def __init__(
        self, *, image=(224, 224), patches=(4, 2, 2, 2), widths=(64, 128, 320, 512), depths, heads=(1, 2, 5, 8),
        hidden=(8, 8, 4, 4), ratios=(8, 4, 2, 1), num_classes=1000, drop_path=0.0,
    ):  # fmt: skip
        stages, grid, channels = [], image, 3
        for s, (d, patch, rates) in enumerate(zip(widths, patches, stage_rates(drop_path, depths))):
            grid = tuple(-(-side // patch) for side in grid)
            positions = GridPositions(grid, d, prefix=int(s == len(widths) - 1))
            mix = partial(reduced, d, heads[s], ratios[s], Norm)
            blocks = [pre_norm(d, mix(), FeedForward(d, hidden[s] * d), norm=Norm, drop=drop) for drop in rates]
            stages.append(Stage(PatchMap(d, patch, channels, eps=EPS), positions, Stack(*blocks), d))
            channels = d
        super().__init__(nn.Identity(), stages, Norm(d), d, num_classes)
        self.multiple = math.prod(patches)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Each stage's map (B, C_i, H_i, W_i), finest first, without the class token."""
        found = []
        for stage in self.stages:
            x = to_map(stage(x))
            found.append(x)
        return found

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, 1 + N, D) of the last stage, the class token first, before the last norm."""
        before = []
        for stage in self.stages[:-1]:
            before.append(stage(x))
            x = to_map(before[-1])
        return self.stages[-1](x).with_losses(*before)


SMALL = dict(image=(32, 32), patches=(2, 2, 2, 2), heads=(1, 2, 4, 8), hidden=(4, 4, 4, 4), ratios=(4, 2, 2, 1))

MODEL = PVT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": SMALL | dict(widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), num_classes=10),
    "nano": SMALL | dict(image=(64, 64), widths=(24, 48, 96, 128), depths=(2, 2, 2, 2), drop_path=0.1),
    "tiny_224": dict(depths=(2, 2, 2, 2)),
    "small_224": dict(depths=(3, 4, 6, 3)),
    "medium_224": dict(depths=(3, 4, 18, 3)),
    "large_224": dict(depths=(3, 8, 27, 3)),
}

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
ZETATECH = IMAGENET | dict(source="transformers", licence="apache-2.0", transformers=True)
WEIGHTS = {
    "tiny_224": ZETATECH | dict(hub="Zetatech/pvt-tiny-224"),
    "small_224": ZETATECH | dict(hub="Zetatech/pvt-small-224"),
    "medium_224": ZETATECH | dict(hub="Zetatech/pvt-medium-224"),
    "large_224": ZETATECH | dict(hub="Zetatech/pvt-large-224"),
}

THEIRS, OURS = "pvt.encoder.block.{s}.{i}", "stages.{s}.stack.blocks.{i}"
LAST, MINE = "pvt.encoder.block.3.{i}", "stages.3.stack.blocks.{i}"  # the stage that reduces nothing
RULES = {
    "transformers": [
        Rename("pvt.encoder.patch_embeddings.{s}.projection.{p}", "stages.{s}.patches.proj.{p}"),
        Rename("pvt.encoder.patch_embeddings.{s}.layer_norm.{p}", "stages.{s}.patches.norm.{p}"),
        Rename("pvt.encoder.patch_embeddings.{s}.position_embeddings", "stages.{s}.positions.table"),
        Rename("pvt.encoder.patch_embeddings.{s}.cls_token", "stages.{s}.cls"),
        Join([f"{LAST}.attention.self.{n}.{{p}}" for n in ("query", "key", "value")], f"{MINE}.mix.f.qkv.{{p}}"),
        Rename(f"{THEIRS}.attention.self.query.{{p}}", f"{OURS}.mix.f.q.{{p}}"),
        Join([f"{THEIRS}.attention.self.{n}.{{p}}" for n in ("key", "value")], f"{OURS}.mix.f.kv.{{p}}"),
        Rename(f"{THEIRS}.attention.self.sequence_reduction.{{p}}", f"{OURS}.mix.f.shrink.{{p}}"),
        Rename(f"{THEIRS}.attention.self.layer_norm.{{p}}", f"{OURS}.mix.f.norm.{{p}}"),
        Rename(f"{THEIRS}.attention.output.dense.{{p}}", f"{OURS}.mix.f.out.{{p}}"),
        Rename(f"{THEIRS}.layer_norm_1.{{p}}", f"{OURS}.mix.norm.{{p}}"),
        Rename(f"{THEIRS}.layer_norm_2.{{p}}", f"{OURS}.feed.norm.{{p}}"),
        Rename(f"{THEIRS}.mlp.dense1.{{p}}", f"{OURS}.feed.f.up.{{p}}"),
        Rename(f"{THEIRS}.mlp.dense2.{{p}}", f"{OURS}.feed.f.down.{{p}}"),
        Rename("pvt.encoder.layer_norm.{p}", "norm.{p}"),
        Rename("classifier.{p}", "head.{p}"),
    ],
}
