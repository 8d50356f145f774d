"""Flow matching: a straight line from each picture to noise, and the velocity along it (arXiv:2210.02747,
arXiv:2209.03003)."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.errors import PlaitError
from plait.parts.samplers.diffusion import Predict, beside


def mixed(x: Tensor, time: Tensor, noise: Tensor) -> Tensor:
    """Clean samples (B, ...) at `time` (B,) in [0, 1]: 0 is the sample, 1 noise alone."""
    share = beside(time, x)
    return (1 - share) * x + share * noise


def velocity(x: Tensor, noise: Tensor) -> Tensor:
    """What a model of flows learns to say, (B, ...): the same all along the line."""
    return noise - x


def times(steps: int, shift: float = 1.0) -> Tensor:
    """(steps + 1,) float64 from 1 down to 0; `shift` above 1 puts more of them near the noise."""
    if steps < 1:
        raise PlaitError(f"got {steps} steps to sample in, expected at least 1")
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * even / (1 + (shift - 1) * even)


def euler(predict: Predict, x: Tensor, steps: int, *, shift: float = 1.0) -> Tensor:
    """Samples (B, ...) from noise x in `steps` straight steps; predict(x, time (B,) in [0, 1]) is the velocity."""
    line = times(steps, shift)
    for now, then in zip(line[:-1].tolist(), line[1:].tolist()):
        x = x + (then - now) * predict(x, x.new_full(x.shape[:1], now))
    return x


def heun(predict: Predict, x: Tensor, steps: int, *, shift: float = 1.0) -> Tensor:
    """As `euler`, each step corrected by the velocity where it led to: twice the work, an error of second order."""
    line = times(steps, shift)
    for now, then in zip(line[:-1].tolist(), line[1:].tolist()):
        first = predict(x, x.new_full(x.shape[:1], now))
        there = x + (then - now) * first
        if then == 0:  # noise is told from nothing there: the last step stays straight
            return there
        x = x + (then - now) * (first + predict(there, x.new_full(x.shape[:1], then))) / 2
    return x
