"""ENDX: Enhancing Dual-Encoders with Question and Answer Cross-Embeddings for Answer Retrieval. Wang, Bai, Wang, Zhang,
Rong, Ji, Wang, Xiao, 2022. arXiv:2206.02978.

New here: in training a question and its answer are also read together, which leaves a vector of each that knows the
other. How near these lie to each other over a batch is what the vectors of each side alone are to have, too: not the
same places but the same geometry (GAM). Afterwards sides are read alone, as by any dual encoder.

Differs: built from the abstract. One encoder reads each side and both; the geometry is all cosines among a batch's
vectors, of questions and answers alike, and how far two geometries are apart is the mean of squared differences. A text
is the mean of its words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.tokens import Tokens, mean
from plait.parts.objectives.contrastive import contrastive
from plait.parts.presence import fill_absent
from plait.parts.towers.sentences import Sentences, bare, joined, reach


class ENDX(Sentences):
    """Token ids (B, N) -> unit vectors (B, D).

    tower: the encoder. slots: names of the inputs that it reads, each with its kind, if they are not one text. align:
    what the geometry weighs in training. scale: the factor of a cosine, in training.
    """

    def __init__(self, *, tower, slots=None, align=1.0, scale=20.0):
        super().__init__(slots, scale)
        self.tower, self.align, self.embed_width = bare(tower), align, tower.width

    def tokens(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        return self.tower.tokens(ids, keep)

    def pool(self, t: Tokens) -> Tensor:
        return mean(t)

    def crossed(self, asks: Tensor, keep: Tensor, says: Tensor, keeps: Tensor) -> tuple[Tensor, Tensor]:
        """Questions (B, N) and their answers (B, M), read together -> unit vectors (B, D) of both. What is too long is
        cut."""
        ids, there, second = joined(asks, keep, says, keeps, reach(self.tower))
        x = self.tokens(ids, there).x
        sides = (mean(Tokens(x, keep=there & ~second)), mean(Tokens(x, keep=second)))
        return F.normalize(sides[0], dim=-1), F.normalize(sides[1], dim=-1)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """() how far the geometries of two sets of unit vectors (B, D) and (B, E) are apart: 0 where all cosines agree."""
    return ((a @ a.mT) - (b @ b.mT)).square().mean()


def objective(model: ENDX, batch: dict, state: nn.Module | None, generator: torch.Generator) -> dict[str, Tensor]:
    """{"match": (), "crossed": (), "geometry": ()}: sides alone and together each find their own, and the first learn
    the geometry of the second, which learns nothing of them.

    batch may hold "same" (B,) int64, groups of rows that a chain of pairs joins.
    """
    s = fill_absent(batch, model.blanks)
    asks, says = model.takes[:2]
    whole = s.present[asks] & s.present[says]
    given = [x[whole] for n in (asks, says) for x in (s.values[n], s.mask(n))]
    group = batch["same"][whole] if "same" in batch else torch.arange(len(given[0]), device=whole.device)
    same = group[:, None] == group
    sides = [model(*given[:2]).float(), model(*given[2:]).float()]
    crossed = [x.float() for x in model.crossed(*given)]
    losses = {"match": contrastive(*sides, model.logit_scale, same)["contrastive"]}
    losses["crossed"] = contrastive(*crossed, model.logit_scale, same)["contrastive"]
    losses["geometry"] = model.align * apart(torch.cat(sides), torch.cat(crossed).detach())
    return losses


MODEL = ENDX
TAKES = ("text",)
ROLES = ("embedder",)
PARTS = {"tower": ("vocab", "length", "depth")}
DEFAULT = "nano"
SIZES = {
    "toy": dict(tower="bert_toy"),
    "nano": dict(tower="bert_nano"),
    "base": dict(tower="bert_base_uncased"),
}
WEIGHTS = {}
