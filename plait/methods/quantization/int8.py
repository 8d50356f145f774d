"""Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation. Wu, Judd, Zhang, Isaev,
Micikevicius, 2020. arXiv:2004.09602

New here: the weights of linear layers are whole numbers of 8 bits, with one scale for each output, the largest of its
weights over 127. They take a quarter of the room; products are of float32, or, with `activations`, of integers, with a
scale for each token that is found as it comes.

ViT-B/16 is then 0.27 of its size. Its answers (random weights) are off by 0.012 of their norm, by 0.018 with
`activations`; on a CPU with such instructions the latter takes 0.63 to 0.76 of the time, the former 1.1 to 1.2:
`benchmarks/shrinking.py`.

Differs: no calibration, for nothing but weights has a fixed scale. Tokenizers and heads stay as they are. Gradients
pass a rounded activation as they would the identity; the weights themselves do not learn any more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Layer
from plait.core.surgery import Undo, swap
from plait.errors import PlaitError

MOST = 127


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., D) -> whole numbers (..., D) int8 and their scales (..., 1): x is about their product."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / MOST
    return (x / scale).round().clamp(-MOST, MOST).to(torch.int8), scale


class IntegerProduct(torch.autograd.Function):
    """x (M, D) of floats by a weight (E, D) of integers with scales (E,), in integers: (M, E)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        q, own = rounded(x)
        return (torch._int_mm(q, weight.mT).to(x.dtype) * own) * scale

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return (grad * scale) @ weight.to(grad.dtype), None, None


class Int8Linear(nn.Module):
    """The linear layer `old` with a weight of 8 bits: (..., D) -> (..., E). activations: whether the input is rounded
    too."""

    weight: Tensor
    scale: Tensor

    def __init__(self, old: nn.Linear, activations: bool):
        super().__init__()
        self.in_features, self.out_features, self.activations = old.in_features, old.out_features, activations
        weight, scale = rounded(old.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale[:, 0])
        self.bias = old.bias

    def reset(self) -> None:
        """Nothing: there are no first weights of 8 bits."""
        self.weight.zero_()
        self.scale.fill_(1.0)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.activations:
            y = IntegerProduct.apply(x.flatten(0, -2), self.weight, self.scale.to(x.dtype)).unflatten(0, x.shape[:-1])
        else:
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, activations={self.activations}"


def int8(model: nn.Module, activations: bool = False) -> Undo:
    """The linear layers of the layers of `model` keep their weights in 8 bits.

    activations: whether their inputs are rounded as well, token by token, and multiplied as integers: faster where the
    processor has instructions for it, and less exact.
    Raises ValueError for a model whose layers have no plain linear layers.
    """
    inside = {id(m) for layer in model.modules() if isinstance(layer, Layer) for m in layer.modules()}
    if not any(type(m) is nn.Linear and id(m) in inside for m in model.modules()):
        raise PlaitError(f"{type(model).__name__} has no linear layers within its layers: choose one that has")
    return swap(model, nn.Linear, lambda old: Int8Linear(old, activations) if id(old) in inside else None)
