"""Adapting Decoder-Based Language Models for Diverse Encoder Downstream Tasks. Suganthan, Moiseev, Yan, Wu, Ni, Han,
Zitouni, Alfonseca, Wang, Dong, 2025. arXiv:2503.02656.

New here: a language model that was trained to write, Gemma 2 (arXiv:2408.00118), becomes an encoder: every word sees
both sides, what it was trained without, dropout, comes back, and a text is the mean of its words, its first, its last,
or what a learned question finds in them, before layers that answer. The weights are those of the writer.

Differs: places are counted over real words only, so that padding, on whichever side, changes nothing; windows count
them too, and reach as far ahead as back. Questions are asked, but keys and values are not learned without tokens. The
paper does not say how wide the layer before the answer is: here as wide as the model.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.attend import Attend, pair_mask, repeated
from plait.core.block import Attention, Block, CrossAttention, Pre, Stack
from plait.core.precision import as_given, wide
from plait.core.tokens import Tokens, check_mask, refuse, unpacked
from plait.core.weights import Drop, Join, Rename
from plait.errors import PlaitError
from plait.parts.mixers.gated import GatedFeedForward
from plait.parts.positions.learned import Learned
from plait.parts.positions.rotary import Rotary, Turned
from plait.parts.tokenizers.words import WordTokens
from plait.parts.towers.layouts import grouped_qkv
from plait.parts.towers.reader import hidden_head
from plait.parts.towers.sentences import POOLING
from plait.parts.towers.writer import back, following
from plait.systems.text.llama import NormAroundOne

Norm = partial(NormAroundOne, eps=1e-6)


class Capped(Attend):
    """Attention whose scores are never beyond `cap`: cap * tanh(score / cap), before masks."""

    backends = ("sdpa", "eager")

    def __init__(self, cap: float, *, dropout: float = 0.0):
        super().__init__(dropout=dropout)
        self.cap = cap

    def maps(
        self, q: Tensor, k: Tensor, *, keep: Tensor | None = None, bias: Tensor | None = None,
        scale: float | None = None, causal: bool = False,
    ) -> Tensor:  # fmt: skip
        with as_given(q.device):
            scores = (wide(q) * (q.shape[-1] ** -0.5 if scale is None else scale)) @ wide(repeated(k, q.shape[1])).mT
        scores = self.cap * (scores / self.cap).tanh()
        scores = scores if bias is None else scores + bias
        mask = pair_mask(keep)
        if causal:
            past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
            mask = past if mask is None else mask & past
        if mask is None:
            return scores.softmax(-1)
        found = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        return found.masked_fill(~mask.any(-1, keepdim=True), 0.0)


class CappedAttention(Attention):
    """Gemma 2's attention to both sides. near: to words of the context's "near" (B, N, N) alone, where it says any."""

    def __init__(self, width: int, heads: int, *, cap: float, near: bool, dropout: float, **how):
        super().__init__(width, heads, rotary=Turned(), qkv_bias=False, out_bias=False, **how)
        self.attend, self.near = Capped(cap, dropout=dropout), near
        self.reads = ("near",) if near else ()

    def forward(self, t: Tokens) -> Tokens:
        near, seen = t.read("near") if self.near else None, t
        if near is not None:
            refuse(t, "weight", why="where tokens that were merged stand in the window is not known")
            allow = t.context.get("allow")
            seen = t.reading(allow=near if allow is None else near & allow)
        return self.merge(self.attend(seen, *self.project(t)).replace(context=t.context))


class Question(nn.Module):
    """Tokens (B, N, D) -> (B, D): what one learned question finds in them."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ask, self.look = Learned(1, width), CrossAttention(width, heads, stream="text")

    def forward(self, t: Tokens) -> Tensor:
        ask = self.ask().to(t.x.dtype).expand(t.x.shape[0], 1, -1)
        return self.look(Tokens(ask).reading(text=t)).x[:, 0]


