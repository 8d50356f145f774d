"""Dual-Encoders for Extreme Multi-Label Classification. Gupta, Khatri, Rawat, Bhojanapalli, Jain, Dhillon, 2023.
arXiv:2310.10636.

New here: texts and the labels that they should have are read by one encoder, and many labels are right for a text.
The usual contrastive loss then sets right labels against each other. Here each stands against the wrong ones alone; or,
with `top`, the loss asks that all right ones be among so many: sigmoids of scores less a threshold, found so that they
add up to that number, say softly which are the greatest.

Differs: wrong labels are those of a batch, not all that there are or that were mined; labels that a chain of pairs
joins to a text are never taken for wrong. The factor of a cosine is given and not learnt. A text is the mean of its
words.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.tokens import Tokens, mean
from plait.parts.objectives.contrastive import same_content
from plait.parts.objectives.multilabel import asked, decoupled_softmax, soft_topk_loss
from plait.parts.towers.sentences import Sentences, bare


class DEXML(Sentences):
    """Token ids (B, N) -> unit vectors (B, D).

    tower: the encoder. slots: names of the inputs that it reads, the texts, then the labels, each with its kind, if
    they are not one text. top: among how many the right labels should be; 0: each against the wrong ones. scale: the
    factor of a cosine, in training.
    """

    def __init__(self, *, tower, slots=None, top=0, scale=20.0):
        super().__init__(slots, scale)
        self.tower, self.top = bare(tower), top
        self.embed_width = tower.width

    def tokens(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        return self.tower.tokens(ids, keep)

    def pool(self, t: Tokens) -> Tensor:
        return mean(t)


def objective(model: DEXML, batch: dict, state: nn.Module | None, generator: torch.Generator) -> dict[str, Tensor]:
    """{"labels": ()} of a batch of pairs of texts and labels: texts ask, labels answer.

    batch may hold "same" (B,) int64, groups of rows that a chain of pairs joins.
    """
    texts, labels = model.takes
    vectors = model.embed(batch)
    rows = torch.arange(len(vectors[texts]), device=vectors[texts].device)
    right, wrong = asked(same_content(batch[texts]), same_content(batch[labels]), batch.get("same", rows))
    scores = model.logit_scale.float().exp() * (vectors[texts].float() @ vectors[labels].float().mT)
    whole = batch["present"][texts] & batch["present"][labels]
    right, wrong = right & whole & whole[:, None], wrong & whole & whole[:, None]
    if model.top:
        return {"labels": soft_topk_loss(scores, right, right | wrong, model.top)}
    return {"labels": decoupled_softmax(scores, right, wrong)}


MODEL = DEXML
TAKES = ("text",)
ROLES = ("embedder",)
PARTS = {"tower": ("vocab", "length", "depth")}
DEFAULT = "nano"
SIZES = {
    "toy": dict(tower="distilbert_toy"),
    "nano": dict(tower="distilbert_nano"),
    "base": dict(tower="distilbert_base_uncased"),
    "base_top_5": dict(tower="distilbert_base_uncased", top=5),
}
WEIGHTS = {}
