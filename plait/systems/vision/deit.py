"""Training data-efficient image transformers & distillation through attention. Touvron et al., 2021. arXiv:2012.12877.

New here: a second learned token beside ViT's class token, with a head of its own, learns from a teacher's answers;
outside training the two heads' logits are averaged. The variants without "distilled" in their names have one token
(`votes=1`): ViT, trained better.

Differs: `answers` gives both heads' logits in training too, so that distillation needs no mode of the model.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Stack
from plait.core.schemes import FAINT, VIT, Paper, trunc
from plait.core.tokens import Tokens, prepend
from plait.core.weights import Rename
from plait.parts.positions.learned import GridPositions
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.backbone import Backbone
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import timm_vit

Norm = partial(nn.LayerNorm, eps=1e-6)


class Vote(nn.Module):
    """A learned token (1, 1, D) and the head that reads it: (B, D) -> (B, K)."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def reset(self) -> None:
        nn.init.trunc_normal_(self.token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class DeiT(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K), the mean answer of `votes` leading tokens: class, then distillation.

    image: the (H, W) that positions are learned for. With `num_classes=0` the logits are the pooled features.
    """

    fits, beyond = ("image",), ()
    classifier = ("votes.0.head.", "votes.1.head.")  # the tokens that they read are not for given classes

    def __init__(self, *, image=(224, 224), patch=16, width, depth, heads, votes=2, num_classes=1000, drop_path=0.0):
        super().__init__()
        self.width, self.multiple = width, patch
        self.stem = PatchTokens(width, patch)
        self.votes = nn.ModuleList(Vote(width, num_classes) for _ in range(votes))
        self.positions = GridPositions((image[0] // patch, image[1] // patch), width, prefix=votes)
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, 4 * width, norm=Norm, drop_path=drop_path))
        self.norm = Norm(width)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, votes + N, D), before the last norm."""
        return self.stack(self.positions(prepend(torch.cat([v.token for v in self.votes], 1), self.stem(x))))

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the mean of the leading tokens, normed."""
        return self.norm(t.x[:, : len(self.votes)]).mean(1)

    def answers(self, x: Tensor) -> Tensor:
        """(B, votes, K) logits, one vote's each: the first learns from labels, the second from a teacher."""
        lead = self.norm(self.tokens(x).x[:, : len(self.votes)])
        return torch.stack([vote(lead[:, i]) for i, vote in enumerate(self.votes)], 1)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.answers(x).mean(1)


TINY = dict(width=192, depth=12, heads=3)
SMALL = dict(width=384, depth=12, heads=6)
BASE = dict(width=768, depth=12, heads=12)
BIG = dict(image=(384, 384))
PLAIN = dict(votes=1)

PAPER = Paper((("votes.0.token", FAINT), ("Vote.token", trunc(0.02)), *VIT), {"*": 0.1})

MODEL = DeiT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), patch=8, width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(image=(64, 64), patch=8, width=192, depth=6, heads=3, drop_path=0.1),
    "tiny_patch16_224": TINY | PLAIN,
    "small_patch16_224": SMALL | PLAIN,
    "base_patch16_224": BASE | PLAIN,
    "base_patch16_384": BASE | PLAIN | BIG,
    "tiny_distilled_patch16_224": TINY,
    "small_distilled_patch16_224": SMALL,
    "base_distilled_patch16_224": BASE,
    "base_distilled_patch16_384": BASE | BIG,
}

TIMM = dict(licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=0.9)
WHOLE = TIMM | dict(crop_pct=1.0)
WEIGHTS = {
    "tiny_patch16_224": TIMM | dict(hub="timm/deit_tiny_patch16_224.fb_in1k"),
    "small_patch16_224": TIMM | dict(hub="timm/deit_small_patch16_224.fb_in1k"),
    "base_patch16_224": TIMM | dict(hub="timm/deit_base_patch16_224.fb_in1k"),
    "base_patch16_384": WHOLE | dict(hub="timm/deit_base_patch16_384.fb_in1k"),
    "tiny_distilled_patch16_224": TIMM | dict(hub="timm/deit_tiny_distilled_patch16_224.fb_in1k"),
    "small_distilled_patch16_224": TIMM | dict(hub="timm/deit_small_distilled_patch16_224.fb_in1k"),
    "base_distilled_patch16_224": TIMM | dict(hub="timm/deit_base_distilled_patch16_224.fb_in1k"),
    "base_distilled_patch16_384": WHOLE | dict(hub="timm/deit_base_distilled_patch16_384.fb_in1k"),
}
RULES = {
    "timm": [
        Rename("cls_token", "votes.0.token"),
        Rename("dist_token", "votes.1.token"),
        Rename("head.{p}", "votes.0.head.{p}"),
        Rename("head_dist.{p}", "votes.1.head.{p}"),
        *timm_vit(patch_embed=""),
    ],
}
