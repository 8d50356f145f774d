"""Which class? One label per row, or several."""

from __future__ import annotations

import math

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
from plait.tasks.base import MISSING, BadTargets, Objective, Task, TextOptions
from plait.tasks.bind import Bound

ROLES = ("fuser", "backbone", "embedder")


def cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(outputs, target, ignore_index=-100, reduction="none")


class Classify(AnswerTask):
    """One label per row. classes: their values as in the table; counts: how often each occurs in the training rows."""

    name = choice = "classify"
    noun = "classification"
    roles = ROLES
    dtype = np.int64

    def __init__(self, target: str, classes: list, counts: list[int]):
        self.target, self.classes, self.counts = target, classes, counts
        self._index = {str(c): i for i, c in enumerate(classes)}

    @classmethod
    def variant(cls, schema: Schema, table: Table) -> type[Task]:
        """One label, or several: a column each, or a column of lists."""
        many = len(schema.targets) > 1 or (schema.targets and pa.types.is_list(table.column(schema.targets[0]).type))
        return ClassifyMany if many else super().variant(schema, table)

    @classmethod
    def learn(cls, table: Table, schema: Schema, rows: np.ndarray, options: TextOptions) -> Classify:
        """The classes among the training `rows` of the target column."""
        (target,) = schema.targets
        values = table.column(target)
        seen = [v for v in values.take(pa.array(rows)).to_pylist() if _real(v)]
        kinds = {str(v): v for v in seen}
        if len(kinds) < 2:
            only = f"only {next(iter(kinds))!r}" if kinds else "no value at all"
            raise DataError(
                f"the target {target!r} has {only} in the training rows: a classifier needs at least two classes"
            )
        if len(kinds) > max(20, len(seen) // 2):
            raise DataError(
                f"the target {target!r} has {len(kinds)} different values in {len(seen)} training rows: too many to be classes; "
                "is it a number (--task regress) or the wrong column?"
            )
        order = sorted(
            kinds, key=lambda k: (isinstance(kinds[k], str), kinds[k] if not isinstance(kinds[k], str) else k)
        )
        counts = np.unique(np.array([str(v) for v in seen]), return_counts=True)
        count = dict(zip(counts[0].tolist(), counts[1].tolist()))
        return cls(target, [kinds[k] for k in order], [count[k] for k in order])

    def encode(self, table: Table, schema: Schema) -> tuple[np.ndarray, BadTargets]:
        """Class numbers (n,), -100 where there is none; and (row, reason, value) of each cell that cannot be a
        target."""
        truth, bad = np.full(len(table), -100, np.int64), []
        for i, v in enumerate(table.column(self.target).to_pylist()):
            if not _real(v):
                bad.append((i, MISSING, ""))
            elif str(v) in self._index:
                truth[i] = self._index[str(v)]
            else:
                bad.append((i, "class not in the training rows", str(v)))
        return truth, bad

    def model(self, bound: Bound, objective: Objective | None = None) -> Answer:
        return Answer(bound, torch.tensor(np.log(self.frequencies)), cross_entropy)

    @property
    def frequencies(self) -> np.ndarray:
        counts = np.asarray(self.counts, np.float64)
        return counts / counts.sum()

    def finish(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs (n, K) -> probabilities (n, K)."""
        z = np.exp(outputs - outputs.max(1, keepdims=True))
        return z / z.sum(1, keepdims=True)

    def scores(self, truth: np.ndarray, answers: np.ndarray, queries: np.ndarray | None = None) -> list[Score]:
        return metrics.classification(truth, answers)

    def guide(self, truth: np.ndarray, answers: np.ndarray) -> float:
        """What early stopping looks at: accuracy, and the log loss where that is the same."""
        return float(metrics.correct_rows(truth, answers).mean() - 0.05 * metrics.log_loss_rows(truth, answers).mean())

    def baseline(self, truth: np.ndarray, answers: np.ndarray, queries: np.ndarray | None = None) -> list[Score]:
        return self.scores(truth, np.tile(self.frequencies, (len(truth), 1)))

    def per_row(self, truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
        return metrics.correct_rows(truth, answers)

    def loss_rows(self, truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
        return metrics.log_loss_rows(truth, answers)

    def columns(self, answers: np.ndarray) -> dict[str, list]:
        best = answers.argmax(1)
        out = {self.target: [self.classes[i] for i in best], "probability": answers.max(1)}
        if len(self.classes) <= 50:
            out |= {f"p({c})": answers[:, i] for i, c in enumerate(self.classes)}
        return out

    def picture(self, truth: np.ndarray, answers: np.ndarray) -> tuple[str, bytes]:
        return "Confusion", pictures.confusion_matrix(truth, answers.argmax(1), [str(c) for c in self.classes])

    def describe(self) -> str:
        top = int(np.argmax(self.counts))
        return f"{len(self.classes)} classes, largest {self.classes[top]} {self.frequencies[top]:.0%}"

    def to_json(self) -> dict:
        return {"task": self.name, "target": self.target, "classes": self.classes, "counts": self.counts}

    @classmethod
    def from_json(cls, state: dict) -> Classify:
        return cls(state["target"], state["classes"], state["counts"])


def _real(value) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is not None and str(value).strip() != ""


def binary_cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """Mean over the known labels of each row; (B, K) with -100 = unknown."""
    known = target != -100
    loss = F.binary_cross_entropy_with_logits(outputs, target.clamp(min=0).to(outputs.dtype), reduction="none")
    return (loss * known).sum(1) / known.sum(1).clamp(min=1)


class ClassifyMany(AnswerTask):
    """Several labels per row: a boolean column each, or one column of lists."""

    name = "classify_many"
    choice = "classify"
    noun = "classification"
    roles = ROLES
    dtype = np.int64

    def __init__(self, target: list[str] | str, labels: list[str], rates: list[float]):
        self.target, self.labels, self.rates = target, labels, rates

    @classmethod
    def learn(cls, table: Table, schema: Schema, rows: np.ndarray, options: TextOptions) -> ClassifyMany:
        target = schema.targets if len(schema.targets) > 1 else schema.targets[0]
        truth, labels = _many(target, table, None)
        seen = truth[rows]
        rates = [float((c == 1).sum() + 1) / float((c != -100).sum() + 2) for c in seen.T]
        if not (seen == 1).any():
            raise DataError(f"the target {target!r} has no label in the training rows")
        return cls(target, labels, rates)

    def encode(self, table: Table, schema: Schema) -> tuple[np.ndarray, BadTargets]:
        """(n, K) of 1, 0 and -100 = unknown; and the rows that know nothing."""
        truth, _ = _many(self.target, table, self.labels)
        return truth, [(int(i), MISSING, "") for i in np.flatnonzero((truth == -100).all(1))]

    def model(self, bound: Bound, objective: Objective | None = None) -> Answer:
        rates = np.asarray(self.rates)
        return Answer(bound, torch.tensor(np.log(rates / (1 - rates))), binary_cross_entropy)

    def finish(self, outputs: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-np.clip(outputs, -60, 60)))

    def scores(self, truth: np.ndarray, answers: np.ndarray, queries: np.ndarray | None = None) -> list[Score]:
        return metrics.multilabel(truth, answers)

    def guide(self, truth: np.ndarray, answers: np.ndarray) -> float:
        return metrics.multilabel(truth, answers)[0].value

    def baseline(self, truth: np.ndarray, answers: np.ndarray, queries: np.ndarray | None = None) -> list[Score]:
        return self.scores(truth, np.tile(self.rates, (len(truth), 1)))

    def per_row(self, truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
        return metrics.exact_match_rows(truth, answers)

    def loss_rows(self, truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
        known = truth != -100
        loss = -np.log(np.where(truth == 1, answers, 1 - answers).clip(1e-7, 1)) * known
        return loss.sum(1)[known.any(1)] / known.sum(1)[known.any(1)]

    def columns(self, answers: np.ndarray) -> dict[str, list]:
        chosen = [[label for label, p in zip(self.labels, row) if p >= 0.5] for row in answers]
        return {"labels": chosen} | {f"p({label})": answers[:, i] for i, label in enumerate(self.labels)}

    def picture(self, truth: np.ndarray, answers: np.ndarray) -> tuple[str, bytes] | None:
        if not (truth == 1).any():
            return None
        parts = [(label, truth[:, i], answers[:, i]) for i, label in enumerate(self.labels)]
        return "Precision and recall", pictures.precision_recall(parts)

    def describe(self) -> str:
        return f"{len(self.labels)} labels, {sum(self.rates):.1f} a row"

    def to_json(self) -> dict:
        return {"task": self.name, "target": self.target, "labels": self.labels, "rates": self.rates}

    @classmethod
    def from_json(cls, state: dict) -> ClassifyMany:
        return cls(state["target"], state["labels"], state["rates"])


def _many(target: list[str] | str, table: Table, labels: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """(n, K) of 1, 0 and -100, and the labels, from a boolean column each or from one column of lists."""
    if isinstance(target, list):
        return np.stack([flags(table.column(name), name) for name in target], 1), list(target)
    cells = table.column(target).to_pylist()
    labels = labels or sorted({str(x) for cell in cells if cell is not None for x in cell})
    place = {label: i for i, label in enumerate(labels)}
    truth = np.zeros((len(cells), len(labels)), np.int64)
    for i, cell in enumerate(cells):
        if cell is None:
            truth[i] = -100
            continue
        for x in cell:
            if str(x) in place:
                truth[i, place[str(x)]] = 1
    return truth, labels


_TRUE, _FALSE = {"true", "yes", "1", "t", "y", "1.0"}, {"false", "no", "0", "f", "n", "0.0"}


def flags(values: pa.ChunkedArray, name: str) -> np.ndarray:
    """1, 0, or -100 where empty (n,), from true/false, yes/no, 1/0; anything else raises DataError."""
    out = np.full(len(values), -100, np.int64)
    for i, v in enumerate(values.to_pylist()):
        word = str(v).strip().lower()
        if word in _TRUE or word in _FALSE:
            out[i] = word in _TRUE
        elif v is not None and word not in ("", "nan"):
            raise DataError(f"the target {name!r} holds {v!r}: several labels need columns of true and false")
    return out


TASKS = (Classify, ClassifyMany)
