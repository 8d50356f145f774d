"""Zorro: the masked multimodal transformer. Recasens, Lin, Carreira, Jaegle, Wang, Alayrac, Luc, Miech, Smaira,
Hemsley, Zisserman, 2023. arXiv:2301.09595.

New here: one transformer reads all modalities at once, and each stays pure. A modality's tokens attend to their own
alone, a few learned fusion tokens to everything. So one pass gives a vector of each modality that knows nothing of the
others, fit to be contrasted with theirs, and one that has read them all; a modality alone reads as it does in company.
Vectors are read by a learned query for each stream, which sees that stream alone.

Differs: pictures, texts and columns stand beside sounds, each read as in `meta_transformer`; a video's frames are not
read. The mask is never made: each modality attends by itself, then the fusion tokens attend to all, which is the same
and costs less. The contrast's temperature is learned, as in CLIP. "base" is the ViT-B/16 of the paper, which came
without code and weights: its eps is ViT's, the number of its fusion tokens that of the public code (zorro-pytorch, not
the authors'). "geglu_512" has that code's gated layers without biases. There the readouts of single modalities are the
mean of all tokens, since `a | b == c` is `(a | b) == c`; here they see their own.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Attention, FeedForward, Make, Stack, check_heads, merge_heads, split_heads
from plait.core.tokens import Tokens, by_kind, join, real, refuse
from plait.core.weights import Drop, Join, Rename, Rule
from plait.errors import PlaitError
from plait.parts.mixers.gated import GatedFeedForward
from plait.parts.objectives.contrastive import contrastive
from plait.parts.positions.learned import Learned
from plait.parts.presence import fill_absent, masked, visible
from plait.parts.tokenizers.readers import tokenizer
from plait.parts.towers.encoder import pre_norm_blocks

FUSION = "fusion"  # the last stream


class StreamAttention(Attention):
    """Tokens (B, N, D), whose `kinds` say of which stream each is -> the same: streams attend to themselves, the last
    one, of fusion tokens, to all that the context's "seen" (B, N) lets it see."""

    reads = ("seen",)
    refuses = ("memory", "weight", "lengths")

    def __init__(self, width: int, heads: int, *, bias: bool = True):
        super().__init__(width, heads, qkv_bias=bias, out_bias=bias)
        self.meet = Attend(cross=True)

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, *self.refuses, why="its streams are told apart by where their tokens stand")
        if t.context is not None and "allow" in t.context:
            raise PlaitError('got an "allow" in the context, expected none: who attends to whom follows from `kinds`')
        streams, asked = list(by_kind(t).values()), self.project(t)
        counts = [s.x.shape[1] for s in streams]
        *alone, (fusion, q, _, _) = zip(streams, *(x.split(counts, 2) for x in asked))
        said = [self.attend(s, *heads) for s, *heads in alone]
        said += [self.meet(fusion, q, *asked[1:], to=Tokens(t.x, keep=real(t) & t.read("seen")))]
        return self.merge(t.replace(x=torch.cat([y.x for y in said], 2)).with_losses(*said))


class ReadOut(nn.Module):
    """Tokens (B, N, D) of S streams, as their `kinds` say -> Tokens (B, S, D): a learned query for each stream, and
    what it found there: nothing in a stream without a real token."""

    def __init__(self, width: int, heads: int, streams: int, *, norm: Make, bias: bool):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.queries = heads, nn.Parameter(torch.empty(streams, width))
        self.norm, self.attend = norm(width), Attend(cross=True)
        self.q, self.kv = nn.Linear(width, width, bias=bias), nn.Linear(width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def reset(self) -> None:
        nn.init.trunc_normal_(self.queries, std=0.02)

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "memory", "weight", "lengths", why="its streams are told apart by where their tokens stand")
        streams = list(by_kind(t).values())
        queries = self.queries.expand(t.x.shape[0], -1, -1)  # (B, S, D)
        (q,) = split_heads(self.q(self.norm(queries)), 1, self.heads)
        pairs = zip(*(x.split([s.x.shape[1] for s in streams], 2) for x in split_heads(self.kv(t.x), 2, self.heads)))
        asks = zip(queries.split(1, 1), q.split(1, 2), pairs, streams)
        said = [self.attend(Tokens(x), ask, *pair, to=s) for x, ask, pair, s in asks]
        found = self.out(merge_heads(torch.cat([y.x for y in said], 2)))
        return t.inside(queries + found).with_losses(*said)


