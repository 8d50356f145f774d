"""Classifier-free guidance (arXiv:2207.12598): away from what a model says of nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plait.parts.samplers.diffusion import Predict


def guided(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor], condition: Tensor, nothing: Tensor, scale: float,
    channels: int | None = None,
) -> Predict:  # fmt: skip
    """What a sampler asks: denoise(x, time, condition) with the difference to `nothing` (both (B, D)) taken `scale`
    times.

    1 is the model itself, which is then asked once, 0 is `nothing` alone. channels: of x, which are guided; those that
    follow, such as a variance, are what the condition alone says. None: all of x.
    """
    if scale in (0, 1):
        return lambda x, time: denoise(x, time, condition if scale else nothing)

    def predict(x: Tensor, time: Tensor) -> Tensor:
        both = denoise(torch.cat([x, x]), torch.cat([time, time]), torch.cat([condition, nothing]))
        count = x.shape[1] if channels is None else channels
        with_it, without = both.chunk(2)
        first = without[:, :count] + scale * (with_it[:, :count] - without[:, :count])
        return torch.cat([first, with_it[:, count:]], 1)

    return predict
