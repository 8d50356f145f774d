"""BERT as a writer that reads what another tower has understood: the decoder of ALBEF's answers (arXiv:2107.07651)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plait.core.block import Attention, CrossAttention, Stack
from plait.core.memory import AnyMemory, KeyValue, Memory
from plait.core.tokens import Tokens, real
from plait.errors import PlaitError
from plait.parts.heads.words import WordHead
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.encoder import Make, post_norm_blocks
from plait.parts.towers.writer import following


class Answering(NamedTuple):
    """What was written so far, and what was understood before: states (B, M, D), of which `there` (B, M) are real."""

    memory: AnyMemory
    states: Tensor
    there: Tensor


class Answerer(nn.Module):
    """Words (B, N) -> logits (B, N, V) of the word after each, which has read those before it and, in every layer, the
    states of the tower before.

    A head of its own guesses words by its own table. norm(width) makes the norms.
    """

    def __init__(self, vocab: int, length: int, width: int, depth: int, heads: int, norm: Make, dropout: float = 0.0):
        super().__init__()
        mix = partial(Attention, causal=True, dropout=dropout)
        cross = partial(CrossAttention, dropout=dropout, stream="states")
        blocks = post_norm_blocks(width, depth, heads, 4 * width, norm=norm, mix=mix, cross=cross, dropout=dropout)
        self.text_embedding = TextEmbedding(vocab, length, width, norm, dropout=dropout)
        self.stack, self.guess = Stack(*blocks, gives=("states",)), WordHead(width, vocab, norm)
        self.length = length

    def begin(self, t: Tokens) -> Answering:
        """Nothing is written yet. t: the states, x (B, M, D)."""
        pages: tuple[dict[str, KeyValue], ...] = ({},) * len(self.stack.blocks)
        nothing = torch.ones(t.x.shape[0], 0, dtype=torch.bool, device=t.x.device)
        return Answering(Memory(pages, nothing), t.x, real(t))

    def forward(self, ids: Tensor, cache: Answering, keep: Tensor | None = None) -> tuple[Tensor, Answering]:
        """The next words (B, N), one or many, keep (B, N), and the cache with them in it."""
        if ids.shape[1] > self.length:
            raise PlaitError(f"a text of {ids.shape[1]} words, but there are places for {self.length}: cut it")
        embed = self.text_embedding
        t = embed.words(ids, keep).replace(memory=cache.memory)
        x = embed.positions(t, following(t)).x
        if embed.kinds is not None:
            x = x + embed.kinds(ids.new_zeros(1, 1))
        t = t.replace(x=embed.drop(embed.norm(x))).reading(states=Tokens(cache.states, keep=cache.there))
        t = self.stack(t)
        return self.guess(t.x, embed.table), cache._replace(memory=t.memory)
