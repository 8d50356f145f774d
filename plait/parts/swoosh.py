"""The activations and the norm of Zipformer (arXiv:2310.11230)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.precision import wide


class SwooshL(nn.Module):
    """log(1 + exp(x - 4)) - 0.08 x - 0.035: mostly off, as the hidden layer of a feed-forward wants it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sub(F.softplus(x - 4.0), x, alpha=0.08).sub_(0.035)


class SwooshR(nn.Module):
    """log(1 + exp(x - 1)) - 0.08 x - 0.313261687, which is 0 at 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sub(F.softplus(x - 1.0), x, alpha=0.08).sub_(0.313261687)


class BiasNorm(nn.Module):
    """x / rms(x - bias) * exp(log_scale): (..., D) -> the same shape. The bias lets a vector keep something of its
    length.

    There is no eps, as in the paper: x is not divided by 0 unless it equals the bias in every channel.
    """

    def __init__(self, width: int):
        super().__init__()
        self.bias, self.log_scale = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(1))

    def reset(self) -> None:
        nn.init.normal_(self.bias, std=1e-4)
        nn.init.ones_(self.log_scale)

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(wide(x) - self.bias, dim=-1, keepdim=True)  # root of D times the rms
        return (x * (x.shape[-1] ** 0.5 * self.log_scale.exp() / norm)).to(x.dtype)


class ScaledLinear(nn.Linear):
    """A linear layer that starts `start` times as large as torch's, its bias within 0.1 `start`."""

    def __init__(self, width: int, out: int, start: float, *, bias: bool = True):
        self.start = start
        super().__init__(width, out, bias=bias)

    def reset(self) -> None:
        self.reset_parameters()
        with torch.no_grad():
            self.weight.mul_(self.start)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -0.1 * self.start, 0.1 * self.start)


class SharedDropout(nn.Module):
    """Dropout of whole channels of a sequence: one mask for all places of (B, N, D)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.rate)
