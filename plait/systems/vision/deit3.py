"""DeiT III: Revenge of the ViT. Touvron, Cord, Jegou, 2022. arXiv:2204.07118.

New here: mostly a recipe (three simple augmentations, binary cross-entropy, training small and fine-tuning large). In
the network, a learned factor per channel on every branch (layer scale) keeps deep ViTs trainable, and positions are
added to the patches only.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Stack
from plait.core.schemes import VIT, Paper, constant
from plait.core.tokens import Tokens, prepend
from plait.parts.positions.learned import GridPositions
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.backbone import Backbone
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import timm_vit

Norm = partial(nn.LayerNorm, eps=1e-6)


class DeiT3(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K). image: (H, W) of the learned positions. scale: of layers, at first."""

    fits = ("image",)

    def __init__(self, *, image=(224, 224), patch=16, width, depth, heads, scale=1e-6, num_classes=1000, drop_path=0.0):
        super().__init__()
        self.width, self.multiple = width, patch
        self.stem = PatchTokens(width, patch)
        self.positions = GridPositions((image[0] // patch, image[1] // patch), width)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        how = dict(norm=Norm, drop_path=drop_path, scale=scale)
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, 4 * width, **how))
        self.norm = Norm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def reset(self) -> None:
        nn.init.trunc_normal_(self.cls, std=0.02)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, 1 + N, D), the class token first, before the last norm."""
        return self.stack(prepend(self.cls, self.positions(self.stem(x))))


SMALL = dict(width=384, depth=12, heads=6)
MEDIUM = dict(width=512, depth=12, heads=8)
BASE = dict(width=768, depth=12, heads=12)
LARGE = dict(width=1024, depth=24, heads=16)
HUGE = dict(width=1280, depth=32, heads=16, patch=14)
BIG = dict(image=(384, 384))

PAPER = Paper((("LayerScale.gamma", constant(1e-6)), *VIT))

MODEL = DeiT3
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), patch=8, width=32, depth=2, heads=2, scale=1e-1, num_classes=10),
    "nano": dict(image=(64, 64), patch=8, width=192, depth=6, heads=3, scale=1e-1, drop_path=0.1),
    "small_patch16_224": SMALL,
    "small_patch16_384": SMALL | BIG,
    "medium_patch16_224": MEDIUM,
    "base_patch16_224": BASE,
    "base_patch16_384": BASE | BIG,
    "large_patch16_224": LARGE,
    "large_patch16_384": LARGE | BIG,
    "huge_patch14_224": HUGE,
}

TIMM = dict(licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=0.9)
WHOLE = TIMM | dict(crop_pct=1.0)
WEIGHTS = {
    "small_patch16_224": TIMM | dict(hub="timm/deit3_small_patch16_224.fb_in1k"),
    "small_patch16_384": WHOLE | dict(hub="timm/deit3_small_patch16_384.fb_in1k"),
    "medium_patch16_224": TIMM | dict(hub="timm/deit3_medium_patch16_224.fb_in1k"),
    "base_patch16_224": TIMM | dict(hub="timm/deit3_base_patch16_224.fb_in1k"),
    "base_patch16_384": WHOLE | dict(hub="timm/deit3_base_patch16_384.fb_in1k"),
    "large_patch16_224": TIMM | dict(hub="timm/deit3_large_patch16_224.fb_in1k"),
    "large_patch16_384": WHOLE | dict(hub="timm/deit3_large_patch16_384.fb_in1k"),
    "huge_patch14_224": TIMM | dict(hub="timm/deit3_huge_patch14_224.fb_in1k"),
}
UNCUT = dict(crop_pct=1.0)
TAGS = {
    "small_patch16_224.fb_in22k_ft_in1k": UNCUT,
    "small_patch16_384.fb_in22k_ft_in1k": dict(),
    "medium_patch16_224.fb_in22k_ft_in1k": UNCUT,
    "base_patch16_224.fb_in22k_ft_in1k": UNCUT,
    "base_patch16_384.fb_in22k_ft_in1k": dict(),
    "large_patch16_224.fb_in22k_ft_in1k": UNCUT,
    "large_patch16_384.fb_in22k_ft_in1k": dict(),
    "huge_patch14_224.fb_in22k_ft_in1k": UNCUT,
}
RULES = {"timm": timm_vit(patch_embed="")}
