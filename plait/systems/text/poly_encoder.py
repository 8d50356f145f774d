"""Poly-encoders: Transformer Architectures and Pre-training Strategies for Fast and Accurate Multi-sentence Scoring.
Humeau, Shuster, Lachaux, Weston, 2019. arXiv:1905.01969.

New here: the text that asks, a talk so far, is kept as what a few learned codes find in it; one that answers as one
vector, made beforehand. That vector weighs what the codes found before it is compared with it: something of reading
both together, at the cost of a product.

Differs: vectors have length one, so that weights and scores are told by cosines, with a factor; and both sides are read
by one encoder, where the paper has two that begin alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.tokens import Tokens
from plait.parts.objectives.late import Late, kept
from plait.parts.presence import fill_absent
from plait.parts.towers.sentences import Sentences, bare, cls


class Codes(nn.Module):
    """Tokens (B, N, D) -> (B, V, D): what each of V learned codes finds, by products that are not scaled."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(count, width))
        self.attend = Attend(cross=True)

    def reset(self) -> None:
        nn.init.uniform_(self.table)

    def forward(self, t: Tokens) -> Tensor:
        codes = self.table.to(t.x.dtype).expand(t.x.shape[0], 1, -1, -1)
        x = t.x[:, None]
        return self.attend(Tokens(codes[:, 0]), codes, x, x, to=t, scale=1.0).x[:, 0]


class PolyEncoder(Sentences):
    """Token ids (B, N) -> what is kept of a text that asks, a unit vector (B, V D) of V ones.

    tower: the encoder. slots: names of the inputs that it reads, each with its kind, if they are not one text; of
    several the first asks. codes: V. scale: the factor of a cosine, in training, and where what codes found is weighed.
    """

    def __init__(self, *, tower, slots=None, codes=16, scale=20.0):
        super().__init__(slots, scale)
        self.tower, self.late = bare(tower), Late(codes, scale)
        self.embed_width = codes * tower.width
        self.codes = Codes(codes, tower.width)

    def tokens(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        return self.tower.tokens(ids, keep)

    def pool(self, t: Tokens) -> Tensor:
        """(B, V D): what the codes find."""
        return kept(self.codes(t), self.late.views)

    def embed(self, batch: dict) -> dict[str, Tensor]:
        """{slot: (B, V D)} unit vectors, of slots that answer one of D repeated; zeros in rows where the text is
        absent."""
        s = fill_absent(batch, self.blanks)
        read = {slot: self.tokens(s.values[slot], s.mask(slot)) for slot in self.takes}
        asks, *_ = self.takes
        found = {n: self.pool(t) if n == asks else kept(cls(t)[:, None], self.late.views) for n, t in read.items()}
        return {n: x * s.present[n][:, None] for n, x in found.items()}


MODEL = PolyEncoder
TAKES = ("text",)
ROLES = ("embedder",)
PARTS = {"tower": ("vocab", "length", "depth")}
DEFAULT = "nano"
SIZES = {
    "toy": dict(tower="bert_toy", codes=3),
    "nano": dict(tower="bert_nano"),
    "base_16": dict(tower="bert_base_uncased"),
    "base_64": dict(tower="bert_base_uncased", codes=64),
    "base_360": dict(tower="bert_base_uncased", codes=360),
}
WEIGHTS = {}
