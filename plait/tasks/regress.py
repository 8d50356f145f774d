"""How much? One number per row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import NormalDist
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.data.kinds import KINDS
from plait.data.kinds.number import NumberKind
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import DataError, UsageError
from plait.evaluate import chosen, metrics, pictures
from plait.evaluate.intervals import Score, mean_score, proportion
from plait.evaluate.report import Section
from plait.evaluate.slices import by_numbers
from plait.tasks.base import WEIGHT, Answers, Objective, Task, beside
from plait.tasks.beneath.asked import Number
from plait.tasks.beneath.quantiles import Quantiles
from plait.tasks.beneath.several import Asks
from plait.tasks.bind import Bound
from plait.tasks.conformal import Misses
from plait.tasks.details import slices_of, worse
from plait.tasks.rowwise import Answer, AnswerTask

ROLES = ("fuser", "backbone", "embedder")


def squared_error(outputs: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(outputs[:, 0], target.nan_to_num().to(outputs.dtype), reduction="none")


def pinball(outputs: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """(B,): the mean pinball loss of outputs (B, Q) at levels (Q,) (Koenker and Bassett 1978)."""
    over = target.nan_to_num().to(outputs.dtype)[:, None] - outputs
    levels = levels.to(outputs)
    return torch.maximum(levels * over, (levels - 1) * over).mean(1)


def rounding(answers: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    """By what answers in the target's unit may be off as they are float32: many rows may have the very number that is
    an end of their intervals, such as 0, and must not fall out of all of them."""
    return 4 * float(np.finfo(np.float32).eps) * (np.abs(answers) + np.abs(mean) + std)


class Regress(AnswerTask):
    """One number per row, standardised inside by the training rows' mean and spread (std). Answers are `numbers` (n,)
    in the target's unit."""

    name = choice = "regress"
    noun = "regression"
    roles = ROLES
    target: str
    asks = "number"
    weighs = spans = pools = True
    metrics = chosen.NUMBERS
    centre: float = 0.0  # what a row of which nothing is known is answered with, standardised
    floor = "mean"
    figure, costs = "MAE", "squared error, in variances of the target"
    quantiles: tuple[float, ...] = ()  # that are answered too; the one nearest to a half is then the answer

    def __init__(self, target: str, params: dict):
        self.target, self.params, self.mean, self.std = target, params, params["mean"], params["std"]

    @classmethod
    def variant(cls, schema: Schema, table: Table) -> type[Task]:
        """One number, or several."""
        return RegressMany.variant(schema, table) if len(schema.targets) > 1 else super().variant(schema, table)

    @classmethod
    def learn(cls, schema: Schema) -> Regress:
        (target,) = schema.targets
        return cls(target, cls.numbers(schema, target))

    @staticmethod
    def numbers(schema: Schema, target: str) -> dict:
        """What the schema learnt of a target. Raises DataError where there is nothing to learn."""
        params = schema.column(target).params
        if params["count"] < 2 and "moment" in schema.column(target).style:
            raise DataError(
                f"the target {target!r} holds dates or times, and plait predicts numbers and classes: give it as a "
                "number, such as days since a certain day (--task classify takes the dates for classes)"
            )
        if params["count"] < 2:
            raise DataError(
                f"the target {target!r} has {params['count']} numbers in the training rows: at least two are needed"
            )
        if not params["std"] > 0:
            raise DataError(
                f"the target {target!r} is {params['mean']:g} in every training row: there is nothing to learn"
            )
        return params

    def ask_quantiles(self, levels: Sequence[float]) -> None:
        self.quantiles = tuple(levels)

    def model(self, bound: Bound, objective: Objective | None = None) -> Answer:
        if self.quantiles:
            prior = torch.tensor([self.centre + NormalDist().inv_cdf(q) for q in self.quantiles])
            return Answer(bound, [self.target], prior, partial(pinball, levels=torch.tensor(self.quantiles)))
        return Answer(bound, [self.target], torch.tensor([self.centre]), squared_error)

    def weigh(self, rows: Rows, train: np.ndarray, classes: dict[str, float] | str | None) -> None:
        if classes is not None:
            raise UsageError(f"class weights are for classification: the target {self.target!r} is a number")
        if rows.weights is not None:
            self.centre = float(np.average(rows.target(train)[self.target].numpy(), weights=rows.weights[train]))

    def simple(self) -> Asks:
        return [(Quantiles(self.quantiles) if self.quantiles else Number(), (self.mean, self.std))]

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        if not self.quantiles:
            return {"numbers": self._undo(outputs["outputs"][:, 0])}
        found = np.sort(self._undo(outputs["outputs"]), 1)  # they never cross
        return {"numbers": found[:, self._middle], "quantiles": found}

    @property
    def _middle(self) -> int:
        return int(np.argmin(np.abs(np.asarray(self.quantiles) - 0.5)))

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
        if self.quantiles and "quantiles" in answers:
            real, told = self._known(truth, answers)[0], answers["quantiles"][np.isfinite(truth[self.target])]
            off = chosen.pinball(real, told, np.asarray(self.quantiles)) * self.shares(truth)
            found = [mean_score("pinball loss", off, "lower"), *found]
            found += [proportion(f"below q({q:g})", real <= told[:, i]) for i, q in enumerate(self.quantiles)]
        found = self._led(found, truth, answers)
        if self.interval is None:
            return found
        known = np.isfinite(truth[self.target])
        real, (low, high) = self._undo(truth[self.target][known]), (end[known] for end in self._ends(answers))
        inside = (low <= real) & (real <= high)
        return [*found, proportion("coverage", inside), mean_score("width", high - low, "lower")]

    def _inner(self, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
        """(n,) twice: from where to where a truth is no miss: the answer, or the outermost quantiles."""
        if len(self.quantiles) < 2:
            return answers["numbers"], answers["numbers"]
        return answers["quantiles"].min(1), answers["quantiles"].max(1)

    def _ends(self, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
        """(n,) twice: between what the truth lies, at the level that is asked for, in the target's unit."""
        assert self.misses is not None and self.interval is not None
        (low, high), reach = self._inner(answers), self.misses.within(self.interval) * self.std
        middle = (low + high) / 2  # quantiles that are further apart than need be are drawn in, at most so far
        return (
            np.minimum(low - reach, middle) - rounding(low, self.mean, self.std),
            np.maximum(high + reach, middle) + rounding(high, self.mean, self.std),
        )

    def calibrate(self, truth: Answers, answers: Answers) -> list[str]:
        """Of quantiles, misses are those of Romano, Patterson and Candes (2019)."""
        known = np.isfinite(truth[self.target])
        real, (low, high) = self._undo(truth[self.target][known]), (end[known] for end in self._inner(answers))
        self.misses = Misses.of(np.maximum(low - real, real - high) / self.std)
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
        flat = np.full(len(truth[self.target]), self.mean + self.std * self.centre)
        if not self.quantiles:
            return self.scores(truth, {"numbers": flat})
        normal = np.asarray([NormalDist().inv_cdf(q) for q in self.quantiles]) * self.std
        return self.scores(truth, {"numbers": flat + normal[self._middle], "quantiles": flat[:, None] + normal})

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        """Share of the variance explained, row by row (its mean is R2), so that gains are in R2. Where these rows'
        targets do not vary, the training rows' variance is shared out."""
        real, predicted = self._known(truth, answers)
        return 1 - metrics.squared_error_rows(real, predicted) / (real.var() if np.ptp(real) > 0 else self.std**2)

    def loss_rows(self, truth: Answers, answers: Answers) -> np.ndarray:
        if self.quantiles:
            known = np.isfinite(truth[self.target])
            real, told = self._undo(truth[self.target][known]), answers["quantiles"][known]
            return chosen.pinball(real, told, np.asarray(self.quantiles)) * self.shares(truth) * self.std
        return metrics.squared_error_rows(*self._known(truth, answers)) * self.shares(truth)

    def cost(self, truth: Answers, answers: Answers) -> np.ndarray:
        return self.loss_rows(truth, answers) / self.std**2

    def details(self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers) -> list[Section]:
        real, predicted = self._known(truth, answers)
        slices = [*slices_of(rows, index), *by_numbers("(prediction)", predicted)]
        return worse(slices, abs(real - predicted), self.figure, "lower", real - predicted)

    def columns(self, answers: Answers) -> dict[str, Any]:
        numbers = answers["numbers"]
        reach = {} if self.interval is None else dict(zip(("low", "high"), self._ends(answers)))
        told = {f"q({q:g})": answers["quantiles"][:, i] for i, q in enumerate(self.quantiles)}
        return beside({self.target: numbers}, told | reach)

    def picture(self, truth: Answers, answers: Answers) -> tuple[str, bytes]:
        return "Predicted and real", pictures.residuals(*self._known(truth, answers), self.target)

    def describe(self) -> str:
        return f"mean {self.mean:.4g}, spread {self.std:.4g}"

    def to_json(self) -> dict:
        told = {"metric": self.metric, "quantiles": list(self.quantiles)}
        return {"task": self.name, "centre": self.centre} | {k: v for k, v in told.items() if v}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Regress:
        task = cls.learn(schema)
        task.centre, task.metric = state.get("centre", 0.0), state.get("metric")
        task.quantiles = tuple(state.get("quantiles", ()))
        return task


def squared_errors(outputs: Tensor, target: Tensor) -> Tensor:
    """(B,): the mean over the known numbers of each row; outputs (B, K), target (B, K) with NaN = unknown."""
    known = ~target.isnan()
    off = F.mse_loss(outputs, target.nan_to_num().to(outputs.dtype), reduction="none")
    return (off * known).sum(1) / known.sum(1).clamp(min=1)


class RegressMany(AnswerTask):
    """Several numbers per row, each standardised by the training rows' mean and spread, of which some may be missing.
    Answers are `numbers` (n, K) in the targets' units."""

    name = "regress_many"
    choice = "regress"
    noun = "regression"
    roles = ROLES
    asks = "number"
    target: list[str]
    weighs = spans = pools = True
    metrics = chosen.SEVERAL
    MOST = 12  # targets, of which scores are told

    def __init__(self, target: list[str], params: list[dict]):
        self.target, self.params = target, params
        self.mean, self.std = (np.asarray([p[name] for p in params]) for name in ("mean", "std"))
        self.centre = np.zeros(len(target))

    @classmethod
    def variant(cls, schema: Schema, table: Table) -> type[Task]:
        schema.ask(cls.asks)
        return cls

    @classmethod
    def learn(cls, schema: Schema) -> RegressMany:
        return cls(schema.targets, [Regress.numbers(schema, target) for target in schema.targets])

    def simple(self) -> Asks:
        return [(Number(), (float(mean), float(std))) for mean, std in zip(self.mean, self.std)]

    def model(self, bound: Bound, objective: Objective | None = None) -> Answer:
        return Answer(bound, self.target, torch.from_numpy(self.centre), squared_errors)

    def weigh(self, rows: Rows, train: np.ndarray, classes: dict[str, float] | str | None) -> None:
        if classes is not None:
            raise UsageError("class weights are for classification: the targets are numbers")
        if rows.weights is not None:
            real, w = np.stack([rows.target(train)[t].numpy() for t in self.target], 1), rows.weights[train][:, None]
            known = np.isfinite(real)
            self.centre = (w * np.where(known, real, 0)).sum(0) / np.maximum((w * known).sum(0), 1e-300)

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        return {"numbers": outputs["outputs"].astype(np.float64) * self.std + self.mean}

    def _both(self, truth: Answers, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
        """(n, K) twice, in the targets' units; NaN where a truth is not known."""
        return np.stack([truth[t] for t in self.target], 1) * self.std + self.mean, answers["numbers"]

    def _off(self, truth: Answers, answers: Answers) -> np.ndarray:
        """(n, K) how far off, in spreads."""
        real, predicted = self._both(truth, answers)
        return (predicted - real) / self.std

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        """The mean R2 first, then R2 and MAE of each target."""
        real, predicted = self._both(truth, answers)
        w, found = truth.get(WEIGHT), [chosen.score(chosen.SEVERAL["r2"], (real, predicted), truth.get(WEIGHT))]
        for k, target in enumerate(self.target[: self.MOST]):
            known = np.isfinite(real[:, k])
            for name in ("r2", "mae") if known.any() else ():
                metric = chosen.NUMBERS[name]._replace(title=f"{chosen.NUMBERS[name].title} of {target}")
                part = (real[known, k], predicted[known, k])
                found.append(chosen.score(metric, part, None if w is None else w[known]))
        told = self._led([score for score in found if score is not None], truth, answers)
        if self.interval is None:
            return told
        within = self.misses.within(self.interval)  # type: ignore[union-attr]
        inside = np.nanmax(np.abs(self._off(truth, answers)), 1) <= within
        return [*told, proportion("coverage", inside)]

    def calibrate(self, truth: Answers, answers: Answers) -> list[str]:
        """An interval holds where those of all known targets do."""
        self.misses = Misses.of(np.nanmax(np.abs(self._off(truth, answers)), 1))
        return []

    def _parts(self, truth: Answers, answers: Answers) -> tuple[tuple, dict[str, Any]]:
        return self._both(truth, answers), {}

    def _any_answers(self, truth: Answers) -> Answers:
        rows = len(truth[self.target[0]])
        return {"numbers": np.arange(rows, dtype=np.float64)[:, None] + np.zeros(len(self.target))}

    def guide(self, truth: Answers, answers: Answers) -> float:
        return self._metric_guide(truth, answers) if self.metric else -float(self.loss_rows(truth, answers).mean())

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        rows = len(truth[self.target[0]])
        return self.scores(truth, {"numbers": np.tile(self.mean + self.std * self.centre, (rows, 1))})

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        """Share of the training rows' variance that is explained, in the mean over the known targets."""
        return 1 - np.nanmean(self._off(truth, answers) ** 2, 1)

    def loss_rows(self, truth: Answers, answers: Answers) -> np.ndarray:
        return np.nanmean(self._off(truth, answers) ** 2, 1) * self.shares(truth)

    def columns(self, answers: Answers) -> dict[str, Any]:
        told = {target: answers["numbers"][:, k] for k, target in enumerate(self.target)}
        if self.interval is None:
            return told
        reach = self.misses.within(self.interval) * self.std  # type: ignore[union-attr]
        reach = reach + rounding(answers["numbers"], self.mean, self.std)
        ends = {"low": -reach, "high": reach}
        return beside(
            told, {f"{end} {t}": told[t] + by[:, k] for k, t in enumerate(self.target) for end, by in ends.items()}
        )

    def describe(self) -> str:
        return f"{len(self.target)} numbers"

    def title(self) -> str:
        return f"{', '.join(self.target)}: {self.describe()}"

    def to_json(self) -> dict:
        told = {"task": self.name, "centre": self.centre.tolist()}
        return told | ({"metric": self.metric} if self.metric else {})

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> RegressMany:
        task = cls.learn(schema)
        task.centre, task.metric = np.asarray(state["centre"]), state.get("metric")
        return task


TASKS = (Regress, RegressMany)
