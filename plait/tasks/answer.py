"""The model behind classify, regress and match: a bound system, a sum-of-parts head, and a loss on the whole and on
each part."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from plait.parts.heads.parts import SumOfParts
from plait.tasks.bind import Bound, drop_modalities

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs (B, K), targets -> (B,) loss per row


class Answer(nn.Module):
    """Batches in, outputs (B, K) out; in training, batch and generator in, named losses out.

    forward is the loss, so that wrappers for several devices see the call that they hook.
    drop: in this share of training rows modalities are taken away at random, so that any subset can answer later; from
    the fusion alone where each modality also answers for itself, with a loss of its own.
    """

    def __init__(self, bound: Bound, prior: Tensor, loss: Loss, *, drop: float = 0.3):
        super().__init__()
        self.bound, self.loss, self.drop = bound, loss, drop
        self.head = SumOfParts(bound.width, bound.part_widths, bound.raw_widths, prior)

    def answer(self, batch: dict) -> Tensor:
        """(B, K) outputs: logits, or standardised numbers."""
        return self.head(self.bound.features(batch))[0].float()

    def straight(self, batch: dict) -> Tensor:
        """(B, K) outputs of the head's linear layers alone."""
        ready = self.bound.prepared(batch)
        return self.head.straight(self.bound.raw(ready), ready["present"])

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        if len(self.bound.takes) > 1:
            left = drop_modalities(batch["present"], self.drop, generator)
            batch = {**batch, "visible" if self.bound.part_widths else "present": left}
        f = self.bound.features(batch)
        total, own = self.head(f)
        known = known_rows(batch["target"])
        losses = {"loss": mean_over(self.loss(total.float(), batch["target"]), known & f.anything())}
        if len(own) > 1:
            parts = [mean_over(self.loss(o.float(), batch["target"]), known & f.present[s]) for s, o in own.items()]
            losses["parts"] = torch.stack(parts).sum()
        return losses


def known_rows(target: Tensor) -> Tensor:
    """(B,) bool: rows whose target is there (-100 and NaN are not; one known label of several is enough)."""
    known = ~target.isnan() if target.is_floating_point() else target != -100
    return known & (target != -100) if known.dim() == 1 else (known & (target != -100)).any(1)


def mean_over(values: Tensor, rows: Tensor) -> Tensor:
    """The mean of `values` (B,) over the True `rows`; 0, with a gradient path, where there is none."""
    return values.masked_fill(~rows, 0.0).sum() / rows.sum().clamp(min=1)