class GemmaEncoder(nn.Module):
    """Token ids (B, N) -> logits (B, K), or the pooled features (B, D) with `num_classes=0`.

    vocab: number of words. kv_heads, head_width: of keys and values; E. window: how many words back and ahead every
    other layer sees, the first among them. cap: of scores. pooling: mean, cls (the first), last, or question.
    """

    takes = ("text",)
    fits = ("vocab",)
    classifier = ("head.",)
    beyond = ("ask", "head")

    def __init__(
        self, *, vocab=256000, width, depth, heads, kv_heads, head_width, hidden, window=4096, cap=50.0,
        pooling="mean", num_classes=0, dropout=0.1,
    ):  # fmt: skip
        super().__init__()
        if pooling not in (*POOLING, "question"):
            raise PlaitError(f"pooling: got {pooling!r}, expected one of {', '.join(POOLING)}, question")
        self.width, self.window = width, window
        self.words, self.rotary, self.drop = WordTokens(vocab, width), Rotary(head_width), nn.Dropout(dropout)
        how = dict(kv_heads=kv_heads, head_width=head_width, cap=cap, dropout=dropout)
        feed = partial(GatedFeedForward, act=partial(nn.GELU, approximate="tanh"), bias=False)

        def step(f: nn.Module) -> Pre:
            return Pre(Norm(width), f, nn.Sequential(Norm(width), nn.Dropout(dropout)))

        mixes = (CappedAttention(width, heads, near=i % 2 == 0, **how) for i in range(depth))
        self.stack = Stack(*(Block(step(mix), step(feed(width, hidden))) for mix in mixes), gives=("near",))
        self.norm = Norm(width)
        self.ask = Question(width, heads) if pooling == "question" else None
        self.read = POOLING.get(pooling)
        self.head = hidden_head(width, num_classes, nn.GELU)

    def tokens(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        """ids (B, N) int64, keep (B, N) bool (None: all real) -> Tokens (B, N, D)."""
        check_mask(keep, *ids.shape)
        x = self.words(ids).x
        t = Tokens(self.drop(x * torch.tensor(self.width**0.5, dtype=x.dtype)), keep=keep)
        places, near = following(t), None
        if t.x.shape[1] > self.window + 1:
            near = back(t, places).abs() <= self.window
        out = self.stack(t.replace(pos=self.rotary(places)).reading(near=near))
        return t.carry(out, self.drop(self.norm(out.x)))

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): one vector a text."""
        unpacked(t)
        return self.ask(t) if self.read is None else self.read(t)

    def forward(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.head(self.pool(self.tokens(ids, keep)))


SMALL = dict(head_width=16, hidden=64)
MODEL = GemmaEncoder
TAKES = ("text",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": SMALL | dict(vocab=64, width=32, depth=2, heads=2, kv_heads=1, window=4, num_classes=10, dropout=0.0),
    "nano": dict(vocab=8192, width=192, depth=4, heads=4, kv_heads=2, head_width=48, hidden=512, window=256),
    "2b": dict(width=2304, depth=26, heads=8, kv_heads=4, head_width=256, hidden=9216),
    "9b": dict(width=3584, depth=42, heads=16, kv_heads=8, head_width=256, hidden=14336),
}

GOOGLE = dict(source="transformers", licence="gemma", begin=2, end=1, file="model.safetensors.index.json")
WEIGHTS = {
    "2b": GOOGLE | dict(hub="google/gemma-2-2b", transformers=True),
    "9b": GOOGLE | dict(hub="google/gemma-2-9b", transformers=True),
}

THEIRS, OURS = "model.layers.{i}", "stack.blocks.{i}"
HEAD = [Rename("score.{p*}", "head.{p*}"), Rename("ask.{p*}", "ask.{p*}")]  # ours alone
RULES = {
    "transformers": [
        Rename("model.embed_tokens.weight", "words.table.weight"),
        grouped_qkv(f"{THEIRS}.self_attn", f"{OURS}.mix.f", ("weight",)),
        Join([f"{THEIRS}.mlp.{n}_proj.weight" for n in ("gate", "up")], f"{OURS}.feed.f.up.weight"),
        Rename(f"{THEIRS}.mlp.down_proj.weight", f"{OURS}.feed.f.down.weight"),
        Rename(f"{THEIRS}.input_layernorm.weight", f"{OURS}.mix.norm.weight"),
        Rename(f"{THEIRS}.post_attention_layernorm.weight", f"{OURS}.mix.after.0.weight"),
        Rename(f"{THEIRS}.pre_feedforward_layernorm.weight", f"{OURS}.feed.norm.weight"),
        Rename(f"{THEIRS}.post_feedforward_layernorm.weight", f"{OURS}.feed.after.0.weight"),
        Rename("model.norm.weight", "norm.weight"),
        Drop("lm_head.weight"),  # the word table again, where a file has it
        Drop("model.rotary_emb.{p}"),
        *HEAD,
    ]
}
