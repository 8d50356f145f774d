"""Attention to a few places of maps, chosen by what asks (Deformable DETR, arXiv:2010.04159): their number, not that of
all places, is what it costs.

The maps lie one after another in a stream of tokens. Their sides are `(h, w), ...` under "levels" in the context, and
where each token looks from under "places": (B, N, L, 2) points or (B, N, L, 4) boxes (x, y, w, h), as shares of each
map.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import check_heads
from plait.core.init import xavier_uniform
from plait.core.precision import wide
from plait.core.tokens import Tokens, refuse
from plait.errors import PlaitError
from plait.parts.mixers.placed import placed


class Rays(nn.Linear):
    """Offsets that start as a ray for each head, 1 to P places long, nearly the same whatever asks."""

    def __init__(self, width: int, heads: int, levels: int, points: int):
        super().__init__(width, heads * levels * points * 2)
        self.shape = (heads, levels, points)

    def reset(self) -> None:
        heads, levels, points = self.shape
        nn.init.trunc_normal_(self.weight, std=1e-3)
        angle = torch.arange(heads, device=self.bias.device) * (2 * math.pi / heads)
        ray = torch.stack([angle.cos(), angle.sin()], 1)
        ray = ray / ray.abs().amax(1, keepdim=True)  # (H, 2)
        steps = torch.arange(1, points + 1, device=ray.device)
        self.bias.copy_((ray[:, None, None] * steps[:, None]).expand(heads, levels, points, 2).reshape(-1))


class Even(nn.Linear):
    """Weights that start nearly alike."""

    def reset(self) -> None:
        nn.init.trunc_normal_(self.weight, std=1e-3)
        nn.init.zeros_(self.bias)


class Deformable(nn.Module):
    """Tokens (B, N, D) -> Tokens (B, N, D): weighted sums of `points` places of each of `levels` maps, for each head.

    stream: the name of the maps in the context; None: the tokens are the maps themselves.
    """

    def __init__(self, width: int, heads: int, *, levels: int, points: int, stream: str | None = None):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.levels, self.points, self.stream = heads, levels, points, stream
        self.on_grid = stream is None
        self.reads = ("levels", "places") if stream is None else (stream, "levels", "places")
        self.offsets, self.weights = Rays(width, heads, levels, points), Even(width, heads * levels * points)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "weight", "lengths", "memory", why="each place is read where it lies")
        seen = t if self.stream is None else t.read(self.stream)
        refuse(seen, "weight", "lengths", why="each place is read where it lies")
        levels, at = t.read("levels"), t.read("places")
        if seen.x.shape[1] != sum(h * w for h, w in levels) or at.shape[1] != t.x.shape[1]:
            raise PlaitError(f"got {seen.x.shape[1]} tokens of maps {levels}, expected one for each place")
        v, asks = self.value(seen.x), placed(t)
        if seen.keep is not None:
            v = v.masked_fill(~seen.keep[..., None], 0.0)
        v = v.unflatten(2, (self.heads, -1))  # (B, M, H, E)
        shape = (self.heads, self.levels, self.points)
        step = self.offsets(asks).unflatten(2, (*shape, 2))  # (B, N, H, L, P, 2)
        share = wide(self.weights(asks).unflatten(2, (self.heads, -1))).softmax(3).to(v.dtype).unflatten(3, shape[1:])
        at = at[:, :, None, :, None]  # (B, N, 1, L, 1, 2 or 4)
        if at.shape[-1] == 4:
            places = at[..., :2] + step / self.points * at[..., 2:] * 0.5
        else:
            sides = torch.stack([torch.stack([asks.new_full((), w), asks.new_full((), h)]) for h, w in levels])
            places = at + step / sides[:, None]
        places, y = 2 * places - 1, []
        for n, (x, (h, w)) in enumerate(zip(v.split([h * w for h, w in levels], 1), levels)):
            x = x.permute(0, 2, 3, 1).unflatten(3, (h, w)).flatten(0, 1)  # (B * H, E, h, w)
            spots = places[:, :, :, n].transpose(1, 2).flatten(0, 1)  # (B * H, N, P, 2)
            found = F.grid_sample(x, spots.to(x.dtype), align_corners=False)  # (B * H, E, N, P)
            y.append((found * share[:, :, :, n].transpose(1, 2).flatten(0, 1)[:, None]).sum(3))
        x = torch.stack(y).sum(0) if len(y) > 1 else y[0]  # (B * H, E, N)
        return t.replace(x=self.out(x.unflatten(0, (-1, self.heads)).flatten(1, 2).mT))


def inverse_sigmoid(x: Tensor, least: float = 1e-5) -> Tensor:
    """Where a share comes from, within limits."""
    x = x.clamp(0, 1)
    return (x.clamp(min=least) / (1 - x).clamp(min=least)).log()


class Small(nn.Linear):
    """The last layer of a box head: boxes start where they are looked for, a tenth of the picture wide and high."""

    def reset(self) -> None:
        xavier_uniform(self)
        with torch.no_grad():
            self.weight.mul_(0.1)
            self.bias[2:].fill_(-2.0)
