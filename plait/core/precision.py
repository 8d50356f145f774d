"""Numbers in the precision that a step needs, whatever the model is in."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is so already: for sums and exponentials that half precision cannot hold."""
    return x if x.dtype == torch.float64 else x.float()
