"""Attention in which places are compared and not gathered: queries and keys see the tokens' positions, values do not
(DETR, arXiv:2005.12872). Positions are vectors as wide as the tokens, `Tokens.pos` (B, N, D) or (N, D)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, CrossAttention, bare, split_heads
from plait.core.tokens import Tokens, refuse, unpacked
from plait.errors import PlaitError


def placed(t: Tokens) -> Tensor:
    """(B, N, D): the features plus where they lie."""
    if t.pos is None or t.pos.shape[-1] != t.x.shape[-1]:
        got = "none" if t.pos is None else f"some of width {t.pos.shape[-1]}"
        raise PlaitError(f"this attention adds positions of width {t.x.shape[-1]}, got {got}: give them as t.pos")
    return t.x + t.pos


def two(layer: nn.Linear, a: Tensor, b: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The first outputs of `layer` for `a`, and its last `width` for `b`."""
    cut = layer.out_features - width
    if not bare(layer):  # one with an adapter, or in eight bits, or watched: more than rows of a matrix
        return layer(a)[..., :cut], layer(b)[..., cut:]
    biases = (None, None) if layer.bias is None else (layer.bias[:cut], layer.bias[cut:])
    return F.linear(a, layer.weight[:cut], biases[0]), F.linear(b, layer.weight[cut:], biases[1])


class PlacedAttention(Attention):
    """Self-attention: Tokens (B, N, D) -> Tokens (B, N, D)."""

    def project(self, t: Tokens) -> tuple[Tensor, ...]:
        qk, v = two(self.qkv, placed(t), t.x, t.x.shape[2])
        return *split_heads(qk, 2, self.heads), *split_heads(v, 1, self.heads)


class PlacedCross(CrossAttention):
    """Attention to a stream of the context, which has positions of its own: Tokens (B, N, D) -> Tokens (B, N, D)."""

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "memory", why="this attention reads its stream anew")
        other = t.read(self.stream)
        unpacked(t, other)
        (q,) = split_heads(self.q(placed(t)), 1, self.heads)  # (B, H, N, E)
        k, v = two(self.kv, placed(other), other.x, t.x.shape[2])
        (k,), (v,) = (split_heads(x, 1, self.heads) for x in (k, v))  # each (B, H, M, E)
        return self.merge(self.attend(t, q, k, v, to=other))

    def merge(self, t: Tokens) -> Tokens:
        """What each head gathered, x (B, H, N, E), as tokens (B, N, D)."""
        return t.replace(x=self.out(t.x.transpose(1, 2).flatten(2)))
