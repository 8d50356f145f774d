"""Token Merging: Your ViT But Faster. Bolya, Fu, Dai, Zhang, Feichtenhofer, Hoffman, 2023. arXiv:2210.09461

New here: between attention and feed-forward of every layer the tokens most alike become one, without training. They
are dealt out in turn to two sets; each of the first finds its nearest in the second by the cosine of their keys, and
the `r` nearest pairs merge into their mean. A token that stands for n is heard n times: log n is added to its scores.

On one CPU thread ViT-B/16 (224, 8 pictures) takes 0.57 of the time with half of its tokens left on average (r=15), 0.60
with r=13, and 0.72 with half left at the end (r=8): `benchmarks/merging.py`.

Differs: of a row with padding, real tokens merge with real ones as if the row were alone, then padding goes. A merged
token keeps the position of the one that took the other in.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Block, Stack
from plait.core.sizes import least
from plait.core.surgery import Undo, swap, together
from plait.core.tokens import Tokens, refuse
from plait.errors import PlaitError

PADDED, LATE = -2.0, -3.0  # in place of a cosine: padding into anything, a real token into padding's place


class Keys(NamedTuple):
    """What attention hands to the merging behind it, as the memory of its tokens: k (B, N, E), the mean of all heads'
    keys."""

    k: Tensor


class KeyedAttend(Attend):
    """An `Attend` that also hands on its keys."""

    def __init__(self, old: Attend):
        super().__init__(causal=old.causal, dropout=old.dropout, cross=old.cross)
        self.inner, self.backends = old, old.backends

    def forward(self, t: Tokens, q: Tensor, k: Tensor, v: Tensor, **how) -> Tokens:
        return self.inner(t.replace(memory=None), q, k, v, **how).replace(memory=Keys(k.mean(1)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, **how) -> Tensor:
        return self.inner.mix(q, k, v, **how)

    def maps(self, q: Tensor, k: Tensor, **how) -> Tensor:
        return self.inner.maps(q, k, **how)

    def weights(self, q: Tensor, k: Tensor, **how) -> Tensor:
        return self.inner.weights(q, k, **how)


class MergingBlock(Block):
    """A block that merges `r` pairs of its tokens (half of them, where there are fewer) before its feed-forward step:
    Tokens (B, N, D) -> (B, N - r, D)."""

    def __init__(self, old: Block, r: int):
        super().__init__(old.mix, old.feed)
        self.r = r

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "memory", "lengths", "kinds", why="merged tokens have no order and no kind")
        if t.context is not None and "allow" in t.context:
            raise PlaitError("got tokens of which some may not attend to others, expected that all may: they merge")
        t = self.mix(t)
        if not isinstance(t.memory, Keys):
            raise PlaitError("attention handed on no keys to merge by: apply tome after the method that replaced it")
        return self.feed(merged(t.replace(memory=None), t.memory.k, self.r))

    def extra_repr(self) -> str:
        return f"r={self.r}"


def merged(t: Tokens, keys: Tensor, r: int) -> Tokens:
    """`t` (B, N, D) with `r` of its tokens, at most half of those that are not special, merged into their nearest by
    keys (B, N, E): (B, N - r, D), in their order."""
    if r == 0:
        return t
    x, head = t.x, t.prefix
    r = least(r, (x.shape[1] - head) // 2)
    weight = x.new_ones(x.shape[:2]) if t.weight is None else t.weight
    if t.keep is not None:  # what padding holds is not heard
        x, weight = x.masked_fill(~t.keep[..., None], 0.0), weight * t.keep

    def sets(y: Tensor) -> tuple[Tensor, Tensor]:
        return y[:, head + 1 :: 2], y[:, head::2]

    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        a, b = sets(F.normalize(keys.float(), dim=-1))
        alike = a @ b.mT  # (B, N1, N2)
        if t.keep is not None:
            mine, other = sets(t.keep)
            alike = alike.masked_fill(~other[:, None], LATE).masked_fill(~mine[:, :, None], PADDED)
        best, mate = alike.max(-1)
        rank = best.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        goes = rank < r  # (B, N1)
        into = (mate[:, None] == torch.arange(b.shape[1], device=x.device)[:, None]) & goes[:, None]  # (B, N2, N1)
        gone = torch.zeros_like(weight).slice_scatter(goes.to(weight.dtype), 1, head + 1, step=2)
        stays = gone.argsort(dim=1, stable=True)[:, : x.shape[1] - r]  # (B, N - r)
    (xa, xb), (wa, wb) = sets(x), sets(weight)
    total = wb + (into * wa[:, None]).sum(-1)
    # what they differ by is what moves the mean: tokens that are the same stay what they are to the last bit
    moves = into.to(x.dtype) @ (wa[..., None] * (xa - taken(xb, mate)))
    x = x.slice_scatter((xb + moves / total.clamp(min=1e-6)[..., None]).to(x.dtype), 1, head, step=2)
    weight = taken(weight.slice_scatter(total, 1, head, step=2), stays)
    keep = None if t.keep is None else torch.cat([t.keep[:, :head], weight[:, head:] > 0], 1)
    if (pos := t.pos) is not None:
        shared = pos.shape[:2] != x.shape[:2]  # (N, ...), the same for all rows
        pos = taken(pos[None].expand(x.shape[0], *pos.shape) if shared else pos, stays)
    return t.replace(x=taken(x, stays), keep=keep, weight=weight, pos=pos, grid=None)


def taken(x: Tensor, index: Tensor) -> Tensor:
    """Of x (B, N, ...) those at index (B, M): (B, M, ...)."""
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))


def tome(model: nn.Module, r: int | tuple[int, ...] = 8, falling: bool = False) -> Undo:
    """Every layer of `model`, which reads pictures, merges `r` of its tokens into others, with the weights that it has.

    r: how many a layer, or a number for each; at most half of a layer's tokens go. The paper takes 8 to 25.
    falling: from twice as many in the first layer down to none in the last.
    Raises ValueError for a model that is bound to the grid, reads more than pictures, or has no layers of attention
    that would take fewer tokens, and for numbers that do not fit its layers.
    """
    name = type(model).__name__
    if getattr(model, "takes", ("image",)) != ("image",):
        raise PlaitError(f"{name} reads more than pictures: apply tome to its tower of pictures")
    if bound := next((m for m in model.modules() if getattr(m, "on_grid", False)), None):
        raise PlaitError(
            f"{name} is bound to the grid by its {type(bound).__name__}, which reads every place: choose a plain "
            "vision transformer"
        )
    if alone := next((m for m in model.modules() if "weight" in getattr(m, "refuses", ())), None):
        raise PlaitError(
            f"{name} counts tokens one by one in its {type(alone).__name__}, and a merged one stands for several: "
            "choose a plain vision transformer"
        )
    stacked = [block for m in model.modules() if isinstance(m, Stack) for block in m.blocks]
    blocks = [block for block in stacked if type(block) is Block and block.cross is None and attends(block)]
    if not blocks or len(blocks) < len(stacked):
        raise PlaitError(
            f"{name} has {len(blocks)} layers whose attention hands tokens on, expected a stack of them: choose a "
            "plain vision transformer"
        )
    counts = dict(zip(blocks, schedule(r, len(blocks), falling)))
    found = {id(seam) for block in blocks for seam in seams(block)}
    kinds = {type(seam) for block in blocks for seam in seams(block)}

    def keyed(kind: type[Attend]) -> Undo:
        return swap(model, kind, lambda seam: KeyedAttend(seam) if id(seam) in found else None)

    def merging() -> Undo:
        return swap(model, Block, lambda block: MergingBlock(block, counts[block]) if block in counts else None)

    return together([*(lambda kind=kind: keyed(kind) for kind in kinds), merging])


def seams(block: Block) -> list[Attend]:
    return [m for m in block.mix.modules() if isinstance(m, Attend)]


def attends(block: Block) -> bool:
    return bool(seams(block)) and not any(seam.causal or seam.cross for seam in seams(block))


def schedule(r: int | tuple[int, ...], depth: int, falling: bool) -> tuple[int, ...]:
    """How many tokens each of `depth` layers merges."""
    if isinstance(r, int):
        slope = [2 * (depth - 1 - i) / max(depth - 1, 1) if falling else 1.0 for i in range(depth)]
        r = tuple(round(r * share) for share in slope)
    elif falling:
        raise PlaitError("got falling beside a number for each layer, expected one number")
    if len(r) != depth or min(r) < 0:
        raise PlaitError(f"r: got {r}, expected a number of 0 or more for each of {depth} layers")
    return r
