"""Language Models are Unsupervised Multitask Learners. Radford et al., 2019.

New here: a decoder that has only ever been asked what word comes next, on enough texts that tasks turn out to be texts
that go on. In the network: norms before each step and one at the end, learned places, the word table as head.

Differs: places are counted over real words only, so that padding, on whichever side, changes nothing.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, FeedForward, Stack
from plait.core.tokens import Tokens, unpacked
from plait.core.weights import Drop, Rename, Tied, Transpose, under
from plait.parts.positions.learned import SequencePositions
from plait.parts.tokenizers.words import WordTokens
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.writer import Writer, following


class GPT2(Writer):
    """Words (B, N) -> logits (B, N, V) of the word after each.

    vocab: V. length: how many places a text has, those of what was read before counted. begin, end: ids.
    """

    def __init__(self, *, vocab=50257, length=1024, begin=50256, end=50256, width, depth, heads, dropout=0.1):
        super().__init__()
        self.width, self.length, self.begin, self.end = width, length, begin, end
        self.words, self.positions = WordTokens(vocab, width), SequencePositions(length, width)
        self.drop = nn.Dropout(dropout)
        mix = partial(Attention, causal=True, dropout=dropout)
        feed = partial(FeedForward, act=partial(nn.GELU, approximate="tanh"), dropout=dropout)
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, 4 * width, mix=mix, feed=feed))
        self.norm = nn.LayerNorm(width)

    def embed(self, ids: Tensor) -> Tensor:
        return self.words(ids).x

    def read(self, t: Tokens) -> Tokens:
        unpacked(t)
        places = following(t) if t.pos is None else t.pos
        out = self.stack(t.replace(x=self.drop(self.positions(t, places).x)))
        return t.carry(out, self.norm(out.x))

    def say(self, t: Tokens) -> Tensor:
        return F.linear(t.x, self.words.table.weight)


MODEL = GPT2
TAKES = ("text",)
ROLES = ("generator",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(vocab=64, length=64, begin=2, end=3, width=32, depth=2, heads=2, dropout=0.0),
    "nano": dict(vocab=8192, length=512, begin=2, end=3, width=192, depth=4, heads=4),
    "small": dict(width=768, depth=12, heads=12),
    "medium": dict(width=1024, depth=24, heads=16),
    "large": dict(width=1280, depth=36, heads=20),
    "xl": dict(width=1600, depth=48, heads=25),
}

OPENAI = dict(source="transformers", licence="mit", begin=50256, end=50256, file="model.safetensors", transformers=True)
WEIGHTS = {
    "small": OPENAI | dict(hub="openai-community/gpt2"),
    "medium": OPENAI | dict(hub="openai-community/gpt2-medium"),
    "large": OPENAI | dict(hub="openai-community/gpt2-large"),
    "xl": OPENAI | dict(hub="openai-community/gpt2-xl"),
}

THEIRS, OURS = "h.{i}", "stack.blocks.{i}"
PUBLISHED = [  # matrices there multiply from the right
    Rename("wte.weight", "words.table.weight"),
    Rename("wpe.weight", "positions.table"),
    Rename(f"{THEIRS}.ln_1.{{p}}", f"{OURS}.mix.norm.{{p}}"),
    Transpose(f"{THEIRS}.attn.c_attn.weight", f"{OURS}.mix.f.qkv.weight"),
    Rename(f"{THEIRS}.attn.c_attn.bias", f"{OURS}.mix.f.qkv.bias"),
    Transpose(f"{THEIRS}.attn.c_proj.weight", f"{OURS}.mix.f.out.weight"),
    Rename(f"{THEIRS}.attn.c_proj.bias", f"{OURS}.mix.f.out.bias"),
    Rename(f"{THEIRS}.ln_2.{{p}}", f"{OURS}.feed.norm.{{p}}"),
    Transpose(f"{THEIRS}.mlp.c_fc.weight", f"{OURS}.feed.f.up.weight"),
    Rename(f"{THEIRS}.mlp.c_fc.bias", f"{OURS}.feed.f.up.bias"),
    Transpose(f"{THEIRS}.mlp.c_proj.weight", f"{OURS}.feed.f.down.weight"),
    Rename(f"{THEIRS}.mlp.c_proj.bias", f"{OURS}.feed.f.down.bias"),
    Rename("ln_f.{p}", "norm.{p}"),
    Drop(f"{THEIRS}.attn.bias"),  # masks
    Drop(f"{THEIRS}.attn.masked_bias"),
]
RULES = {
    "transformers": PUBLISHED,  # as the published files have it, GPT2Model
    "transformers_lm": [  # GPT2LMHeadModel
        Tied(["lm_head.weight", "transformer.wte.weight"], "words.table.weight"),
        *under(PUBLISHED, "transformer."),
    ],
}
