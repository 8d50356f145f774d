"""Which of several levels that have an order? Learnt by one score a row and a cut between each two levels (CORAL: Cao,
Mirjalili and Raschka, "Rank consistent ordinal regression for neural networks with application to age estimation",
2020; with a linear score the proportional odds of McCullagh 1980)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import UsageError
from plait.evaluate import ordinal
from plait.evaluate.intervals import Score
from plait.evaluate.report import Section
from plait.parts.heads.parts import Cuts
from plait.tasks.base import WEIGHT, Answers, Objective, Task
from plait.tasks.bind import Bound
from plait.tasks.classify import Classify
from plait.tasks.deciding import log_softmax
from plait.tasks.details import of_classes, slices_of, worse
from plait.tasks.rowwise import Answer

ROLES = ("fuser", "backbone", "embedder")


def cumulative(outputs: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(B,): the sum of K - 1 cross-entropies, whether the rank target (B,) is above each of the ranks 0..K-2, whose
    log-odds are outputs (B, K - 1); each row times the weight (K,) of its level."""
    above = (target[:, None] > torch.arange(outputs.shape[1], device=target.device)).to(outputs.dtype)
    loss = F.binary_cross_entropy_with_logits(outputs, above, reduction="none").sum(1)
    return loss if weight is None else loss * weight.to(outputs)[target.clamp(0, outputs.shape[1])]


def level_odds(outputs: Tensor) -> Tensor:
    """(B, K) log-probabilities of levels, of the log-odds (B, K - 1) that a row is above each; where cuts have crossed,
    of these in order."""
    g = outputs.sort(1, descending=True).values
    first, last = F.logsigmoid(-g[:, :1]), F.logsigmoid(g[:, -1:])
    high, low = g[:, :-1], g[:, 1:]
    between = torch.log1p(-torch.exp((low - high).clamp(max=-1e-6)))
    return torch.cat([first, F.logsigmoid(high) + F.logsigmoid(-low) + between, last], 1)


class Levels(Answer):
    """As `Answer`, of K levels: the head gives K - 1 log-odds, what is answered are K log-probabilities."""

    def __init__(self, bound: Bound, name: str, prior: Tensor, weight: Tensor | None = None):
        above = prior.exp().flip(0).cumsum(0).flip(0)[1:].clamp(1e-7, 1 - 1e-7)
        super().__init__(bound, [name], above.logit(), partial(cumulative, weight=weight), layer=Cuts)

    @property
    def nothing(self) -> Tensor:
        return level_odds(self.head.prior[None])[0]

    def alone(self, batch: dict) -> Tensor:
        return level_odds(super().alone(batch))

    def straight(self, batch: dict) -> dict[str, Tensor]:
        return {"outputs": level_odds(super().straight(batch)["outputs"])}


class Ordinal(Classify):
    """One of several levels in order. What is answered is the median level, which misses by the fewest ranks; the
    likeliest where accuracy is chosen, the mean rank where the kappa is. Simple models beneath take levels for
    classes."""

    name = choice = "ordinal"
    faultless = None
    noun = "ordinal regression"
    asks = "ordinal"
    metrics = ordinal.LEVELS
    figure = "MAE in ranks"
    floor = "usual level"

    @classmethod
    def variant(cls, schema: Schema, table: Table) -> type[Task]:
        return Task.variant.__func__(cls, schema, table)  # type: ignore[attr-defined]

    def model(self, bound: Bound, objective: Objective | None = None) -> Answer:
        weight = None if self.class_weight is None else torch.from_numpy(self.class_weight)
        return Levels(bound, self.target, torch.from_numpy(self.prior), weight)

    @property
    def prior(self) -> np.ndarray:
        return log_softmax(super().prior[None])[0]

    def _look_for(self, positive: str) -> None:
        raise UsageError("positive is for a target of two classes: this one has levels in order")

    def answered(self, p: np.ndarray) -> np.ndarray:
        p = p[:, : len(self.classes)]
        if self.metric == "accuracy":
            return p.argmax(1)
        if self.metric == "quadratic_kappa":
            return np.rint(p @ np.arange(p.shape[1]) / p.sum(1)).astype(np.int64)
        return (p.cumsum(1) < p.sum(1, keepdims=True) / 2).sum(1)

    def _ranks(self, truth: Answers, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
        """Ranks (n,) that are true and answered, of the rows with a truth."""
        kept = truth[self.target] != -100
        return truth[self.target][kept], self._said(answers["probabilities"], answers)[kept]

    def _parts(self, truth: Answers, answers: Answers) -> tuple[tuple, dict[str, Any]]:
        return self._ranks(truth, answers), {"levels": len(self.classes)}

    def _cut(self, truth: Answers, answers: Answers) -> float | None:
        return None

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        said = self._said(answers["probabilities"], answers)
        found = ordinal.ordinal(truth[self.target], said, len(self.classes), truth.get(WEIGHT))
        return self._led(found, truth, answers) + self._covered(*self._both(truth, answers))

    def guide(self, truth: Answers, answers: Answers) -> float:
        """The chosen metric, or the error in ranks, and a little of the log loss, which tells answers apart that are
        the same."""
        fine = 0.05 * float(self.loss_rows(truth, answers).mean())
        if self.metric is not None:
            return self._metric_guide(truth, answers) - fine
        return float((self.per_row(truth, answers) * self.shares(truth)).mean()) - fine

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        """(n,) by how many ranks answers miss, negative, so that more is better."""
        return -ordinal.rank_errors(*self._ranks(truth, answers), len(self.classes))

    def details(self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers) -> list[Section]:
        (real, p), off = self._both(truth, answers), -self.per_row(truth, answers)
        told = of_classes(real, p, self.names, self.counts, self._said(p, answers))
        return told + worse(slices_of(rows, index), off, self.figure, "lower")

    def describe(self) -> str:
        shown = self.names if len(self.names) <= 7 else [*self.names[:3], "...", *self.names[-3:]]
        return f"{len(self.classes)} levels, {' < '.join(shown)}"


TASKS = (Ordinal,)
