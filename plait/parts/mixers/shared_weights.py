"""Attention weights computed once and used several times (Zipformer, arXiv:2310.11230), over a whole sequence or chunk
by chunk.

`past` is what a module keeps of the chunks before: (B, L, ...) of the last L places, or None where the whole sequence
is there at once.
Each module returns its own, brought up to date, beside its output.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.parts.swoosh import ScaledLinear


def extend(x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(B, N, D) with what came before it, (B, L + N, D); and the last L places of that."""
    if past is None:
        return x, None
    x = torch.cat([past, x], 1)
    return x, x[:, -past.shape[1] :]


def compact_positions(count: int, before: int, width: int, device: torch.device) -> Tensor:
    """(2 * count + before, width): distances from -(before + count - 1) to count, finely told apart near 0 and coarsely
    far away.

    A distance is squeezed by a logarithm, then by an arc tangent, and its multiples give cosines and sines; the last
    column is 1.
    """
    far = torch.arange(-(before + count - 1), count + 1, device=device, dtype=torch.float32)[:, None]
    root = width**0.5
    squeezed = root * far.sign() * ((far.abs() + root).log() - math.log(root))
    angle = (squeezed * (2 * math.pi / width)).atan() * torch.arange(1, width // 2 + 1, device=device)  # (L, width / 2)
    waves = torch.stack([angle.cos(), angle.sin()], 2).flatten(1)
    return torch.cat([waves[:, :-1], torch.ones_like(far)], 1)


class SharedWeights(nn.Module):
    """Attention weights of (B, N, D) with relative positions -> (B, H, N, M), M = N and what was kept of the past.

    query: width of queries and keys per head; place: of the queries for positions, which need few; positions: of a
    position's vector.
    The usual division by the root of the query's width is left to the weights, which start accordingly.
    """

    def __init__(self, width: int, heads: int, query: int, place: int, positions: int):
        super().__init__()
        self.heads, self.query, self.place, self.positions = heads, query, place, positions
        self.attend = Attend()
        self.project = ScaledLinear(width, heads * (2 * query + place), query**-0.25)
        self.far = ScaledLinear(positions, heads * place, 0.05, bias=False)

    def forward(self, x: Tensor, far: Tensor, see: Tensor | None, past: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """far: `compact_positions`. see: (B, M) or (B, N, M) bool, True = may attend."""
        h = self.heads
        q, k, p = self.project(x).split([h * self.query, h * self.query, h * self.place], 2)
        k, past = extend(k, past)
        q, k, p = (y.unflatten(2, (h, -1)).transpose(1, 2) for y in (q, k, p))  # (B, H, N or M, E)
        far = self.far(far.to(x.dtype)).unflatten(1, (h, -1)).permute(1, 2, 0)  # (H, E, L)
        return self.attend.weights(q, k, keep=see, bias=self._aligned(p @ far, k.shape[2]), scale=1.0), past

    @staticmethod
    def _aligned(scores: Tensor, keys: int) -> Tensor:
        """(B, H, N, N + M) by distance -> (B, H, N, M) by key: row n begins at place N - 1 - n. Only views."""
        n, distances = scores.shape[2:]
        return scores.flatten(2)[..., n - 1 : n * distances - 1].unflatten(2, (n, distances - 1))[..., :keys]


class WeightedValues(nn.Module):
    """What attention does once it has its weights: (B, N, D), weights (B, H, N, M) -> (B, N, D). value: width per
    head."""

    def __init__(self, width: int, heads: int, value: int):
        super().__init__()
        self.heads = heads
        self.value, self.out = nn.Linear(width, heads * value), ScaledLinear(heads * value, width, 0.05)

    def forward(self, x: Tensor, weights: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor | None]:
        v, past = extend(self.value(x), past)
        y = weights.to(v.dtype) @ v.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, H, N, E)
        return self.out(y.transpose(1, 2).flatten(2)), past


class GatedAverage(nn.Module):
    """Non-linear attention: gated before and after, averaged over time by the first head's weights: (B, N, D) -> (B, N,
    D)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up, self.out = nn.Linear(width, 3 * hidden), ScaledLinear(hidden, width, 0.05)

    def forward(self, x: Tensor, weights: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor | None]:
        gate, y, after = self.up(x).chunk(3, 2)
        y, past = extend(y * gate.tanh(), past)
        return self.out(weights[:, 0].to(y.dtype) @ y * after), past
