"""Key-Value Transformer. Borji, 2023. arXiv:2305.19129

New here: attention without queries. Every token is asked for by its own key, so that the scores k k^T are symmetric,
and a third of the projection is gone. What breaks the symmetry, where that is wanted, is a learned projection of a 2-D
position code laid over the scores.

Differs: a linear map of (score + code of row i and column j) to one number is  s * score + f(i) + g(j),  with s the sum
of its weights.
Softmax sees neither f, which is the same for a whole row, nor the map's bias; so the term costs one number a key here,
not one a pair. It starts at s = 1 and g = 0, which is the symmetric variant, where the public code draws s by chance,
of either sign.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Attention, merge_heads, split_heads
from plait.core.surgery import Undo, swap
from plait.core.tokens import Tokens
from plait.errors import PlaitError
from plait.parts.positions.sine import in_turn


class ScorePositions(nn.Module):
    """The learned map of scores and their 2-D position code, `channels` wide: half of it tells the row and half the
    column."""

    rates: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.register_buffer("rates", torch.empty(channels // 4), persistent=False)

    def reset(self) -> None:
        half = len(self.weight) // 2
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.weight[:half], 1.0 / half)
        steps = torch.arange(len(self.rates), device=self.rates.device) / len(self.rates)
        self.rates.copy_(10_000.0**-steps)

    def forward(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """places (N,) -> s (1,), what the scores are multiplied by, and g (N,), what every query adds to the score of a
        key."""
        angles = places[:, None] * self.rates
        code = in_turn(angles)  # (N, channels / 2)
        return self.weight.sum(0, keepdim=True), code.to(self.weight.dtype) @ self.weight[code.shape[1] :]


class KeyValueAttention(nn.Module):
    """Multi-head self-attention by keys and values alone: Tokens (B, N, D) -> Tokens (B, N, D). kv: a linear layer D ->
    2 D."""

    def __init__(
        self, kv: nn.Linear, out: nn.Linear, heads: int, *, causal: bool, dropout: float, positions: nn.Module | None
    ):
        super().__init__()
        self.heads, self.attend = heads, Attend(causal=causal, dropout=dropout)
        self.kv, self.out, self.positions = kv, out, positions

    def forward(self, t: Tokens) -> Tokens:
        k, v = split_heads(self.kv(t.x), 2, self.heads)  # each (B, H, N, E)
        q, bias = k, None
        if self.positions is not None:
            runs = (t.x.shape[1],) if t.lengths is None else t.lengths
            s, g = self.positions(torch.cat([torch.arange(n, device=k.device, dtype=torch.float32) for n in runs]))
            q, bias = k * s, g[None, None, None]
        t = self.attend(t, q, k, v, bias=bias)
        return t.replace(x=self.out(merge_heads(t.x)))


def without_queries(qkv: nn.Linear) -> nn.Linear:
    """The key and value rows of a fused projection D -> 3 D, as a layer D -> 2 D of its own."""
    width = qkv.in_features
    kv = nn.Linear(width, 2 * width, bias=qkv.bias is not None, device="meta")
    for name, old in qkv.named_parameters():
        setattr(kv, name, nn.Parameter(old.detach()[width:].clone(), requires_grad=old.requires_grad))
    return kv


def kv_transformer(model: nn.Module, positions: int = 0) -> Undo:
    """Every self-attention of `model` asks with its keys; keys, values and outputs keep their weights, queries go.

    positions: channels of the position code over the scores, a multiple of 4 (the paper takes 10 to 50); 0 leaves the
    scores symmetric.
    Raises ValueError for another number and for a model without self-attention.
    """
    if positions < 0 or positions % 4:
        raise PlaitError(
            f"positions: got {positions}, expected a multiple of 4 (a sine and a cosine, of the row and of the "
            "column), or 0"
        )

    def make(a: Attention) -> nn.Module:
        where = ScorePositions(positions) if positions else None
        return KeyValueAttention(
            without_queries(a.qkv), a.out, a.heads, causal=a.attend.causal, dropout=a.attend.dropout, positions=where
        )

    return swap(model, Attention, make)
