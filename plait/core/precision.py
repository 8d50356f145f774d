"""Numbers in the precision that a step needs, whatever the model is in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is so already: for sums and exponentials that half precision cannot hold."""
    return x if x.dtype == torch.float64 else x.float()


def as_given(device: torch.device) -> AbstractContextManager:
    """Products in the precision of what they multiply, under autocast too."""
    return torch.autocast(device.type, enabled=False) if _casting(device.type) else nullcontext()


def as_asked(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the same device in the type that autocast asks for, where it does, as torch's own products take
    them."""
    kind = tensors[0].device.type
    if not _casting(kind):
        return tensors
    return tuple(x if x.dtype == torch.float64 else x.to(torch.get_autocast_dtype(kind)) for x in tensors)


def _casting(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
