"""FiE: Building a Global Probability Space by Leveraging Early Fusion in Encoder for Open-Domain Question Answering.
Kedia, Zaidi, Lee, 2022. arXiv:2211.10147.

New here: a question is read with each of many passages, and a few more tokens, which belong to none of them, see them
all; words see those beside their own passage. So passages tell each other in every layer what they hold, at a cost that
grows with their number and not with its square. Where the answer begins and ends is then told over the words of all
passages at once, and an answer that stands in several of them has what all its places have together.

Differs: the question is in front of each passage, as in BERT, whose weights for answering fit it; a place's probability
is that of its beginning times that of its end, over all that may be answers. What is fused of a row is the mean of the
shared tokens.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Attention, Stack
from plait.core.precision import wide
from plait.core.tokens import Tokens, mean, real, refuse
from plait.core.weights import Drop, Rename
from plait.errors import PlaitError
from plait.parts.positions.learned import Learned, check_length
from plait.parts.presence import Blank, fill_absent, side_by_side
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import bert_input, bert_layers

Norm = partial(nn.LayerNorm, eps=1e-12)


class Meeting(Attention):
    """Attention of P passages of M words behind G shared tokens: Tokens (B, G + P M, D) -> the same. A word sees its
    own passage and the shared tokens, and these see all. The context's "passages" is P."""

    reads = ("passages",)

    def __init__(self, width: int, heads: int, *, shared: int, dropout: float = 0.0):
        super().__init__(width, heads, dropout=dropout)
        self.shared, self.attend = shared, Attend(cross=True, dropout=dropout)
        self.meet = Attend(cross=True, dropout=dropout) if shared else None

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "memory", "weight", "lengths", why="its words lie passage after passage")
        count, g, (q, k, v) = t.read("passages"), self.shared, self.project(t)

        def apart(x: Tensor) -> Tensor:
            """(B, H, G + P M, E) -> (B P, H, M, E)."""
            return x[:, :, g:].unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)

        def beside(x: Tensor) -> Tensor:
            """As `apart`, behind the shared ones (B P, H, G + M, E)."""
            return torch.cat([x[:, :, :g].repeat_interleave(count, 0), apart(x)], 2)

        keep, x = real(t)[:, None, :, None], t.x[:, None]
        own = Tokens(beside(x)[:, 0], keep=beside(keep)[:, 0, :, 0])
        out = self.attend(t.inside(apart(x)[:, 0]), apart(q), beside(k), beside(v), to=own)
        said = out.x.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3)  # (B, H, P M, E)
        if self.meet is not None:
            out = self.meet(out.inside(t.x[:, :g]), q[:, :, :g], k, v, to=Tokens(t.x, keep=t.keep))
            said = torch.cat([out.x, said], 2)
        return self.merge(t.carry(out, said))


