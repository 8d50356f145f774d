"""Which labels? Several per row."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import DataError, UsageError
from plait.evaluate import chosen, metrics, pictures
from plait.evaluate.intervals import Score
from plait.evaluate.report import Section
from plait.tasks.base import WEIGHT, Answers, Objective, Task, beside, unlike
from plait.tasks.beneath.asked import Labels as ManyLabels
from plait.tasks.beneath.several import Asks
from plait.tasks.bind import Bound
from plait.tasks.deciding import best_temperature, cooled, label_thresholds
from plait.tasks.details import of_labels
from plait.tasks.rowwise import Answer, AnswerTask

MOST_TOLD = 6  # labels whose thresholds are told while fitting


def binary_cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """Mean over the known labels of each row; (B, K) with -100 = unknown. What the target has beyond is not learnt."""
    target = target[:, : outputs.shape[1]]
    known = target != -100
    loss = F.binary_cross_entropy_with_logits(outputs, target.clamp(min=0).to(outputs.dtype), reduction="none")
    return (loss * known).sum(1) / known.sum(1).clamp(min=1)


class ClassifyMany(AnswerTask):
    """Several labels per row: a boolean column each, or one column of lists. Answers are `probabilities` (n, K)."""

    name = "classify_many"
    figure = "exact match"
    choice = "classify"
    noun = "classification"
    roles = ("fuser", "backbone", "embedder")
    asks = "boolean"
    weighs = pools = True
    metrics = chosen.LABELS
    temperature = 1.0  # how much surer the model sounds than it may
    thresholds: np.ndarray | None = None  # (K,) from what probability on each label is answered; None: 0.5
    numbers = False  # whether the table has lists of whole numbers

    def __init__(self, target: list[str] | str, labels: list[str], rates: list[float]):
        self.target, self.labels, self.rates = target, labels, rates

    @classmethod
    def variant(cls, schema: Schema, table: Table) -> type[Task]:
        schema.ask("boolean" if len(schema.targets) > 1 else "labels")
        return cls

    @classmethod
    def learn(cls, schema: Schema) -> ClassifyMany:
        columns = schema.used("target")
        if len(columns) > 1:
            pairs = [c.params["counts"] for c in columns]  # of no and yes
            labels, yes, known = schema.targets, [y for _, y in pairs], [n + y for n, y in pairs]
        else:
            params = columns[0].params
            labels, yes, known = params["values"], params["counts"], [params["cells"]] * len(params["values"])
        target = schema.targets if len(columns) > 1 else schema.targets[0]
        if not any(yes):
            raise DataError(f"the target {target!r} has no label in the training rows")
        task = cls(target, labels, [float(y + 1) / float(n + 2) for y, n in zip(yes, known)])
        lists = columns[0].style.get("type", "").startswith("list<") and len(columns) == 1
        task.numbers = lists and all(re.fullmatch(r"-?\d{1,15}", str(label)) for label in labels)
        return task

    def model(self, bound: Bound, objective: Objective | None = None) -> Answer:
        return Answer(bound, self.targets, torch.from_numpy(self.prior), binary_cross_entropy)

    def weigh(self, rows: Rows, train: np.ndarray, classes: dict[str, float] | str | None) -> None:
        if classes is not None:
            raise UsageError("class weights are for one label a row: this target has several (leave out class_weight)")
        self.uncalibrate()  # a run that goes on learns it anew
        if rows.weights is not None:
            found = [t.numpy().reshape(len(train), -1) for t in map(rows.target(train).get, self.targets)]  # type: ignore[union-attr]
            real, w = np.concatenate(found, 1)[:, : len(self.labels)], rows.weights[train][:, None]
            self.rates = (((w * (real == 1)).sum(0) + 1) / ((w * (real != -100)).sum(0) + 2)).tolist()

    def simple(self) -> Asks:
        return [(ManyLabels(len(self.labels)), (0.0, 1.0))]

    def pooled(self, outputs: Tensor) -> Tensor:
        """Log-odds of the mean probability."""
        return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        x = cooled(outputs["outputs"], self.prior, self.temperature)
        return {"probabilities": 1 / (1 + np.exp(-np.clip(x, -60, 60)))}

    @property
    def prior(self) -> np.ndarray:
        """(K,) log-odds of a row of which nothing is known."""
        rates = np.asarray(self.rates)
        return np.log(rates / (1 - rates))

    def uncalibrate(self) -> None:
        self.temperature, self.thresholds = 1.0, None

    def calibrate(self, truth: Answers, answers: Answers) -> list[str]:
        real, p = self._both(truth, answers)
        p = np.clip(p[:, : len(self.labels)].astype(np.float64), 1e-30, 1 - 1e-16)
        rows, labels = np.nonzero(real[:, : len(self.labels)] != -100)
        odds = (np.log(p) - np.log1p(-p) - self.prior)[rows, labels][:, None]
        w = (np.ones(len(p)) * self.shares(truth))[rows]
        self.temperature = best_temperature(odds, np.zeros(1), real[rows, labels].astype(np.int64), w)
        x = np.log(p) - np.log1p(-p)
        self.thresholds = self._cuts(truth, {**answers, **self.finish({"outputs": x})})
        if self.thresholds is None:
            return []
        told = [f"{name} {at:.3g}" if at <= 1 else f"{name} never" for name, at in zip(self.labels, self.thresholds)]
        more = f" and {len(told) - MOST_TOLD:,} more" if len(told) > MOST_TOLD else ""
        return [f"answered from a probability on, by micro F1 on rows held out: {', '.join(told[:MOST_TOLD])}{more}"]

    def _cuts(self, truth: Answers, answers: Answers) -> np.ndarray | None:
        """From what probability on each label is best answered, by the chosen metric."""
        if self.metric is None or not self.metrics[self.metric].decides:
            return None
        (real, p), K = self._both(truth, answers), len(self.labels)
        return label_thresholds(p[:, :K], real[:, :K], truth.get(WEIGHT))

    def answered(self, p: np.ndarray) -> np.ndarray:
        """(n, K) bool: which labels are answered, of probabilities (n, K)."""
        return p >= (0.5 if self.thresholds is None else self.thresholds)

    def _said(self, answers: Answers, width: int) -> np.ndarray:
        """As `answered`, (n, width) bool, of answers that may bring along what others answered (`recast`)."""
        said = answers["said"] if "said" in answers else self.answered(answers["probabilities"])
        return np.pad(said, ((0, 0), (0, width - said.shape[1])))

    def recast(
        self, other: Task, truth: Answers, answers: Answers, rows: Rows, index: np.ndarray
    ) -> tuple[Answers, Answers]:
        """What is answered from some probability on stays what it was: `said` (n, K)."""
        real, found = super().recast(other, truth, answers, rows, index)
        assert isinstance(other, ClassifyMany)
        if other.thresholds is None:
            return real, found
        said, none = other.answered(answers["probabilities"]), np.zeros(len(found["probabilities"]), bool)
        theirs = {name: said[:, i] for i, name in enumerate(other.labels)}
        return real, found | {"said": np.stack([theirs.get(name, none) for name in self.labels], 1)}

    @property
    def outcomes(self) -> list:
        return self.labels

    def _both(self, truth: Answers, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
        """Truth (n, K) of 1, 0 and -100 = unknown, and probabilities (n, K)."""
        parts, p = [truth[name] for name in self.targets], answers["probabilities"]
        real = parts[0] if len(parts) == 1 else np.stack(parts, 1)
        return real, np.pad(p, ((0, 0), (0, real.shape[1] - p.shape[1])))  # a label that was never learnt is missed

    def aside(
        self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers, queries: np.ndarray | None = None
    ) -> dict[str, int]:
        """The labels of these rows that nobody knows."""
        unknown = int((self._both(truth, answers)[0] == -100).sum())
        return {"label that is not known": unknown} if unknown else {}

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        real, p, said = self._parts(truth, answers)[0]
        if WEIGHT in truth:
            found = chosen.multilabel(real, p, truth[WEIGHT], said)
        else:
            found = metrics.multilabel(real, p, said)
        return self._led(found, truth, answers)

    def _parts(self, truth: Answers, answers: Answers) -> tuple[tuple, dict[str, Any]]:
        real, p = self._both(truth, answers)
        return (real, p, self._said(answers, p.shape[1])), {}

    def _any_answers(self, truth: Answers) -> Answers:
        rows = len(truth[self.targets[0]])
        return {"probabilities": np.random.default_rng(0).random((rows, len(self.labels)))}

    def guide(self, truth: Answers, answers: Answers) -> float:
        if self.metric is not None:
            before, self.thresholds = self.thresholds, self._cuts(truth, answers)
            value, self.thresholds = self._metric_guide(truth, answers), before
            return value
        return self.scores(truth, answers)[0].value

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        p = np.tile(self.rates, (len(answers["probabilities"]), 1))
        return self.scores(truth, {"probabilities": p, "said": p >= 0.5})

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        return metrics.exact_match_rows(*self._parts(truth, answers)[0])

    def loss_rows(self, truth: Answers, answers: Answers) -> np.ndarray:
        real, p = self._both(truth, answers)
        known = real != -100
        loss = -np.log(np.where(real == 1, p, 1 - p).clip(1e-7, 1)) * known
        return loss.sum(1)[known.any(1)] / known.sum(1)[known.any(1)] * self.shares(truth)

    def details(self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers) -> list[Section]:
        real, _, said = self._parts(truth, answers)[0]
        return of_labels(real, said, self.labels, self.rates) + super().details(rows, index, truth, answers)

    def columns(self, answers: Answers) -> dict[str, Any]:
        p = answers["probabilities"]
        said = self._said(answers, p.shape[1])
        own = [int(label) for label in self.labels] if self.numbers else self.labels
        chosen = [[label for label, one in zip(own, row) if one] for row in said]
        answer = "labels" if isinstance(self.target, str) else unlike("labels", self.target)
        return beside({answer: chosen}, {f"p({label})": p[:, i] for i, label in enumerate(self.labels)})

    def picture(self, truth: Answers, answers: Answers) -> tuple[str, bytes] | None:
        real, p = self._both(truth, answers)
        if not (real == 1).any():
            return None
        parts = [(label, real[:, i], p[:, i]) for i, label in enumerate(self.labels)]
        return "Precision and recall", pictures.precision_recall(parts)

    def describe(self) -> str:
        return f"{len(self.labels)} labels, {sum(self.rates):.1f} a row"

    def to_json(self) -> dict:
        told = {"task": self.name, "rates": self.rates, "temperature": self.temperature}
        told |= {} if self.thresholds is None else {"thresholds": self.thresholds.tolist()}
        return told | ({"metric": self.metric} if self.metric else {})

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> ClassifyMany:
        task = cls.learn(schema)
        task.rates, task.metric = state.get("rates", task.rates), state.get("metric")
        task.temperature = state.get("temperature", 1.0)
        task.thresholds = np.asarray(state["thresholds"]) if "thresholds" in state else None
        return task
