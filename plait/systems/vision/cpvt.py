"""Conditional Positional Encodings for Vision Transformers. Chu, Tian, Zhang, Wang, Shen, 2021. arXiv:2102.10882.

New here: no table of positions. After the first layer a depthwise convolution over the grid is added to the tokens; its
zero border tells each place how far the edges are. So the model reads pictures of every size without resampling
anything, and, with the mean of the tokens in place of the class token, a moved object moves its features.

Differs: pictures that do not divide into patches are refused, as by ViT.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Stack
from plait.core.tokens import Tokens, prepend
from plait.parts.positions.conditional import ConditionalPositions
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.backbone import Backbone
from plait.parts.towers.encoder import pre_norm_blocks

Norm = partial(nn.LayerNorm, eps=1e-6)


class CPVT(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K). Both sides are multiples of the patch.

    encodings: after how many of the first layers positions are added. cls: a class token answers, else the mean token.
    """

    def __init__(self, *, patch=16, width, depth, heads, encodings=1, cls=True, num_classes=1000, drop_path=0.0):
        super().__init__()
        self.width, self.multiple = width, patch
        self.stem = PatchTokens(width, patch)
        self.cls = nn.Parameter(torch.empty(1, 1, width)) if cls else None
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, 4 * width, norm=Norm, drop_path=drop_path))
        for block in self.stack.blocks[:encodings]:
            block.feed = nn.Sequential(block.feed, ConditionalPositions(width))
        self.norm = Norm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def reset(self) -> None:
        if self.cls is not None:
            nn.init.trunc_normal_(self.cls, std=0.02)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, N, D), a class token first where there is one, before the last norm."""
        t = self.stem(x)
        return self.stack(t if self.cls is None else prepend(self.cls, t))


TINY = dict(width=192, depth=12, heads=3)
SMALL = dict(width=384, depth=12, heads=6)
BASE = dict(width=768, depth=12, heads=12)
GAP = dict(cls=False)

MODEL = CPVT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(patch=8, width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(patch=8, width=144, depth=5, heads=3, drop_path=0.1) | GAP,
    "tiny": TINY,
    "small": SMALL,
    "base": BASE,
    "tiny_gap": TINY | GAP,
    "small_gap": SMALL | GAP,
    "base_gap": BASE | GAP,
    "tiny_plus": TINY | dict(encodings=5),
    "small_plus": SMALL | dict(encodings=5),
}
WEIGHTS = {}