class FusionTokens(Learned):
    """Small at first, as a ViT's class token."""

    def reset(self) -> None:
        nn.init.trunc_normal_(self.table, std=0.02)


class Zorro(nn.Module):
    """A batch of any modalities -> a vector of each that has read nothing else, and one that has read them all.

    slots: as in `MetaTransformer`. fusion: how many fusion tokens. embed: E, of the vectors that are contrasted.
    gated: layers as in the public code: gated, without biases.
    """

    fits = ("slots",)

    def __init__(self, *, slots, patch=16, width=768, depth=12, heads=12, fusion=16, embed=512, gated=False):
        super().__init__()
        self.takes, self.width, self.embed_width = tuple(slots), width, embed
        self.part_widths, streams = dict.fromkeys(slots, width), (*slots, FUSION)
        made = {slot: tokenizer(width, patch, spec) for slot, spec in slots.items()}
        self.blanks = {slot: blank for slot, (_, blank) in made.items()}
        self.slots = nn.ModuleDict({slot: reader for slot, (reader, _) in made.items()})
        self.fusion = FusionTokens(fusion, width)
        norm = partial(nn.LayerNorm, eps=1e-5, bias=False) if gated else partial(nn.LayerNorm, eps=1e-6)
        feed = partial(GatedFeedForward, act=nn.GELU, bias=False) if gated else FeedForward
        how = dict(norm=norm, mix=partial(StreamAttention, bias=not gated), feed=feed)
        hidden = 8 * width // 3 if gated else 4 * width
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, hidden, **how), gives=("seen",))
        self.norm, self.read_out = norm(width), ReadOut(width, heads, len(streams), norm=norm, bias=not gated)
        self.project = nn.ModuleDict({name: nn.Linear(width, embed, bias=False) for name in streams})
        self.logit_scale = nn.Parameter(torch.empty(1))

    def reset(self) -> None:
        nn.init.constant_(self.logit_scale, math.log(1 / 0.07))

    def mingle(self, streams: dict[str, Tokens], seen: dict[str, Tensor]) -> Tokens:
        """{slot: (B, N, D)} -> all their tokens after the layers, the fusion tokens behind them, normed. seen {slot:
        (B,) bool}: which streams the fusion tokens may see."""
        rows = next(iter(streams.values())).x.shape[0]
        t = join(*streams.values(), Tokens(self.fusion().expand(rows, -1, -1)), kinds=(*streams, FUSION))
        may = [masked(None, seen[slot], s.x.shape[1]) for slot, s in streams.items()]
        may.append(may[0].new_ones(rows, len(self.fusion.table)))
        t = self.stack(t.reading(seen=torch.cat(may, 1)))
        return t.replace(x=self.norm(t.x), context=None)

    def read(self, batch: dict) -> tuple[Tokens, dict[str, Tensor]]:
        """Tokens (B, S + 1, D), a vector of each slot and then that of the fusion, and {slot: (B,)} what is present."""
        s, streams = fill_absent(batch, self.blanks), {}
        for slot, reader in self.slots.items():
            t = reader(s.values[slot], s.keep.get(slot))
            streams[slot] = Tokens(t.x, masked(t.keep, s.present[slot], t.x.shape[1]))
        return self.read_out(self.mingle(streams, visible(batch, s.present))), s.present

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, D), "parts": {slot: (B, D)}, "vectors": {slot: (B, E) unit vectors}, "losses": {name: ()}}; an
        absent slot's part and vector are zeros."""
        t, present = self.read(batch)
        *own, fused = t.x.unbind(1)
        parts = {slot: x * present[slot][:, None] for slot, x in zip(self.takes, own)}
        vectors = {slot: F.normalize(self.project[slot](x), dim=-1) for slot, x in parts.items()}
        return {"fused": fused, "parts": parts, "vectors": vectors, "losses": t.losses or {}}

    def embed(self, batch: dict) -> dict[str, Tensor]:
        """{slot: (B, E) unit vectors}, each of its slot alone; zeros where it is absent."""
        return self.fuse(batch)["vectors"]

    def forward(self, batch: dict) -> dict:
        """What `fuse` gives; fusion (B, E), the unit vector of what is fused, and logit_scale (1,)."""
        out = self.fuse(batch)
        vector = F.normalize(self.project[FUSION](out["fused"]), dim=-1)
        return out | {FUSION: vector, "logit_scale": self.logit_scale}


