"""A head that lets every modality answer for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Features(NamedTuple):
    """What a bound system gives a head: fused (B, D), parts {slot: (B, D_slot)}, raw {slot: (B, F)}, present {slot:
    (B,) bool}.

    raw: the inputs themselves, of slots that are vectors already (numbers, categories, vectors).
    vectors: {slot: (B, E) unit vectors} in one space, of a system that has them. visible: the slots that may be fused;
    None: those present. losses: {name: ()} that the system's layers gave out.
    """

    fused: Tensor
    parts: dict[str, Tensor]
    raw: dict[str, Tensor]
    present: dict[str, Tensor]
    vectors: dict[str, Tensor] | None = None
    visible: dict[str, Tensor] | None = None
    losses: dict[str, Tensor] | None = None

    def counted(self) -> dict[str, Tensor]:
        """{slot: (B,) bool}: what has a say in the whole."""
        return self.present if self.visible is None else self.visible

    def anything(self) -> Tensor:
        """(B,) bool: the row has at least one slot that has a say."""
        return torch.stack(list(self.counted().values())).any(0)


class Cuts(nn.Module):
    """One score a row and an offset for each output: (..., D) -> (..., K), of which all differ by the same everywhere
    (Cao et al. 2020)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight, self.bias = nn.Parameter(torch.empty(1, in_features)), nn.Parameter(torch.empty(out_features))

    def reset(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight) + self.bias


class SumOfParts(nn.Module):
    """outputs = prior + a linear answer to raw inputs + what each present part adds + what their fusion adds: (B, K).

    If the modalities are independent given the answer, log-probabilities add: the sum is then already right, and the
    fusion, which starts from nothing, learns only what the parts do not say. A row with no part at all gets the prior,
    exactly.
    Where there are several parts, the whole's loss does not reach them: each learns from a loss of its own. Else the
    part that learns first explains the answer away, and the others, whose error it has taken, hardly learn at all.
    The linear layers are no matter of gradient steps: a convex solver fills them before training (`tasks/linear.py`),
    and they stay.

    prior: (K,) outputs for a row of which nothing is known. layer(in, out) makes each layer.
    """

    prior: Tensor

    def __init__(
        self, width: int, part_widths: dict[str, int], raw_widths: dict[str, int], prior: Tensor,
        layer: Callable[[int, int], nn.Module] = nn.Linear,
    ):  # fmt: skip
        super().__init__()
        self.fused = layer(width, len(prior))
        self.parts = nn.ModuleDict({slot: layer(w, len(prior)) for slot, w in part_widths.items()})
        self.linear = nn.ModuleDict({slot: layer(w, len(prior)) for slot, w in raw_widths.items()})
        self.linear.requires_grad_(False)
        self.register_buffer("prior", prior.float())
        self.reset()

    def reset(self) -> None:
        """Every layer starts from nothing; the prior is data and stays."""
        self.quiet()
        for p in self.linear.parameters():
            nn.init.zeros_(p)

    def quiet(self) -> None:
        """Only the prior and the linear answers are left."""
        for p in [*self.fused.parameters(), *self.parts.parameters()]:
            nn.init.zeros_(p)

    def forward(self, f: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs (B, K), and each slot's own answer {slot: (B, K)}, prior included."""
        own = {slot: layer(f.parts[slot]) for slot, layer in self.parts.items()}
        for slot, layer in self.linear.items():
            straight = layer(f.raw[slot])
            own[slot] = own[slot] + straight if slot in own else straight
        total, counted = self.fused(f.fused), f.counted()
        for slot, value in own.items():
            total = total + (value.detach() if len(own) > 1 else value) * counted[slot][:, None]
        return self.prior + total * f.anything()[:, None], {slot: self.prior + value for slot, value in own.items()}

    def straight(self, raw: dict[str, Tensor], present: dict[str, Tensor]) -> Tensor:
        """(B, K): the prior and the linear answers alone."""
        total = self.prior.expand(len(next(iter(present.values()))), -1)
        for slot, layer in self.linear.items():
            total = total + layer(raw[slot]) * present[slot][:, None]
        return total
