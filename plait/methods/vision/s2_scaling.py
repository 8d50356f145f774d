"""When Do We Not Need Larger Vision Models? Shi, Wu, Mao, Wang, Darrell, 2024. arXiv:2403.13043

New here: instead of a larger encoder, a larger picture. The picture is read at several scales, each cut into tiles of
the size that the encoder knows, all by the same weights; the maps are put together again, pooled to the smallest one's
grid and laid side by side. There are as many tokens as before, each as many times wider as there are scales.

Differs: pictures need not be square; tiles are joined before the encoder's last norm, as `tokens` gives them, and
`pool` norms the whole.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.init import initialise_new
from plait.core.tokens import Tokens
from plait.errors import PlaitError
from plait.parts.maps import to_map
from plait.parts.mixers.windows import from_windows, to_windows
from plait.parts.towers.backbone import Backbone


class Scales(Backbone):
    """`model`, a backbone of pictures, at each of `scales`: pictures (B, 3, H, W) -> logits (B, K), from S times D
    features.

    With `num_classes=0` the logits are the pooled features.
    """

    def __init__(self, model: nn.Module, scales: tuple[float, ...], num_classes: int):
        super().__init__()
        self.model, self.scales = model, scales
        self.width, self.multiple = len(scales) * model.width, getattr(model, "multiple", None)
        self.attends = getattr(model, "attends", True)
        self.head = nn.Linear(self.width, num_classes) if num_classes else nn.Identity()

    def at(self, x: Tensor, scale: float) -> Tokens:
        """What the model says of the picture at this scale: Tokens (B, head + n h n w, D), n tiles a side, special
        tokens averaged."""
        count, (height, width) = math.ceil(scale), x.shape[-2:]
        if count == 1 and scale == 1:
            return gridded(self.model.tokens(x))
        tile = tuple(int(side * scale) // count for side in (height, width))
        x = F.interpolate(x, size=(tile[0] * count, tile[1] * count), mode="bicubic", align_corners=False)
        tiles = to_windows(x.permute(0, 2, 3, 1), tile).unflatten(1, tile).permute(0, 3, 1, 2)  # (B n n, 3, H', W')
        t = gridded(self.model.tokens(tiles))
        special = t.x[:, : t.prefix].unflatten(0, (-1, count * count)).mean(1)
        grid = (count * t.grid[0], count * t.grid[1])
        body = from_windows(t.body(), t.grid, grid).flatten(1, 2)
        return Tokens(torch.cat([special, body], 1), grid=grid, prefix=t.prefix)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, head + N, S D) on the grid of the first scale."""
        found = [self.at(x, scale) for scale in self.scales]
        base = found[0]
        return base.replace(x=torch.cat([shrunk(t, base.grid) for t in found], 2), pos=None)

    def pool(self, t: Tokens) -> Tensor:
        """(B, S D): the model's own summary of each scale, side by side."""
        return torch.cat([self.model.pool(t.replace(x=x)) for x in t.x.chunk(len(self.scales), 2)], 1)


def gridded(t: Tokens) -> Tokens:
    if t.grid is None or t.keep is not None or t.lengths is not None:
        raise PlaitError(
            "got tokens that fill no grid, expected one token for each place of a picture: choose a model that keeps "
            "them all"
        )
    return t


def shrunk(t: Tokens, grid: tuple[int, int]) -> Tensor:
    """(B, head + N, D): the map of `t` averaged over the areas of a smaller grid, special tokens in front."""
    places = F.interpolate(to_map(t), size=grid, mode="area")
    return torch.cat([t.x[:, : t.prefix], places.flatten(2).transpose(1, 2)], 1)


def s2_scaling(model: nn.Module, scales: tuple[float, ...] = (1, 2), num_classes: int = 0) -> nn.Module:
    """A backbone of pictures around `model`, which reads each picture at all `scales` with its own weights.

    scales: by how much the picture's sides are multiplied, the first giving the grid; (1, 2, 3) in most of the paper.
    Tiles a side are the scale rounded up, and a tile is as large as the picture for whole numbers. num_classes: of a
    new linear head; 0 for none.
    The paper leaves the encoder as it is: freeze it with `plait.core.surgery.freeze`.
    Raises ValueError for a model that is no backbone of pictures alone, and for scales that are none or not positive.
    """
    if getattr(model, "takes", None) != ("image",) or not hasattr(model, "tokens"):
        raise PlaitError(
            f"got {type(model).__name__}, expected a backbone of pictures: choose a model that takes an image alone"
        )
    if not scales or min(scales) <= 0:
        raise PlaitError(f"scales: got {scales}, expected one or more positive numbers such as (1, 2)")
    with torch.device("meta"):
        wrapped = Scales(model, tuple(scales), num_classes)
    device = next(model.parameters()).device
    return initialise_new(wrapped, scheme=getattr(model, "scheme", {}), seed=0, device=device).train(model.training)
