"""GTR: Large Dual Encoders Are Generalizable Retrievers. Ni, Qu, Lu, Dai, Hernandez Abrego, Ma, Zhao, Luan, Hall,
Chang, Yang, 2021. arXiv:2112.07899.

New here: questions and passages are read by one T5 encoder, whose mean goes through a linear layer into 768 numbers
however large the encoder is: what grows is the reader alone, and an index stays as large as it was. Larger readers
find more in texts of kinds that they were not trained on.

Differs: the factor of a cosine is given and not learnt. Hard negatives stand in no table here; a batch's own texts are
the negatives.
"""

from __future__ import annotations

from torch import Tensor, nn

from plait.core.tokens import Tokens, mean
from plait.core.weights import Rename, Tied, under
from plait.parts.towers.sentences import Sentences, bare
from plait.systems.text.t5 import BODY


class GTR(Sentences):
    """Token ids (B, N) -> unit vectors (B, E).

    tower: T5, of which the reader is used. slots: names of the inputs that it reads, each with its kind, if they are
    not one text. embed: E, the same for every tower. scale: the factor of a cosine, in training.
    """

    def __init__(self, *, tower, slots=None, embed=768, scale=100.0):
        super().__init__(slots, scale)
        self.tower, self.embed_width = bare(tower), embed
        self.project = nn.Linear(tower.width, embed, bias=False)

    def tokens(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        return self.tower.tokens(ids, keep)

    def pool(self, t: Tokens) -> Tensor:
        return self.project(mean(t))


MODEL = GTR
TAKES = ("text",)
ROLES = ("embedder",)
PARTS = {"tower": ("vocab", "length", "depth")}
DEFAULT = "nano"
SIZES = {
    "toy": dict(tower="t5_toy", embed=16),
    "nano": dict(tower="t5_nano", embed=192),
    "base": dict(tower="t5_base"),
    "large": dict(tower="t5_large"),
    "xl": dict(tower="t5_3b"),
    "xxl": dict(tower="t5_11b"),
}

FILE = dict(source="sentence_transformers", file="model.safetensors", transformers=True, folders=("2_Dense",))
SBERT = FILE | dict(licence="apache-2.0", max_tokens=512)
WEIGHTS = {
    "base": SBERT | dict(hub="sentence-transformers/gtr-t5-base"),
    "large": SBERT | dict(hub="sentence-transformers/gtr-t5-large"),
    "xl": SBERT | dict(hub="sentence-transformers/gtr-t5-xl"),
    "xxl": SBERT | dict(hub="sentence-transformers/gtr-t5-xxl"),
}

TABLE = "words.table.weight"
READER = [
    Tied(["encoder.embed_tokens.weight", "shared.weight"], TABLE),
    Rename("shared.weight", TABLE),
    *(rule for rule in BODY if rule.ours and rule.ours[0].startswith(("reader.", "near_read.", "norm_read."))),
]
RULES = {"sentence_transformers": [*under(READER, ours="tower."), Rename("2_Dense.linear.{p}", "project.{p}")]}
