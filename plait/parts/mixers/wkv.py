"""RWKV's attention without queries, from both sides (Vision-RWKV, arXiv:2403.02308)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core.precision import wide


def bi_wkv(decay: Tensor, first: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Means of v (B, N, C) over all tokens, weighted by exp(k_i - decay (|n - i| - 1)) and for the token itself by
    exp(k_n + first).

    decay, first (C,); k, v (B, N, C) -> (B, N, C), in linear time, float32. A decay is split into a growth before the
    running sum and a decay after it, exact to rounding while |decay| N stays under 100 (trained ones stay under 10).
    Every token sees the largest key, so that what is too small beside it to be summed is too small to be seen.
    """
    n = k.shape[1]
    k, v = wide(k).mT, wide(v).mT  # (B, C, N): sums run along the last dimension
    place = torch.arange(n, device=k.device) - (n - 1) / 2
    growth = (wide(decay)[:, None] * place).exp()  # (C, N)
    weight = (k - k.amax(2, keepdim=True)).exp()
    both = torch.stack([weight * v, weight])  # (2, B, C, N)
    step = wide(decay).exp()[:, None]
    earlier = _before(both * growth) * (step / growth)
    later = _before((both / growth).flip(-1)).flip(-1) * (step * growth)
    top, bottom = earlier + later + both * wide(first).exp()[:, None]
    return (top / bottom).mT


def _before(x: Tensor) -> Tensor:
    """Along the last dimension, the sum of all that stands before each place."""
    return F.pad(x[..., :-1].cumsum(-1), (1, 0))
