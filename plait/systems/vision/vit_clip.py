"""Reproducible scaling laws for contrastive language-image learning. Cherti et al., 2023. arXiv:2212.07143.

New here: nothing in the network: CLIP's picture tower (arXiv:2103.00020), a ViT with one more norm before its blocks
and patches without a bias, fine-tuned to name classes. The towers as CLIP trains them, with the text tower beside them,
are the system `clip`.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from plait.core.block import FeedForward, QuickGELU, Stack
from plait.core.schemes import VIT, Paper
from plait.core.tokens import Tokens
from plait.core.weights import Rename
from plait.parts.tokenizers.patch_embed import PatchEmbed
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.backbone import Backbone
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import timm_vit


class ViTCLIP(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K). `image` is the (H, W) that positions are learned for; other multiples of
    the patch are resampled. quick: OpenAI's approximate GELU. With `num_classes=0` the logits are the pooled features.
    """

    fits = ("image",)

    def __init__(self, *, image=(224, 224), patch, width, depth, heads, num_classes=1000, quick=False, drop_path=0.0):
        super().__init__()
        self.width, self.multiple = width, patch
        self.patch_embed = PatchEmbed(
            PatchTokens(width, patch, bias=False), (image[0] // patch, image[1] // patch), width
        )
        self.before = nn.LayerNorm(width)
        feed = partial(FeedForward, act=QuickGELU) if quick else FeedForward
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, 4 * width, feed=feed, drop_path=drop_path))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def embed(self, x: Tensor) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, 1 + N, D), the class token first, as the first layer reads them."""
        t = self.patch_embed(x)
        return t.replace(x=self.before(t.x))

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """The same after all layers, before the last norm."""
        return self.stack(self.embed(x))


B32 = dict(patch=32, width=768, depth=12, heads=12)
B16 = dict(patch=16, width=768, depth=12, heads=12)
L14 = dict(patch=14, width=1024, depth=24, heads=16)
H14 = dict(patch=14, width=1280, depth=32, heads=16)
S336 = dict(image=(336, 336))
S384 = dict(image=(384, 384))
S448 = dict(image=(448, 448))
OPENAI = dict(quick=True, num_classes=512)
OPENAI_L = L14 | dict(quick=True, num_classes=768)

PAPER = Paper(VIT)

MODEL = ViTCLIP
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), patch=8, width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(image=(64, 64), patch=8, width=192, depth=6, heads=3, drop_path=0.1),
    "base_patch32_224": B32,
    "base_patch32_384": B32 | S384,
    "base_patch32_448": B32 | S448,
    "base_patch16_224": B16,
    "base_patch16_384": B16 | S384,
    "large_patch14_224": L14,
    "large_patch14_336": L14 | S336,
    "huge_patch14_224": H14,
    "huge_patch14_336": H14 | S336,
    "base_patch32_quickgelu_224": B32 | OPENAI,
    "base_patch16_quickgelu_224": B16 | OPENAI,
    "large_patch14_quickgelu_224": OPENAI_L,
    "large_patch14_quickgelu_336": OPENAI_L | S336,
}

SEEN = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
TIMM = SEEN | dict(licence="apache-2.0", crop_pct=1.0)
CROP_90 = TIMM | dict(crop_pct=0.9)
CROP_95 = TIMM | dict(crop_pct=0.95)
SQUASH = TIMM | dict(crop_mode="squash")
HALF = TIMM | dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
B32_FILE = dict(hub="timm/vit_base_patch32_clip_224.laion400m_e32", timm="vit_base_patch32_clip_quickgelu_224")
B16_FILE = dict(hub="timm/vit_base_patch16_clip_224.metaclip_2pt5b", timm="vit_base_patch16_clip_quickgelu_224")
L14_FILE = dict(hub="timm/vit_large_patch14_clip_224.dfn2b", timm="vit_large_patch14_clip_quickgelu_224")
L336_FILE = dict(hub="timm/vit_large_patch14_clip_336.openai", timm="vit_large_patch14_clip_quickgelu_336")
OPENAI_FILE = TIMM | dict(source="timm", classes=False)
HALF_SQUASH = TIMM | dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_mode="squash")
WEIGHTS = {
    "base_patch32_224": CROP_90 | dict(hub="timm/vit_base_patch32_clip_224.laion2b_ft_in12k_in1k"),
    "base_patch32_384": TIMM | dict(hub="timm/vit_base_patch32_clip_384.laion2b_ft_in12k_in1k"),
    "base_patch32_448": TIMM | dict(hub="timm/vit_base_patch32_clip_448.laion2b_ft_in12k_in1k"),
    "base_patch16_224": CROP_95 | dict(hub="timm/vit_base_patch16_clip_224.laion2b_ft_in12k_in1k"),
    "base_patch16_384": SQUASH | dict(hub="timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k"),
    "large_patch14_224": HALF | dict(hub="timm/vit_large_patch14_clip_224.laion2b_ft_in12k_in1k"),
    "large_patch14_336": HALF_SQUASH | dict(hub="timm/vit_large_patch14_clip_336.laion2b_ft_in12k_in1k"),
    "huge_patch14_224": TIMM | dict(hub="timm/vit_huge_patch14_clip_224.laion2b_ft_in12k_in1k"),
    "huge_patch14_336": SQUASH | dict(hub="timm/vit_huge_patch14_clip_336.laion2b_ft_in12k_in1k"),
    "base_patch32_quickgelu_224": OPENAI_FILE | CROP_90 | B32_FILE | dict(licence="mit"),
    "base_patch16_quickgelu_224": OPENAI_FILE | B16_FILE | dict(licence="cc-by-nc-4.0"),
    "large_patch14_quickgelu_224": OPENAI_FILE | L14_FILE | dict(licence="apple-ascl"),
    "large_patch14_quickgelu_336": OPENAI_FILE | L336_FILE,
}
C512 = dict(num_classes=512)
C768 = dict(num_classes=768)
C1024 = dict(num_classes=1024)
IN12K = dict(num_classes=11821)
FREE = dict(licence="apache-2.0")
MIT = dict(licence="mit")
META = dict(licence="cc-by-nc-4.0")
APPLE = dict(licence="apple-ascl")
TAGS = {
    "base_patch32_224.laion2b_ft_in1k": dict(),
    "base_patch32_224.openai_ft_in1k": dict(),
    "base_patch32_224.laion2b": C512,
    "base_patch32_224.laion400m_e32": C512 | MIT,
    "base_patch32_224.datacompxl": C512 | dict(crop_pct=1.0),
    "base_patch32_224.metaclip_2pt5b": C512 | META | dict(crop_pct=1.0),
    "base_patch32_224.metaclip_400m": C512 | META | dict(crop_pct=1.0),
    "base_patch32_224.openai": C512,
    "base_patch32_384.openai_ft_in12k_in1k": dict(crop_pct=0.95, crop_mode="squash"),
    "base_patch16_224.openai_ft_in12k_in1k": dict(),
    "base_patch16_224.laion2b_ft_in1k": dict(crop_pct=1.0),
    "base_patch16_224.openai_ft_in1k": dict(crop_pct=0.9),
    "base_patch16_224.laion2b_ft_in12k": IN12K | dict(crop_pct=0.9),
    "base_patch16_224.openai_ft_in12k": IN12K | dict(crop_pct=0.9),
    "base_patch16_224.laion2b": C512 | dict(crop_pct=1.0),
    "base_patch16_224.laion400m_e32": C512 | MIT | dict(crop_pct=1.0),
    "base_patch16_224.datacompxl": C512 | dict(crop_pct=1.0),
    "base_patch16_224.dfn2b": C512 | APPLE | dict(crop_pct=1.0),
    "base_patch16_224.metaclip_2pt5b": C512 | META | dict(crop_pct=1.0),
    "base_patch16_224.metaclip_400m": C512 | META | dict(crop_pct=1.0),
    "base_patch16_224.openai": C512 | dict(crop_pct=0.9),
    "base_patch16_384.openai_ft_in12k_in1k": dict(crop_pct=0.95),
    "base_patch16_384.laion2b_ft_in1k": dict(),
    "base_patch16_384.openai_ft_in1k": dict(),
    "large_patch14_224.openai_ft_in12k_in1k": SEEN,
    "large_patch14_224.laion2b_ft_in1k": dict(),
    "large_patch14_224.openai_ft_in1k": SEEN,
    "large_patch14_224.laion2b_ft_in12k": IN12K,
    "large_patch14_224.openai_ft_in12k": SEEN | IN12K,
    "large_patch14_224.laion2b": C768,
    "large_patch14_224.laion400m_e32": SEEN | C768 | MIT,
    "large_patch14_224.datacompxl": SEEN | C768,
    "large_patch14_224.dfn2b_s39b": SEEN | C768 | APPLE,
    "large_patch14_224.dfn2b": SEEN | C768 | APPLE,
    "large_patch14_224.metaclip_2pt5b": SEEN | C768 | META,
    "large_patch14_224.metaclip_400m": SEEN | C768 | META,
    "large_patch14_224.openai": SEEN | C768,
    "large_patch14_224.apple_mclip2_dfndr2b": SEEN | C768 | dict(licence="apple-amlr"),
    "large_patch14_336.openai_ft_in12k_in1k": SEEN,
    "large_patch14_336.laion2b_ft_in1k": dict(),
    "large_patch14_336.openai": SEEN | C768 | dict(crop_mode="center"),
    "huge_patch14_224.laion2b_ft_in1k": dict(),
    "huge_patch14_224.laion2b_ft_in12k": IN12K,
    "huge_patch14_224.laion2b": C1024,
    "huge_patch14_224.dfn5b": C1024 | APPLE,
    "huge_patch14_224.metaclip2_worldwide": C1024 | META,
    "huge_patch14_224.metaclip_2pt5b": C1024 | META,
    "huge_patch14_224.metaclip_altogether": C1024 | META,
    "base_patch32_quickgelu_224.metaclip_2pt5b": META | dict(crop_pct=1.0),
    "base_patch32_quickgelu_224.metaclip_400m": META | dict(crop_pct=1.0),
    "base_patch32_quickgelu_224.openai": FREE,
    "base_patch16_quickgelu_224.metaclip_400m": META,
    "base_patch16_quickgelu_224.openai": FREE | dict(crop_pct=0.9),
    "large_patch14_quickgelu_224.metaclip_2pt5b": META,
    "large_patch14_quickgelu_224.metaclip_400m": META,
    "large_patch14_quickgelu_224.openai": FREE,
}
RULES = {"timm": [*timm_vit(), Rename("norm_pre.{p}", "before.{p}")]}
