"""CLIP: Learning Transferable Visual Models From Natural Language Supervision. Radford et al., 2021. arXiv:2103.00020.

New here: a picture tower and a text tower meet only in one vector each, trained so that a picture's nearest text in the
batch is its own; any list of texts is then a classifier without training.

Differs: the transformer towers only; residual networks are left out. A text's vector is read at its last real token,
which is where the published tokenizers put the end of the text.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Attention, FeedForward, QuickGELU, Stack
from plait.core.reading import read_at
from plait.core.tokens import Tokens
from plait.core.weights import Drop, Lift, Rename, Transpose, View
from plait.parts.positions.learned import SequencePositions
from plait.parts.tokenizers.words import WordTokens, cut
from plait.parts.towers.encoder import Make, pre_norm_blocks
from plait.parts.towers.layouts import clip_blocks, clip_vision, open_clip_blocks, open_clip_text
from plait.parts.towers.pair import TwoTowers
from plait.parts.towers.picture import PictureTower


class ImageTower(PictureTower):
    """Pictures (B, 3, H, W) -> vectors (B, E): a ViT with one more norm before its blocks, read at the class token."""

    def __init__(
        self, image: tuple[int, int], patch: int, width: int, depth: int, heads: int, hidden: int, embed: int, act: Make
    ):
        super().__init__(image, patch, width, depth, heads, hidden, before=True, feed=partial(FeedForward, act=act))
        self.project = nn.Linear(width, embed, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.norm(self.read(x).x[:, 0]))


class TextTower(nn.Module):
    """Token ids (B, N), keep (B, N) -> vectors (B, E): a causal transformer read at the last real token."""

    def __init__(self, vocab: int, length: int, width: int, depth: int, heads: int, embed: int, act: Make):
        super().__init__()
        self.words = WordTokens(vocab, width)
        self.positions = SequencePositions(length, width)
        mix, feed = partial(Attention, causal=True), partial(FeedForward, act=act)
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, 4 * width, mix=mix, feed=feed))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, embed, bias=False)

    def start(self, ids: Tensor, keep: Tensor) -> Tokens:
        """Tokens (B, N, D), before the first layer."""
        return self.positions(self.words(ids, keep))

    def tokens(self, ids: Tensor, keep: Tensor) -> Tokens:
        """Tokens (B, N, D), before the last norm."""
        return self.stack(self.start(ids, keep))

    def forward(self, ids: Tensor, keep: Tensor) -> Tensor:
        ids, keep, filled = cut(ids, keep)
        t = self.start(ids, keep)
        if filled:  # what is causal never looks at the padding behind it
            t = t.replace(keep=None)
        last = (keep * torch.arange(keep.shape[1], device=ids.device)).amax(1)  # (B,)
        return self.project(self.norm(read_at(self.stack, t, last).x[:, 0]))


class CLIP(TwoTowers):
    """image, patch, width, depth, heads, hidden: the picture tower, as in ViT. vocab, length, text_*: the text tower.
    embed: E. quick: OpenAI's approximate GELU."""

    def __init__(
        self, *, image=(224, 224), patch, width, depth, heads, hidden=None,
        vocab=49408, length=77, text_width, text_depth, text_heads, embed, quick=False,
    ):  # fmt: skip
        act = QuickGELU if quick else nn.GELU
        eyes = ImageTower(image, patch, width, depth, heads, hidden or 4 * width, embed, act)
        super().__init__(eyes, TextTower(vocab, length, text_width, text_depth, text_heads, embed, act), image, embed)


BASE = dict(width=768, depth=12, heads=12, text_width=512, text_depth=12, text_heads=8, embed=512)
LARGE = dict(patch=14, width=1024, depth=24, heads=16, text_width=768, text_depth=12, text_heads=12, embed=768)
WIDE_TEXT = dict(patch=14, text_width=1024, text_depth=24, text_heads=16, embed=1024)
HUGE = WIDE_TEXT | dict(width=1280, depth=32, heads=16)
GIANT = WIDE_TEXT | dict(width=1408, depth=40, heads=16, hidden=6144)
BIG_TEXT = dict(text_width=1280, text_depth=32, text_heads=20, embed=1280)
GIGANTIC = BIG_TEXT | dict(patch=14, width=1664, depth=48, heads=16, hidden=8192)
P16 = dict(patch=16)
P32 = dict(patch=32)
I378 = dict(image=(378, 378))
QUICK = dict(quick=True)
XLM = dict(vocab=901629)

