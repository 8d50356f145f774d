"""Rethinking and Improving Relative Position Encoding for Vision Transformer. Wu, Peng, Chen, Fu, Chao, 2021.
arXiv:2107.14222

New here: positions of pictures relative to each other, with a direction and a content. The offset of two places falls
into a bucket, exact when near, logarithmic further off; a bucket adds a number to the score, or a vector that queries
or keys are multiplied with, or that is heard with the values. Products are made per bucket and then looked up: N K E of
them, not N N E.

Differs: the bucket of special tokens is always there. "quantised" buckets squared distances, as the authors' code does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Attention
from plait.core.surgery import Undo, swap_inside
from plait.core.tokens import Tokens, one_each_place, refuse
from plait.errors import PlaitError
from plait.methods.attention.nalaformer import plain_tokens
from plait.parts.positions.relative import offsets


def piecewise(x: Tensor, ratio: float) -> Tensor:
    """Distances to whole numbers -b to b, b = int(2 ratio): themselves up to `ratio`, logarithmic up to 8 ratio,
    constant beyond."""
    near, top, end = ratio, 2 * ratio, 8 * ratio
    x = x.float()
    far = near + (x.abs().clamp(min=near) / near).log() / math.log(end / near) * (top - near)
    return torch.where(x.abs() <= near, x.round(), x.sign() * far.round().clamp(max=top)).long()


# Of offsets, down (R, 1) and right (1, C), to one or two tables of buckets (R, C) from 0 on; `steps` is `piecewise`
# moved to 0 to 2 b.
Scheme = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor], int], tuple[Tensor, ...]]
SCHEMES: dict[str, Scheme] = {
    "euclidean": lambda down, right, steps, count: (steps((down.square() + right.square()).float().sqrt().round()),),
    "quantised": lambda down, right, steps, count: (steps(down.square() + right.square()),),
    "cross": lambda down, right, steps, count: (steps(down + 0 * right), steps(0 * down + right)),
    "product": lambda down, right, steps, count: (steps(down) * count + steps(right),),
}


class Buckets(nn.Module):
    """Which bucket each pair of tokens falls into: (grid, head, device) -> (S, N, N) int64, S tables; special tokens
    have the last one."""

    def __init__(self, scheme: str, ratio: float):
        super().__init__()
        self.scheme, self.ratio, self.reach = SCHEMES[scheme], ratio, int(2 * ratio)
        self.tables, steps = (2 if scheme == "cross" else 1), 2 * self.reach + 1
        self.count = (steps**2 if scheme == "product" else steps) + 1

    def forward(self, grid: tuple[int, int], head: int, device: torch.device) -> Tensor:
        down, right = (torch.arange(1 - side, side, device=device) for side in grid)
        tables = self.scheme(
            down[:, None], right[None], lambda x: piecewise(x, self.ratio) + self.reach, 2 * self.reach + 1
        )
        places = offsets(grid, device)
        found = torch.stack([table.flatten()[places] for table in tables])
        return F.pad(found, (head, 0, head, 0), value=self.count - 1)


class Bias(nn.Module):
    """A learned number per bucket, whatever the token: (B, H, N, E), buckets (S, N, N) -> (1, H or 1, N, N)."""

    def __init__(self, buckets: Buckets, heads: int, width: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(buckets.tables, heads, buckets.count))

    def reset(self) -> None:
        nn.init.zeros_(self.table)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return sum(t.index_select(1, i.flatten()).unflatten(1, i.shape) for t, i in zip(self.table, index))[None]


class Contextual(nn.Module):
    """A learned vector per bucket, multiplied with each token: (B, H, N, E), buckets (S, N, N) -> (B, H, N, N)."""

    def __init__(self, buckets: Buckets, heads: int, width: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(buckets.tables, heads, width, buckets.count))

    def reset(self) -> None:
        nn.init.zeros_(self.table)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return sum((x @ t).gather(3, i.expand(*x.shape[:2], -1, -1)) for t, i in zip(self.table, index))

    def hear(self, maps: Tensor, index: Tensor) -> Tensor:
        """The buckets' vectors by how much each is attended to: maps (B, H, N, N) -> (B, H, N, E)."""
        heard = 0.0
        for t, i in zip(self.table, index):
            # (B, H, N, K)
            shares = maps.new_zeros(*maps.shape[:3], t.shape[-1]).scatter_add(3, i.expand_as(maps), maps)
            heard = heard + shares @ t.mT.to(maps.dtype)
        return heard


MODES = {"bias": Bias, "contextual": Contextual}


class RelativeAttend(Attend):
    """Attention with encodings of relative positions, on those of q, k and v that are given."""

    on_grid = True

    def __init__(self, old: Attend, buckets: Buckets, encodings: dict[str, nn.Module]):
        super().__init__(dropout=old.dropout)
        self.buckets, self.encodings = buckets, nn.ModuleDict(encodings)

    def forward(
        self,
        t: Tokens,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        to: Tokens | None = None,
        bias: Tensor | None = None,
        scale: float | None = None,
    ) -> Tokens:
        plain_tokens(t, to, bias, scale)
        one_each_place(t)
        index, scale, terms = self.buckets(t.grid, t.prefix, t.x.device), q.shape[-1] ** -0.5, []
        if "k" in self.encodings:
            terms.append(self.encodings["k"](q * scale, index))
        if "q" in self.encodings:
            terms.append(self.encodings["q"](k * scale, index).mT)
        bias = sum(terms) if terms else None
        if "v" not in self.encodings:
            return super().forward(t, q, k, v, bias=bias)
        refuse(t, "weight", why="what is heard of a place would count once for many")
        drop = self.dropout if self.training else 0.0
        maps = F.dropout(self.weights(q, k, keep=t.keep, bias=bias), drop).to(v.dtype)
        return t.replace(x=maps @ v + self.encodings["v"].hear(maps, index))


def irpe(
    model: nn.Module,
    scheme: str = "product",
    mode: str = "contextual",
    on: str = "k",
    ratio: float = 1.9,
    shared: bool = True,
) -> Undo:
    """Every self-attention of `model`, which reads pictures, knows where tokens stand to each other. Encodings start at
    zero.

    scheme: one of `SCHEMES`. mode: "contextual" or "bias". on: which of "q", "k", "v" have an encoding, as "qkv"; "v"
    needs contextual.
    ratio: of the buckets' size, the offset up to which they are exact. shared: by all heads of a layer.
    Raises ValueError for other options, and for a model that reads anything but pictures or attends causally.
    """
    if scheme not in SCHEMES or mode not in MODES:
        raise PlaitError(
            f"got scheme {scheme!r}, mode {mode!r}: expected one of {', '.join(SCHEMES)} and one of {', '.join(MODES)}"
        )
    if not on or set(on) - set("qkv") or (mode == "bias" and "v" in on):
        raise PlaitError(
            f"on: got {on!r} with mode {mode!r}, expected some of the letters q, k and v, and v only where it is "
            "contextual"
        )
    if tuple(getattr(model, "takes", ("image",))) != ("image",):
        raise PlaitError(
            f"{type(model).__name__} reads more than pictures: apply it to the part that does, such as model.image"
        )

    def make(attention: Attention) -> Attend:
        buckets, heads = Buckets(scheme, ratio), attention.heads
        width = attention.out.in_features // heads
        encodings = {c: MODES[mode](buckets, 1 if shared else heads, width) for c in sorted(set(on))}
        return RelativeAttend(attention.attend, buckets, encodings)

    return swap_inside(model, make, "expected tokens of a grid that all see each other")
