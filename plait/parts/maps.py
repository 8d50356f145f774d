"""Between maps (B, C, H, W) and Tokens of a grid, without copying.

A map that comes from tokens lies in memory as the tokens do (channels last); convolutions keep it so, and the way back
is a view.
"""

from __future__ import annotations

from torch import Tensor, nn

from plait.core.tokens import Tokens, refuse, whole_grid


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


def only_map(t: Tokens) -> Tensor:
    """As `to_map`, in layers that maps flow through. Raises ValueError where the tokens bring a loss, which a map
    cannot hold."""
    refuse(t, "losses", why="maps flow through this layer, and hold none")
    return to_map(t)


class OnMap(nn.Module):
    """`f` of a map (B, D, H, W) -> (B, D', H', W'), applied to Tokens of a grid without special tokens."""

    on_grid = True

    def __init__(self, f: nn.Module):
        super().__init__()
        self.f = f

    def forward(self, t: Tokens) -> Tokens:
        x = self.f(to_map(t))
        return t.replace(x=flat(x), grid=(x.shape[-2], x.shape[-1]))


def through(stage: nn.Module, x: Tensor, losses: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor] | None]:
    """The map (B, D, H', W') that `stage` makes of a map (B, C, H, W), and `losses` with what its layers gave out,
    which a map cannot hold: a stage is an `OnTokens`, a sequence that has some, or anything without layers of
    tokens."""
    if isinstance(stage, OnTokens):
        t = stage.f(to_tokens(x).replace(losses=losses))
        return to_map(t), t.losses
    if type(stage) is nn.Sequential:
        for part in stage:
            x, losses = through(part, x, losses)
        return x, losses
    return stage(x), losses


class OnTokens(nn.Module):
    """`f` of Tokens, applied to a map: (B, C, H, W) -> (B, D, H', W'). A stack of blocks becomes a stage of a
    pyramid."""

    def __init__(self, f: nn.Module):
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return to_map(self.f(to_tokens(x)))
