"""Transformer in Transformer. Han et al., 2021. arXiv:2103.00112.

New here: a patch of 16 x 16 is a sentence of 16 words, each a square of 4 x 4 pixels. In every layer a thin transformer
reads the words of each patch among themselves, all words of a patch are projected and added to its token, and an
ordinary transformer reads the patches. Words have positions within the patch, patches have positions within the
picture.

Differs: other picture sizes than `image` are read, the patches' positions resampled. The two s sizes are the authors'
code (each patch is cut out before the convolution, and the words are normed together) and `legacy`, an earlier port
with published weights, which does both the other way round.
"""

from __future__ import annotations

from functools import partial
from math import isqrt

import torch
from torch import Tensor, nn

from plait.core.block import Attention, Block, FeedForward, Layer, Stack, drop_rates
from plait.core.schemes import VIT, Paper, trunc
from plait.core.tokens import Tokens, prepend, refuse
from plait.core.weights import Join, Rename, Rule, under
from plait.parts.maps import to_tokens
from plait.parts.mixers.windows import to_windows
from plait.parts.positions.learned import GridPositions
from plait.parts.tokenizers.patches import patch_grid
from plait.parts.towers.backbone import Backbone
from plait.parts.towers.encoder import pre_norm

Norm = partial(nn.LayerNorm, eps=1e-5)
WORD = 4  # pixels a side


class Words(nn.Module):
    """Pictures (B, 3, H, W) -> words (B * N, P/4 * P/4, d) of each patch, with positions, and the grid of patches.

    alone: each patch is convolved by itself, with zeros around it; else the picture is convolved and then cut.
    """

    def __init__(self, width: int, patch: int, alone: bool):
        super().__init__()
        self.patch, self.side, self.alone = patch, patch // WORD, alone
        self.proj = nn.Conv2d(3, width, 7, WORD, 3)
        self.positions = nn.Parameter(torch.empty(1, self.side**2, width))

    def reset(self) -> None:
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        grid = patch_grid(x, self.patch)
        if self.alone:
            x = x.unflatten(2, (grid[0], self.patch)).unflatten(4, (grid[1], self.patch))  # (B, 3, h, P, w, P)
            x = x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (B * N, 3, P, P)
            words = to_tokens(self.proj(x)).x
        else:
            words = to_windows(self.proj(x).permute(0, 2, 3, 1).contiguous(), (self.side, self.side))
        return words + self.positions, grid


class Sentences(nn.Module):
    """Words (B * N, n, d) -> what they add to their patches' tokens (B, N, D). together: norms of all of a patch's
    words at once, and of the result; else each word is normed by itself."""

    def __init__(self, width: int, words: int, out: int, *, together: bool = True, bias: bool = False):
        super().__init__()
        self.norm = Norm(width * words if together else width)
        self.proj = nn.Linear(width * words, out, bias=bias)
        self.last = Norm(out) if together else nn.Identity()
        self.together = together

    def forward(self, words: Tensor, rows: int) -> Tensor:
        words = self.norm(words.flatten(1)) if self.together else self.norm(words).flatten(1)
        return self.last(self.proj(words)).unflatten(0, (rows, -1))


class Nested(Layer):
    """The words of each patch, which the context holds, read each other, tell their patch, and the patches read each
    other: Tokens (B, 1 + N, D) -> the same."""

    reads = ("words",)

    def __init__(self, inner: Block, tell: Sentences, outer: Block):
        super().__init__()
        self.inner, self.tell, self.outer = inner, tell, outer

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "weight", "lengths", why="each patch has words of its own")
        words = self.inner(t.read("words"))
        told = self.tell(words.x, t.x.shape[0])
        t = self.outer(t.with_losses(words).replace(x=torch.cat([t.x[:, :1], t.x[:, 1:] + told], 1)))
        return t.reading(words=words.replace(losses=None))


