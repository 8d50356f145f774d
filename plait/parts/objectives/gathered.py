"""Rows of all processes as if each had them, so that what is no answer to a row is shared over all devices
(arXiv:2010.08191)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(x: Tensor) -> Tensor:
    """x (n, ...) of each process, which may differ in n -> (N, ...) of all, one process after another, in each. Of one
    process alone it is x.

    The gradient of a row is the sum of what all processes ask of it. Where each has the same loss of all rows, the mean
    of its gradients over processes, which is what their wrappers take, is that of one process with all rows. All
    processes must call it, in the same order.
    """
    return _Gathered.apply(x) if _several() else x


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
        sizes = torch.cat(counts).tolist()
        flags = x.dtype == torch.bool  # which not every backend sends
        own = x.new_zeros(max(sizes), *x.shape[1:], dtype=torch.uint8 if flags else x.dtype)
        own[: len(x)] = x
        parts = [torch.zeros_like(own) for _ in sizes]
        dist.all_gather(parts, own)
        found = torch.cat([part[:size] for part, size in zip(parts, sizes)])
        first = sum(sizes[: dist.get_rank()])
        ctx.own = slice(first, first + len(x))
        return found.bool() if flags else found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        asked = grad.contiguous().clone()
        dist.all_reduce(asked)
        return asked[ctx.own]
