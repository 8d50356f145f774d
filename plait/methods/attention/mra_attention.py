"""Multi Resolution Analysis (MRA) for Approximate Self-Attention. Zeng et al., 2022. arXiv:2207.10284

New here: exp(q k^T) at two resolutions. Means of blocks of tokens give a coarse map of (N / block)^2 numbers; where it
is largest, whole blocks are computed in full; everywhere else a block of keys counts as its mean, as many times as it
has tokens. Both sums are normalised together, and no N x N matrix is ever made.

Differs: what a row of tokens may refine is counted from its real tokens, and the coarse maxima are taken over these, so
that padding changes nothing; the public code gives out blocks by the padded length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.surgery import Undo, swap_inside
from plait.core.tokens import Tokens
from plait.errors import PlaitError
from plait.methods.attention.nalaformer import plain_tokens

FAR = -1e9  # in place of minus infinity, of which a sum over nothing would make NaN


def multi_resolution(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, *, block: int, fine: int, background: bool = True
) -> Tensor:
    """Attention of q, k, v (B, H, N, E) -> (B, H, N, E), of which fine * N / block blocks of block x block scores are
    exact.

    weight: (B, N) how often each token counts as a key; 0 is padding, whose v is never read.
    background: whether the blocks that are not refined count by their means; without, they count nothing.
    """
    n, scale, dtype = q.shape[2], q.shape[3] ** -0.5, q.dtype
    v = v.masked_fill((weight == 0)[:, None, :, None], 0.0)  # garbage, even NaN, must not leak
    # (B, H, R, b, E)
    q, k, v = (F.pad(x.float(), (0, 0, 0, -n % block)).unflatten(2, (-1, block)) for x in (q * scale, k, v))
    w = F.pad(weight.float(), (0, -n % block)).unflatten(1, (-1, block))[:, None]  # (B, 1, R, b)
    count = w.sum(-1)  # (B, 1, R)
    means = [_mean(x, w, count) for x in (q, k, v)]  # each (B, H, R, E)
    coarse = (means[0] @ means[1].mT).masked_fill((count == 0)[:, :, None], FAR)  # (B, H, R, R), padding never
    top = coarse.detach().amax(-1)  # (B, H, R)

    rows = coarse.shape[2]
    blank = (count == 0)[..., None]
    order = (coarse.detach() - top[..., None]).masked_fill(blank, FAR).flatten(2)
    many = min(fine, rows) * rows
    place = order.topk(many).indices  # (B, H, K) of the blocks, best first
    # A row of tokens refines `fine` blocks for each block that has a real token; what is chosen beyond that counts for
    # nothing.
    spent = torch.arange(many, device=q.device) >= (min(fine, rows) * (count > 0).sum(-1))[..., None]
    row, column = place // rows, place % rows
    taken = torch.zeros_like(order, dtype=torch.bool).scatter(2, place, ~spent.expand_as(place)).view_as(coarse)

    scores = _take(q, row) @ _take(k, column).mT  # (B, H, K, b, b)
    heavy = _take(w.expand(-1, q.shape[1], -1, -1), column)  # (B, H, K, b)
    off = spent[..., None] | (heavy == 0)
    scores = scores.masked_fill(off[:, :, :, None], FAR)
    coarse = coarse.masked_fill(taken, FAR) if background else torch.full_like(coarse, FAR)
    low = coarse.detach().amax(-1, keepdim=True)  # (B, H, R, 1)
    # (B, H, R, b)
    high = low.expand(q.shape[:4]).scatter_reduce(2, _as(row, q[..., 0]), scores.detach().amax(-1), "amax")
    p = (scores - _take(high, row)[..., None]).exp() * heavy[:, :, :, None]
    p = p.masked_fill(off[:, :, :, None], 0.0)  # (B, H, K, b, b)
    far = ((coarse - low).exp() * count[:, :, None]).masked_fill(coarse <= FAR, 0.0)  # (B, H, R, R)
    fade = (low - high).exp()  # (B, H, R, b): from a block's own largest exponent to each query's
    total = (fade * far.sum(-1, keepdim=True)).scatter_add(2, _as(row, high), p.sum(-1))
    y = (fade[..., None] * (far @ means[2])[:, :, :, None]).scatter_add(2, _as(row, q), p @ _take(v, column))
    return (y / total.clamp(min=1e-30)[..., None]).flatten(2, 3)[:, :, :n].to(dtype)


def _mean(x: Tensor, w: Tensor, count: Tensor) -> Tensor:
    """Of each block, by weight: x (B, H, R, b, E) -> (B, H, R, E)."""
    return (w[..., None, :] @ x)[..., 0, :] / count.clamp(min=1e-6)[..., None]


def _as(place: Tensor, x: Tensor) -> Tensor:
    """place (B, H, K) as an index for blocks like those of x (B, H, R, ...)."""
    return place.view(*place.shape, *[1] * (x.dim() - 3)).expand(*place.shape, *x.shape[3:])


def _take(x: Tensor, place: Tensor) -> Tensor:
    """The blocks (B, H, K, ...) at `place` (B, H, K) of x (B, H, R, ...)."""
    return x.gather(2, _as(place, x))


class MultiResolutionAttend(Attend):
    """`multi_resolution` between projections."""

    backends = ("sdpa",)  # there is one way to compute it

    def __init__(self, old: Attend, block: int, fine: int, background: bool):
        super().__init__()
        self.block, self.fine, self.background = block, fine, background

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
        weight = t.x.new_ones(t.x.shape[:2]) if t.weight is None else t.weight
        weight = weight if t.keep is None else weight * t.keep
        how = dict(block=self.block, fine=self.fine, background=self.background)
        return t.replace(x=multi_resolution(q, k, v, weight, **how))


def mra_attention(model: nn.Module, block: int = 32, fine: int = 4, background: bool = True) -> Undo:
    """Every self-attention of `model` is approximated at two resolutions, with the weights that it has.

    block: tokens of a block. fine: how many blocks of keys a block of queries refines, on average over a row of tokens;
    a row of no more than block * fine tokens has exact attention. background: False leaves out what is not refined (the
    paper's sparse form).
    Raises ValueError for numbers below one, and for a model without self-attention or with a causal one.
    """
    if block < 1 or fine < 1:
        raise PlaitError(f"block and fine: got {block} and {fine}, expected at least one token and one block")
    why = "where the mean of a block would tell what is ahead"
    return swap_inside(model, lambda a: MultiResolutionAttend(a.attend, block, fine, background), why)
