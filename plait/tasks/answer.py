"""Tasks that answer each row with a few numbers: a bound system, a sum-of-parts head, a loss on the whole and on each
part, and a linear model beneath."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from plait.data.kinds import KINDS
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.parts.heads.parts import SumOfParts
from plait.tasks.base import Task, TaskModel
from plait.tasks.bind import Bound, drop_modalities
from plait.tasks.known import known_rows, mean_over
from plait.tasks.linear import solve_straight

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs (B, K), targets -> (B,) loss per row


class Answer(TaskModel):
    """Outputs (B, K) of a sum-of-parts head.

    drop: in this share of training rows modalities are taken away at random, so that any subset can answer later; from
    the fusion alone where each modality also answers for itself, with a loss of its own.
    """

    def __init__(self, bound: Bound, prior: Tensor, loss: Loss, *, drop: float = 0.3):
        super().__init__(bound)
        self.loss, self.drop = loss, drop
        self.head = SumOfParts(bound.width, bound.part_widths, bound.raw_widths, prior)

    def answer(self, batch: dict) -> Tensor:
        """(B, K) outputs: logits, or standardised numbers."""
        return self.head(self.bound.features(batch))[0].float()

    def straight(self, batch: dict) -> Tensor:
        """(B, K) float32 outputs of the head's linear layers alone."""
        ready = self.bound.prepared(batch)
        raw = self.bound.raw(ready)
        with torch.autocast(self.head.prior.device.type, enabled=False):
            return self.head.straight(raw, ready["present"])

    def before_training(self, rows: Rows, truth: np.ndarray, index: np.ndarray, seed: int) -> None:
        """The linear layers are solved."""
        solve_straight(self, rows, truth, index, seed)

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


class AnswerTask(Task):
    """A task whose model is an `Answer`."""

    def settle(
        self,
        model: TaskModel,
        schema: Schema,
        truth: np.ndarray,
        outputs: Callable[[Callable[[TaskModel, dict], Tensor] | None], np.ndarray],
    ) -> str:
        """A plain table is left to the head's linear layers, unless what was trained beside them is better by two
        standard errors."""
        plain = all(KINDS[s.kind].straight for s in schema.slots)
        if not plain or not model.head.linear:
            return ""
        whole, straight = self.finish(outputs(None)), self.finish(outputs(lambda m, batch: m.straight(batch)))
        gain = self.loss_rows(truth, straight) - self.loss_rows(truth, whole)
        if gain.mean() >= 2 * gain.std() / max(len(gain) - 1, 1) ** 0.5:
            return ""
        with torch.no_grad():
            model.head.quiet()
        return "the linear part alone is as good on the validation rows: it answers"
