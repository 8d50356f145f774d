"""Align before Fuse for pairs of pictures (NLVR2). Li et al., 2021. arXiv:2107.07651.

New here: what is said of two pictures is read beside both. Each layer of ALBEF's fusion stands there twice, one after
the other: the first asks the one picture, the second the other. Both ask by their own questions, and hear both pictures
through the same ears: one projection of keys and values serves the two.

Differs: what the official text-assignment pre-training needs beside (its head of three answers, the unit vectors that
choose a similar picture) is dropped, and so is the teacher (`*_m.*`): answers are learnt from what is true. An absent
picture is a blank that nothing attends to; so is an absent text, whose leading token still asks the pictures.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Attention, CrossAttention, Layer, Stack, split_heads
from plait.core.init import torch_default
from plait.core.memory import KeyValue
from plait.core.tokens import Tokens, refuse
from plait.core.weights import Drop, Rename, Rule
from plait.errors import PlaitError
from plait.parts.presence import Blank, fill_absent, masked
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import bert_input, bert_layers, timm_vit
from plait.parts.towers.picture import PictureTower

PictureNorm = partial(nn.LayerNorm, eps=1e-6)
TextNorm = partial(nn.LayerNorm, eps=1e-12)
EYES = ("image_0", "image_1")


class Asks(CrossAttention):
    """To a stream that holds keys and values already, (B, M, 2 D)."""

    def __init__(self, width: int, heads: int, *, dropout: float, stream: str):
        super().__init__(width, heads, dropout=dropout, stream=stream)
        self.kv = None

    def keys_and_values(self, x: Tensor) -> KeyValue:
        k, v = split_heads(x, 2, self.heads)
        return k, v


class Twice(Layer):
    """The text asks one picture, then the other, each in a layer of its own: Tokens (B, N, D) whose context has both
    pictures (B, M, C), heard through one projection."""

    reads = EYES
    gives = ("heard_0", "heard_1")

    def __init__(self, width: int, heads: int, image_width: int, dropout: float):
        super().__init__()
        self.kv = nn.Linear(image_width, 2 * width)
        layers = partial(post_norm_blocks, norm=TextNorm, mix=partial(Attention, dropout=dropout), dropout=dropout)
        crosses = (partial(Asks, dropout=dropout, stream=name) for name in self.gives)
        self.blocks = nn.ModuleList(layers(width, 1, heads, 4 * width, cross=cross)[0] for cross in crosses)

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "memory", why="its two layers would write into one page")
        context = t.context
        for eye, name, block in zip(EYES, self.gives, self.blocks):
            seen = t.read(eye)
            t = block(t.reading(**{name: seen.replace(x=self.kv(seen.x))})).replace(context=context)
        return t


class ALBEFNLVR(nn.Module):
    """A batch of two pictures and a text about them -> a vector that has read all, and one of `answers` (none with 0).

    image, patch, image_*: the tower of both pictures. vocab, length (most tokens): the text. width, text_depth,
    fusion_depth, heads: BERT's two halves, the second of twice as many layers.
    """

    takes = (*EYES, "text")
    fits = ("image", "vocab")
    scheme = {nn.Conv2d: torch_default}

    def __init__(
        self, *, image=(384, 384), patch=16, image_width=768, image_depth=12, image_heads=12, vocab=30522, length=512,
        width=768, text_depth=6, fusion_depth=6, heads=12, dropout=0.1, answers=2,
    ):  # fmt: skip
        super().__init__()
        self.width, self.part_widths = width, {}
        self.blanks: dict[str, Blank] = {eye: ((3, *image), torch.float32) for eye in EYES}
        self.blanks["text"] = ((1,), torch.int64)
        self.picture = PictureTower(image, patch, image_width, image_depth, image_heads, norm=PictureNorm)
        self.text_embedding = TextEmbedding(vocab, length, width, TextNorm, dropout=dropout)
        mix = partial(Attention, dropout=dropout)
        blocks = post_norm_blocks(width, text_depth, heads, 4 * width, norm=TextNorm, mix=mix, dropout=dropout)
        self.reader = Stack(*blocks)
        self.fusion = Stack(*(Twice(width, heads, image_width, dropout) for _ in range(fusion_depth)), gives=EYES)
        self.answer = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, answers)) if answers else None

    def read(self, batch: dict) -> Tokens:
        """Tokens (B, N, D) of the text, which have read both pictures."""
        s = fill_absent(batch, self.blanks)
        both = self.picture(torch.cat([s.values[eye] for eye in EYES]))  # (2 B, 1 + M, C)
        seen = {
            eye: both.replace(x=x, keep=masked(None, s.present[eye], x.shape[1]))
            for eye, x in zip(EYES, both.x.unflatten(0, (2, -1)).unbind(0))
        }
        text = self.reader(self.text_embedding(s.values["text"], s.mask("text")))
        return self.fusion(text.reading(**seen)).replace(context=None).with_losses(both)

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, D), "parts": {}, "losses": {name: ()}}: the text's leading token after it has seen both."""
        t = self.read(batch)
        return {"fused": t.x[:, 0], "parts": {}, "losses": t.losses or {}}

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """fused (B, D), and answer (B, K), logits, of a model with answers."""
        fused = self.fuse(batch)["fused"]
        return {"fused": fused} if self.answer is None else {"fused": fused, "answer": self.answer(fused)}


