"""Linear layers whose weights lie as the CPU's kernels want them, for writing word by word.

A step of writing multiplies a few rows by every weight there is: its time is that of reading the weights. Kernels that
find them packed for just so many rows take two thirds of the time (`benchmarks/writing.py`); only a single row of
float32, which waits for memory alone, gains nothing.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from plait.core.attend import twin
from plait.errors import PlaitError

M = TypeVar("M", bound=nn.Module)


class PackedLinear(nn.Module):
    """`nn.Linear` over the same weights and a packed copy of them. rows: how many are multiplied at once; with another
    number, float32 goes the usual way. Without gradients alone."""

    def __init__(self, linear: nn.Linear, rows: int):
        super().__init__()
        self.weight, self.bias, self.rows = linear.weight, linear.bias, rows
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.brain = linear.weight.dtype == torch.bfloat16
        pack = torch.ops.mkldnn._reorder_linear_weight if self.brain else torch.ops.mkl._mkl_reorder_linear_weight
        with torch.inference_mode(False), torch.no_grad():
            self.packed = pack(linear.weight.detach().clone(), rows)  # neither parameter nor buffer: it is not saved

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise PlaitError("packed weights have no gradients: write under torch.no_grad(), train the model itself")
        if self.brain:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, self.rows)


def packed(model: M, rows: int = 1) -> M:
    """A twin of `model`, over the same weights and packed copies of those of its linear layers, that writes `rows`
    texts at once faster on a CPU. Of float32 or bfloat16. What is changed in the model afterwards it does not know.

    Raises ValueError where the weights lie elsewhere or are of another kind, or torch was built without the kernels.
    """
    if rows < 1:
        raise PlaitError(f"got {rows} rows to write at once, expected at least 1")
    found = {str((p.device.type, p.dtype)) for p in model.parameters()}
    kinds = {str(("cpu", kind)) for kind in (torch.float32, torch.bfloat16)}
    if len(found) != 1 or not found <= kinds:
        raise PlaitError(f"got weights of {', '.join(sorted(found))}, expected one of {', '.join(sorted(kinds))}")
    if not torch.backends.mkl.is_available() or not torch.backends.mkldnn.is_available():
        raise PlaitError("this torch was built without MKL or oneDNN, whose kernels read packed weights: do without")
    made = twin(model)
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child, rows))
    return cast(M, made)
