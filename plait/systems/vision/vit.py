"""An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale. Dosovitskiy et al., 2021.
arXiv:2010.11929.

New here: a picture is cut into patches, each patch becomes one token, and a plain transformer encoder reads them beside
a class token. Nothing in it knows that neighbouring patches are neighbours but the learned positions.

Differs: tiny and small (DeiT's widths) and the 8 and 32 patches are those of How to train your ViT (arXiv:2106.10270),
giant and gigantic those of Scaling Vision Transformers (arXiv:2106.04560), read by a class token; dropout is left to
stochastic depth.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from plait.core.block import Stack
from plait.core.schemes import VIT, Paper
from plait.parts.tokenizers.patch_embed import PatchEmbed
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.backbone import Backbone
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import timm_vit

Norm = partial(nn.LayerNorm, eps=1e-6)


class ViT(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K). `image` is the (H, W) that positions are learned for; other multiples of
    the patch are resampled. `hidden` is the feed-forward width, 4 D unless given; with `num_classes=0` the logits are
    the pooled features."""

    fits = ("image",)

    def __init__(self, *, image=(224, 224), patch, width, depth, heads, hidden=None, num_classes=1000, drop_path=0.0):
        super().__init__()
        self.width, self.multiple = width, patch
        self.patch_embed = PatchEmbed(PatchTokens(width, patch), (image[0] // patch, image[1] // patch), width)
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, hidden or 4 * width, norm=Norm, drop_path=drop_path))
        self.norm = Norm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()


TINY = dict(width=192, depth=12, heads=3)
SMALL = dict(width=384, depth=12, heads=6)
BASE = dict(width=768, depth=12, heads=12)
LARGE = dict(width=1024, depth=24, heads=16)
HUGE = dict(width=1280, depth=32, heads=16)
P8 = dict(patch=8)
P14 = dict(patch=14)
P16 = dict(patch=16)
P32 = dict(patch=32)
BIG = dict(image=(384, 384))
BARE = dict(num_classes=0)

PAPER = Paper(VIT)

MODEL = ViT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), patch=8, width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(image=(64, 64), patch=8, width=192, depth=6, heads=3, drop_path=0.1),
    "tiny_patch16_224": TINY | P16,
    "tiny_patch16_384": TINY | P16 | BIG,
    "small_patch32_224": SMALL | P32,
    "small_patch32_384": SMALL | P32 | BIG,
    "small_patch16_224": SMALL | P16,
    "small_patch16_384": SMALL | P16 | BIG,
    "small_patch8_224": SMALL | P8 | BARE,
    "base_patch32_224": BASE | P32,
    "base_patch32_384": BASE | P32 | BIG,
    "base_patch16_224": BASE | P16,
    "base_patch16_384": BASE | P16 | BIG,
    "base_patch8_224": BASE | P8,
    "large_patch32_224": LARGE | P32 | BARE,
    "large_patch32_384": LARGE | P32 | BIG,
    "large_patch16_224": LARGE | P16,
    "large_patch16_384": LARGE | P16 | BIG,
    "large_patch14_224": LARGE | P14,
    "huge_patch14_224": HUGE | P14 | BARE,
    "giant_patch14_224": P14 | dict(width=1408, depth=40, heads=16, hidden=6144),
    "gigantic_patch14_224": P14 | dict(width=1664, depth=48, heads=16, hidden=8192),
}

TIMM = dict(licence="apache-2.0", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.9)
WHOLE = TIMM | dict(crop_pct=1.0)
IMAGENET = TIMM | dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "tiny_patch16_224": TIMM | dict(hub="timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    "tiny_patch16_384": WHOLE | dict(hub="timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k"),
    "small_patch32_224": TIMM | dict(hub="timm/vit_small_patch32_224.augreg_in21k_ft_in1k"),
    "small_patch32_384": WHOLE | dict(hub="timm/vit_small_patch32_384.augreg_in21k_ft_in1k"),
    "small_patch16_224": TIMM | dict(hub="timm/vit_small_patch16_224.augreg_in21k_ft_in1k"),
    "small_patch16_384": WHOLE | dict(hub="timm/vit_small_patch16_384.augreg_in21k_ft_in1k"),
    "small_patch8_224": IMAGENET | dict(hub="timm/vit_small_patch8_224.dino"),
    "base_patch32_224": TIMM | dict(hub="timm/vit_base_patch32_224.augreg_in21k_ft_in1k"),
    "base_patch32_384": WHOLE | dict(hub="timm/vit_base_patch32_384.augreg_in21k_ft_in1k"),
    "base_patch16_224": TIMM | dict(hub="timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"),
    "base_patch16_384": WHOLE | dict(hub="timm/vit_base_patch16_384.augreg_in21k_ft_in1k"),
    "base_patch8_224": TIMM | dict(hub="timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"),
    "large_patch32_224": TIMM | dict(hub="timm/vit_large_patch32_224.orig_in21k"),
    "large_patch32_384": WHOLE | dict(hub="timm/vit_large_patch32_384.orig_in21k_ft_in1k"),
    "large_patch16_224": TIMM | dict(hub="timm/vit_large_patch16_224.augreg_in21k_ft_in1k"),
    "large_patch16_384": WHOLE | dict(hub="timm/vit_large_patch16_384.augreg_in21k_ft_in1k"),
    "large_patch14_224": dict(timm="vit_large_patch14_224"),
    "huge_patch14_224": TIMM | dict(hub="timm/vit_huge_patch14_224.orig_in21k"),
    "giant_patch14_224": dict(timm="vit_giant_patch14_224"),
    "gigantic_patch14_224": dict(timm="vit_gigantic_patch14_224"),
}
IN21K = dict(num_classes=21843)
DINO = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), num_classes=0)
MAE = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), num_classes=0, licence="cc-by-nc-4.0")
BAMBOO = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
TAGS = {
    "tiny_patch16_224.augreg_in21k": IN21K,
    "small_patch32_224.augreg_in21k": IN21K,
    "small_patch16_224.augreg_in1k": dict(),
    "small_patch16_224.augreg_in21k": IN21K,
    "small_patch16_224.dino": DINO,
    "small_patch16_384.augreg_in1k": dict(),
    "base_patch32_224.augreg_in1k": dict(),
    "base_patch32_224.orig_in21k": BARE,
    "base_patch32_224.augreg_in21k": IN21K,
    "base_patch32_224.sam_in1k": dict(),
    "base_patch32_384.augreg_in1k": dict(),
    "base_patch16_224.augreg_in21k_ft_in1k": dict(),
    "base_patch16_224.orig_in21k_ft_in1k": dict(),
    "base_patch16_224.augreg_in1k": dict(),
    "base_patch16_224.orig_in21k": BARE,
    "base_patch16_224.augreg_in21k": IN21K,
    "base_patch16_224.sam_in1k": dict(),
    "base_patch16_224.bamboo": BAMBOO | dict(crop_pct=1.0, num_classes=115217, licence="none stated"),
    "base_patch16_224.dino": DINO,
    "base_patch16_224.mae": MAE,
    "base_patch16_384.orig_in21k_ft_in1k": dict(),
    "base_patch16_384.augreg_in1k": dict(),
    "base_patch8_224.augreg_in21k_ft_in1k": dict(),
    "base_patch8_224.augreg_in21k": IN21K,
    "base_patch8_224.dino": DINO,
    "large_patch16_224.orig_in21k": BARE,
    "large_patch16_224.augreg_in21k": IN21K,
    "large_patch16_224.mae": MAE,
    "huge_patch14_224.mae": dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), licence="cc-by-nc-4.0"),
}
RULES = {"timm": timm_vit()}
