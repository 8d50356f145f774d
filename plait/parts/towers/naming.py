"""A small tower that names what a picture shows; its features say how alike pictures are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)


class Naming(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] -> features (B, D), normed, and of these what `names` stand for.

    labels: how many ids each column has, 0 for what is not known. texts: how many words each text may have. D: 64.
    """

    width = WIDTHS[-1]

    def __init__(self, labels: tuple[int, ...], texts: dict[str, int]):
        super().__init__()
        steps: list[nn.Module] = []
        for before, width in zip((3, *WIDTHS), WIDTHS):
            steps += [nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(4, width), nn.GELU()]
            steps += [nn.Conv2d(width, width, 3, 2, padding=1), nn.GroupNorm(4, width), nn.GELU()]
        self.look = nn.Sequential(*steps, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * self.width, self.width))
        self.labels = nn.ModuleList(nn.Linear(self.width, count) for count in labels)
        self.texts = nn.ModuleDict({slot: nn.Linear(self.width, vocab) for slot, vocab in texts.items()})

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(self.look(2 * x - 1), (self.width,))

    def named(self, features: Tensor) -> list[Tensor]:
        """[(B,) ids] of each column, never 0."""
        return [layer(features)[:, 1:].argmax(1) + 1 for layer in self.labels]

    def losses(self, features: Tensor, ids: Tensor | None, texts: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """(B,): how badly the features tell the ids (B, columns), 0 where none is known, and the words of each text
        (B, N), of which `real` (B, N) count."""
        total = features.new_zeros(len(features))
        for layer, true in zip(self.labels, () if ids is None else ids.unbind(1)):
            total = total + F.cross_entropy(layer(features), true, reduction="none") * (true > 0)
        for slot, (words, real) in texts.items():
            said = self.texts[slot](features).log_softmax(1).gather(1, words)
            total = total - (said * real).sum(1) / real.sum(1).clamp(min=1)
        return total
