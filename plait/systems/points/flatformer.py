"""FlatFormer: Flattened Window Attention for Efficient Point Cloud Transformer. Liu et al., 2023. arXiv:2301.08739.

New here: the voxels of a cloud are few and lie anywhere, so that windows of one shape hold very different numbers of
them. They are sorted by window instead, there and back from row to row, and the sequence is cut into groups of one
size: attention is dense, nothing is padded. Layers take turns: sorted along x, in shifted windows, along y, and
shifted again, so that voxels that a cut parted meet in the next.

Differs: this is the encoder, with a classifier on the mean token in place of the detector's heads; a cloud's last group
has fewer tokens, where the public code fills it up with some of the group before; voxels may also lie one above the
other, and are then ordered by height within a place; points are normed by layer, not by batch. Several clouds may lie
in one row (`packed`), each in groups of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core import precision
from plait.core.attend import Attend
from plait.core.block import Block, FeedForward, Post, Stack, check_heads, merge_heads, split_heads
from plait.core.packing import owners
from plait.core.tokens import Tokens, check_mask, mean, real, refuse
from plait.errors import PlaitError

ORDERS = (
    (0, False),
    (0, True),
    (1, False),
    (1, True),
)  # of a block's layers: the axis, and whether windows are shifted


class Voxels(nn.Module):
    """Points (B, P, C), the first three from -1 to 1 -> Tokens (B, P, D), one for each voxel that holds some, and `pos`
    (B, P, 3) where it lies; the rest are not real.

    Each point is told its place in its voxel and from the middle of the points there; twice a linear layer and the
    greatest of each voxel's.
    """

    def __init__(self, points: int, cells: tuple[int, int, int], width: int):
        super().__init__()
        self.cells, half = tuple(cells), width // 2
        self.first, self.norm_first = nn.Linear(points + 6, half), nn.LayerNorm(half)
        self.second, self.norm_second = nn.Linear(2 * half, width), nn.LayerNorm(width)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tokens:
        check_mask(keep, *x.shape[:2])
        keep = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if keep is None else keep
        x = x.masked_fill(~keep[..., None], 0.0)
        sides = torch.tensor(self.cells, device=x.device)
        where = ((precision.wide(x[..., :3]) + 1) / 2 * sides).floor().to(torch.int64).clamp(min=0)
        where = torch.minimum(where, sides - 1)  # (B, P, 3)
        number = (where[..., 0] * self.cells[1] + where[..., 1]) * self.cells[2] + where[..., 2]
        number, order = number.masked_fill(~keep, math.prod(self.cells)).sort(1)
        new = torch.ones_like(number, dtype=torch.bool)
        new = torch.cat([new[:, :1], number[:, 1:] != number[:, :-1]], 1)
        rank = new.cumsum(1) - 1  # (B, P): which of the voxels each point, in order, lies in
        voxel = torch.zeros_like(rank).scatter(1, order, rank)[..., None]
        middle = _pooled(x[..., :3], voxel, "mean").gather(1, voxel.expand(-1, -1, 3))
        centre = (where + 0.5) / sides * 2 - 1
        x = torch.cat([x, x[..., :3] - middle, x[..., :3] - centre.to(x.dtype)], 2)
        x = self.norm_first(self.first(x)).relu()
        x = torch.cat([x, _pooled(x, voxel, "amax").gather(1, voxel.expand_as(x))], 2)
        x = _pooled(self.norm_second(self.second(x)).relu(), voxel, "amax")
        pos = torch.zeros_like(where).scatter(1, voxel.expand_as(where), where)
        there = torch.zeros_like(rank).scatter_add(1, voxel[..., 0], keep.to(rank.dtype)) > 0
        return Tokens(x.masked_fill(~there[..., None], 0.0), keep=there, pos=pos)


def _pooled(x: Tensor, voxel: Tensor, how: str) -> Tensor:
    """x (B, P, D) of the points, pooled into their voxels (B, P, 1): (B, P, D), zeros where there is none."""
    empty = torch.zeros_like(x)
    return empty.scatter_reduce(1, voxel.expand_as(x), x, how, include_self=False)


def flat_order(pos: Tensor, sides: Sequence[int], window: int, axis: int, shifted: bool) -> Tensor:
    """(B, N) int64: numbers that sort voxels at pos (B, N, 3) by window, and within it, to and fro along `axis`."""
    a, b = (pos[..., axis], pos[..., 1 - axis])
    if shifted:
        a, b = a + window // 2, b + window // 2
    windows, inside = 2 * (-(-sides[axis] // window) + 1), 2 * window
    a1, b1, a2, b2 = a // window, b // window, a % window, b % window
    to, fro = 1 - 2 * (b1 % 2), 1 - 2 * (a2 % 2)
    number = (windows * b1 + to * a1) * inside * inside + to * (inside * a2 + fro * b2)
    return number * sides[2] + pos[..., 2]


def sines(pos: Tensor, width: int, dims: int) -> Tensor:
    """(B, N, D): sines and cosines of the first `dims` coordinates, of wavelengths up to 10,000 cells."""
    count = width // (2 * dims) * 2
    rate = 10_000.0 ** (2 * (torch.arange(count, device=pos.device) // 2) / count)
    angle = pos[..., :dims, None] / rate  # (B, N, dims, count)
    waves = torch.stack([angle[..., ::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2).flatten(-2)
    return F.pad(waves, (0, width - waves.shape[-1]))


class FlatAttention(nn.Module):
    """Attention within groups of `group` voxels that follow each other in an order: Tokens (B, N, D), with `pos`, ->
    Tokens (B, N, D). Voxels that are not real come last; of a packed row each cloud has groups of its own."""

    def __init__(
        self, width: int, heads: int, *, cells: tuple[int, int, int], window: int, group: int, axis: int, shifted: bool
    ):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.cells, self.window, self.group, self.axis, self.shifted = (
            heads, tuple(cells), window, group, axis, shifted,
        )  # fmt: skip
        self.qk, self.v, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width), nn.Linear(width, width)
        self.attend = Attend()

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "weight", "memory", why="groups are of one size and know no order in time")
        if t.pos is None:
            raise PlaitError("got tokens without pos, expected where each voxel lies: this layer sorts them by it")
        number, there = flat_order(t.pos, self.cells, self.window, self.axis, self.shifted), real(t)
        span = 64 * (max(self.cells) + 2 * self.window) ** 2 * self.cells[2]  # more than any number
        number = number.masked_fill(~there, span)
        if t.lengths is not None:
            number = number + 2 * span * owners(t.lengths, number.device)
        order = number.argsort(dim=1)  # (B, N)
        at, lacks = self.groups(t)  # (M,) which of the sorted tokens stands at each place, and where none does
        order_at = order[:, at]
        dims = 2 if self.cells[2] == 1 else 3
        x = t.x.gather(1, order_at[..., None].expand(-1, -1, t.x.shape[2]))
        pos = t.pos.gather(1, order_at[..., None].expand(-1, -1, 3))
        keep = there.gather(1, order_at) & ~lacks
        x, pos, keep = (v.unflatten(1, (-1, self.group)).flatten(0, 1) for v in (x, pos, keep))
        q, k = split_heads(self.qk(x + sines(pos, x.shape[2], dims).to(x.dtype)), 2, self.heads)
        (v,) = split_heads(self.v(x), 1, self.heads)
        inner = self.attend(t.inside(x, keep=keep), q, k, v)
        y = self.out(merge_heads(inner.x)).unflatten(0, (t.x.shape[0], -1)).flatten(1, 2)  # (B, M, D)
        place = torch.zeros_like(order).scatter(1, order, self.seats(t).expand_as(order))
        return t.carry(inner.replace(memory=t.memory), y.gather(1, place[..., None].expand_as(t.x)))

    def groups(self, t: Tokens) -> tuple[Tensor, Tensor]:
        """(M,) each: what stands at each place of the groups, as a place in the order, and whether nothing does."""
        at, lacks, begin = [], [], 0
        for length in t.lengths or (t.x.shape[1],):
            spare = -length % self.group
            at.append(F.pad(torch.arange(begin, begin + length, device=t.x.device), (0, spare), value=begin))
            lacks.append(torch.arange(length + spare, device=t.x.device) >= length)
            begin += length
        return torch.cat(at), torch.cat(lacks)

    def seats(self, t: Tokens) -> Tensor:
        """(N,): where in the groups what is n-th in the order stands."""
        seats, begin = [], 0
        for length in t.lengths or (t.x.shape[1],):
            seats.append(torch.arange(begin, begin + length, device=t.x.device))
            begin += length + -length % self.group
        return torch.cat(seats)


class FlatFormer(nn.Module):
    """Clouds (B, P, C) of points, the first three numbers from -1 to 1 -> logits (B, K), from the mean of the voxels.

    points: C. cells: the voxels of the cube along each side. window: cells of a window's sides, which goes through all
    heights. group: voxels that attend to each other. depth: blocks of four layers.
    """

    takes, fits, classifier = ("points",), ("points",), ("head.",)

    def __init__(
        self, *, points=3, cells=(468, 468, 1), window=13, group=144, width=128, depth=2, heads=8, num_classes=1000
    ):
        super().__init__()
        self.width = width
        self.voxels = Voxels(points, cells, width)
        kinds = dict(cells=cells, window=window, group=group)
        self.stack = Stack(
            *(
                Block(
                    Post(nn.LayerNorm(width), FlatAttention(width, heads, axis=axis, shifted=shifted, **kinds)),
                    Post(nn.LayerNorm(width), FeedForward(width, 2 * width)),
                )
                for _ in range(depth)
                for axis, shifted in ORDERS
            )
        )
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """Points (B, P, C), keep (B, P) -> Tokens (B, P, D): the voxels, of which there are at most as many."""
        return self.stack(self.voxels(x, keep))

    def packed(self, clouds: Sequence[Tensor]) -> Tokens:
        """Clouds [(P_1, C), ...] -> Tokens (1, N_1 + N_2 + ..., D) of their voxels alone, with `lengths`."""
        found = [self.voxels(cloud[None], None) for cloud in clouds]
        there = [real(t)[0] for t in found]
        x, pos = (torch.cat([v[0][k] for v, k in zip(vs, there)])[None] for vs in zip(*((t.x, t.pos) for t in found)))
        return self.stack(Tokens(x, pos=pos, lengths=tuple(len(t.x[0][k]) for t, k in zip(found, there))))

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the mean of the real voxels; of a packed row, one of each cloud."""
        return mean(t)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.head(self.pool(self.tokens(x, keep)))


MODEL = FlatFormer
TAKES = ("points",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(cells=(8, 8, 8), window=4, group=8, width=32, depth=1, heads=2, num_classes=10),
    "nano": dict(cells=(12, 12, 12), window=6, group=32, width=64, depth=1, heads=4),
    "waymo_1f": dict(points=5),
    "waymo_2f": dict(points=5),
    "waymo_3f": dict(points=5),
}
WEIGHTS = {}  # trained on data whose terms let nobody hand them on
