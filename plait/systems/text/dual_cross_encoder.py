"""Dual-Cross-Encoder: Learning Diverse Document Representations with Deep Query Interactions for Dense Retrieval.
Li, Yang, Wang, Wei, 2022. arXiv:2208.04232.

New here: a text that answers is read behind a question that it might be asked, so that both meet in every layer, once
for each of several questions. Each reading leaves a vector; the best of them is the text's score. All of this is done
beforehand: a search reads the question alone, among so many times the vectors. In training a text is read behind the
question that it answers, and others behind the same question are wrong.

Differs: nobody writes questions here. Those that are known go to `store`; in a table a text's own words stand in their
place, a few after another from `views` places. Wrong texts are others of the batch and not mined; one encoder reads
both sides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.tokens import Tokens, real
from plait.errors import PlaitError
from plait.parts.objectives.late import Late, kept
from plait.parts.presence import fill_absent
from plait.parts.towers.sentences import Sentences, bare, cls, joined, reach

PIECE = 8  # words that stand in the place of a question
WRONG = 3  # texts of the batch that each question is also read with


class DualCrossEncoder(Sentences):
    """Token ids (B, N) -> what is kept of a text, a unit vector (B, V D) of V ones.

    tower: the encoder. slots: names of the inputs that it reads, each with its kind, if they are not one text; of
    several the first asks. views: V. scale: the factor of a cosine, in training.
    """

    def __init__(self, *, tower, slots=None, views=4, scale=20.0):
        super().__init__(slots, scale)
        self.tower, self.late = bare(tower), Late(views)
        self.embed_width = views * tower.width

    def tokens(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        return self.tower.tokens(ids, keep)

    def pool(self, t: Tokens) -> Tensor:
        """(B, V D): one vector, repeated."""
        return kept(cls(t)[:, None], self.late.views)

    def view(self, asks: Tensor, keep: Tensor, text: Tensor, keeps: Tensor) -> Tensor:
        """Texts (B, M) behind a question each (B, N), ids with their masks -> (B, D). What is too long is cut; behind
        an empty question a text is read as it is."""
        ids, there, _ = joined(asks, keep, text, keeps, reach(self.tower))
        return cls(self.tokens(ids, there))

    def store(self, asks: Tensor, keep: Tensor, text: Tensor, keeps: Tensor) -> Tensor:
        """Texts (B, M) behind V questions each (B, V, N) -> what is kept (B, V D)."""
        if asks.shape[1] != self.late.views:
            raise PlaitError(f"got {asks.shape[1]} questions a text, expected {self.late.views}: leave some empty")
        v = asks.shape[1]
        text, keeps = text.repeat_interleave(v, 0), keeps.repeat_interleave(v, 0)
        found = self.view(asks.flatten(0, 1), keep.flatten(0, 1), text, keeps)
        return kept(found.unflatten(0, (-1, v)), v)

    def embed(self, batch: dict) -> dict[str, Tensor]:
        """{slot: (B, V D)} unit vectors, of the slot that asks one repeated; zeros in rows where the text is absent."""
        s = fill_absent(batch, self.blanks)
        asks = self.takes[0] if len(self.takes) > 1 else None
        out = {}
        for n in self.takes:
            ids, keep = s.values[n], s.mask(n)
            found = self(ids, keep) if n == asks else self.store(*pieces(ids, keep, self.late.views), ids, keep)
            out[n] = found * s.present[n][:, None]
        return out


def pieces(ids: Tensor, keep: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """Of texts (B, M), which have a beginning and an end, so many pieces of a few words between these, evenly spread:
    ids and masks (B, V, N). Words of none, where a text has none."""
    t, at = Tokens(ids[..., None], keep=keep), torch.arange(PIECE, device=ids.device)
    count = real(t).sum(1)[:, None]  # (B, 1)
    room = (count - 2 - PIECE).clamp(min=0)
    starts = 1 + room * torch.arange(views, device=ids.device) // max(views - 1, 1)  # (B, V)
    where = starts[..., None] + at
    there = where < count[..., None] - 1
    body = ids.gather(1, where.clamp(max=ids.shape[1] - 1).flatten(1)).view_as(where)
    edges = [ids.gather(1, i.clamp(min=0))[:, None].expand(-1, views, -1) for i in (0 * count, count - 1)]
    full = torch.cat([edges[0], body, edges[1]], 2)
    some = there.any(2, keepdim=True)
    there = torch.cat([some, there, some], 2)
    return full.masked_fill(~there, 0), there


def objective(
    model: DualCrossEncoder, batch: dict, state: nn.Module | None, generator: torch.Generator
) -> dict[str, Tensor]:
    """{"views": ()}: each question looks for its own text behind itself, among the batch's texts behind their own
    questions, and some of these behind this one.

    batch may hold "same" (B,) int64, groups of rows that a chain of pairs joins: none of a group is wrong for another.
    """
    s = fill_absent(batch, model.blanks)
    asks, says = model.takes[:2]
    (q, keep), (text, keeps) = ((s.values[n], s.mask(n)) for n in (asks, says))
    rows = len(q)
    whole = s.present[asks] & s.present[says]
    group = batch.get("same", torch.arange(rows, device=q.device))
    asked = F.normalize(cls(model.tokens(q, keep)), dim=-1)
    own = F.normalize(model.view(q, keep, text, keeps), dim=-1)
    wrong = (group[:, None] != group) & whole
    scores = [(asked @ own.mT).masked_fill(~(wrong | torch.eye(rows, dtype=torch.bool, device=q.device)), -torch.inf)]
    for step in range(1, min(WRONG, rows - 1) + 1):
        other = F.normalize(model.view(q, keep, text.roll(step, 0), keeps.roll(step, 0)), dim=-1)
        fits = (group != group.roll(step)) & whole.roll(step)
        scores.append((asked * other).sum(1).masked_fill(~fits, -torch.inf)[:, None])
    logits = model.logit_scale.float().exp() * torch.cat(scores, 1).float()
    loss = F.cross_entropy(logits, torch.arange(rows, device=q.device), reduction="none")
    return {"views": torch.where(whole, loss, 0.0).sum() / whole.sum().clamp(min=1)}


MODEL = DualCrossEncoder
TAKES = ("text",)
ROLES = ("embedder",)
PARTS = {"tower": ("vocab", "length", "depth")}
DEFAULT = "nano"
SIZES = {
    "toy": dict(tower="bert_toy", views=2),
    "nano": dict(tower="bert_nano"),
    "base": dict(tower="bert_base_uncased", views=10),
}
WEIGHTS = {}