def _heard(names: list[str], ours: str) -> Rule:
    """Keys and values of two layers, which the official code keeps one tensor of under two names; ValueError where they
    differ."""

    def one(tensors: list[Tensor]) -> list[Tensor]:
        mine, other = tensors[:2], tensors[2:]
        if any(not (a.is_meta or torch.equal(a, b)) for a, b in zip(mine, other, strict=True)):
            raise PlaitError(f"{' and '.join(names)} differ: expected the same keys and values in both layers")
        return [torch.cat(mine)]

    def back(tensors: list[Tensor]) -> list[Tensor]:
        return [part.clone() for part in (*tensors[0].chunk(2), *tensors[0].chunk(2))]

    return Rule(tuple(f"{name}.{part}.{{p}}" for name in names for part in ("key", "value")), (ours,), one, back)


def _official(model: ALBEFNLVR) -> list[Rule]:
    """The official layers are numbered through."""
    first, twice = len(model.reader.blocks), []
    for i in range(len(model.fusion.blocks)):
        names = [f"text_encoder.encoder.layer.{first + 2 * i + half}" for half in (0, 1)]
        twice.append(_heard([f"{name}.crossattention.self" for name in names], f"fusion.blocks.{i}.kv.{{p}}"))
        for half, name in enumerate(names):
            twice += bert_layers(name, f"fusion.blocks.{i}.blocks.{half}")
    return [
        *(Drop(f"{name}_m.{{rest*}}") for name in ("visual_encoder", "text_encoder", "cls_head")),
        *(Drop(f"{name}.{{p}}") for name in ("vision_proj", "text_proj", "ta_head")),
        Drop("temp"),
        *timm_vit("visual_encoder.", "picture."),
        *bert_input("text_encoder.embeddings"),
        *twice,
        *bert_layers("text_encoder.encoder.layer.{i}", "reader.blocks.{i}"),
        Rename("cls_head.{i}.{p}", "answer.{i}.{p}"),
    ]


RULES = {"official": _official}

MODEL = ALBEFNLVR
TAKES = ("image", "image", "text")
ROLES = ("fuser",)
DEFAULT = "nano"
TOY = dict(image=(32, 32), patch=8, image_width=32, image_depth=2, image_heads=2, vocab=64, length=16)
NANO = dict(image=(64, 64), patch=8, image_width=192, image_depth=6, image_heads=3, vocab=8192)
SIZES = {
    "toy": TOY | dict(width=48, text_depth=2, fusion_depth=2, heads=4, dropout=0.0),
    "nano": NANO | dict(width=192, text_depth=3, fusion_depth=3, heads=3, answers=0),
    "base": dict(image=(256, 256), answers=0),
    "base_384": dict(),
}
TOKENS = dict(tokenizer="google-bert/bert-base-uncased/tokenizer.json", begin=101, end=102, closed=False)
SEEN = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
OFFICIAL = TOKENS | SEEN | dict(source="official", licence="bsd-3-clause", crop_pct=1.0, crop_mode="squash")
URL = "https://storage.googleapis.com/sfr-pcl-data-research/ALBEF/"
WEIGHTS = {
    "base": OFFICIAL | dict(url=URL + "pretrain_model_nlvr.pth"),
    "base_384": OFFICIAL | dict(github="salesforce/ALBEF NLVR"),
}
