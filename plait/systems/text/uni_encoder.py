"""Uni-Encoder: A Fast and Accurate Response Selection Paradigm for Generation-Based Dialogue Systems. Song, He, Yu,
Fang, Cui, Lan, 2021. arXiv:2106.01263.

New here: a talk and all that might answer it are read in one sequence, the talk once. Each answer and the talk see each
other, no answer sees another (an arrow of attention), and all answers begin at the same place, behind the talk: each is
scored as if it were read with the talk alone, but for what the talk has seen of the others. Other masks make other
rankers of the same weights.

Differs: hidden words are not guessed beside it. A table's answers stand in columns of their own, and what is fused of a
row is the mean of each, one after another; `read` takes any number, such as those of all rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Attention, Stack
from plait.core.tokens import Tokens, mean, real
from plait.core.weights import Drop, Rename
from plait.errors import PlaitError
from plait.parts.positions.learned import check_length
from plait.parts.presence import Blank, fill_absent, side_by_side
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import bert_input, bert_layers

Norm = partial(nn.LayerNorm, eps=1e-12)


def arrow(who: Tensor) -> Tensor:
    """who (N,): 0 the talk, 1 and more the answers -> (N, N) bool: an answer sees the talk and itself."""
    return (who[:, None] == who) | (who[:, None] == 0) | (who == 0)


def diagonal(who: Tensor) -> Tensor:
    """As `arrow`, each seeing itself alone: an encoder of each side, as in a dual encoder."""
    return who[:, None] == who


def square(who: Tensor) -> Tensor:
    """As `arrow`, all seeing all."""
    return torch.ones_like(arrow(who))


def means(t: Tokens, keeps: Tensor) -> Tensor:
    """Tokens (B, N + K M, D), of which the last are K answers (B, K, M) -> (B, K, D)."""
    b, k, m = keeps.shape
    x = t.x[:, t.x.shape[1] - k * m :].reshape(b * k, m, -1)
    return mean(Tokens(x, keep=keeps.flatten(0, 1))).unflatten(0, (b, k))


class UniEncoder(nn.Module):
    """A batch of a text and K that might answer it -> what is fused of each answer (B, K D); of one text, its mean.

    slots: names of the inputs, each with its kind, if they are not two texts; the first is what is answered. vocab: V.
    length: the longest text on either side.
    """

    fits = ("slots", "vocab")

    def __init__(self, *, slots=None, vocab=30522, length=256, width, depth, heads, hidden=None, dropout=0.1):
        super().__init__()
        self.takes, self.part_widths, self.length = tuple(slots or ("text_0", "text_1")), {}, length
        self.width = width * max(len(self.takes) - 1, 1)
        self.blanks: dict[str, Blank] = dict.fromkeys(self.takes, ((1,), torch.int64))
        self.text_embedding = TextEmbedding(vocab, 2 * length, width, Norm, dropout=dropout)
        how = dict(norm=Norm, mix=partial(Attention, dropout=dropout), dropout=dropout)
        self.stack = Stack(*post_norm_blocks(width, depth, heads, hidden or 4 * width, **how))
        self.score = nn.Linear(width, 1)

    def tokens(
        self, talk: Tensor, keep: Tensor, answers: Tensor, keeps: Tensor, sees: Callable[[Tensor], Tensor] = arrow
    ) -> Tokens:
        """As `read` -> Tokens (B, N + K M, D), the talk first."""
        (b, n), (rows, k, m) = talk.shape, answers.shape
        if rows != b:
            raise PlaitError(f"got the answers of {rows} rows, expected those of {b}: repeat what all rows share")
        check_length(n, self.length)
        check_length(m, self.length)
        at = torch.arange(max(n, m), device=talk.device)
        behind = (keep.sum(1)[:, None, None] + at[:m]).expand(-1, k, -1)
        embed = self.text_embedding.at
        first, rest = embed(talk, keep, at[:n], 0), embed(answers.flatten(1), keeps.flatten(1), behind.flatten(1), 1)
        who = torch.cat([torch.zeros_like(at[:n]), torch.arange(1, k + 1, device=talk.device).repeat_interleave(m)])
        t = Tokens(torch.cat([first.x, rest.x], 1), keep=torch.cat([real(first), real(rest)], 1))
        return self.stack(t.reading(allow=sees(who)))

    def read(
        self, talk: Tensor, keep: Tensor, answers: Tensor, keeps: Tensor, sees: Callable[[Tensor], Tensor] = arrow
    ) -> Tensor:
        """talk (B, N), answers (B, K, M), ids with their masks -> (B, K, D): the mean of each answer, zeros where it is
        empty. sees: the mask. Raises PlaitError for texts that are too long."""
        return means(self.tokens(talk, keep, answers, keeps, sees), keeps)

    def scores(self, talk: Tensor, keep: Tensor, answers: Tensor, keeps: Tensor) -> Tensor:
        """As `read` -> (B, K): how well each answers; softmax over K in training."""
        return self.score(self.read(talk, keep, answers, keeps))[..., 0]

    def found(self, batch: dict) -> tuple[Tensor, Tokens]:
        """(B, K, D) of the answers' slots, of a text alone (B, 1, D); and the tokens."""
        s = fill_absent(batch, self.blanks)
        talk, *answers = self.takes
        if not answers:
            none = s.values[talk].new_zeros(s.values[talk].shape[0], 0, 1)
            t = self.tokens(s.values[talk], s.mask(talk), none, none.bool())
            return mean(t)[:, None], t
        ids, keep = side_by_side(s, answers)
        t = self.tokens(s.values[talk], s.mask(talk), ids, keep)
        return means(t, keep), t

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, K D), "parts": {}, "losses": {name: ()}}: none has a vector that has not read the others."""
        found, t = self.found(batch)
        return {"fused": found.flatten(1), "parts": {}, "losses": t.losses or {}}

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """fused (B, K D), and scores (B, K) of the answers."""
        found, _ = self.found(batch)
        return {"fused": found.flatten(1), "scores": self.score(found)[..., 0]}


BASE = dict(width=768, depth=12, heads=12)
TEXT = dict(kind="text", vocab=64)
TEXTS = {"text_0": TEXT, "text_1": TEXT, "text_2": TEXT}

MODEL = UniEncoder
TAKES = ("text", "text")
ROLES = ("fuser",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(slots=TEXTS, vocab=64, length=16, width=32, depth=2, heads=2, dropout=0.0),
    "nano": dict(vocab=8192, length=256, width=192, depth=4, heads=3),
    "base": BASE,
    "base_fp": BASE | dict(vocab=30523),
    "base_chinese": BASE | dict(vocab=21128),
    "base_chinese_fp": BASE | dict(vocab=21129),
}
WEIGHTS = {}

RULES = {
    "official": [
        *bert_input("bert.bert.embeddings"), *bert_layers("bert.bert.encoder.layer.{i}"),
        Drop("bert.bert.pooler.dense.{p}"), Drop("bert.cls.{rest*}"), Rename("fc.{p}", "score.{p}"),
    ]
}  # fmt: skip
