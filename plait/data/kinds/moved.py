"""How pictures are changed at random while a model learns."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def movement(x: Tensor, generator: torch.Generator, strength: float, mirror: bool) -> Tensor:
    """(B, 2, 3): shifts by whole pixels, of 8% of each side at most at strength 1, and mirrors."""
    b, _, h, w = x.shape
    drawn = 2 * torch.rand((b, 3), generator=generator).to(x) - 1
    size = torch.tensor([w, h]).to(x)
    shift = (drawn[:, :2] * 0.08 * strength * size).round() * 2 / size
    change = torch.zeros(b, 2, 3).to(x)
    change[:, 0, 0] = torch.where(drawn[:, 2] < 0, -1.0, 1.0) if mirror else 1.0
    change[:, 1, 1], change[:, :, 2] = 1.0, shift
    return change


def augment_images(x: Tensor, generator: torch.Generator, strength: float, mirror: bool) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> the same shape and range."""
    b, _, h, w = x.shape

    def spread(*shape: int) -> Tensor:  # uniform in [-1, 1]
        return (2 * torch.rand(shape, generator=generator) - 1).to(x)

    angle = spread(b) * math.radians(10) * strength
    zoom = torch.exp(spread(b) * 0.12 * strength)
    stretch = torch.exp(spread(b) * 0.1 * strength)  # wider and lower, or the reverse
    shift = spread(b, 2) * 0.08 * strength
    flip = torch.where(spread(b) < 0, -1.0, 1.0) if mirror else torch.ones_like(angle)
    cos, sin, aspect = torch.cos(angle) / zoom, torch.sin(angle) / zoom, h / w
    across = torch.stack([cos * flip, -sin * aspect], 1) / stretch[:, None]
    down = torch.stack([sin / aspect * flip, cos], 1) * stretch[:, None]
    rows = [torch.cat([across, shift[:, :1]], 1), torch.cat([down, shift[:, 1:]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    contrast = 1 + 0.2 * strength * spread(b, 1, 1, 1)
    bright = 0.15 * strength * spread(b, 1, 1, 1)
    tint = 0.05 * strength * spread(b, 3, 1, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = ((x - mean) * contrast + mean + bright + tint).clamp(0, 1)
    middle, side = (spread(b, 2) + 1) / 2, (spread(b, 2) + 1) * 0.125  # as shares of H and W
    erased = (spread(b) + 1) / 2 < min(0.25 * strength, 0.5)
    ys = (torch.arange(h).to(x) + 0.5) / h
    xs = (torch.arange(w).to(x) + 0.5) / w
    # (B, H, W)
    within = ((ys - middle[:, :1]).abs() < side[:, :1])[:, :, None] & ((xs - middle[:, 1:]).abs() < side[:, 1:])[
        :, None, :
    ]
    return torch.where((within & erased[:, None, None])[:, None], 0.5, x)
