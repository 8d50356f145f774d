"""What is found where: boxes of guesses."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BoxHead(nn.Sequential):
    """(..., D) -> (..., 4) before the sigmoid: the middle of a box, its width and its height (x, y, w, h). last: makes
    the last layer."""

    def __init__(self, width: int, last: type[nn.Linear] = nn.Linear):
        super().__init__(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last(width, 4))


def corners(boxes: Tensor) -> Tensor:
    """(..., 4) middles, widths and heights -> left, top, right, bottom."""
    middle, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([middle - size / 2, middle + size / 2], -1)


def middles(boxes: Tensor) -> Tensor:
    """(..., 4) left, top, right, bottom -> middles, widths and heights."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)