MODEL = CLIP
TAKES = ("image", "text")
ROLES = ("embedder",)
DEFAULT = "nano"
TOY = dict(width=32, depth=2, heads=2, text_width=32, text_depth=2, text_heads=2, embed=16)
NANO = dict(width=192, depth=6, heads=3, text_width=192, text_depth=4, text_heads=3, embed=128)
B_PLUS = P16 | dict(image=(240, 240), width=896, depth=12, heads=14, text_width=640)
SIZES = {
    "toy": TOY | dict(image=(32, 32), patch=8, vocab=64, length=16),
    "nano": NANO | dict(image=(64, 64), patch=8, vocab=8192),
    "vit_b_32": BASE | P32,
    "vit_b_32_256": BASE | P32 | dict(image=(256, 256)),
    "vit_b_32_quickgelu": BASE | P32 | QUICK,
    "vit_b_16": BASE | P16,
    "vit_b_16_quickgelu": BASE | P16 | QUICK,
    "vit_b_16_plus_240": B_PLUS | dict(text_depth=12, text_heads=10, embed=640),
    "vit_l_14": LARGE,
    "vit_l_14_quickgelu": LARGE | QUICK,
    "vit_l_14_336_quickgelu": LARGE | QUICK | dict(image=(336, 336)),
    "vit_h_14": HUGE,
    "vit_h_14_quickgelu": HUGE | QUICK,
    "vit_h_14_378_quickgelu": HUGE | QUICK | I378,
    "vit_h_14_worldwide_quickgelu": HUGE | QUICK | XLM,
    "vit_h_14_worldwide_378": HUGE | XLM | I378,
    "vit_g_14": GIANT,
    "vit_bigg_14": GIGANTIC,
    "vit_bigg_14_quickgelu": GIGANTIC | QUICK,
    "vit_bigg_14_worldwide": GIGANTIC | XLM,
    "vit_bigg_14_worldwide_378": GIGANTIC | XLM | I378,
}

