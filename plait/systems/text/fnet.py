"""FNet: Mixing Tokens with Fourier Transforms. Lee-Thorp, Ainslie, Eckstein, Ontanon, 2021. arXiv:2105.03824.

New here: BERT with the attention replaced by the real part of a Fourier transform over the tokens and over the
channels. Nothing in it is learned: the feed-forward steps do all the work, and most of BERT's accuracy stays.

Differs: padding. The authors transform it with the text, so that an answer depends on how long the batch is. Here,
where `keep` is given, each row is transformed at its own length, by the matrices of the transform, and reads as if it
stood alone; without `keep` the fast transform is taken. The heads of pre-training are left out.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Block, FeedForward, Post, Stack
from plait.core.precision import wide
from plait.core.tokens import Tokens, quiet, refuse
from plait.core.weights import Drop, Rename, under
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.layouts import bert_input

Norm = partial(nn.LayerNorm, eps=1e-12)
TanhGELU = partial(nn.GELU, approximate="tanh")


class Fourier(nn.Module):
    """The mixer: the real part of the transform over tokens and channels, Tokens (B, N, D) -> Tokens (B, N, D).

    The context's "waves" are as `row_waves` gives them, for rows with padding; None: all tokens are real.
    """

    reads = ("waves",)

    def forward(self, t: Tokens) -> Tokens:
        waves = t.read("waves")
        refuse(t, "weight", "lengths", *["keep"] * (waves is None), why="a transform reads every token alike, once")
        with torch.autocast(t.x.device.type, enabled=False):  # half precision has no transform
            if waves is None:
                return t.replace(x=real_transform(wide(t.x)).to(t.x.dtype))
            cos, sin = waves
            parts = torch.fft.fft(wide(quiet(t)), dim=2)
            cos, sin = cos.to(parts.real.dtype), sin.to(parts.real.dtype)
            return t.replace(x=(cos @ parts.real + sin @ parts.imag).to(t.x.dtype))


def real_transform(x: Tensor) -> Tensor:
    """The real part of the two-dimensional transform of real x (B, N, D), from the half of it that says all."""
    half = torch.fft.fft(torch.fft.rfft(x, dim=2), dim=1).real  # (B, N, D // 2 + 1)
    mirrored = half[:, :, 1 : (x.shape[2] + 1) // 2].flip(1, 2).roll(1, 1)  # at (n, D - d) stands what is at (-n, d)
    return torch.cat([half, mirrored], 2)


def row_waves(keep: Tensor) -> tuple[Tensor, Tensor]:
    """keep (B, N) -> cos and sin (B, N, N) of 2 pi j k / n over each row's n real tokens, counted from 0; else zero."""
    place, count = (keep.cumsum(1) - 1).clamp(min=0), keep.sum(1).clamp(min=1)[:, None, None]
    turns = (place[:, :, None] * place[:, None]) % count  # exact, where an angle of thousands of turns would not be
    angle, real = turns * (2 * math.pi) / count, keep[:, :, None] & keep[:, None]
    return angle.cos() * real, angle.sin() * real


class FNet(nn.Module):
    """Token ids (B, N) -> logits (B, K), or the pooled features (B, D) with `num_classes=0`, as it is published.

    vocab: number of word pieces. length: the longest text. kinds: number of segments.
    """

    takes = ("text",)
    fits = ("vocab",)
    classifier = ("head.",)
    beyond = ("pooler", "head")
    attends = False

    def __init__(self, *, vocab=32000, length=512, kinds=4, width, depth, num_classes=0, dropout=0.1):
        super().__init__()
        self.width = width
        self.text_embedding = TextEmbedding(vocab, length, width, Norm, kinds=kinds)
        self.project, self.drop = nn.Linear(width, width), nn.Dropout(dropout)

        def layer() -> Block:
            feed = FeedForward(width, 4 * width, act=TanhGELU)
            return Block(Post(Norm(width), Fourier()), Post(Norm(width), feed, nn.Dropout(dropout)))

        self.stack = Stack(*(layer() for _ in range(depth)), gives=("waves",))
        self.pooler = nn.Linear(width, width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def tokens(self, ids: Tensor, keep: Tensor | None = None, kinds: Tensor | None = None) -> Tokens:
        """ids (B, N) int64, keep (B, N) bool (None: all real), kinds (B, N) int64 segments (None: all the first) ->
        Tokens (B, N, D)."""
        t = self.text_embedding(ids, keep, kinds)
        t = t.replace(x=self.drop(self.project(t.x))).reading(waves=None if keep is None else row_waves(keep))
        return self.stack(t).replace(context=None)

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the first token through the pooler."""
        return self.pooler(t.x[:, 0]).tanh()

    def forward(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.head(self.pool(self.tokens(ids, keep)))


MODEL = FNet
TAKES = ("text",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(vocab=64, length=16, width=32, depth=2, num_classes=10),
    "nano": dict(vocab=8192, length=256, width=192, depth=4),
    "base": dict(width=768, depth=12),
    "large": dict(width=1024, depth=24),
}
GOOGLE = dict(source="transformers_pretraining", licence="apache-2.0", begin=4, end=5, transformers=True)
WEIGHTS = {
    "base": GOOGLE | dict(hub="google/fnet-base"),
    "large": GOOGLE | dict(hub="google/fnet-large"),
}
LAYER, OURS = "encoder.layer.{i}", "stack.blocks.{i}"
ENCODER = [
    *bert_input("embeddings"),
    Rename("embeddings.projection.{p}", "project.{p}"),
    Rename(f"{LAYER}.fourier.output.LayerNorm.{{p}}", f"{OURS}.mix.norm.{{p}}"),
    Rename(f"{LAYER}.intermediate.dense.{{p}}", f"{OURS}.feed.f.up.{{p}}"),
    Rename(f"{LAYER}.output.dense.{{p}}", f"{OURS}.feed.f.down.{{p}}"),
    Rename(f"{LAYER}.output.LayerNorm.{{p}}", f"{OURS}.feed.norm.{{p}}"),
    Rename("pooler.dense.{p}", "pooler.{p}"),
]
HEAD = Rename("head.{p}", "head.{p}")  # ours alone
RULES = {
    "transformers": [*ENCODER, HEAD],
    "transformers_pretraining": [*under(ENCODER, "fnet."), HEAD, Drop("cls.{rest*}")],
}
