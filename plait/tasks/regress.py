"""How much? One number per row."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.data.kinds import KINDS
from plait.data.kinds.number import NumberKind
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.errors import DataError, UsageError
from plait.evaluate import chosen, metrics, pictures
from plait.evaluate.intervals import Score, mean_score, proportion
from plait.evaluate.report import Section
from plait.evaluate.slices import by_numbers
from plait.tasks.base import WEIGHT, Answers, Objective, beside
from plait.tasks.beneath.asked import Asked, Number
from plait.tasks.bind import Bound
from plait.tasks.conformal import Misses
from plait.tasks.details import slices_of, worse
from plait.tasks.rowwise import Answer, AnswerTask

ROLES = ("fuser", "backbone", "embedder")


def squared_error(outputs: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(outputs[:, 0], target.nan_to_num().to(outputs.dtype), reduction="none")


class Regress(AnswerTask):
    """One number per row, standardised inside by the training rows' mean and spread (std). Answers are `numbers` (n,)
    in the target's unit."""

    name = choice = "regress"
    noun = "regression"
    roles = ROLES
    target: str
    asks = "number"
    weighs = spans = True
    metrics = chosen.NUMBERS
    centre: float = 0.0  # what a row of which nothing is known is answered with, standardised
    floor = "mean"
    figure, costs = "MAE", "squared error, in variances of the target"

    def __init__(self, target: str, params: dict):
        self.target, self.params, self.mean, self.std = target, params, params["mean"], params["std"]

    @classmethod
    def learn(cls, schema: Schema) -> Regress:
        (target,) = schema.targets
        params = schema.column(target).params
        if params["count"] < 2:
            raise DataError(
                f"the target {target!r} has {params['count']} numbers in the training rows: at least two are needed"
            )
        if not params["std"] > 0:
            raise DataError(
                f"the target {target!r} is {params['mean']:g} in every training row: there is nothing to learn"
            )
        return cls(target, params)

    def model(self, bound: Bound, objective: Objective | None = None) -> Answer:
        return Answer(bound, [self.target], torch.tensor([self.centre]), squared_error)

    def weigh(self, rows: Rows, train: np.ndarray, classes: dict[str, float] | str | None) -> None:
        if classes is not None:
            raise UsageError(f"class weights are for classification: the target {self.target!r} is a number")
        if rows.weights is not None:
            self.centre = float(np.average(rows.target(train)[self.target].numpy(), weights=rows.weights[train]))

    def simple(self) -> tuple[Asked, tuple[float, float]]:
        return Number(), (self.mean, self.std)

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        return {"numbers": self._undo(outputs["outputs"][:, 0])}

    def _undo(self, standard: np.ndarray) -> np.ndarray:
        return cast(NumberKind, KINDS[self.asks]).undo(standard, self.params)

    def _known(self, truth: Answers, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
        real = truth[self.target]
        known = np.isfinite(real)
        return self._undo(real[known]), answers["numbers"][known]

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        if WEIGHT in truth:
            found = chosen.regression(*self._known(truth, answers), truth[WEIGHT])
        else:
            found = metrics.regression(*self._known(truth, answers))
        found = self._led(found, truth, answers)
        if self.interval is None:
            return found
        real, predicted = self._known(truth, answers)
        inside = np.abs(real - predicted) <= self._reach()
        return [
            *found,
            proportion("coverage", inside),
            mean_score("width", np.full(len(real), 2 * self._reach()), "lower"),
        ]

    def _reach(self) -> float:
        """How far the truth lies from an answer at most, at the level that is asked for, in the target's unit."""
        assert self.misses is not None and self.interval is not None
        return self.misses.within(self.interval) * self.std

    def calibrate(self, truth: Answers, answers: Answers) -> list[str]:
        real, predicted = self._known(truth, answers)
        self.misses = Misses.of(np.abs(real - predicted) / self.std)
        return []

    def _parts(self, truth: Answers, answers: Answers) -> tuple[tuple, dict[str, Any]]:
        return self._known(truth, answers), {}

    def _any_answers(self, truth: Answers) -> Answers:
        return {"numbers": np.arange(len(truth[self.target]), dtype=np.float64)}

    def guide(self, truth: Answers, answers: Answers) -> float:
        if self.metric is not None:
            return self._metric_guide(truth, answers)
        return -float(self.loss_rows(truth, answers).mean()) / self.std**2

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return self.scores(truth, {"numbers": np.full(len(truth[self.target]), self.mean + self.std * self.centre)})

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        """Share of the variance explained, row by row (its mean is R2), so that gains are in R2. Where these rows'
        targets do not vary, the training rows' variance is shared out."""
        real, predicted = self._known(truth, answers)
        return 1 - metrics.squared_error_rows(real, predicted) / (real.var() if np.ptp(real) > 0 else self.std**2)

    def loss_rows(self, truth: Answers, answers: Answers) -> np.ndarray:
        return metrics.squared_error_rows(*self._known(truth, answers)) * self.shares(truth)

    def cost(self, truth: Answers, answers: Answers) -> np.ndarray:
        return self.loss_rows(truth, answers) / self.std**2

    def details(self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers) -> list[Section]:
        real, predicted = self._known(truth, answers)
        slices = [*slices_of(rows, index), *by_numbers("(prediction)", predicted)]
        return worse(slices, abs(real - predicted), self.figure, "lower", real - predicted)

    def columns(self, answers: Answers) -> dict[str, Any]:
        numbers = answers["numbers"]
        reach = {} if self.interval is None else {"low": numbers - self._reach(), "high": numbers + self._reach()}
        return beside({self.target: numbers}, reach)

    def picture(self, truth: Answers, answers: Answers) -> tuple[str, bytes]:
        return "Predicted and real", pictures.residuals(*self._known(truth, answers), self.target)

    def describe(self) -> str:
        return f"mean {self.mean:.4g}, spread {self.std:.4g}"

    def to_json(self) -> dict:
        return {"task": self.name, "centre": self.centre} | ({"metric": self.metric} if self.metric else {})

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Regress:
        task = cls.learn(schema)
        task.centre, task.metric = state.get("centre", 0.0), state.get("metric")
        return task


TASKS = (Regress,)
