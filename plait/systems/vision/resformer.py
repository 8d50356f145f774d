"""ResFormer: Scaling ViTs with Multi-Resolution Training. Tian et al., 2023. arXiv:2212.00776.

New here: one network for many picture sizes. Positions change smoothly with the size: a map of sines that spans the
whole picture whatever its size, refined by a convolution, is added to the patches, and in every layer a small
convolution over the values, one for all heads, tells each token of its neighbours. Each batch is read at several
resolutions, and each one learns from the features of the one before.

Differs: pictures need not be square. `losses` is the training objective; `plait fit` trains at one resolution. Films
are not read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Stack, check_heads, merge_heads, split_heads
from plait.core.tokens import Tokens, prepend
from plait.core.weights import Rename
from plait.parts.maps import to_map
from plait.parts.positions.sine import waves
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.backbone import Backbone
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import timm_blocks

Norm = partial(nn.LayerNorm, eps=1e-6)


class GlobalPositions(nn.Module):
    """Adds to the tokens of a grid what a convolution makes of sines of row and column, which go round once over the
    whole grid."""

    def __init__(self, width: int):
        super().__init__()
        self.width, self.refine = width, nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, t: Tokens) -> Tokens:
        angles = (torch.arange(1, n + 1, device=t.x.device) * (2 * math.pi / (n + 1e-6)) for n in t.grid)
        rows, columns = (waves(angle, self.width // 2) for angle in angles)  # (side, D/2)
        x = torch.cat([rows[:, None].expand(-1, t.grid[1], -1), columns.expand(t.grid[0], -1, -1)], 2)  # (h, w, D)
        return t.replace(x=t.x + self.refine(x.to(t.x.dtype).permute(2, 0, 1)[None]).flatten(2).mT)


class PerHead(nn.Conv2d):
    """A 3 x 3 convolution per channel, with the same weights for every head: (B, H E, h, w) -> the same shape."""

    def __init__(self, head_width: int):
        super().__init__(head_width, head_width, 3, padding=1, groups=head_width)

    def reset(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        heads = x.shape[1] // self.in_channels
        weight, bias = self.weight.repeat(heads, 1, 1, 1), self.bias.repeat(heads)
        return F.conv2d(x, weight, bias, padding=1, groups=x.shape[1])


class LocalAttention(nn.Module):
    """Self-attention, plus a 3 x 3 convolution over the values, the same for every head: Tokens (B, 1 + N, D) of a grid
    -> the same."""

    on_grid = True

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        e = width // heads
        self.heads, self.attend = heads, Attend()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.near = PerHead(e)

    def forward(self, t: Tokens) -> Tokens:
        d, qkv = t.x.shape[2], self.qkv(t.x)
        q, k, v = split_heads(qkv, 3, self.heads)  # each (B, H, N, E)
        places = to_map(t.replace(x=qkv[..., 2 * d :]))  # (B, D, h, w)
        near = self.near(places).flatten(2).mT
        t = self.attend(t, q, k, v)
        return t.replace(x=self.out(merge_heads(t.x) + F.pad(near, (0, 0, t.prefix, 0))))


class ResFormer(Backbone):
    """Pictures (B, 3, H, W), any multiples of the patch -> logits (B, K)."""

    def __init__(self, *, patch=16, width, depth=12, heads, num_classes=1000, drop_path=0.0):
        super().__init__()
        self.width, self.multiple = width, patch
        self.stem, self.positions = PatchTokens(width, patch), GlobalPositions(width)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        layers = partial(pre_norm_blocks, norm=Norm, mix=LocalAttention, drop_path=drop_path)
        self.stack = Stack(*layers(width, depth, heads, 4 * width))
        # what it tells the patches nobody reads: only the class token is pooled
        self.stack.blocks[-1].mix.f.near.requires_grad_(False)
        self.norm = Norm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def reset(self) -> None:
        nn.init.trunc_normal_(self.cls, std=0.02)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, 1 + N, D), the class token first, before the last norm."""
        return self.stack(prepend(self.cls, self.positions(self.stem(x))))


def losses(model: ResFormer, pictures: Sequence[Tensor], target: Tensor) -> dict[str, Tensor]:
    """What is to be made small: the same batch at several resolutions, largest first, [(B, 3, H_i, W_i)], and its
    classes (B,).

    "classes": the mean cross-entropy over the resolutions. "consistency": how far each one's pooled features are
    (smooth L1) from those of the one before, whitened, which teach and learn nothing from it; the mean over the
    resolutions.
    """
    features = [model.pool(model.tokens(x)) for x in pictures]
    teachers = [F.layer_norm(f.detach(), f.shape[-1:], eps=1e-6) for f in features]
    apart = [F.smooth_l1_loss(f, teacher) for f, teacher in zip(features[1:], teachers)]
    classes = [F.cross_entropy(model.head(f), target) for f in features]
    consistency = sum(apart, features[0].new_zeros(())) / len(features)
    return {"classes": torch.stack(classes).mean(), "consistency": consistency}


MODEL = ResFormer
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(patch=8, width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(patch=8, width=128, depth=6, heads=4, drop_path=0.1),
    "tiny_patch16": dict(width=192, heads=3),
    "small_patch16": dict(width=384, heads=6),
    "base_patch16": dict(width=768, heads=12),
}
WEIGHTS = {}  # the authors' files lie where only a browser gets them; load_weights reads them as "official"
RULES = {
    "official": [
        Rename("cls_token", "cls"),
        Rename("patch_embed.proj.{p}", "stem.proj.{p}"),
        Rename("pos_embed.embed_layer.{p}", "positions.refine.{p}"),
        Rename("blocks.{i}.attn.get_v.{p}", "stack.blocks.{i}.mix.f.near.{p}"),
        *timm_blocks(),
        Rename("norm.{p}", "norm.{p}"),
        Rename("head.{p}", "head.{p}"),
    ]
}
