"""Between maps (B, C, H, W) and Tokens of a grid, without copying.

A map that comes from tokens lies in memory as the tokens do (channels last); convolutions keep it so, and the way back
is a view.
"""

from __future__ import annotations

from torch import Tensor, nn

from plait.core.tokens import Tokens, whole_grid


def flat(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C), a view where channels lie last in memory.

    By way of one dimension: for rows and columns alone a program for pictures of every size would ask which of them is
    longer.
    """
    return x.permute(0, 2, 3, 1).reshape(-1).view(x.shape[0], x.shape[2] * x.shape[3], x.shape[1])


def to_tokens(x: Tensor) -> Tokens:
    """(B, C, H, W) -> Tokens (B, H * W, C) with grid (H, W)."""
    return Tokens(flat(x), grid=(x.shape[-2], x.shape[-1]))


def to_map(t: Tokens) -> Tensor:
    """Tokens with a grid -> (B, D, H, W), special tokens left out.

    Split first, then turned: the other way round one picture alone has a batch stride by which convolutions do not see
    channels last.
    """
    return whole_grid(t).body().unflatten(1, t.grid).permute(0, 3, 1, 2)


class OnMap(nn.Module):
    """`f` of a map (B, D, H, W) -> (B, D', H', W'), applied to Tokens of a grid without special tokens."""

    on_grid = True

    def __init__(self, f: nn.Module):
        super().__init__()
        self.f = f

    def forward(self, t: Tokens) -> Tokens:
        x = self.f(to_map(t))
        return t.replace(x=flat(x), grid=(x.shape[-2], x.shape[-1]))


class OnTokens(nn.Module):
    """`f` of Tokens, applied to a map: (B, C, H, W) -> (B, D, H', W'). A stack of blocks becomes a stage of a
    pyramid."""

    def __init__(self, f: nn.Module):
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return to_map(self.f(to_tokens(x)))
