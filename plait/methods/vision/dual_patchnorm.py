"""Dual PatchNorm. Kumar, Dehghani, Houlsby, 2023. arXiv:2302.01327

New here: a layer norm on each raw patch before it is projected to a token, and one on the token. The first takes
brightness and contrast out of every patch; nothing else of the transformer changes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.surgery import Undo, swap
from plait.core.tokens import Tokens
from plait.parts.tokenizers.patches import PatchTokens, patch_grid

EPS = 1e-6


class NormedPatches(nn.Module):
    """norm(project(norm(patch))) with the projection of `tokens`: (B, C, H, W) -> Tokens (B, H/P * W/P, D) with its
    grid.

    Raises ValueError for pictures that do not divide into patches.
    """

    def __init__(self, tokens: PatchTokens):
        super().__init__()
        proj = tokens.proj
        self.tokens = tokens
        self.before = nn.LayerNorm(proj.in_channels * tokens.patch**2, eps=EPS)
        self.after = nn.LayerNorm(proj.out_channels, eps=EPS)

    def forward(self, x: Tensor) -> Tokens:
        proj, grid = self.tokens.proj, patch_grid(x, self.tokens.patch)
        # (B, C P P, h, w), the pixels of a patch in the order of the projection's weights
        x = F.pixel_unshuffle(x, self.tokens.patch)
        x = F.linear(self.before(x.flatten(2).transpose(1, 2)), proj.weight.flatten(1), proj.bias)
        return Tokens(self.after(x), grid=grid)


def dual_patchnorm(model: nn.Module) -> Undo:
    """Norm the patches of `model` before and after their projection, which keeps its weights. Two norms per tokenizer
    are all that is new.

    Raises ValueError for a model that has no `PatchTokens`.
    """
    return swap(model, PatchTokens, NormedPatches)
