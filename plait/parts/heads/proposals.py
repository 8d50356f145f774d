"""The first of two stages: boxes proposed by every place of encoded maps (Deformable DETR, arXiv:2010.04159)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.precision import wide
from plait.parts.positions.sine import waves


class Propose(nn.Module):
    """The first stage: of every place of the encoded maps whether something is there, and where."""

    def __init__(self, width: int):
        super().__init__()
        self.proj, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.ask, self.ask_norm = nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width)

    def places(self, keeps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """keep (B, h, w) of each map -> (B, N, 4) before the sigmoid: a box at each place, and (B, N) bool: which are
        in sight."""
        found = []
        for n, keep in enumerate(keeps):
            high, wide = keep[:, :, :1].sum(1, keepdim=True), keep[:, :1].sum(2, keepdim=True)  # (B, 1, 1)
            y, x = (torch.arange(side, device=keep.device) + 0.5 for side in keep.shape[1:])
            xy = torch.stack([x.expand(keep.shape) / wide, y[:, None].expand(keep.shape) / high], 3)
            found.append(torch.cat([xy, torch.full_like(xy, 0.05 * 2**n)], 3).flatten(1, 2))
        box = torch.cat(found, 1)
        good = ((box > 0.01) & (box < 0.99)).all(2) & torch.cat([k.flatten(1) for k in keeps], 1)
        return (box / (1 - box)).log().masked_fill(~good[..., None], torch.inf), good

    def questions(self, boxes: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Boxes (B, Q, 4) -> positions and first features, each (B, Q, D)."""
        at = waves(2 * torch.pi * wide(boxes), width // 2).flatten(2).to(boxes.dtype)
        pos, x = self.ask_norm(self.ask(at)).chunk(2, 2)
        return pos, x