class TNT(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K). inner: the words' width; width: the patches'; legacy: see the file's
    head."""

    fits = ("image",)

    def __init__(
        self, *, image=(224, 224), patch=16, inner, inner_heads=4, width, depth=12, heads, legacy=False,
        num_classes=1000, drop_path=0.0,
    ):  # fmt: skip
        super().__init__()
        self.width, self.multiple = width, patch
        count = (patch // WORD) ** 2
        self.words = Words(inner, patch, alone=not legacy)
        self.first = Sentences(inner, count, width, bias=True)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.positions = GridPositions((image[0] // patch, image[1] // patch), width, prefix=1)

        def layer(size: int, heads: int, drop: float) -> Block:
            mix = Attention(size, heads, qkv_bias=False)
            return pre_norm(size, mix, FeedForward(size, 4 * size), norm=Norm, drop=drop)

        tell = partial(Sentences, inner, count, width, together=not legacy, bias=legacy)
        blocks = (Nested(layer(inner, inner_heads, drop), tell(), layer(width, heads, drop))
                  for drop in drop_rates(drop_path, depth))  # fmt: skip
        self.stack = Stack(*blocks, gives=("words",))
        self.norm = Norm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def reset(self) -> None:
        nn.init.trunc_normal_(self.cls, std=0.02)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, 1 + N, D), the class token first, before the last norm."""
        words, grid = self.words(x)
        t = self.positions(prepend(self.cls, Tokens(self.first(words, x.shape[0]), grid=grid)))
        return self.stack(t.reading(words=Tokens(words))).replace(context=None)


PAPER = Paper((("*cls", trunc(0.02)), ("Words.positions", trunc(0.02)), *VIT), {"*": 0.1})

MODEL = TNT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), patch=8, inner=8, inner_heads=2, width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(image=(64, 64), patch=8, inner=24, width=128, depth=5, heads=4, drop_path=0.1),
    "s_patch16_224": dict(inner=24, width=384, heads=6),
    "b_patch16_224": dict(inner=40, width=640, heads=10),
    "s_legacy_patch16_224": dict(inner=24, width=384, heads=6, legacy=True),
}
TIMM = dict(licence="apache-2.0", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.9)
WEIGHTS = {
    "s_patch16_224": TIMM | dict(hub="timm/tnt_s_patch16_224.in1k"),
    "b_patch16_224": TIMM | dict(hub="timm/tnt_b_patch16_224.in1k"),
    "s_legacy_patch16_224": TIMM | dict(hub="timm/tnt_s_legacy_patch16_224.in1k"),
}
LAYERS = {  # ours: what theirs ends in, and the beginning of its feed-forward's names
    "inner": ("in", "mlp_in"),
    "outer": ("out", "mlp"),
}
RULES = {
    "timm": [
        Rename("cls_token", "cls"),
        Rename("patch_pos", "positions.table"),
        Rule(  # a square map to (1, n, d)
            ("pixel_pos",),
            ("words.positions",),
            lambda ts: [ts[0].flatten(2).mT],
            lambda ts: [ts[0].mT.unflatten(2, (isqrt(ts[0].shape[1]), -1))],
        ),  # fmt: skip
        Rename("pixel_embed.proj.{p}", "words.proj.{p}"),
        Rename("norm1_proj.{p}", "first.norm.{p}"),
        Rename("proj.{p}", "first.proj.{p}"),
        Rename("norm2_proj.{p}", "first.last.{p}"),
        *(
            rule
            for ours, (end, mlp) in LAYERS.items()
            for rule in under(
                [
                    Rename(f"norm_{end}.{{p}}", f"{ours}.mix.norm.{{p}}"),
                    Join([f"attn_{end}.{n}.weight" for n in ("qk", "v")], f"{ours}.mix.f.qkv.weight", (2, 1)),
                    Rename(f"attn_{end}.proj.{{p}}", f"{ours}.mix.f.out.{{p}}"),
                    Rename(f"norm_{mlp}.{{p}}", f"{ours}.feed.norm.{{p}}"),
                    Rename(f"{mlp}.fc1.{{p}}", f"{ours}.feed.f.up.{{p}}"),
                    Rename(f"{mlp}.fc2.{{p}}", f"{ours}.feed.f.down.{{p}}"),
                ],
                "blocks.{i}.",
                "stack.blocks.{i}.",
            )
        ),
        Rename("blocks.{i}.norm1_proj.{p}", "stack.blocks.{i}.tell.norm.{p}"),
        Rename("blocks.{i}.proj.{p}", "stack.blocks.{i}.tell.proj.{p}"),
        Rename("blocks.{i}.norm2_proj.{p}", "stack.blocks.{i}.tell.last.{p}"),
        Rename("norm.{p}", "norm.{p}"),
        Rename("head.{p}", "head.{p}"),
    ]
}
