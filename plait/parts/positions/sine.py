"""Fixed positions: sines and cosines of angles that fall geometrically (Vaswani et al. 2017). Nothing is learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from plait.core.tokens import Tokens


def waves(places: Tensor, width: int, base: float = 10_000.0) -> Tensor:
    """(...) places -> (..., D): sine and cosine of each angle side by side, which fall from the place itself to 1 /
    base of it."""
    powers = torch.arange(0, width, 2, device=places.device, dtype=torch.float64) / width
    angles = places.double()[..., None] * base**-powers
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2).float()


class SequenceWaves(nn.Module):
    """Adds `waves` of each token's place in the sequence: Tokens (B, N, D) -> Tokens (B, N, D).

    Those of `length` tokens lie ready, and are saved with the weights, where public layouts expect them.
    """

    def __init__(self, length: int, width: int):
        super().__init__()
        self.length, self.width = length, width
        self.register_buffer("table", torch.empty(1, length, width))

    def reset(self) -> None:
        self.table.copy_(waves(torch.arange(self.length, device=self.table.device), self.width)[None])

    def forward(self, t: Tokens) -> Tokens:
        n, table = t.x.shape[1], self.table
        if not statically_known_true(n == self.length):
            table = waves(torch.arange(n, device=table.device), self.width)
        return t.replace(x=t.x + table)
