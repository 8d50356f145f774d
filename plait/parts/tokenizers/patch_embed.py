"""Pictures to the input of a ViT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.tokens import Tokens, prepend
from plait.parts.positions.learned import GridPositions


class PatchEmbed(nn.Module):
    """A class token, then what `stem` makes of the picture, with learned positions for all: (B, 3, H, W) -> Tokens (B,
    1 + N, D).

    stem: a tokenizer of pictures, such as `PatchTokens`. grid: the (rows, columns) of tokens that positions are learned
    for.
    Source: ViT (arXiv:2010.11929).
    """

    def __init__(self, stem: nn.Module, grid: tuple[int, int], width: int):
        super().__init__()
        self.stem, self.cls, self.positions = (
            stem,
            nn.Parameter(torch.empty(1, 1, width)),
            GridPositions(grid, width, prefix=1),
        )

    def reset(self) -> None:
        nn.init.trunc_normal_(self.cls, std=0.02)

    def forward(self, x: Tensor) -> Tokens:
        return self.positions(prepend(self.cls, self.stem(x)))
