"""A feed-forward step one half of whose hidden layer opens and shuts the other (arXiv:2002.05202)."""

from __future__ import annotations

from torch import nn

from plait.core.block import Make
from plait.core.tokens import Tokens


class GatedFeedForward(nn.Module):
    """down(act(a) * b), where a and b are the halves of `up`: Tokens (B, N, D) -> Tokens (B, N, D)."""

    def __init__(self, width: int, hidden: int, *, act: Make = nn.SiLU, bias: bool = True):
        super().__init__()
        self.up, self.act = nn.Linear(width, 2 * hidden, bias=bias), act()
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, t: Tokens) -> Tokens:
        a, b = self.up(t.x).chunk(2, -1)
        return t.replace(x=self.down(self.act(a) * b))
