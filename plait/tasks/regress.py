"""How much? One number per row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import DataError
from plait.evaluate import metrics, pictures
from plait.evaluate.intervals import Score
from plait.tasks.answer import Answer, AnswerTask
from plait.tasks.base import MISSING, BadTargets, Objective, TextOptions
from plait.tasks.bind import Bound

ROLES = ("fuser", "backbone", "embedder")


def squared_error(outputs: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(outputs[:, 0], target.nan_to_num().to(outputs.dtype), reduction="none")


class Regress(AnswerTask):
    """One number per row, standardised inside by the training rows' mean and spread (std)."""

    name = choice = "regress"
    noun = "regression"
    roles = ROLES
    dtype = np.float32

    def __init__(self, target: str, mean: float, std: float):
        self.target, self.mean, self.std = target, mean, std

    @classmethod
    def learn(cls, table: Table, schema: Schema, rows: np.ndarray, options: TextOptions) -> Regress:
        (target,) = schema.targets
        numbers, _ = _numbers(table.column(target))
        seen = numbers[rows]
        seen = seen[np.isfinite(seen)]
        if len(seen) < 2:
            raise DataError(
                f"the target {target!r} has {len(seen)} numbers in the training rows: at least two are needed"
            )
        std = float(seen.std())
        if not std > 0:
            raise DataError(f"the target {target!r} is {seen[0]:g} in every training row: there is nothing to learn")
        return cls(target, float(seen.mean()), std)

    def encode(self, table: Table, schema: Schema) -> tuple[np.ndarray, BadTargets]:
        """Standardised numbers (n,) float32, NaN where there is none; and (row, reason, value) of what is no number."""
        numbers, bad = _numbers(table.column(self.target))
        return ((numbers - self.mean) / self.std).astype(np.float32), bad

    def model(self, bound: Bound, objective: Objective | None = None) -> Answer:
        return Answer(bound, torch.zeros(1), squared_error)

    def finish(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs (n, 1) -> numbers (n,) in the target's unit."""
        return outputs[:, 0].astype(np.float64) * self.std + self.mean

    def _known(self, truth: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        known = np.isfinite(truth)
        return truth[known].astype(np.float64) * self.std + self.mean, answers[known]

    def scores(self, truth: np.ndarray, answers: np.ndarray, queries: np.ndarray | None = None) -> list[Score]:
        return metrics.regression(*self._known(truth, answers))

    def guide(self, truth: np.ndarray, answers: np.ndarray) -> float:
        return -float(metrics.squared_error_rows(*self._known(truth, answers)).mean()) / self.std**2

    def baseline(self, truth: np.ndarray, answers: np.ndarray, queries: np.ndarray | None = None) -> list[Score]:
        return self.scores(truth, np.full(len(truth), self.mean))

    def per_row(self, truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Share of the variance explained, row by row (its mean is R2), so that gains are in R2. Where these rows'
        targets do not vary, the training rows' variance is shared out."""
        real, predicted = self._known(truth, answers)
        return 1 - metrics.squared_error_rows(real, predicted) / (real.var() if np.ptp(real) > 0 else self.std**2)

    def loss_rows(self, truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
        return metrics.squared_error_rows(*self._known(truth, answers))

    def columns(self, answers: np.ndarray) -> dict[str, list]:
        return {self.target: answers}

    def picture(self, truth: np.ndarray, answers: np.ndarray) -> tuple[str, bytes]:
        return "Predicted and real", pictures.residuals(*self._known(truth, answers))

    def describe(self) -> str:
        return f"mean {self.mean:.4g}, spread {self.std:.4g}"

    def to_json(self) -> dict:
        return {"task": self.name, "target": self.target, "mean": self.mean, "std": self.std}

    @classmethod
    def from_json(cls, state: dict) -> Regress:
        return cls(state["target"], state["mean"], state["std"])


def _numbers(values: pa.ChunkedArray) -> tuple[np.ndarray, BadTargets]:
    out, bad = np.full(len(values), np.nan), []
    for i, v in enumerate(values.to_pylist()):
        try:
            out[i] = float(str(v).replace(",", "")) if isinstance(v, str) else float(v)
        except (TypeError, ValueError):
            pass
        if not np.isfinite(out[i]):
            bad.append((i, MISSING if v is None else "target not a finite number", "" if v is None else str(v)[:200]))
            out[i] = np.nan
    return out, bad


TASKS = (Regress,)
