"""Image as a Foreign Language: BEiT Pretraining for All Vision and Vision-Language Tasks. Wang et al., 2022.
arXiv:2208.10442.

New here: the picture half of BEiT-3, a ViT of the multiway transformer's picture experts. Each layer norms twice more
than a ViT's: what attention gathered before it is projected, and the hidden layer of the feed-forward (sub-layer norm,
arXiv:2210.06423). The answer is read from the mean of the patches. `beit3` is the whole.

Differs: other picture sizes than `image` are read, positions resampled.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from plait.core.block import Attention, FeedForward, Stack, merge_heads
from plait.core.schemes import VIT, Paper
from plait.core.tokens import Tokens
from plait.core.weights import Rename
from plait.parts.tokenizers.patch_embed import PatchEmbed
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.backbone import Backbone, norm_of_mean
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import timm_vit

Norm = partial(nn.LayerNorm, eps=1e-5)


class SubAttention(Attention):
    """Self-attention with a norm before its last projection: Tokens (B, N, D) -> Tokens (B, N, D)."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.norm = Norm(width)

    def merge(self, t: Tokens) -> Tokens:
        """What was gathered, x (B, H, N, E), as tokens (B, N, D)."""
        return t.replace(x=self.out(self.norm(merge_heads(t.x))))


class SubFeedForward(FeedForward):
    """Two linear layers, an activation and a norm between: Tokens (B, N, D) -> Tokens (B, N, D)."""

    def __init__(self, width: int, hidden: int):
        super().__init__(width, hidden)
        self.norm = Norm(hidden)

    def forward(self, t: Tokens) -> Tokens:
        return t.replace(x=self.down(self.norm(self.act(self.up(t.x)))))


class ViTBEiT3(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K). `image` is the (H, W) that positions are learned for; hidden: the
    feed-forward's width, 4 D unless given."""

    fits = ("image",)
    pool = norm_of_mean

    def __init__(
        self, *, image=(224, 224), patch=16, width, depth, heads, hidden=None, num_classes=1000, drop_path=0.0
    ):
        super().__init__()
        self.width, self.multiple = width, patch
        self.patch_embed = PatchEmbed(PatchTokens(width, patch), (image[0] // patch, image[1] // patch), width)
        how = dict(norm=Norm, mix=SubAttention, feed=SubFeedForward, drop_path=drop_path)
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, hidden or 4 * width, **how))
        self.norm = Norm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()


GIANT = dict(patch=14, width=1408, depth=40, heads=16, hidden=6144)

PAPER = Paper(VIT)

MODEL = ViTBEiT3
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), patch=8, width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(image=(64, 64), patch=8, width=128, depth=6, heads=4, drop_path=0.1),
    "base_patch16_224": dict(width=768, depth=12, heads=12),
    "large_patch16_224": dict(width=1024, depth=24, heads=16),
    "giant_patch14_224": GIANT,
    "giant_patch14_336": GIANT | dict(image=(336, 336)),
}
TIMM = dict(licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=1.0)
WEIGHTS = {
    "base_patch16_224": TIMM | dict(hub="timm/beit3_base_patch16_224.in22k_ft_in1k"),
    "large_patch16_224": TIMM | dict(hub="timm/beit3_large_patch16_224.in22k_ft_in1k"),
    "giant_patch14_224": dict(timm="beit3_giant_patch14_224"),
    "giant_patch14_336": dict(timm="beit3_giant_patch14_336"),
}
BARE = dict(num_classes=0)
TAGS = {
    "base_patch16_224.indomain_in22k_ft_in1k": dict(),
    "base_patch16_224.pt": BARE,
    "base_patch16_224.indomain_pt": BARE,
    "large_patch16_224.indomain_in22k_ft_in1k": dict(),
    "large_patch16_224.pt": BARE,
    "large_patch16_224.indomain_pt": BARE,
}
RULES = {
    "timm": [
        Rename("blocks.{i}.attn.norm.{p}", "stack.blocks.{i}.mix.f.norm.{p}"),
        Rename("blocks.{i}.mlp.norm.{p}", "stack.blocks.{i}.feed.f.norm.{p}"),
        Rename("fc_norm.{p}", "norm.{p}"),
        *(r for r in timm_vit() if r.public != ("norm.{p}",)),
    ]
}
