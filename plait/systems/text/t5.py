"""Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer. Raffel et al., 2019.
arXiv:1910.10683.

New here: every task is a text that is read and a text that is written. The text is read by an encoder whole; a decoder
writes and looks at it. Places are told by a learned number per head and distance, added to the scores and the same in
all layers: short distances have one each, longer ones share, and far ones are one. Nothing has a bias, scores are not
scaled, norms have no mean. Version 1.1 (arXiv:2002.05202) and FLAN-T5 (arXiv:2210.11416) gate the feed-forward and have
a head of their own.

Differs: distances are counted over real words only, so that padding, on whichever side, changes nothing.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Attention, Block, Pre, Stack, merge_heads, split_heads
from plait.core.memory import AnyMemory, KeyValue, Memory
from plait.core.tokens import Tokens, check_mask, real, refuse, unpacked
from plait.core.weights import Drop, Join, Rename, Rule, Tied
from plait.errors import PlaitError
from plait.parts.mixers.gated import GatedFeedForward
from plait.parts.positions.relative import Distances
from plait.parts.presence import fill_absent
from plait.parts.tokenizers.words import WordTokens
from plait.parts.towers.writer import back

Norm = partial(nn.RMSNorm, eps=1e-6)


class NearAttention(Attention):
    """Self-attention by unscaled scores, to which the context's "near" (B, H, N, M) is added."""

    reads = ("near",)

    def reset(self) -> None:
        """What other attentions divide scores by, queries are smaller by."""
        rows = self.qkv.out_features // 3
        self.qkv.weight[:rows].mul_((rows // self.heads) ** -0.5)

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "weight", why="the distance to tokens that were merged is not known")
        return self.merge(self.attend(t, *self.project(t), bias=t.read("near"), scale=1.0))


class Look(nn.Module):
    """Unscaled attention to the context's "source", of which the memory holds keys and values: Tokens -> Tokens."""

    reads = ("source",)

    def __init__(self, width: int, heads: int, head_width: int, dropout: float):
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.q, self.kv = nn.Linear(width, inner, bias=False), nn.Linear(width, 2 * inner, bias=False)
        self.attend, self.out = Attend(cross=True, dropout=dropout), nn.Linear(inner, width, bias=False)

    def reset(self) -> None:
        """As `NearAttention`'s."""
        self.q.weight.mul_((self.q.out_features // self.heads) ** -0.5)

    def forward(self, t: Tokens) -> Tokens:
        source, page = t.read("source"), t.memory
        unpacked(t, source)
        (q,) = split_heads(self.q(t.x), 1, self.heads)
        pair = None if page is None else page.streams.get("source")
        k, v = split_heads(self.kv(source.x), 2, self.heads) if pair is None else pair
        out = self.attend(t, q, k, v, to=source, scale=1.0)
        page = page if page is None or pair is not None else page.holding("source", (k, v))
        return out.replace(x=self.out(merge_heads(out.x)), memory=page)


class Feed(nn.Module):
    """Two linear layers without biases and a ReLU between: Tokens (B, N, D) -> Tokens (B, N, D)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, t: Tokens) -> Tokens:
        return t.replace(x=self.down(F.relu(self.up(t.x))))


class Cache(NamedTuple):
    """What was written, and the source that was read, (B, M, D) with keep (B, M)."""

    memory: AnyMemory
    source: Tensor
    keep: Tensor


class T5(nn.Module):
    """A text (B, M) read, another one written (B, N) -> logits (B, N, V) of the word after each.

    vocab: V. length: the longest text. begin, end: ids. head_width: E. gated: the feed-forward is, and the head is a
    layer of its own; else it is the word table. beyond: parts that only its own answers need.
    """

    takes = ("text",)
    fits = ("vocab",)
    beyond = ("near_written", "stack", "norm", "head")  # all that writes
    scheme = {nn.Embedding: lambda table: nn.init.normal_(table.weight)}

    def __init__(
        self, *, vocab=32128, length=512, begin=0, end=1, width, depth, heads, head_width=64, hidden, gated=False,
        dropout=0.1,
    ):  # fmt: skip
        super().__init__()
        self.width, self.length, self.begin, self.end = width, length, begin, end
        self.words, self.drop = WordTokens(vocab, width), nn.Dropout(dropout)
        gate = partial(GatedFeedForward, act=partial(nn.GELU, approximate="tanh"), bias=False)
        how = dict(head_width=head_width, qkv_bias=False, out_bias=False, dropout=dropout)

        def layer(writes: bool) -> Block:
            def step(f: nn.Module) -> Pre:
                return Pre(Norm(width), f, nn.Dropout(dropout))

            mix = NearAttention(width, heads, causal=writes, **how)
            look = step(Look(width, heads, head_width, dropout)) if writes else None
            return Block(step(mix), step((gate if gated else Feed)(width, hidden)), look)

        self.near_read, self.near_written = Distances(heads, True), Distances(heads, False)
        self.reader = Stack(*(layer(False) for _ in range(depth)), gives=("near",))
        self.stack = Stack(*(layer(True) for _ in range(depth)), gives=("near", "source"))
        self.norm_read, self.norm = Norm(width), Norm(width)
        self.head = nn.Linear(width, vocab, bias=False) if gated else None

    def tokens(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        """A text (B, M) as it is read, (B, M, D)."""
        check_mask(keep, *ids.shape)
        t = Tokens(self.drop(self.words(ids).x), keep=keep)
        out = self.reader(t.reading(near=self.near_read(back(t))))
        return t.carry(out, self.drop(self.norm_read(out.x)))

    def prefill(self, batch: dict) -> Cache:
        """Read the text; where the batch has none, a text without a word."""
        if "text" not in batch:
            rows = batch.get("present", {}).get("text", self.words.table.weight[:1, 0]).shape[0]
            blank = torch.zeros(rows, 1, dtype=torch.int64, device=self.words.table.weight.device)
            batch = {"text": blank, "keep": {"text": blank > 0}}
        s = fill_absent(batch, {"text": ((1,), torch.int64)})
        source = self.tokens(s.values["text"], s.mask("text"))
        pages: tuple[dict[str, KeyValue], ...] = ({},) * len(self.stack.blocks)
        return Cache(Memory(pages, real(source)[:, :0]), source.x, real(source))

    def step(self, tokens: Tensor, cache: Cache, keep: Tensor | None = None) -> tuple[Tensor, Cache]:
        """The next words (B, N), one or many -> (B, N, V) logits of the word after each, and the cache with them."""
        if tokens.shape[1] > self.length:
            raise PlaitError(f"a text of {tokens.shape[1]} words, but there are places for {self.length}: cut it")
        t = Tokens(self.drop(self.words(tokens).x), keep=keep, memory=cache.memory)
        out = self.stack(t.reading(near=self.near_written(back(t)), source=Tokens(cache.source, keep=cache.keep)))
        x = self.drop(self.norm(out.x))
        return self.say(x), cache._replace(memory=out.memory)

    def say(self, x: Tensor) -> Tensor:
        """Features (B, N, D) -> logits (B, N, V)."""
        return F.linear(x * self.width**-0.5, self.words.table.weight) if self.head is None else self.head(x)

    def forward(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 1, V): logits of the first word that answers the texts ids (B, M)."""
        cache = self.prefill({"text": ids} if keep is None else {"text": ids, "keep": {"text": keep}})
        return self.step(torch.full_like(ids[:, :1], self.begin), cache)[0]


LARGE = dict(width=1024, depth=24)
GATED = dict(gated=True)
G_SMALL = GATED | dict(width=512, depth=8, heads=6, hidden=1024)
G_BASE = GATED | dict(width=768, depth=12, heads=12, hidden=2048)
G_LARGE = GATED | LARGE | dict(heads=16, hidden=2816)
G_XL = GATED | dict(width=2048, depth=24, heads=32, hidden=5120)
G_XXL = GATED | dict(width=4096, depth=24, heads=64, hidden=10240)

MODEL = T5
TAKES = ("text",)
ROLES = ("generator",)
DEFAULT = "nano"
OWN = dict(begin=2, end=3)
SIZES = {
    "toy": OWN | dict(vocab=64, length=32, width=32, depth=2, heads=2, head_width=12, hidden=64, dropout=0.0),
    "nano": OWN | dict(vocab=8192, length=512, width=192, depth=3, heads=4, head_width=48, hidden=512, gated=True),
    "small": dict(width=512, depth=6, heads=8, hidden=2048),
    "base": dict(width=768, depth=12, heads=12, hidden=3072),
    "large": LARGE | dict(heads=16, hidden=4096),
    "3b": LARGE | dict(heads=32, head_width=128, hidden=16384),
    "11b": LARGE | dict(heads=128, head_width=128, hidden=65536),
    "v1_1_small": G_SMALL,
    "v1_1_base": G_BASE,
    "v1_1_large": G_LARGE,
    "v1_1_xl": G_XL,
    "v1_1_xxl": G_XXL,
    "flan_small": G_SMALL,
    "flan_base": G_BASE,
    "flan_large": G_LARGE,
    "flan_xl": G_XL,
    "flan_xxl": G_XXL,
}

GOOGLE = dict(licence="apache-2.0", begin=0, end=1, transformers=True)
FIRST = GOOGLE | dict(source="transformers_tied", file="model.safetensors")
LATER = GOOGLE | dict(source="transformers", file="pytorch_model.bin", tokenizer="google/flan-t5-base/tokenizer.json")
FLAN = GOOGLE | dict(source="transformers", file="model.safetensors")
SHARDS = dict(file="model.safetensors.index.json")
WEIGHTS = {
    "small": FIRST | dict(hub="google-t5/t5-small"),
    "base": FIRST | dict(hub="google-t5/t5-base"),
    "large": FIRST | dict(hub="google-t5/t5-large"),
    "3b": FIRST | dict(hub="google-t5/t5-3b"),
    "11b": FIRST | dict(hub="google-t5/t5-11b", file="pytorch_model.bin"),
    "v1_1_small": LATER | dict(hub="google/t5-v1_1-small"),
    "v1_1_base": LATER | dict(hub="google/t5-v1_1-base"),
    "v1_1_large": LATER | dict(hub="google/t5-v1_1-large"),
    "v1_1_xl": LATER | dict(hub="google/t5-v1_1-xl"),
    "v1_1_xxl": LATER | dict(hub="google/t5-v1_1-xxl"),
    "flan_small": FLAN | dict(hub="google/flan-t5-small"),
    "flan_base": FLAN | dict(hub="google/flan-t5-base"),
    "flan_large": FLAN | dict(hub="google/flan-t5-large"),
    "flan_xl": FLAN | SHARDS | dict(hub="google/flan-t5-xl"),
    "flan_xxl": FLAN | SHARDS | dict(hub="google/flan-t5-xxl"),
}


def _side(theirs: str, ours: str, near: str, norm: str, feed: int) -> list[Rule]:
    """The layers of the encoder or the decoder; feed: which of a layer's steps that is."""
    block, own = f"{theirs}.block.{{i}}.layer", f"{ours}.blocks.{{i}}"
    return [
        Rename(f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{near}.table.weight"),
        Join([f"{block}.0.SelfAttention.{n}.weight" for n in "qkv"], f"{own}.mix.f.qkv.weight"),
        Rename(f"{block}.0.SelfAttention.o.weight", f"{own}.mix.f.out.weight"),
        Rename(f"{block}.0.layer_norm.weight", f"{own}.mix.norm.weight"),
        Join([f"{block}.{feed}.DenseReluDense.wi_{n}.weight" for n in "01"], f"{own}.feed.f.up.weight"),
        Rename(f"{block}.{feed}.DenseReluDense.wi.weight", f"{own}.feed.f.up.weight"),
        Rename(f"{block}.{feed}.DenseReluDense.wo.weight", f"{own}.feed.f.down.weight"),
        Rename(f"{block}.{feed}.layer_norm.weight", f"{own}.feed.norm.weight"),
        Rename(f"{theirs}.final_layer_norm.weight", f"{norm}.weight"),
    ]


LOOK, OURS = "decoder.block.{i}.layer.1", "stack.blocks.{i}"
BODY = [
    *_side("encoder", "reader", "near_read", "norm_read", 1),
    *_side("decoder", "stack", "near_written", "norm", 2),
    Rename(f"{LOOK}.EncDecAttention.q.weight", f"{OURS}.cross.f.q.weight"),
    Join([f"{LOOK}.EncDecAttention.{n}.weight" for n in "kv"], f"{OURS}.cross.f.kv.weight"),
    Rename(f"{LOOK}.EncDecAttention.o.weight", f"{OURS}.cross.f.out.weight"),
    Rename(f"{LOOK}.layer_norm.weight", f"{OURS}.cross.norm.weight"),
    Drop("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"),  # in old files, of no use
]
COPIES = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
TABLE = [
    Tied([*COPIES, "shared.weight"], "words.table.weight"),
    Rename("shared.weight", "words.table.weight"),
]
RULES = {
    "transformers": [*TABLE, *BODY, Rename("lm_head.weight", "head.weight")],
    "transformers_tied": [Tied(["lm_head.weight", *COPIES, "shared.weight"], "words.table.weight"), *TABLE, *BODY],
}
