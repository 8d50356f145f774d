"""TokenFormer: Rethinking Transformer Scaling with Tokenized Model Parameters. Wang, Fan, Naeem, Xian, Lenssen, Wang,
Tombari and Schiele, 2024. arXiv:2410.23168.

New here: no linear projection is left between the word table and the head. Wherever one would stand, tokens attend to
learned ones: the parameters are pairs of keys and values, and scores are brought to a length and passed through GELU
instead of softmax (`plait/parts/mixers/pattention.py`). Norms between have no weights. The model grows by more pairs,
with no width changed: see the method `token_growth`. A quarter of each head is turned by places, as in GPT-NeoX.

Differs: places are counted over real words only, so that padding, on whichever side, changes nothing. The picture
models of the paper have no public code and are left out, as are the other orders of norm and GELU that it compares.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Stack, check_heads
from plait.core.tokens import Tokens
from plait.core.weights import Drop, Rename, Rule, Transpose
from plait.parts.mixers.pattention import Pattention, TokenizedAttention
from plait.parts.positions.rotary import Rotary, Turned
from plait.parts.tokenizers.words import WordTokens
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.writer import Writer, following

KEY_STD = 0.02


def normal(module: nn.Embedding) -> None:
    nn.init.normal_(module.weight, std=KEY_STD)


class TurnedInPart(Turned):
    """As `Turned`, of the first numbers of each head, as many as there are turns for; the others stay."""

    def forward(self, q: Tensor, k: Tensor, t: Tokens) -> tuple[Tensor, Tensor]:
        turned = 0 if t.pos is None else t.pos.shape[-1]
        first = super().forward(q[..., :turned], k[..., :turned], t)
        y, z = (torch.cat([a, b[..., turned:]], -1) for a, b in zip(first, (q, k)))
        return y, z


class TokenFormer(Writer):
    """Words (B, N) -> logits (B, N, V) of the word after each.

    vocab: V. length: the longest text it was trained for. begin, end: ids. count: of the pairs of queries, keys, values
    and the projection behind attention, each; feed_count: of those in the place of the feed-forward step. turned: the
    share of a head that is turned by places; base: of the turns (`Rotary`).
    """

    scheme = {nn.Embedding: normal}

    def __init__(
        self, *, vocab=50304, length=2048, begin=0, end=0, width, depth, heads, count, feed_count, turned=0.25,
        base=10000.0, eps=1e-5,
    ):  # fmt: skip
        super().__init__()
        check_heads(width, heads)
        self.width, self.length, self.begin, self.end = width, length, begin, end
        self.words = WordTokens(vocab, width)
        self.rotary = Rotary(int(turned * (width // heads)), base)
        start = dict(key_std=KEY_STD, value_std=2 / depth / width**0.5)
        mix = partial(TokenizedAttention, count=count, out_count=count, start=start, causal=True, rotary=TurnedInPart())
        feed = partial(Pattention, out=width, **start)
        norm = partial(nn.LayerNorm, eps=eps, elementwise_affine=False)
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, feed_count, norm=norm, mix=mix, feed=feed))
        self.norm = nn.LayerNorm(width, eps=eps)

    def embed(self, ids: Tensor) -> Tensor:
        return self.words(ids).x

    def read(self, t: Tokens) -> Tokens:
        places = following(t) if t.pos is None else t.pos
        out = self.stack(t.replace(pos=self.rotary(places)))
        return t.carry(out, self.norm(out.x))

    def say(self, t: Tokens) -> Tensor:
        return F.linear(t.x, self.words.table.weight)


MODEL = TokenFormer
TAKES = ("text",)
ROLES = ("generator",)
DEFAULT = "nano"
TRIED = dict(begin=2, end=3)
WEB = dict(length=1024, width=1024, depth=24, heads=16)
SIZES = {
    "toy": TRIED | dict(vocab=64, length=32, width=32, depth=2, heads=2, count=24, feed_count=48),
    "nano": TRIED | dict(vocab=8192, length=512, width=192, depth=4, heads=4, count=192, feed_count=768),
    "150m": dict(width=768, depth=12, heads=12, count=768, feed_count=3072),
    "450m": dict(width=1024, depth=24, heads=16, count=1024, feed_count=4096),
    "900m": dict(width=1280, depth=32, heads=16, count=1280, feed_count=5120),
    "1_5b": dict(width=1536, depth=40, heads=16, count=1536, feed_count=6144),
    "354m_openwebtext2": WEB | dict(count=768, feed_count=3072),
    "757m_openwebtext2": WEB | dict(count=1792, feed_count=7168),  # grown from 354 M
}

PILE = dict(
    source="official", licence="apache-2.0", file="pytorch_model.bin", begin=0, end=0,
    tokenizer="EleutherAI/gpt-neox-20b/tokenizer.json",
)  # fmt: skip
WEIGHTS = {
    "150m": PILE | dict(hub="Haiyang-W/TokenFormer-150M"),
    "450m": PILE | dict(hub="Haiyang-W/TokenFormer-450M"),
    "900m": PILE | dict(hub="Haiyang-W/TokenFormer-900M"),
    "1_5b": PILE | dict(hub="Haiyang-W/TokenFormer-1-5B"),
}


def pairs(theirs: str, ours: str) -> list[Rule]:
    return [
        Rename(f"{theirs}.key_param_tokens", f"{ours}.keys.weight"),
        Transpose(f"{theirs}.value_param_tokens", f"{ours}.values.weight"),
    ]


def official(model: TokenFormer) -> list[Rule]:
    """The official layout: a sequence, whose second and last but two parts only turn axes round."""
    depth = len(model.stack.blocks)
    rules = [Rename("sequential.0.word_embeddings.weight", "words.table.weight")]
    for i in range(depth):
        theirs, ours = f"sequential.{i + 2}", f"stack.blocks.{i}"
        for public, own in {"query": "q", "key": "k", "value": "v", "proj": "out"}.items():
            rules += pairs(f"{theirs}.attention.{public}", f"{ours}.mix.f.{own}")
        rules += pairs(f"{theirs}.mlp", f"{ours}.feed.f")
        rules.append(Drop(f"{theirs}.attention.rotary_emb.inv_freq"))
    return [*rules, Rename(f"sequential.{depth + 3}.norm.{{p}}", "norm.{p}")]


RULES = {"official": official}
