"""An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale. Dosovitskiy et al., 2021. arXiv:2010.11929.

New here: a picture is cut into patches, each patch becomes one token, and a plain transformer encoder reads them beside a class
token. Nothing in it knows that neighbouring patches are neighbours but the learned positions.

Differs: DeiT's plain variants (arXiv:2012.12877) are this model trained otherwise, so they are sizes of it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Attention, Block, DropPath, FeedForward, Pre, Stack
from plait.core.tokens import Tokens, prepend
from plait.core.weights import Rename
from plait.parts.positions.learned import GridPositions
from plait.parts.tokenizers.patches import PatchTokens

Norm = partial(nn.LayerNorm, eps=1e-6)


class ViT(nn.Module):
    """Pictures (B, 3, H, W) -> logits (B, K). `image` is the (H, W) that positions are learned for; other sizes are resampled."""

    takes = ("image",)

    def __init__(self, *, image=(224, 224), patch=16, width, depth, heads, hidden=None, num_classes=1000, drop_path=0.0):
        super().__init__()
        self.width = width
        self.patches = PatchTokens(width, patch)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.positions = GridPositions((image[0] // patch, image[1] // patch), width, head=1)
        self.stack = Stack(*(layer(width, heads, hidden or 4 * width, drop_path * i / max(depth - 1, 1)) for i in range(depth)))
        self.norm = Norm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def reset(self) -> None:
        nn.init.trunc_normal_(self.cls, std=0.02)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, 1 + N, D), the class token first."""
        return self.stack(self.positions(prepend(self.cls, self.patches(x))))

    def pool(self, t: Tokens) -> Tensor:
        return self.norm(t.x[:, 0])

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.head(self.pool(self.tokens(x)))


def layer(width: int, heads: int, hidden: int, drop: float) -> Block:
    """One pre-norm encoder layer."""
    return Block(
        mix=Pre(Norm(width), Attention(width, heads), DropPath(drop)),
        feed=Pre(Norm(width), FeedForward(width, hidden), DropPath(drop)),
    )


MODEL = ViT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), patch=8, width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(image=(64, 64), patch=8, width=192, depth=6, heads=3, drop_path=0.1),
    "base_patch16_224": dict(width=768, depth=12, heads=12),
}
WEIGHTS = {
    "base_patch16_224": dict(references={"timm": "vit_base_patch16_224"}),
}
RULES = {
    "timm": [
        Rename("cls_token", "cls"),
        Rename("pos_embed", "positions.table"),
        Rename("patch_embed.proj.{p}", "patches.proj.{p}"),
        Rename("blocks.{i}.norm1.{p}", "stack.blocks.{i}.mix.norm.{p}"),
        Rename("blocks.{i}.attn.qkv.{p}", "stack.blocks.{i}.mix.f.qkv.{p}"),
        Rename("blocks.{i}.attn.proj.{p}", "stack.blocks.{i}.mix.f.out.{p}"),
        Rename("blocks.{i}.norm2.{p}", "stack.blocks.{i}.feed.norm.{p}"),
        Rename("blocks.{i}.mlp.fc1.{p}", "stack.blocks.{i}.feed.f.up.{p}"),
        Rename("blocks.{i}.mlp.fc2.{p}", "stack.blocks.{i}.feed.f.down.{p}"),
        Rename("norm.{p}", "norm.{p}"),
        Rename("head.{p}", "head.{p}"),
    ],
}