def objective(model: Zorro, batch: dict, state: None, generator: torch.Generator) -> dict[str, Tensor]:
    """{"A_B": ()} of each two streams: those that belong together find each other in the batch, of slots and, as the
    paper has it, of each slot and the fusion. batch may hold "same" (B,) int64, the group of each row."""
    out = model(batch)
    there, vectors = fill_absent(batch, model.blanks).present, out["vectors"] | {FUSION: out[FUSION]}
    group = batch.get("same", batch.get("row"))
    same = None if group is None else group[:, None] == group
    losses = dict(out["losses"])
    for a, b in combinations(vectors, 2):
        both = there[a] if b == FUSION else there[a] & there[b]
        found = contrastive(vectors[a], vectors[b], model.logit_scale, same, both)
        losses[f"{a}_{b}"] = found["contrastive"]
    return losses


MODEL = Zorro
TAKES = ("image", "text", "audio", "number", "category", "vector")
ROLES = ("fuser", "embedder")
DEFAULT = "nano"
TOY_SLOTS = {
    "image": dict(kind="image", size=(32, 32)),
    "text": dict(kind="text", vocab=64),
    "audio": dict(kind="audio", rate=8000),
    "number": dict(kind="number", features=4),
    "category": dict(kind="category", sizes=(5, 5, 5)),
    "vector": dict(kind="vector", features=6),
}
SLOTS = {
    "audio": dict(kind="audio", rate=16000),
    "image": dict(kind="image", size=(224, 224)),
}
SIZES = {
    "toy": dict(slots=TOY_SLOTS, patch=8, width=32, depth=2, heads=2, fusion=3, embed=16),
    "nano": dict(slots=TOY_SLOTS, patch=8, width=192, depth=6, heads=3, fusion=8, embed=128),
    "base": dict(slots=SLOTS),
    "geglu_512": dict(slots=SLOTS, width=512, depth=6, heads=8, gated=True),
}
WEIGHTS = {}


def _turned(tensors: list[Tensor]) -> list[Tensor]:
    """The halves of a gated layer the other way round: there the second one opens the first."""
    return [torch.cat(tensors[0].chunk(2)[::-1])]


THEIRS, OURS = "layers.{i}", "stack.blocks.{i}"
NORMS = {
    f"{THEIRS}.0.norm": f"{OURS}.mix.norm",
    f"{THEIRS}.1.0": f"{OURS}.feed.norm",
    "norm": "norm",
    "attn_pool.norm": "read_out.norm",
}
RULES = {
    "zorro_pytorch": [  # what makes tokens, and heads, keep our names
        *(Rename(f"{a}.gamma", f"{b}.weight") for a, b in NORMS.items()),
        *(Rename(f"{a}.bias", f"{b}.bias") for a, b in NORMS.items()),  # of ours that are not gated
        *(Drop(f"{a}.beta") for a in NORMS),  # zeros, which are not learned
        Join([f"{THEIRS}.0.to_q.{{p}}", f"{THEIRS}.0.to_kv.{{p}}"], f"{OURS}.mix.f.qkv.{{p}}", (1, 2)),
        Rename(f"{THEIRS}.0.to_out.{{p}}", f"{OURS}.mix.f.out.{{p}}"),
        Rule((f"{THEIRS}.1.1.{{p}}",), (f"{OURS}.feed.f.up.{{p}}",), _turned, _turned),
        Rename(f"{THEIRS}.1.3.{{p}}", f"{OURS}.feed.f.down.{{p}}"),
        Rename("fusion_tokens", "fusion.table"),
        Rename("return_tokens", "read_out.queries"),
        Rename("attn_pool.to_q.{p}", "read_out.q.{p}"),
        Rename("attn_pool.to_kv.{p}", "read_out.kv.{p}"),
        Rename("attn_pool.to_out.{p}", "read_out.out.{p}"),
        *(Rename(name, name) for name in ("slots.{rest*}", "project.{slot}.weight", "logit_scale")),
    ],
}
