"""Pattention: attention from tokens to learned ones, where others project (TokenFormer, arXiv:2410.23168).

What a layer knows is a list of pairs of keys and values, so that it can be made longer without another width anywhere.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import check_heads, merge_heads
from plait.core.tokens import Tokens

LEAST = 1e-20  # keeps scores that are all zero from being divided by their length


class Pattention(nn.Module):
    """Tokens (B, N, D) -> (B, N, out), by n learned keys and values: f(x K^T) V. f brings the scores of a token to the
    length sqrt(n) and passes them through GELU; nothing sums to one, and none has to win over another.

    count: n. key_std, value_std: of the normal distributions that they start from. length: the square of the scores'
    length, n unless given. Keys of zeros leave it as it was while n grows, and what they would add is nothing.
    """

    def __init__(
        self, width: int, count: int, out: int, *, key_std: float, value_std: float, length: int | None = None
    ):
        super().__init__()
        self.count, self.length, self.key_std, self.value_std = count, length or count, key_std, value_std
        self.keys = nn.Linear(width, count, bias=False)
        self.values = nn.Linear(count, out, bias=False)

    def reset(self) -> None:
        nn.init.normal_(self.keys.weight, std=self.key_std)
        nn.init.normal_(self.values.weight, std=self.value_std)

    def forward(self, t: Tokens) -> Tokens:
        scores = self.keys(t.x)  # (B, N, n)
        wide = torch.promote_types(scores.dtype, torch.float32)
        long = torch.linalg.vector_norm(scores, dim=-1, keepdim=True, dtype=wide).clamp(min=LEAST)
        scores = (scores * (self.length**0.5 / long)).to(scores.dtype)
        return t.replace(x=self.values(F.gelu(scores)))

    def extra_repr(self) -> str:
        return f"count={self.count}, length={self.length}"


class TokenizedAttention(nn.Module):
    """Self-attention with `Pattention` for its four projections: Tokens (B, N, D) -> Tokens (B, N, D).

    count, out_count: of the keys of queries, keys and values each, and of the projection behind. rotary: as in
    `core.block.Attention`. start: what `Pattention` starts with.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        count: int,
        out_count: int,
        start: dict[str, Any],
        causal: bool = False,
        rotary: nn.Module | None = None,
    ):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.rotary = heads, rotary
        self.q, self.k, self.v = (Pattention(width, count, width, **start) for _ in range(3))
        self.attend = Attend(causal=causal)
        self.out = Pattention(width, out_count, width, **start)

    def forward(self, t: Tokens) -> Tokens:
        return self.merge(self.attend(t, *self.project(t)))

    def project(self, t: Tokens) -> tuple[Tensor, ...]:
        """Queries, keys and values (B, H, N, E) of the tokens."""
        q, k, v = (p(t).x.unflatten(2, (self.heads, -1)) for p in (self.q, self.k, self.v))  # (B, N, H, E)
        if self.rotary is not None:
            q, k = self.rotary(q, k, t)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def merge(self, t: Tokens) -> Tokens:
        """What each head gathered, x (B, H, N, E), as tokens (B, N, D)."""
        return self.out(t.replace(x=merge_heads(t.x)))
