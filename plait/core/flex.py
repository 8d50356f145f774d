"""Attention by torch's flex_attention, for `core/attend.py`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from plait.core.packing import owners
from plait.errors import PlaitError


def flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout: float,
    lengths: tuple[int, ...] | None,
) -> Tensor:
    """As `attend`, with `mask` (B, 1, 1 or N, M) bool. ValueError for dropout, and for gradients on the CPU: the kernel
    has neither."""
    if dropout:
        raise PlaitError(
            f"the flex backend has no dropout: got {dropout}, expected 0. Evaluate, or use the sdpa backend"
        )
    if q.device.type == "cpu" and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise PlaitError(
            "the flex backend has no gradients on the CPU: call under torch.no_grad(), or train with the sdpa backend"
        )
    shape = (*q.shape[:-1], k.shape[-2])  # (B, H, N, M)
    added = None if bias is None else _adding(bias.expand(shape))
    blocks = _blocks(shape, mask, causal, lengths, q.device)
    return flex_attention(q, k, v, score_mod=added, block_mask=blocks, scale=scale)


def _adding(bias: Tensor) -> Callable[..., Tensor]:
    """What adds its place of the bias (B, H, N, M) to each score."""

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + bias[b, h, i, j]

    return score


def _blocks(
    shape: tuple[int, ...], mask: Tensor | None, causal: bool, lengths: tuple[int, ...] | None, device: torch.device
) -> BlockMask | None:
    """Which blocks of the map (B, H, N, M) hold anything to attend to; None where all may attend to all."""
    b, _, n, m = shape
    if mask is None and not causal and lengths is None:
        return None
    allowed = None if mask is None else mask.expand(b, 1, n, m)
    owner = None if lengths is None else owners(lengths, device)

    def may(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        yes = j >= 0
        if allowed is not None:
            yes = yes & allowed[b, 0, i, j]
        if causal:
            yes = yes & (j <= i + (m - n))
        if owner is not None:
            yes = yes & (owner[i] == owner[j])
        return yes

    return create_block_mask(may, b if mask is not None else None, None, n, m, device=device)
