"""Mixture-of-Transformers: A Sparse and Scalable Architecture for Multi-Modal Foundation Models. Liang, Yu, Luo, Iyer,
Dong, Zhou, Ghosh, Lewis, Yih, Zettlemoyer, Lin, 2024. arXiv:2411.04996.

New here: a transformer of which every weight but those of the embeddings exists once per modality: projections into the
attention and out of it, feed-forward steps, norms. A token goes through those of its own, which is known and not
learned, and one attention is among all tokens. So a token costs what it costs in a dense transformer, and no modality
writes over what another has learned.

Differs: the paper trains on sequences of discrete tokens or on image latents, in which each token sees those before it;
here pictures, sounds and columns become tokens as in `meta_transformer`, each slot a modality, every token sees all
real ones, and the answer is the mean of them. Readers say where a token stands, and queries are not turned. Of all rows
of a batch the same places are of one modality, in runs, and a modality may have several. Norms stand behind the steps,
x + norm(f(x)), as in the official code. Sizes are those of the paper by width, depth and heads (vocabularies of 65,536
words, or 32,000 where images are latents: 163M, 760M, 1.4B), but the official code publishes two modules and no
configuration.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from plait.core.block import Attention, Pre, Stack
from plait.core.tokens import Tokens, by_kind, join, mean, together
from plait.core.weights import Join, Rename
from plait.parts.mixers.gated import GatedFeedForward
from plait.parts.presence import fill_absent, masked
from plait.parts.tokenizers.readers import tokenizer
from plait.parts.towers.multiway import Expert, Multiway

Norm = partial(nn.RMSNorm, eps=1e-5)


def expert(width: int, heads: int, hidden: int, qk_norm: bool) -> Expert:
    """One modality's weights of a layer: x + norm(f(x)) twice, no biases."""
    mix = Attention(width, heads, qkv_bias=False, out_bias=False, qk_norm=Norm if qk_norm else None)
    feed = Pre(nn.Identity(), GatedFeedForward(width, hidden, bias=False), Norm(width))
    return Expert(mix, feed, after=Norm(width))


class MixtureOfTransformers(nn.Module):
    """A batch of any modalities, in one sequence -> one vector that has read them all.

    slots: as in `MetaTransformer`, in the order of reading; each has weights of its own. hidden: the feed-forward's
    width. qk_norm: each head's queries and keys are normed.
    """

    fits = ("slots",)

    def __init__(self, *, slots, patch=16, width, depth, heads, hidden, qk_norm=False):
        super().__init__()
        self.takes, self.width, self.part_widths = tuple(slots), width, {}
        made = {slot: tokenizer(width, patch, spec) for slot, spec in slots.items()}
        self.blanks = {slot: blank for slot, (_, blank) in made.items()}
        self.slots = nn.ModuleDict({slot: reader for slot, (reader, _) in made.items()})
        self.stack = Stack(
            *(Multiway({slot: expert(width, heads, hidden, qk_norm) for slot in slots}) for _ in range(depth))
        )
        self.norms = nn.ModuleDict({slot: Norm(width) for slot in slots})

    def read(self, batch: dict) -> Tokens:
        """Tokens (B, N, D) of all slots after one another, normed; those of absent slots are there, and not real."""
        s, streams = fill_absent(batch, self.blanks), []
        for slot, reader in self.slots.items():
            t = reader(s.values[slot], s.keep.get(slot))
            streams.append(Tokens(t.x, masked(t.keep, s.present[slot], t.x.shape[1])))
        t = self.stack(join(*streams, kinds=self.takes))
        return t.replace(x=together({slot: self.norms[slot](part.x) for slot, part in by_kind(t).items()}, t.kinds))

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, D), "parts": {}, "losses": {name: ()}}: the modalities meet in the first layer, so that none
        has a vector of its own."""
        t = self.read(batch)
        return {"fused": mean(t), "parts": {}, "losses": t.losses or {}}

    def forward(self, batch: dict) -> dict:
        return self.fuse(batch)


MODEL = MixtureOfTransformers
TAKES = ("image", "text", "audio", "number", "category", "vector")
ROLES = ("fuser",)
DEFAULT = "nano"
TOY_SLOTS = {
    "number": dict(kind="number", features=4),
    "category": dict(kind="category", sizes=(5, 5, 5)),
    "vector": dict(kind="vector", features=6),
    "image": dict(kind="image", size=(32, 32)),
    "audio": dict(kind="audio", rate=8000),
    "text": dict(kind="text", vocab=64),
}
SLOTS = {
    "image": dict(kind="image", size=(256, 256)),
    "audio": dict(kind="audio", rate=16000),
    "text": dict(kind="text", vocab=65536),
}
LATENT = SLOTS | {"text": dict(kind="text", vocab=32000)}
SIZES = {
    "toy": dict(slots=TOY_SLOTS, patch=8, width=32, depth=1, heads=2, hidden=64, qk_norm=True),
    "nano": dict(slots=TOY_SLOTS, patch=8, width=128, depth=4, heads=4, hidden=384),
    "37m": dict(slots=SLOTS, width=256, depth=4, heads=8, hidden=768),
    "94m": dict(slots=SLOTS, width=512, depth=8, heads=8, hidden=1536),
    "163m": dict(slots=LATENT, width=768, depth=16, heads=12, hidden=2048),
    "443m": dict(slots=SLOTS, width=1024, depth=24, heads=16, hidden=2816),
    "760m": dict(slots=LATENT, width=1536, depth=24, heads=24, hidden=4096),
    "880m": dict(slots=SLOTS, width=1536, depth=24, heads=24, hidden=4096),
    "1_4b": dict(slots=LATENT, width=2048, depth=24, heads=16, hidden=5632),
    "1_5b": dict(slots=SLOTS, width=2048, depth=24, heads=16, hidden=5632),
    "7b": dict(slots=SLOTS, width=4096, depth=32, heads=32, hidden=11008),
}
WEIGHTS = {}
NUMBERED = ("text", "image", "audio", "number", "category", "vector")  # the official code's modalities, and then ours
THEIRS, OURS = "layers.{i}.", "stack.blocks.{i}.experts."
ATTENTION, FEED = THEIRS + "attention.local_experts_", THEIRS + "feed_forward.local_experts"
RULES = {
    "official": [  # the layers; nobody published the rest, which keeps our names
        rule
        for k, slot in enumerate(NUMBERED)
        for rule in (
            Join([f"{ATTENTION}w{n}.{k}.weight" for n in "qkv"], f"{OURS}{slot}.mix.qkv.weight"),
            Rename(f"{ATTENTION}q_normalization.{k}.weight", f"{OURS}{slot}.mix.q_norm.weight"),
            Rename(f"{ATTENTION}k_normalization.{k}.weight", f"{OURS}{slot}.mix.k_norm.weight"),
            Rename(f"{ATTENTION}wo.{k}.weight", f"{OURS}{slot}.mix.out.weight"),
            Rename(f"{ATTENTION}attention_norm.{k}.weight", f"{OURS}{slot}.after.weight"),
            Join([f"{FEED}.{k}.w{n}.weight" for n in "13"], f"{OURS}{slot}.feed.f.up.weight"),
            Rename(f"{FEED}.{k}.w2.weight", f"{OURS}{slot}.feed.f.down.weight"),
            Rename(f"{FEED}_ffn_norm.{k}.weight", f"{OURS}{slot}.feed.after.weight"),
        )
    ]
    + [Rename("slots.{rest*}", "slots.{rest*}"), Rename("norms.{rest*}", "norms.{rest*}")]
}
