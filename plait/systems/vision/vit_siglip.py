"""Sigmoid Loss for Language Image Pre-Training. Zhai, Mustafa, Kolesnikov, Beyer, 2023. arXiv:2303.15343.

New here: nothing in the network: SigLIP's picture tower, a ViT without a class token. Its vector is the answer to one
learned question about the patches. The shape-optimised so400m is that of arXiv:2305.13035. Models of pictures and words
look through it more often than through any other: PaliGemma's (`gap`) leave the question out, and Idefics2's (`980`)
reads pictures of any shape, padded: a patch gets the position of where it lies in its own picture.

Differs: other picture sizes than `image` are read, positions resampled.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from plait.core.block import CrossAttention, FeedForward, Stack
from plait.core.schemes import VIT, Paper, clipped
from plait.core.tokens import Tokens, mean
from plait.core.weights import Rename, View
from plait.parts.positions.learned import GridPositions, Learned, OwnGridPositions
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.backbone import Backbone
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import timm_vit
from plait.parts.towers.levels import blanked

Norm = partial(nn.LayerNorm, eps=1e-6)
TanhGELU = partial(nn.GELU, approximate="tanh")


class Patches(nn.Module):
    """Patches with positions learned for a grid: (B, 3, H, W), keep (B, H, W) of pixels -> Tokens (B, N, D). A patch is
    real where all of its pixels are."""

    def __init__(self, width: int, patch: int, grid: tuple[int, int], native: bool):
        super().__init__()
        self.stem = PatchTokens(width, patch)
        self.positions = (OwnGridPositions if native else GridPositions)(grid, width)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tokens:
        t, p = self.stem(blanked(x, keep)), self.stem.patch
        if keep is not None:
            t = t.replace(keep=keep.unflatten(2, (-1, p)).all(3).unflatten(1, (-1, p)).all(2).flatten(1))
        return self.positions(t)


class Question(nn.Module):
    """What one learned question finds among the tokens (B, N, D): -> (B, D)."""

    def __init__(self, width: int, heads: int, feed: nn.Module):
        super().__init__()
        self.asked, self.look = Learned(1, width), CrossAttention(width, heads)
        self.norm, self.feed = Norm(width), feed

    def forward(self, t: Tokens) -> Tensor:
        asked = Tokens(self.asked().expand(t.x.shape[0], 1, -1))
        found = self.look(asked.reading(stream=t))
        return (found.x + self.feed(found.replace(x=self.norm(found.x))).x)[:, 0]


class ViTSigLIP(Backbone):
    """Pictures (B, 3, H, W), keep (B, H, W) -> logits (B, K). `image` is the (H, W) that positions are learned for;
    other multiples of the patch are resampled, or, where it is `native`, get those of where their patches lie. hidden:
    the feed-forward's width, 4 D unless given. tanh: the approximate GELU. asks: the vector answers a learned question,
    else it is the mean. With `num_classes=0` the logits are that vector."""

    fits = ("image",)
    beyond = ("head", "question")

    def __init__(
        self, *, image=(224, 224), patch=16, width, depth, heads, hidden=None, num_classes=1000, tanh=False, asks=True,
        native=False, drop_path=0.0,
    ):  # fmt: skip
        super().__init__()
        self.width, self.multiple, hidden = width, patch, hidden or 4 * width
        self.patch_embed = Patches(width, patch, (image[0] // patch, image[1] // patch), native)
        feed = partial(FeedForward, act=TanhGELU if tanh else nn.GELU)
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, hidden, norm=Norm, feed=feed, drop_path=drop_path))
        self.norm = Norm(width)
        self.question = Question(width, heads, feed(width, hidden)) if asks else None
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W), keep (B, H, W): which pixels are real -> Tokens (B, N, D) with their grid, before the last
        norm."""
        return self.stack(self.patch_embed(x, keep))

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the answer to the question, or the mean, of the normed tokens."""
        t = t.replace(x=self.norm(t.x))
        return mean(t) if self.question is None else self.question(t)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.head(self.pool(self.tokens(x, keep)))


BASE = dict(width=768, depth=12, heads=12, num_classes=0)
LARGE = dict(width=1024, depth=24, heads=16, num_classes=0)
SO = dict(width=1152, depth=27, heads=16, hidden=4304, num_classes=0)
SO14 = SO | dict(patch=14)
GAP = SO14 | dict(asks=False)
S256 = dict(image=(256, 256))
S378 = dict(image=(378, 378))
S384 = dict(image=(384, 384))
S512 = dict(image=(512, 512))

PAPER = Paper((("Learned.table", clipped()), *VIT))

MODEL = ViTSigLIP
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), patch=8, width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(image=(64, 64), patch=8, width=192, depth=6, heads=3, drop_path=0.1),
    "base_patch16_224": BASE,
    "base_patch16_256": BASE | S256,
    "base_patch16_384": BASE | S384,
    "base_patch16_512": BASE | S512,
    "large_patch16_256": LARGE | S256,
    "large_patch16_384": LARGE | S384,
    "so400m_patch14_224": SO14,
    "so400m_patch14_378": SO14 | S378,
    "so400m_patch16_256_i18n": SO | S256 | dict(tanh=True),
    "so400m_patch14_gap_224": GAP,
    "so400m_patch14_gap_378": GAP | S378,
    "so400m_patch14_980": GAP | dict(image=(980, 980), tanh=True, native=True),
}

TIMM = dict(licence="apache-2.0", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.9)
WEIGHTS = {
    "base_patch16_224": TIMM | dict(hub="timm/vit_base_patch16_siglip_224.v2_webli"),
    "base_patch16_256": TIMM | dict(hub="timm/vit_base_patch16_siglip_256.v2_webli"),
    "base_patch16_384": TIMM | dict(hub="timm/vit_base_patch16_siglip_384.v2_webli"),
    "base_patch16_512": TIMM | dict(hub="timm/vit_base_patch16_siglip_512.v2_webli"),
    "large_patch16_256": TIMM | dict(hub="timm/vit_large_patch16_siglip_256.v2_webli"),
    "large_patch16_384": TIMM | dict(hub="timm/vit_large_patch16_siglip_384.v2_webli"),
    "so400m_patch14_gap_224": TIMM | dict(hub="timm/vit_so400m_patch14_siglip_gap_224.v2_webli"),
    "so400m_patch14_gap_378": TIMM | dict(hub="timm/vit_so400m_patch14_siglip_gap_378.v2_webli"),
    "so400m_patch14_224": TIMM | dict(hub="timm/vit_so400m_patch14_siglip_224.v2_webli"),
    "so400m_patch14_378": TIMM | dict(hub="timm/vit_so400m_patch14_siglip_378.v2_webli"),
    "so400m_patch16_256_i18n": TIMM | dict(hub="timm/vit_so400m_patch16_siglip_256.webli_i18n"),
}
TAGS = {
    "base_patch16_224.webli": dict(),
    "base_patch16_256.webli": dict(),
    "base_patch16_256.webli_i18n": dict(),
    "base_patch16_384.webli": dict(),
    "base_patch16_512.webli": dict(),
    "large_patch16_256.webli": dict(),
    "large_patch16_384.webli": dict(),
    "so400m_patch14_gap_224.webli": dict(),
    "so400m_patch14_gap_224.pali_mix": dict(),
    "so400m_patch14_gap_224.pali_pt": dict(),
    "so400m_patch14_gap_224.pali2_3b_pt": dict(),
    "so400m_patch14_gap_224.pali2_10b_pt": dict(),
    "so400m_patch14_gap_378.webli": dict(crop_pct=1.0),
    "so400m_patch14_gap_378.webli_ft_in1k": dict(crop_pct=1.0, crop_mode="squash", num_classes=1000),
    "so400m_patch14_224.webli": dict(),
    "so400m_patch14_378.webli": dict(),
    "so400m_patch14_378.webli_ft_in1k": dict(crop_pct=1.0, crop_mode="squash", num_classes=1000),
    "so400m_patch16_256_i18n.v2_webli": dict(),
}
RULES = {
    "timm": [
        *timm_vit(),
        View("attn_pool.latent", "question.asked.table", (1, -1), (1, 1, -1)),
        Rename("attn_pool.q.{p}", "question.look.q.{p}"),
        Rename("attn_pool.kv.{p}", "question.look.kv.{p}"),
        Rename("attn_pool.proj.{p}", "question.look.out.{p}"),
        Rename("attn_pool.norm.{p}", "question.norm.{p}"),
        Rename("attn_pool.mlp.fc1.{p}", "question.feed.up.{p}"),
        Rename("attn_pool.mlp.fc2.{p}", "question.feed.down.{p}"),
    ],
}
