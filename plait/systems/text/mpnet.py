"""MPNet: Masked and Permuted Pre-training for Language Understanding. Song, Tan, Qin, Lu, Liu, 2020. arXiv:2004.09297.

New here: words are predicted in an order that is drawn, each from all words before it in that order and from the places
of all that are still to come, so that it knows as much of the text as it will later on. What is left of it after
pre-training is an encoder as RoBERTa, whose scores also have a learned number per head and distance, as in T5.

Differs: the permuted pre-training is left out; the masked-word head exists only where it is asked for (`mlm=True`).
Places are counted over real words only, so that padding, on whichever side, changes nothing.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Attention, Stack
from plait.core.tokens import Tokens, refuse
from plait.core.weights import Drop, Join, Rename, under
from plait.parts.heads.words import WordHead
from plait.parts.positions.learned import CountedPositions
from plait.parts.positions.relative import Distances
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import bert_input, roberta_words
from plait.parts.towers.reader import Reader, hidden_head


class NearAttention(Attention):
    """Self-attention, to whose scores the context's "near" (1, H, N, N) is added."""

    reads = ("near",)

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "weight", "lengths", why="the distance to tokens that were merged or packed is not known")
        return self.merge(self.attend(t, *self.project(t), bias=t.read("near")))


class MPNet(Reader):
    """Token ids (B, N) -> logits (B, K), or the first token's features (B, D) with `num_classes=0`.

    vocab: number of word pieces. length: the longest text. mlm: also build the masked-word head.
    """

    def __init__(
        self, *, vocab=30527, length=512, width, depth, heads, hidden=None, num_classes=0, dropout=0.1, mlm=False
    ):
        super().__init__()
        self.width = width
        how = dict(kinds=0, dropout=dropout, positions=CountedPositions)
        self.text_embedding = TextEmbedding(vocab, length, width, nn.LayerNorm, **how)
        self.near, mix = Distances(heads, ahead=True), partial(NearAttention, dropout=dropout)
        layers = post_norm_blocks(width, depth, heads, hidden or 4 * width, mix=mix, dropout=dropout)
        self.stack = Stack(*layers, gives=("near",))
        self.head = hidden_head(width, num_classes)
        self.mlm = WordHead(width, vocab, nn.LayerNorm) if mlm else None

    def tokens(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        """ids (B, N) int64, keep (B, N) bool (None: all real) -> Tokens (B, N, D)."""
        t = self.text_embedding(ids, keep)
        place = torch.arange(ids.shape[1], device=ids.device)
        out = self.stack(t.reading(near=self.near((place[:, None] - place)[None])))
        return t.carry(out, out.x)


MODEL = MPNet
TAKES = ("text",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(vocab=64, length=16, width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(vocab=8192, length=256, width=192, depth=4, heads=3),
    "base": dict(width=768, depth=12, heads=12),
}

MICROSOFT = dict(source="microsoft", licence="none stated", begin=0, end=2, file="model.safetensors", transformers=True)
WEIGHTS = {
    "base": MICROSOFT | dict(hub="microsoft/mpnet-base"),
}

LAYER, OURS = "encoder.layer.{i}", "stack.blocks.{i}"
ENCODER = [
    *bert_input("embeddings"),
    Rename("encoder.relative_attention_bias.weight", "near.table.weight"),
    Join([f"{LAYER}.attention.attn.{n}.{{p}}" for n in "qkv"], f"{OURS}.mix.f.qkv.{{p}}"),
    Rename(f"{LAYER}.attention.attn.o.{{p}}", f"{OURS}.mix.f.out.{{p}}"),
    Rename(f"{LAYER}.attention.LayerNorm.{{p}}", f"{OURS}.mix.norm.{{p}}"),
    Rename(f"{LAYER}.intermediate.dense.{{p}}", f"{OURS}.feed.f.up.{{p}}"),
    Rename(f"{LAYER}.output.dense.{{p}}", f"{OURS}.feed.f.down.{{p}}"),
    Rename(f"{LAYER}.output.LayerNorm.{{p}}", f"{OURS}.feed.norm.{{p}}"),
    Drop("pooler.dense.{p}"),
]
CLASSIFIER = [Rename("classifier.dense.{p}", "head.0.{p}"), Rename("classifier.out_proj.{p}", "head.2.{p}")]
WHOLE = [*under(ENCODER, "mpnet."), *CLASSIFIER]
RULES = {
    "transformers": [*ENCODER, *CLASSIFIER],  # MPNetModel
    "transformers_classifier": WHOLE,  # MPNetForSequenceClassification
    "transformers_mlm": [*roberta_words("mpnet"), *WHOLE],  # MPNetForMaskedLM, with mlm=True
    "microsoft": [*WHOLE, Drop("lm_head.{rest*}")],  # a published file, its pre-training head left out
}
