"""Attention by plain products of matrices, for `core/attend.py`: the truth that kernels are tested against, what none
of them can do, and a backward pass where theirs is slow."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core.precision import as_given, wide


def maps(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    gone: Tensor | None = None,
) -> Tensor:
    """(B, H, N, M) attention weights in float32, or float64.

    gone: of `hidden`; such a query has any weights, but no NaN, and neither have its gradients.
    """
    with as_given(q.device):
        scores = (wide(q) * (q.shape[-1] ** -0.5 if scale is None else scale)) @ wide(k).mT
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
        if gone is not None:
            with torch.no_grad():  # what such a query says is hidden again, and its gradient with it
                scores.masked_fill_(gone, 0.0)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


def hidden(mask: Tensor | None, bias: Tensor | None) -> Tensor:
    """(B or 1, H or 1, N or 1, 1): which queries have nothing to attend to, all of it behind the mask or a bias of
    -inf."""
    if bias is None:
        assert mask is not None
        return ~mask.any(-1, keepdim=True)
    bias = wide(bias.detach())  # whose maximum takes a third of the time
    seen = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    return seen.amax(-1, keepdim=True) == float("-inf")


class Recomputed(torch.autograd.Function):
    """torch's fused forward pass; a backward pass that computes the weights anew, by products.

    (q, k, v, add, causal, scale) -> (B, H, N, F), add being a mask or a bias, which gets its gradient. Weights and
    their gradients are in float32, products of others in the type that is given, as in torch's own.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, add: Tensor | None, causal: bool, scale: float | None) -> Tensor:
        add = None if add is None else add.detach()  # else no fused kernel takes it
        if lone(q):
            return widened(q, k, v, add, scale)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=add, is_causal=causal, scale=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.causal, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, add = ctx.saved_tensors
        learnt, each = ctx.needs_input_grad[3], _by_row(add, q)
        rows = max(1, PIECE // (q.shape[1] * q.shape[2] * k.shape[2]))
        adds = add.split(rows) if each else repeat(add)
        parts = zip(*(x.split(rows) for x in (q, k, v, g)), adds)
        found = [_backward(q, k, v, g, a, ctx.causal, ctx.scale, learnt) for q, k, v, g, a in parts]
        dq, dk, dv, da = zip(*found)
        said = None if not learnt else torch.cat(da) if each else sum(da)
        return torch.cat(dq), torch.cat(dk), torch.cat(dv), said, None, None


def _by_row(add: Tensor | None, q: Tensor) -> bool:
    """Whether each row has a mask, or a bias, of its own."""
    return add is not None and add.dim() == 4 and add.shape[0] == q.shape[0]


PIECE = 2**20  # weights: what is done with them stays in the cache, and takes no room beside what was kept


def _backward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, add: Tensor | None, causal: bool, scale: float | None, learnt: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What q, k, v and `add` get of g (B, H, N, F)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    mask, bias = (add, None) if add is None or add.dtype == torch.bool else (None, add)
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    with as_given(q.device):
        p = maps(q, k, mask, bias, scale)  # (B, H, N, M)
        half = p.to(v.dtype)
        ds = torch._softmax_backward_data(wide(g @ v.mT), p, -1, p.dtype)
        said = ds.sum_to_size(add.shape).to(add.dtype) if learnt and add is not None else None
        ds = (ds * scale).to(q.dtype)
        return ds @ k, ds.mT @ q, half.mT @ g, said


WIDE = 2**19  # numbers that the caches hold


def lone(q: Tensor) -> bool:
    """Whether it is one query in half precision on a CPU, whose kernel takes two to five times as long as in float32.
    A trace would keep the number of its pieces."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return half and q.device.type == "cpu" and q.shape[-2] == 1 and not traced


def widened(q: Tensor, k: Tensor, v: Tensor, add: Tensor | None, scale: float | None) -> Tensor:
    """torch's fused attention in float32, as many rows at once as the caches hold. add: a mask, or a bias."""
    rows = max(1, WIDE // max(1, k[0].numel()))
    add = add if add is None or add.dtype == torch.bool else add.float()
    adds = add.split(rows) if add is not None and _by_row(add, q) else repeat(add)
    parts = zip(*(x.split(rows) for x in (q, k, v)), adds)
    asked = F.scaled_dot_product_attention
    return torch.cat([asked(q.float(), k.float(), v.float(), a, scale=scale) for q, k, v, a in parts]).to(q.dtype)