class FiE(nn.Module):
    """A batch of a question and P passages -> what is fused of them (B, D), and where the answer is.

    slots: names of the inputs, each with its kind, if they are not two texts; the first asks. vocab: V. length: the
    longest text of either sort. shared: G, 0 where no passage knows of another. longest: the words of an answer.
    """

    fits = ("slots", "vocab")

    def __init__(
        self, *, slots=None, vocab=30522, length=256, width, depth, heads, hidden=None, shared=10, longest=10,
        dropout=0.1,
    ):  # fmt: skip
        super().__init__()
        self.takes, self.part_widths = tuple(slots or ("text_0", "text_1")), {}
        self.width, self.length, self.shared, self.longest = width, length, shared, longest
        self.blanks: dict[str, Blank] = dict.fromkeys(self.takes, ((1,), torch.int64))
        self.text_embedding = TextEmbedding(vocab, 2 * length, width, Norm, dropout=dropout)
        self.everywhere = Learned(shared, width) if shared else None
        how = dict(norm=Norm, mix=partial(Meeting, shared=shared, dropout=dropout), dropout=dropout)
        self.stack = Stack(*post_norm_blocks(width, depth, heads, hidden or 4 * width, **how), gives=("passages",))
        self.ends = nn.Linear(width, 2)

    def tokens(self, question: Tensor, keep: Tensor, passages: Tensor, keeps: Tensor) -> Tokens:
        """question (B, N) and passages (B, P, M), ids with their masks -> Tokens (B, G + P (N + M), D)."""
        (b, n), (rows, p, m) = question.shape, passages.shape
        if rows != b:
            raise PlaitError(f"got the passages of {rows} rows, expected those of {b}: repeat what all rows share")
        check_length(n, self.length)
        check_length(m, self.length)
        at, embed = torch.arange(max(n, m), device=question.device), self.text_embedding.at
        first = embed(question, keep, at[:n], 0)
        behind = (keep.sum(1)[:, None, None] + at[:m]).expand(-1, p, -1)
        rest = embed(passages.flatten(1), keeps.flatten(1), behind.flatten(1), 1)
        x = torch.cat([first.x[:, None].expand(-1, p, -1, -1), rest.x.unflatten(1, (p, m))], 2).flatten(1, 2)
        there = torch.cat([keep[:, None].expand(-1, p, -1), keeps], 2).flatten(1)
        if self.everywhere is not None:
            x = torch.cat([self.everywhere().to(x.dtype).expand(b, -1, -1), x], 1)
            there = F.pad(there, (self.shared, 0), value=True)
        return self.stack(Tokens(x, keep=there, prefix=self.shared).reading(passages=p))

    def places(self, t: Tokens, count: int, words: int) -> Tensor:
        """Tokens of `count` passages of so many words -> (B, P, M, 2): how well an answer begins and ends there."""
        return self.ends(t.body()).unflatten(1, (count, -1))[:, :, -words:]

    def spans(self, question: Tensor, keep: Tensor, passages: Tensor, keeps: Tensor) -> Tensor:
        """As `tokens` -> (B, P, M, L): the log-probability that the answer begins at a word and has so many more. They
        add up to one over a row; a row without a real word in its passages has none."""
        return self.chances(self.tokens(question, keep, passages, keeps), keeps)

    def chances(self, t: Tokens, keeps: Tensor) -> Tensor:
        """`spans` of the tokens of a question and its passages."""
        begin, end = wide(self.places(t, *keeps.shape[1:])).unbind(-1)
        end = F.pad(end.masked_fill(~keeps, -torch.inf), (0, self.longest - 1), value=-torch.inf)
        score = begin.masked_fill(~keeps, -torch.inf)[..., None] + end.unfold(2, self.longest, 1)
        none = ~keeps.flatten(1).any(1)[:, None]  # of nothing softmax is not a number
        return score.flatten(1).masked_fill(none, 0.0).log_softmax(1).masked_fill(none, -torch.inf).view_as(score)

    def found(self, batch: dict) -> tuple[Tokens, Tensor]:
        """The tokens of a batch, and which words of its passages are real (B, P, M); a text alone is a passage that
        nobody asks of."""
        s = fill_absent(batch, self.blanks)
        ask, *rest = self.takes
        question, keep = s.values[ask], s.mask(ask)
        if not rest:
            rest, question, keep = [ask], question[:, :0], keep[:, :0]
        passages, keeps = side_by_side(s, rest)
        return self.tokens(question, keep, passages, keeps), keeps

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, D), "parts": {}, "losses": {name: ()}}: no passage has a vector that has not read others."""
        t, _ = self.found(batch)
        return {"fused": self.pooled(t), "parts": {}, "losses": t.losses or {}}

    def pooled(self, t: Tokens) -> Tensor:
        return t.x[:, : self.shared].mean(1) if self.shared else mean(t)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """fused (B, D), and how likely the answer stands in each passage (B, P)."""
        t, keeps = self.found(batch)
        return {"fused": self.pooled(t), "shares": self.chances(t, keeps).exp().sum((2, 3))}


def answer_loss(log: Tensor, right: Tensor) -> Tensor:
    """() the negative logarithm of what all right places have together, the mean over rows that have some.

    log (B, P, M, L): of `FiE.spans`. right (B, P, M, L) bool: those that read as an answer does.
    """
    some = right.flatten(1).any(1)
    told = log.masked_fill(~right, -torch.inf).flatten(1).logsumexp(1)
    return -torch.where(some, told, 0.0).sum() / some.sum().clamp(min=1)


def answers(log: Tensor, passages: Tensor, most: int = 5) -> list[list[tuple[tuple[int, ...], float]]]:
    """The likeliest answers of each row, as ids, and their probabilities: places that read alike count as one.

    log (B, P, M, L): of `FiE.spans`. passages (B, P, M) ids.
    """
    out = []
    for chances, words in zip(log.exp().tolist(), passages.tolist(), strict=True):
        told: dict[tuple[int, ...], float] = {}
        for text, places in zip(words, chances):
            for i, ends in enumerate(places):
                for more, chance in enumerate(ends):
                    if chance > 0:
                        said = tuple(text[i : i + more + 1])
                        told[said] = told.get(said, 0.0) + chance
        out.append(sorted(told.items(), key=lambda one: -one[1])[:most])
    return out


TEXT = dict(kind="text", vocab=64)
TEXTS = {"text_0": TEXT, "text_1": TEXT, "text_2": TEXT}

MODEL = FiE
TAKES = ("text", "text")
ROLES = ("fuser",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(slots=TEXTS, vocab=64, length=16, width=32, depth=2, heads=2, shared=3, longest=4, dropout=0.0),
    "nano": dict(vocab=8192, length=256, width=192, depth=4, heads=3),
    "base": dict(width=768, depth=12, heads=12),
    "large": dict(width=1024, depth=24, heads=16),
}
WEIGHTS = {}

RULES = {
    "transformers": [
        *bert_input("bert.embeddings"), *bert_layers("bert.encoder.layer.{i}"), Drop("bert.pooler.dense.{p}"),
        Rename("qa_outputs.{p}", "ends.{p}"), Rename("everywhere.table", "everywhere.table"),  # which BERT has not
    ]
}  # fmt: skip
