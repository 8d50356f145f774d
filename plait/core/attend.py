"""Attention, computed in one place; a switch changes the backend of every model at once.

"sdpa"   torch's fused kernels, the default.
"eager"  plain products, scores in float32: slow, and the truth that the others are tested against.
"flex"   torch's flex_attention: one kernel even for packed rows where the model is compiled, plain products where it is
not.
         It has no dropout, and no gradients on the CPU: both raise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core.packing import check, each

BACKENDS = ("sdpa", "eager", "flex")
_backend = "sdpa"
_record: list[Tensor] | None = None


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Compute all attention inside with `name`, one of `BACKENDS`."""
    global _backend
    if name not in BACKENDS:
        raise ValueError(f"attention backend: got {name!r}, expected one of {', '.join(BACKENDS)}")
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


@contextmanager
def record() -> Iterator[list[Tensor]]:
    """Collect every attention map (B, H, N, M) computed inside, in call order, under any backend.

    A packed row gives one map for each run of neighbouring sequences of one length, B being their number.
    """
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    keep: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    lengths: tuple[int, ...] | None = None,
) -> Tensor:
    """softmax(q k^T * scale + bias) v, over the keys that may be attended to.

    q (B, H, N, E), k (B, H, M, E), v (B, H, M, F) -> (B, H, N, F).
    keep: (B, M) or (B, N, M) bool, True = may attend. bias: additive, broadcastable to (B, H, N, M).
    causal: query n sees keys up to n + M - N. A query with nothing to attend to returns zeros.
    lengths: the one row (B = 1) holds sequences of these lengths, each of which attends to itself only, at the cost of
    the sum of their squares. Then N = M, keep is (1, M) and bias is the same for all queries.
    Raises ValueError where the arguments do not fit each other, or the chosen backend cannot honour one.
    """
    if lengths is not None:
        check(q, k, lengths, keep, bias)
    if lengths is not None and (_backend != "flex" or _record is not None):
        return each(attend, q, k, v, lengths, keep=keep, bias=bias, causal=causal, scale=scale, dropout=dropout)
    mask = None
    if keep is not None:
        mask = keep[:, None, None, :] if keep.dim() == 2 else keep[:, None]  # (B, 1, 1 or N, M)
    if _record is not None:
        _record.append(_maps(q, k, _past(q, k, mask, causal), bias, scale))
    if _backend == "flex":
        from plait.core.flex import flex

        return flex(q, k, v, mask, bias, causal, scale, dropout, lengths)
    n, m = q.shape[-2], k.shape[-2]
    if causal and (mask is not None or bias is not None or n != m or _backend == "eager"):
        mask, causal = _past(q, k, mask, causal), False
    if _backend == "eager":
        return F.dropout(_maps(q, k, mask, bias, scale), dropout).to(v.dtype) @ v
    if _plain_is_faster(q, k, v, bias):
        return _plain(q, k, v, mask, bias, causal, scale, dropout)
    if mask is None and bias is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal, scale=scale)
    if bias is not None:
        add = bias.to(q.dtype) if mask is None else bias.to(q.dtype).masked_fill(~mask, float("-inf"))
    else:
        add = mask
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=add, dropout_p=dropout, scale=scale)
    # Kernels differ on rows with no key (NaN, a mean, or zeros): the promise is zeros.
    return out if mask is None else out.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def attention_weights(
    q: Tensor, k: Tensor, *, keep: Tensor | None = None, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(q k^T * scale + bias) itself, (B, H, N, M) float32, for modules that use the same weights several times.

    Arguments as `attend`; there is one backend. A query with nothing to attend to has weights of zero.
    """
    mask = None if keep is None else keep[:, None, None, :] if keep.dim() == 2 else keep[:, None]  # (B, 1, 1 or N, M)
    return noted(_maps(q, k, mask, bias, scale))


def noted(maps: Tensor) -> Tensor:
    """`maps` (B, H, N, M) themselves, which `record` has then seen: for modules whose weights are no softmax."""
    if _record is not None:
        _record.append(maps)
    return maps


SHORT = 384  # tokens


def _plain_is_faster(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    """Whether plain products are the faster kernel. On the CPU no fused one takes values of another width than keys, or
    channels that do
    not lie side by side, or gives a bias its gradient: what torch does instead takes longer, a quarter in the last
    case. And there the backward pass of fused bfloat16 attention pays a fixed price for each head, which up to about
    400 tokens is 1.3 to 10 times the whole of plain attention (measured with AMX).
    """
    if q.device.type != "cpu":
        return False
    if v.shape[-1] != q.shape[-1] or q.stride(-1) != 1:
        return True
    if not torch.is_grad_enabled():
        return False
    short = q.dtype == torch.bfloat16 and q.requires_grad and max(q.shape[-2], k.shape[-2]) <= SHORT
    return short or (bias is not None and bias.requires_grad)


def _past(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """`mask` without the keys that lie ahead of each query, if `causal`."""
    if not causal:
        return mask
    n, m = q.shape[-2], k.shape[-2]
    past = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
    return past if mask is None else mask & past


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout: float,
):
    """Attention in the inputs' own precision, (B, H, N, F)."""
    mask = _past(q, k, mask, causal)
    scores = (q if scale == 1 else q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.mT
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    out = F.dropout(scores.softmax(-1), dropout) @ v
    return out if mask is None else out.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def _maps(q: Tensor, k: Tensor, mask: Tensor | None, bias: Tensor | None, scale: float | None) -> Tensor:
    """(B, H, N, M) attention weights in float32; a row with no key is all zeros."""
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)).float() @ k.float().mT
    if bias is not None:
        scores = scores + bias.float()
    if mask is None:
        return scores.softmax(-1)
    maps = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    return maps.masked_fill(~mask, 0.0)
