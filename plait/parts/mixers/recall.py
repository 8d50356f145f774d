"""Self-attention that remembers: keys and values of what was read before are handed in and, grown by the new ones,
handed back.

A memory is a plain tuple of tensors, and it grows by concatenation. A pure function cannot write into a buffer that was
laid out before: it would copy the whole of it at every step too, and attend to its padding; and a memory that is as
long as what it holds needs no count of what is real, no limit set in advance, and exports with a dynamic length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from plait.core.attend import attend
from plait.core.block import Attention, Block, Post
from plait.core.tokens import Tokens


class Memory(NamedTuple):
    """What one layer keeps of the tokens that it has read: keys and values, (B, H, M, E) each."""

    keys: Tensor
    values: Tensor


class Recall(Attention):
    """Multi-head self-attention of tokens (B, N, D) to `past` and to themselves; the weights are those of
    `Attention`."""

    def forward(self, t: Tokens, past: Memory | None, keep: Tensor) -> tuple[Tokens, Memory]:
        """keep: what may be attended to of the M remembered and the N new tokens, (B, M + N) or for each new one (B, N,
        M + N)."""
        q, k, v = self.project(t)
        if past is not None:
            k, v = torch.cat([past.keys, k], 2), torch.cat([past.values, v], 2)
        y = attend(q, k, v, keep=keep, dropout=self.dropout if self.training else 0.0)
        return t.replace(x=self.merge(y)), Memory(k, v)


class PostRecall(Post):
    """norm(x + after(f(x))) around a `Recall`."""

    def forward(self, t: Tokens, past: Memory | None, keep: Tensor) -> tuple[Tokens, Memory]:
        y, now = self.f(t, past, keep)
        return t.replace(x=self.norm(t.x + (y.x if self.after is None else self.after(y.x)))), now


class RecallBlock(Block):
    """A layer whose `mix` remembers, then `feed`."""

    def forward(self, t: Tokens, past: Memory | None, keep: Tensor) -> tuple[Tokens, Memory]:
        t, now = self.mix(t, past, keep)
        return self.feed(t), now


def before(past: Tensor, now: Tensor) -> Tensor:
    """What each of several new tokens may see, (B, N, M + N) bool, or (B, 1 + M) for one: all that is real and does not
    come after it.

    past (B, M), now (B, N): which of the remembered and of the new tokens are real.
    """
    keep, n, m = torch.cat([past, now], 1), now.shape[1], past.shape[1]
    if n == 1:
        return keep
    return keep[:, None] & torch.ones(n, m + n, dtype=torch.bool, device=keep.device).tril(m)
