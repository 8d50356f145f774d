"""What backbones of several resolutions have in common."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from plait.core.tokens import Tokens
from plait.parts.maps import through, to_tokens
from plait.parts.towers.backbone import Backbone


class Pyramid(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K), through maps of falling resolution and growing width.

    stem: pictures -> map. stages: each map -> the next map (B, C_i, H_i, W_i); a stage of blocks on tokens is
    `OnTokens(Stack(...))`. norm: of the last stage's tokens, `nn.Identity()` for none. width: of the last stage.
    """

    multiple = 1
    beyond = ("norm", "head")

    def __init__(self, stem: nn.Module, stages: Iterable[nn.Module], norm: nn.Module, width: int, num_classes: int):
        super().__init__()
        self.width = width
        self.stem, self.stages, self.norm = stem, nn.ModuleList(stages), norm
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def maps(self, x: Tensor) -> list[Tensor]:
        """Each stage's map (B, C_i, H_i, W_i), finest first."""
        x, found = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def seen(self, x: Tensor, layers: tuple[int, ...] = ()) -> list[Tensor]:
        """Each stage's map (B, C_i, H_i, W_i), or those of some stages."""
        maps = self.maps(x)
        return [maps[n] for n in layers] if layers else maps

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, N, D) of the last stage with their grid, before the last norm."""
        x, losses = through(self.stem, x, None)
        for stage in self.stages:
            x, losses = through(stage, x, losses)
        return to_tokens(x).replace(losses=losses)