SEEN = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711), crop_pct=1.0)
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SQUASH = dict(crop_mode="squash")
FILE = SEEN | dict(source="open_clip", licence="mit", begin=49406, end=49407)
LAION = FILE | dict(transformers=True)
APPLE = FILE | SQUASH | dict(licence="apple-ascl", file="open_clip_pytorch_model.bin")
META = FILE | dict(licence="cc-by-nc-4.0")
META_2 = META | dict(begin=0, end=2)
B_32 = FILE | dict(hub="timm/vit_base_patch32_clip_224.openai", transformers="openai/clip-vit-base-patch32")
B_16 = FILE | dict(hub="timm/vit_base_patch16_clip_224.openai", transformers="openai/clip-vit-base-patch16")
L_14 = FILE | dict(hub="timm/vit_large_patch14_clip_224.openai", transformers="openai/clip-vit-large-patch14")
L_336 = FILE | dict(hub="timm/vit_large_patch14_clip_336.openai", transformers="openai/clip-vit-large-patch14-336")
H = "timm/vit_huge_patch14_clip_"
BIGG = "timm/vit_gigantic_patch14_clip_"
PLUS = "timm/vit_base_patch16_plus_clip_240.laion400m_e32"
WIDE_224 = "224.metaclip2_worldwide"
WIDE_378 = "378.metaclip2_worldwide"
WEIGHTS = {
    "vit_b_32": LAION | dict(hub="laion/CLIP-ViT-B-32-laion2B-s34B-b79K", open_clip="ViT-B-32"),
    "vit_b_32_256": FILE | dict(hub="laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K", open_clip="ViT-B-32-256"),
    "vit_b_32_quickgelu": B_32 | dict(open_clip="ViT-B-32-quickgelu"),
    "vit_b_16": LAION | dict(hub="laion/CLIP-ViT-B-16-laion2B-s34B-b88K", open_clip="ViT-B-16"),
    "vit_b_16_quickgelu": B_16 | dict(open_clip="ViT-B-16-quickgelu"),
    "vit_b_16_plus_240": FILE | dict(hub=PLUS, open_clip="ViT-B-16-plus-240"),
    "vit_l_14": LAION | HALF | dict(hub="laion/CLIP-ViT-L-14-laion2B-s32B-b82K", open_clip="ViT-L-14"),
    "vit_l_14_quickgelu": L_14 | dict(open_clip="ViT-L-14-quickgelu"),
    "vit_l_14_336_quickgelu": L_336 | dict(open_clip="ViT-L-14-336-quickgelu"),
    "vit_h_14": LAION | dict(hub="laion/CLIP-ViT-H-14-laion2B-s32B-b79K", open_clip="ViT-H-14"),
    "vit_h_14_quickgelu": APPLE | dict(hub="apple/DFN5B-CLIP-ViT-H-14", open_clip="ViT-H-14-quickgelu"),
    "vit_h_14_378_quickgelu": APPLE | dict(hub="apple/DFN5B-CLIP-ViT-H-14-378", open_clip="ViT-H-14-378-quickgelu"),
    "vit_h_14_worldwide_quickgelu": META_2 | dict(hub=H + WIDE_224, open_clip="ViT-H-14-worldwide-quickgelu"),
    "vit_h_14_worldwide_378": META_2 | SQUASH | dict(hub=H + WIDE_378, open_clip="ViT-H-14-worldwide-378"),
    "vit_g_14": LAION | dict(hub="laion/CLIP-ViT-g-14-laion2B-s34B-b88K", open_clip="ViT-g-14"),
    "vit_bigg_14": LAION | dict(hub="laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", open_clip="ViT-bigG-14"),
    "vit_bigg_14_quickgelu": META | dict(hub=BIGG + "224.metaclip_2pt5b", open_clip="ViT-bigG-14-quickgelu"),
    "vit_bigg_14_worldwide": META_2 | dict(hub=BIGG + WIDE_224, open_clip="ViT-bigG-14-worldwide"),
    "vit_bigg_14_worldwide_378": META_2 | SQUASH | dict(hub=BIGG + WIDE_378, open_clip="ViT-bigG-14-worldwide-378"),
}


IMAGE, TEXT = "towers.image", "towers.text"
RULES = {
    "open_clip": [
        Lift("logit_scale", "logit_scale"),
        View("visual.class_embedding", f"{IMAGE}.patch_embed.cls", (1, 1, -1), (-1,)),
        Lift("visual.positional_embedding", f"{IMAGE}.patch_embed.positions.table"),
        Rename("visual.conv1.weight", f"{IMAGE}.patch_embed.stem.proj.weight"),
        Rename("visual.ln_pre.{p}", f"{IMAGE}.before.{{p}}"),
        *open_clip_blocks("visual.transformer.resblocks.{i}", f"{IMAGE}.stack.blocks.{{i}}"),
        Rename("visual.ln_post.{p}", f"{IMAGE}.norm.{{p}}"),
        Transpose("visual.proj", f"{IMAGE}.project.weight"),
        *open_clip_text("", TEXT),
    ],
    "transformers": [
        Lift("logit_scale", "logit_scale"),
        *clip_vision("vision_model.", f"{IMAGE}."),
        Rename("visual_projection.weight", f"{IMAGE}.project.weight"),
        Rename("text_model.embeddings.token_embedding.weight", f"{TEXT}.words.table.weight"),
        Rename("text_model.embeddings.position_embedding.weight", f"{TEXT}.positions.table"),
        *clip_blocks("text_model.encoder.layers.{i}", f"{TEXT}.stack.blocks.{{i}}"),
        Rename("text_model.final_layer_norm.{p}", f"{TEXT}.norm.{{p}}"),
        Rename("text_projection.weight", f"{TEXT}.project.weight"),
        Drop("text_model.embeddings.position_ids"),
    ],
}
