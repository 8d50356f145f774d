"""A head that lets every modality answer for itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Features(NamedTuple):
    """What a bound system gives a head: fused (B, D), parts {slot: (B, D_slot)}, present {slot: (B,) bool}."""

    fused: Tensor
    parts: dict[str, Tensor]
    present: dict[str, Tensor]

    def anything(self) -> Tensor:
        """(B,) bool: the row has at least one slot."""
        return torch.stack(list(self.present.values())).any(0)


class SumOfParts(nn.Module):
    """outputs = prior + what each present part adds + what their fusion adds: (B, K).

    If the modalities are independent given the answer, log-probabilities add: the sum is then already right, and the fusion, which starts
    from nothing, learns only what the parts do not say. A row with no part at all gets the prior, exactly.

    prior: (K,) outputs for a row of which nothing is known.
    """

    def __init__(self, width: int, part_widths: dict[str, int], prior: Tensor):
        super().__init__()
        self.fused = nn.Linear(width, len(prior))
        self.parts = nn.ModuleDict({slot: nn.Linear(w, len(prior)) for slot, w in part_widths.items()})
        self.register_buffer("prior", prior.float())

    def reset(self) -> None:
        """Head weights start small; the prior is data and stays."""
        for layer in [self.fused, *self.parts.values()]:
            nn.init.trunc_normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, f: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs (B, K), and each part's own answer {slot: (B, K)}, prior included."""
        own = {slot: layer(f.parts[slot]) for slot, layer in self.parts.items()}
        total = self.fused(f.fused)
        for slot, value in own.items():
            total = total + value * f.present[slot][:, None]
        return self.prior + total * f.anything()[:, None], {slot: self.prior + value for slot, value in own.items()}
