"""Linear layers whose weights lie as the CPU's kernels want them, for writing word by word.

A step of writing multiplies a few rows by every weight there is: its time is that of reading the weights. Kernels that
find them packed for just so many rows take half to two thirds of the time (`benchmarks/writing.py`). Which kernel reads
fastest depends on who made the processor: MKL's is best at home, and oneDNN's elsewhere, where MKL gives a single row
of float32 half of what the memory can, unless the weights lie the other way round. At home such a row gains nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.core.attend import twin
from plait.errors import PlaitError

M = TypeVar("M", bound=nn.Module)


@cache
def at_home() -> bool:
    """Whether the processor is of the make that MKL is written for."""
    told = Path("/proc/cpuinfo")
    return "GenuineIntel" in (told.read_text() if told.exists() else platform.processor())


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def mkl(x: Tensor, weight: Tensor, bias: Tensor | None, plain: Tensor, rows: int) -> Tensor:
    return torch.ops.mkl._mkl_linear(x, weight, plain, bias, rows)


def turned(x: Tensor, weight: Tensor, bias: Tensor | None, plain: Tensor) -> Tensor:
    if x.numel() > x.shape[-1]:  # many rows, such as a prompt's
        return F.linear(x, plain, bias)
    return x @ weight if bias is None else x @ weight + bias


def pack(weight: Tensor, rows: int) -> tuple[Tensor, Callable[..., Tensor]]:
    """weight (O, I) -> it as a kernel reads it fastest for so many rows, and that kernel: (x, packed, bias) -> y."""
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return weight, F.linear  # no kernel for packed ones
    if weight.dtype == torch.bfloat16 or rows > 1 and not at_home():
        return torch.ops.mkldnn._reorder_linear_weight(weight.clone(), rows), onednn
    if at_home():
        return torch.ops.mkl._mkl_reorder_linear_weight(weight.clone(), rows), partial(mkl, plain=weight, rows=rows)
    if weight.shape[0] >= weight.shape[1]:
        return weight.t().contiguous(), partial(turned, plain=weight)
    return weight, onednn


class PackedLinear(nn.Module):
    """`nn.Linear` over the same weights and a packed copy of them. rows: how many are multiplied at once; with another
    number, float32 goes the usual way. Without gradients alone."""

    def __init__(self, linear: nn.Linear, rows: int):
        super().__init__()
        self.weight, self.bias, self.rows = linear.weight, linear.bias, rows
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.inference_mode(False), torch.no_grad():
            self.packed, self.kernel = pack(linear.weight.detach(), rows)  # no parameter, no buffer: not saved

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise PlaitError("packed weights have no gradients: write under torch.no_grad(), train the model itself")
        return self.kernel(x, self.packed, self.bias)


def packed(model: M, rows: int = 1) -> M:
    """A twin of `model`, over the same weights and packed copies of those of its linear layers, that writes `rows`
    texts at once faster on a CPU. Of float32 or bfloat16, which is as fast as before where a processor has no AVX-512
    (nor AVX-NE-CONVERT). What is changed in the model afterwards it does not know.

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
