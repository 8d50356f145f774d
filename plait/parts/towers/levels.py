"""A backbone's maps for layers that look for things in a picture, and what of them is real."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.errors import PlaitError
from plait.parts.convs import freeze_norms


@torch.no_grad()
def eyes(backbone: Any, frozen: bool) -> list[int]:
    """C of each of its maps, finest first, found by running it on nothing; what maps have no need of is taken off it.

    frozen: its batch norms are given. Raises PlaitError for a backbone that gives no maps, or of pictures of one size.
    """
    name, m = type(backbone).__name__, getattr(backbone, "multiple", None)
    if not hasattr(backbone, "features") or m is None:
        raise PlaitError(f"{name} gives no maps of pictures of every size: expected a backbone with `features`")
    for part in backbone.beyond:
        setattr(backbone, part, nn.Identity())
    if frozen:
        freeze_norms(backbone)
    training = backbone.training
    side = -(-64 // m) * m
    nothing = torch.zeros(2, 3, side, side, device=next(backbone.parameters()).device)
    found = [x.shape[1] for x, _ in backbone.eval().features(nothing)]
    backbone.train(training)
    return found


def blanked(x: Tensor, keep: Tensor | None) -> Tensor:
    """Pictures (B, 3, H, W) with zeros where they are not real, so that what lies there does not leak."""
    return x if keep is None else x.masked_fill(~keep[:, None], 0.0)


def real_places(x: Tensor, keep: Tensor | None) -> Tensor:
    """(B, h, w) bool: which places of a map (B, C, h, w) are real, of a picture's keep (B, H, W)."""
    if keep is None:
        return torch.ones(x.shape[0], *x.shape[2:], dtype=torch.bool, device=x.device)
    return F.interpolate(keep[:, None].float(), x.shape[2:])[:, 0].bool()
