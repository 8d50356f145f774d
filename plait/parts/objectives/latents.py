"""Latents of a variational autoencoder, drawn from what its encoder says, and how far that is from the normal
distribution (arXiv:1312.6114)."""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHT = 1e-3  # of the divergence beside an absolute error of pixels in [-1, 1]


def drawn(mean: Tensor, log: Tensor, sample: bool) -> tuple[Tensor, Tensor]:
    """Mean and log variance (B, C, h, w) -> latents, the mean itself unless `sample`, and the weighted divergence
    (B,)."""
    z = mean + (0.5 * log).exp() * torch.randn_like(mean) if sample else mean
    apart = 0.5 * (mean.square() + log.exp() - 1 - log)
    return z, WEIGHT * apart.flatten(1).mean(1)
