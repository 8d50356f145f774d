"""ME-BERT: Sparse, Dense, and Attentional Representations for Text Retrieval. Luan, Eisenstein, Toutanova, Collins,
2020. arXiv:2005.00181.

New here: how long a vector must be grows with the length of the texts that it stands for. So a text that answers is
kept as the vectors of its first `views` tokens, one that asks as that of its first alone, and the best pair is their
score: a search among so many times the vectors, and nothing more.

Differs: vectors have length one, and both sides are read by one encoder. Words are not counted beside them: a sparse
score is not added.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.tokens import Tokens, real
from plait.parts.objectives.late import Late, kept
from plait.parts.presence import fill_absent
from plait.parts.towers.sentences import Sentences, bare


def first(t: Tokens, count: int) -> Tensor:
    """(B, count, D): the first real tokens of each row; where it has fewer, the first one again."""
    there, which = real(t), torch.arange(count, device=t.x.device)
    picked = there[:, None] & (there.cumsum(1)[:, None] == which[:, None] + 1)  # (B, count, N)
    x = picked.to(t.x.dtype) @ t.x.masked_fill(~there[..., None], 0.0)
    return torch.where(picked.any(2, keepdim=True), x, x[:, :1])


class MEBERT(Sentences):
    """Token ids (B, N) -> what is kept of a text that answers, a unit vector (B, V E) of V ones.

    tower: the encoder. slots: names of the inputs that it reads, each with its kind, if they are not one text; of
    several the first asks. views: V. project: E, where a layer stands behind the tower. scale: the factor of a cosine,
    in training.
    """

    def __init__(self, *, tower, slots=None, views=8, project=None, scale=20.0):
        super().__init__(slots, scale)
        self.tower, self.late = bare(tower), Late(views)
        self.embed_width = views * (project or tower.width)
        self.project = nn.Linear(tower.width, project) if project else None

    def tokens(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        return self.tower.tokens(ids, keep)

    def pool(self, t: Tokens, count: int | None = None) -> Tensor:
        """(B, V E): of the first `count` tokens, V unless given."""
        x = first(t, count or self.late.views)
        return kept(x if self.project is None else self.project(x), self.late.views)

    def embed(self, batch: dict) -> dict[str, Tensor]:
        """{slot: (B, V E)} unit vectors, of the slot that asks one of E repeated; zeros in rows where the text is
        absent."""
        s = fill_absent(batch, self.blanks)
        asks = self.takes[0] if len(self.takes) > 1 else None
        read = {slot: self.tokens(s.values[slot], s.mask(slot)) for slot in self.takes}
        return {n: self.pool(t, 1 if n == asks else None) * s.present[n][:, None] for n, t in read.items()}


MODEL = MEBERT
TAKES = ("text",)
ROLES = ("embedder",)
PARTS = {"tower": ("vocab", "length", "depth")}
DEFAULT = "nano"
SIZES = {
    "toy": dict(tower="bert_toy", project=16, views=3),
    "nano": dict(tower="bert_nano"),
    "base": dict(tower="bert_base_uncased"),
    "large": dict(tower="bert_large_uncased"),
}
WEIGHTS = {}
