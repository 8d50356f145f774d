"""Scales of values, there and back: what a column's numbers or a system's pictures are brought to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

HUGE = 1e100  # beyond this all numbers are the same; keeps squares and quotients finite


class Normalise(nn.Module):
    """Pictures (B, C, H, W) in [0, 1] -> by each channel's mean and spread."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def inverse(self, y: Tensor) -> Tensor:
        """Back to [0, 1]."""
        return y * self.std + self.mean


class Standardise(nn.Module):
    """Numbers (..., F) float64 -> float32 by mean and spread, after a signed logarithm of scale `log` where given.

    clip: the largest answer on either side; None: any.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        log: float | None = None,
        clip: float | None = 10,
    ):
        super().__init__()
        self.log, self.clip = log, clip
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x.clamp(-HUGE, HUGE)
        y = y if self.log is None else y.sign() * (y.abs() / self.log).log1p()
        y = (y - self.mean) / self.std
        return (y if self.clip is None else y.clamp(-self.clip, self.clip)).float()

    def inverse(self, y: Tensor) -> Tensor:
        """float64, in the column's own units, where nothing was clipped."""
        y = y.double() * self.std + self.mean
        return y if self.log is None else y.sign() * y.abs().expm1() * self.log
