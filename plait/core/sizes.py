"""Sizes that are numbers, symbols of a program in the making, or, while torch.jit traces, tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def numbers(*sides: int) -> bool:
    """Whether these are numbers, and not symbols of a program in the making."""
    if not torch.compiler.is_compiling():
        return True
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return all(has_static_value(side) for side in sides)


def surely(claim: Any) -> bool:
    """Whether it holds; of a size that is no number yet, whether it holds for each that it may become."""
    if not torch.compiler.is_compiling():
        return bool(claim)
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes half a second to import

    return statically_known_true(claim)


def readable(x: Tensor) -> bool:
    """Whether its numbers can be looked at: it is none of a program in the making, and no row of `torch.func.vmap`."""
    making = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return type(x) is Tensor and not making and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def least(a: int, b: int) -> int:
    """The smaller of two sizes."""
    return min(int(a), int(b)) if isinstance(a, Tensor) or isinstance(b, Tensor) else torch.sym_min(a, b)
