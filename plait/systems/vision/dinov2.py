"""DINOv2: Learning Robust Visual Features without Supervision. Oquab et al., 2023. arXiv:2304.07193.

New here: a ViT whose features, learned without labels from curated data, serve as they are. In the network: layer
scale, and in the giant size a gated feed-forward. The `reg4` variants (Vision Transformers Need Registers, Darcet et
al., arXiv:2309.16588) have four learned tokens with no picture behind them, where the model keeps what it used to write
into uninformative patches; positions are then added to patches only.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import FeedForward, Stack
from plait.core.schemes import VIT, Paper, constant
from plait.core.tokens import Tokens, prepend
from plait.core.weights import Rename
from plait.parts.mixers.gated import GatedFeedForward
from plait.parts.positions.learned import GridPositions
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.backbone import Backbone
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import timm_vit

Norm = partial(nn.LayerNorm, eps=1e-6)


class DINOv2(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K); published without classes: the class token's features (B, D).

    image: the (H, W) that positions are learned for; other multiples of the patch are resampled. registers: how many
    tokens without a picture. gated: a gated feed-forward's hidden width, 0 for a plain one. scale: of layers, at first.
    """

    fits = ("image",)

    def __init__(
        self, *, image=(518, 518), patch=14, width, depth, heads, registers=0, gated=0, scale=1e-5, num_classes=0,
        drop_path=0.0,
    ):  # fmt: skip
        super().__init__()
        self.width, self.multiple = width, patch
        self.stem = PatchTokens(width, patch)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.registers = nn.Parameter(torch.empty(1, registers, width)) if registers else None
        self.positions = GridPositions((image[0] // patch, image[1] // patch), width, prefix=0 if registers else 1)
        how = dict(norm=Norm, feed=GatedFeedForward if gated else FeedForward, drop_path=drop_path, scale=scale)
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, gated or 4 * width, **how))
        self.norm = Norm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def reset(self) -> None:
        nn.init.trunc_normal_(self.cls, std=0.02)
        if self.registers is not None:
            nn.init.trunc_normal_(self.registers, std=0.02)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, 1 + registers + N, D): class token, registers, patches, before the last norm."""
        t = self.stem(x)
        if self.registers is None:
            return self.stack(self.positions(prepend(self.cls, t)))
        return self.stack(prepend(self.cls, prepend(self.registers, self.positions(t))))


SMALL = dict(width=384, depth=12, heads=6)
BASE = dict(width=768, depth=12, heads=12)
LARGE = dict(width=1024, depth=24, heads=16)
GIANT = dict(width=1536, depth=40, heads=24, gated=4096)
REG4 = dict(registers=4)

PAPER = Paper((("LayerScale.gamma", constant(1e-5)), *VIT))

MODEL = DINOv2
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
NANO = dict(image=(64, 64), patch=8, width=192, depth=6, heads=3, registers=4)
SIZES = {
    "toy": dict(image=(32, 32), patch=8, width=32, depth=2, heads=2, registers=2, gated=64, scale=0.1, num_classes=10),
    "nano": NANO | dict(scale=0.1, num_classes=1000, drop_path=0.1),
    "small_patch14": SMALL,
    "base_patch14": BASE,
    "large_patch14": LARGE,
    "giant_patch14": GIANT,
    "small_patch14_reg4": SMALL | REG4,
    "base_patch14_reg4": BASE | REG4,
    "large_patch14_reg4": LARGE | REG4,
    "giant_patch14_reg4": GIANT | REG4,
}

TIMM = dict(licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=1.0)
WEIGHTS = {
    "small_patch14": TIMM | dict(hub="timm/vit_small_patch14_dinov2.lvd142m"),
    "base_patch14": TIMM | dict(hub="timm/vit_base_patch14_dinov2.lvd142m"),
    "large_patch14": TIMM | dict(hub="timm/vit_large_patch14_dinov2.lvd142m"),
    "giant_patch14": TIMM | dict(hub="timm/vit_giant_patch14_dinov2.lvd142m"),
    "small_patch14_reg4": TIMM | dict(hub="timm/vit_small_patch14_reg4_dinov2.lvd142m"),
    "base_patch14_reg4": TIMM | dict(hub="timm/vit_base_patch14_reg4_dinov2.lvd142m"),
    "large_patch14_reg4": TIMM | dict(hub="timm/vit_large_patch14_reg4_dinov2.lvd142m"),
    "giant_patch14_reg4": TIMM | dict(hub="timm/vit_giant_patch14_reg4_dinov2.lvd142m"),
}
RULES = {"timm": [*timm_vit(patch_embed=""), Rename("reg_token", "registers")]}
