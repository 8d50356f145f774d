"""Which class? One label per row, or several."""

from __future__ import annotations

from typing import Any, ClassVar

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
from plait.tasks.base import Answers, Objective, Task, beside
from plait.tasks.beneath.asked import Asked, Classes, Labels
from plait.tasks.bind import Bound
from plait.tasks.rowwise import Answer, AnswerTask

ROLES = ("fuser", "backbone", "embedder")

MOST_SHOWN, LIKELIEST = 50, 5  # classes: all of so many are told of, and so many of more


def cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(outputs, target, ignore_index=-100, reduction="none")


class Classify(AnswerTask):
    """One label per row. classes: their values as in the table, None for blank cells; counts: how often each occurs in
    the training rows.

    Answers are `probabilities` (n, K). A row whose class no training row has is K or more in the truth, and wrong
    whatever is answered.
    """

    name = choice = "classify"
    noun = "classification"
    roles: ClassVar[tuple[str, ...]] = ROLES
    target: str
    asks = "category"

    def __init__(self, target: str, classes: list, counts: list[int]):
        self.target, self.classes, self.counts = target, classes, counts

    @classmethod
    def variant(cls, schema: Schema, table: Table) -> type[Task]:
        """One label, or several: a column each, or a column of lists."""
        if len(schema.targets) > 1:
            return ClassifyMany.variant(schema, table)
        lists = [
            n for n in schema.targets if pa.types.is_list(table.column(n).type) or schema.column(n).kind == "labels"
        ]
        return ClassifyMany.variant(schema, table) if lists else super().variant(schema, table)

    @classmethod
    def learn(cls, schema: Schema) -> Classify:
        """The classes among the training rows."""
        (target,) = schema.targets
        classes, counts = (schema.column(target).params[name] for name in ("classes", "counts"))
        if len(classes) < 2:
            only = f"only {str(classes[0])!r}" if classes else "no value at all"
            raise DataError(
                f"the target {target!r} has {only} in the training rows: a classifier needs at least two classes"
            )
        if len(classes) > max(20, sum(counts) // 2):
            raise DataError(
                f"the target {target!r} has {len(classes)} different values in {sum(counts)} training rows: too many "
                "to be classes; is it a number (--task regress) or the wrong column?"
            )
        return cls(target, classes, counts)

    def model(self, bound: Bound, objective: Objective | None = None) -> Answer:
        return Answer(bound, [self.target], torch.tensor(np.log(self.frequencies)), cross_entropy)

    def simple(self) -> tuple[Asked, tuple[float, float]]:
        return Classes(len(self.classes)), (0.0, 1.0)

    @property
    def frequencies(self) -> np.ndarray:
        counts = np.asarray(self.counts, np.float64)
        return counts / counts.sum()

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        x = outputs["outputs"]
        z = np.exp(x - x.max(1, keepdims=True))
        return {"probabilities": z / z.sum(1, keepdims=True)}

    def _both(self, truth: Answers, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
        """Classes (n,), and a probability for each of these, which is 0 for those that were never learnt."""
        real, p = truth[self.target], answers["probabilities"]
        return real, np.pad(p, ((0, 0), (0, max(int(real.max(initial=0)) + 1 - p.shape[1], 0))))

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return metrics.classification(*self._both(truth, answers))

    def guide(self, truth: Answers, answers: Answers) -> float:
        """What early stopping looks at: accuracy, and the log loss where that is the same."""
        return float(self.per_row(truth, answers).mean() - 0.05 * self.loss_rows(truth, answers).mean())

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return self.scores(truth, {"probabilities": np.tile(self.frequencies, (len(truth[self.target]), 1))})

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        return metrics.correct_rows(*self._both(truth, answers))

    def loss_rows(self, truth: Answers, answers: Answers) -> np.ndarray:
        return metrics.log_loss_rows(*self._both(truth, answers))

    def columns(self, answers: Answers) -> dict[str, Any]:
        """The class and its probability, and those of all classes; of more than 50 those of the likeliest five."""
        p = answers["probabilities"]
        order = np.argsort(-p, axis=1, kind="stable")
        ranked = [[self.classes[i] for i in row] for row in order[:, :LIKELIEST].T]
        told: dict[str, Any] = {"probability": p.max(1)}
        if len(self.classes) <= MOST_SHOWN:
            told |= {f"p({name})": p[:, i] for i, name in enumerate(self.names)}
        else:
            for rank in range(1, len(ranked)):
                told |= {f"answer {rank + 1}": ranked[rank], f"probability {rank + 1}": -np.sort(-p, axis=1)[:, rank]}
        return beside({self.target: ranked[0]}, told)

    @property
    def names(self) -> list[str]:
        """The classes in print."""
        return ["blank" if c is None else str(c) for c in self.classes]

    def picture(self, truth: Answers, answers: Answers) -> tuple[str, bytes]:
        real, p = self._both(truth, answers)
        new = ["never learnt"] if real.max(initial=0) >= len(self.classes) else []
        answered = p[:, : len(self.classes)].argmax(1)
        real = np.minimum(real, len(self.classes))
        return "Confusion", pictures.confusion_matrix(real, answered, [*self.names, *new])

    def describe(self) -> str:
        top = int(np.argmax(self.counts))
        return f"{len(self.classes)} classes, largest {self.names[top]} {self.frequencies[top]:.0%}"

    def to_json(self) -> dict:
        return {"task": self.name}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Classify:
        return cls.learn(schema)


def binary_cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """Mean over the known labels of each row; (B, K) with -100 = unknown. What the target has beyond is not learnt."""
    target = target[:, : outputs.shape[1]]
    known = target != -100
    loss = F.binary_cross_entropy_with_logits(outputs, target.clamp(min=0).to(outputs.dtype), reduction="none")
    return (loss * known).sum(1) / known.sum(1).clamp(min=1)


class ClassifyMany(AnswerTask):
    """Several labels per row: a boolean column each, or one column of lists. Answers are `probabilities` (n, K)."""

    name = "classify_many"
    choice = "classify"
    noun = "classification"
    roles = ROLES
    asks = "boolean"

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
        return cls(target, labels, [float(y + 1) / float(n + 2) for y, n in zip(yes, known)])

    def model(self, bound: Bound, objective: Objective | None = None) -> Answer:
        rates = np.asarray(self.rates)
        return Answer(bound, self.targets, torch.tensor(np.log(rates / (1 - rates))), binary_cross_entropy)

    def simple(self) -> tuple[Asked, tuple[float, float]]:
        return Labels(len(self.labels)), (0.0, 1.0)

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        return {"probabilities": 1 / (1 + np.exp(-np.clip(outputs["outputs"], -60, 60)))}

    def _both(self, truth: Answers, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
        """Truth (n, K) of 1, 0 and -100 = unknown, and probabilities (n, K)."""
        parts, p = [truth[name] for name in self.targets], answers["probabilities"]
        real = parts[0] if len(parts) == 1 else np.stack(parts, 1)
        return real, np.pad(p, ((0, 0), (0, real.shape[1] - p.shape[1])))  # a label that was never learnt is missed

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return metrics.multilabel(*self._both(truth, answers))

    def guide(self, truth: Answers, answers: Answers) -> float:
        return self.scores(truth, answers)[0].value

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return self.scores(truth, {"probabilities": np.tile(self.rates, (len(answers["probabilities"]), 1))})

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        return metrics.exact_match_rows(*self._both(truth, answers))

    def loss_rows(self, truth: Answers, answers: Answers) -> np.ndarray:
        real, p = self._both(truth, answers)
        known = real != -100
        loss = -np.log(np.where(real == 1, p, 1 - p).clip(1e-7, 1)) * known
        return loss.sum(1)[known.any(1)] / known.sum(1)[known.any(1)]

    def columns(self, answers: Answers) -> dict[str, Any]:
        p = answers["probabilities"]
        chosen = [[label for label, one in zip(self.labels, row) if one >= 0.5] for row in p]
        return beside({"labels": chosen}, {f"p({label})": p[:, i] for i, label in enumerate(self.labels)})

    def picture(self, truth: Answers, answers: Answers) -> tuple[str, bytes] | None:
        real, p = self._both(truth, answers)
        if not (real == 1).any():
            return None
        parts = [(label, real[:, i], p[:, i]) for i, label in enumerate(self.labels)]
        return "Precision and recall", pictures.precision_recall(parts)

    def describe(self) -> str:
        return f"{len(self.labels)} labels, {sum(self.rates):.1f} a row"

    def to_json(self) -> dict:
        return {"task": self.name}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> ClassifyMany:
        return cls.learn(schema)


TASKS = (Classify, ClassifyMany)
