"""A picture tower and a text tower that meet in one vector each."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.parts.presence import fill_absent


class TwoTowers(nn.Module):
    """{"image": (B, 3, H, W), "text": (B, N) ids, "keep": {"text": (B, N)}, "present": {slot: (B,)}} -> a unit vector
    for each.

    eyes: pictures -> (B, E). reader: ids (B, N), keep (B, N) -> (B, E). image: the size (H, W) of a blank picture.
    embed: E.
    Without `keep`, a text reaches to its last id that is not 0. A tower whose slot the batch does not have runs all the
    same, since other processes may wait for it: on one blank row, but in training.
    """

    takes = ("image", "text")
    fits = ("image", "vocab")

    def __init__(self, eyes: nn.Module, reader: nn.Module, image: tuple[int, int], embed: int):
        super().__init__()
        self.embed_width = embed
        self.blanks = {"image": ((3, *image), torch.float32), "text": ((1,), torch.int64)}
        self.towers = nn.ModuleDict({"image": eyes, "text": reader})
        self.logit_scale = nn.Parameter(torch.empty(1))

    def reset(self) -> None:
        nn.init.constant_(self.logit_scale, math.log(1 / 0.07))

    def embed(self, batch: dict) -> dict[str, Tensor]:
        """{"image": (B, E), "text": (B, E)} unit vectors; zeros in rows where the picture or the text is absent."""
        s = fill_absent(batch, self.blanks)
        ids, keep = s.values["text"], s.keep.get("text")
        if keep is None:
            keep = (ids != 0).flip(1).cumsum(1).flip(1) > 0
        read = {"image": (s.values["image"],), "text": (ids, keep)}
        vectors = {}
        for slot, inputs in read.items():
            some = inputs if self.training or slot in batch else [x[:1] for x in inputs]
            vectors[slot] = F.normalize(self.towers[slot](*some), dim=-1) * s.present[slot][:, None]
        return vectors

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """The vectors of `embed` and `logit_scale` (1,), the logarithm of the scores' factor, which the objective
        clamps."""
        return {**self.embed(batch), "logit_scale": self.logit_scale}
