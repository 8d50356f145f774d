"""Which class? One label per row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import Table
from plait.data.words import Labels
from plait.errors import DataError, UsageError
from plait.evaluate import chosen, metrics, pictures
from plait.evaluate.intervals import Score, mean_score, proportion
from plait.evaluate.report import Section
from plait.tasks.base import WEIGHT, Answers, Objective, Task, beside, unlike
from plait.tasks.beneath.asked import Classes
from plait.tasks.beneath.several import Asks
from plait.tasks.bind import Bound
from plait.tasks.conformal import Misses
from plait.tasks.deciding import best_doubt, doubted, threshold
from plait.tasks.details import of_classes
from plait.tasks.labels import ClassifyMany
from plait.tasks.rowwise import Answer, AnswerTask
from plait.tasks.weighing import class_weights

ROLES = ("fuser", "backbone", "embedder")

MOST_SHOWN, LIKELIEST = 50, 5  # classes: all of so many are told of, and so many of more


def cross_entropy(outputs: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(B,), each times the weight (K,) of its class."""
    weight = None if weight is None else weight.to(outputs)
    return F.cross_entropy(outputs, target, weight, ignore_index=-100, reduction="none")


class Classify(AnswerTask):
    """One label per row. classes: their values as in the table, None for blank cells; counts: how often each occurs in
    the training rows.

    Answers are `probabilities` (n, K). A row whose class no training row has is K or more in the truth, and wrong
    whatever is answered.
    """

    name = choice = "classify"
    faultless: ClassVar[float | None] = 1.0
    one_of = True
    noun = "classification"
    roles: ClassVar[tuple[str, ...]] = ROLES
    target: str
    asks = "category"
    weighs = spans = pools = True
    metrics = chosen.CLASSES
    temperature = 1.0  # how much surer the model sounds than it may
    doubt = 0.0  # the share of its probabilities that is given back to the prior's
    positive = 1  # of two classes, the one that is looked for
    threshold: float | None = None  # from what probability of it on it is answered; None: the likeliest is
    class_weight: np.ndarray | None = None  # (K,), of a class that counts differently; their mean over the rows is 1

    def __init__(self, target: str, classes: list, counts: Sequence[float]):
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
        weight = None if self.class_weight is None else torch.from_numpy(self.class_weight)
        return Answer(bound, [self.target], torch.from_numpy(self.prior), partial(cross_entropy, weight=weight))

    def weigh(self, rows: Rows, train: np.ndarray, classes: dict[str, float] | str | None) -> None:
        self.uncalibrate()  # a run that goes on learns it anew
        if rows.weights is not None:
            found = np.bincount(rows.target(train)[self.target].numpy(), rows.weights[train], len(self.classes))
            self.counts = found.tolist()
        if classes is not None:
            self.class_weight = class_weights(classes, self.names, self.frequencies)

    def row_weights(self, rows: Rows) -> np.ndarray | None:
        if self.class_weight is None:
            return rows.weights
        at = rows.target(np.arange(len(rows)))[self.target].numpy()
        known = (at >= 0) & (at < len(self.classes))
        return np.where(known, self.class_weight[np.where(known, at, 0)], np.nan) * (
            1.0 if rows.weights is None else rows.weights
        )

    def simple(self) -> Asks:
        return [(Classes(len(self.classes)), (0.0, 1.0))]

    @property
    def outcomes(self) -> list:
        return self.classes

    @property
    def frequencies(self) -> np.ndarray:
        """(K,): of the classes, in the training rows."""
        counts = np.asarray(self.counts, np.float64)
        return counts / counts.sum()

    @property
    def prior(self) -> np.ndarray:
        """(K,) logits of a row of which nothing is known."""
        shares = self.frequencies if self.class_weight is None else self.frequencies * self.class_weight
        return np.log(np.maximum(shares, 1e-6))

    def pooled(self, outputs: Tensor) -> Tensor:
        """Logits of the mean probability."""
        return outputs.log_softmax(2).logsumexp(0) - np.log(len(outputs))

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        return {"probabilities": doubted(outputs["outputs"], self.prior, self.temperature, self.doubt)}

    def _both(self, truth: Answers, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
        """Classes (n,), and a probability for each of these, which is 0 for those that were never learnt."""
        real, p = truth[self.target], answers["probabilities"]
        return real, np.pad(p, ((0, 0), (0, max(int(real.max(initial=0)) + 1 - p.shape[1], 0))))

    def answered(self, p: np.ndarray) -> np.ndarray:
        """(n,): the class that is answered, of probabilities (n, K or more)."""
        if self.threshold is None:
            return p.argmax(1)
        return np.where(p[:, self.positive] >= self.threshold, self.positive, 1 - self.positive)

    def _said(self, p: np.ndarray, answers: Answers) -> np.ndarray:
        """As `answered`, of answers that may bring along what others answered (`recast`)."""
        return answers["said"] if "said" in answers else self.answered(p)

    def recast(
        self, other: Task, truth: Answers, answers: Answers, rows: Rows, index: np.ndarray
    ) -> tuple[Answers, Answers]:
        """What is answered from some probability on stays what it was: `said` (n,), of the classes."""
        real, found = super().recast(other, truth, answers, rows, index)
        assert isinstance(other, Classify)
        if other.threshold is None:
            return real, found
        places = {name: i for i, name in enumerate(self.classes)}
        ids = np.asarray([places.get(name, -1) for name in other.classes])
        said = ids[other.answered(answers["probabilities"])]
        return real, found | {"said": np.where(said >= 0, said, found["probabilities"].argmax(1))}

    def _look_for(self, positive: str) -> None:
        at = Labels(self.names).find(str(positive))
        if len(self.classes) != 2 or at is None:
            raise UsageError(f"positive: got {positive!r}, expected one of two classes: {', '.join(self.names[:9])}")
        self.positive = at

    def _parts(self, truth: Answers, answers: Answers) -> tuple[tuple, dict[str, Any]]:
        real, p = self._both(truth, answers)
        kept = real != -100
        more = {"positive": self.positive if len(self.classes) == 2 else None}
        return (real[kept], p[kept], self._said(p, answers)[kept]), more

    def _any_answers(self, truth: Answers) -> Answers:
        drawn = np.random.default_rng(0).random((len(truth[self.target]), len(self.classes)))
        return {"probabilities": drawn / drawn.sum(1, keepdims=True)}

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        real, p = self._both(truth, answers)
        if WEIGHT in truth:
            found = chosen.classification(real, p, truth[WEIGHT], self._said(p, answers))
        else:
            found = metrics.classification(real, p, self._said(p, answers))
        return self._led(found, truth, answers) + self._covered(real, p)

    def _covered(self, real: np.ndarray, p: np.ndarray) -> list[Score]:
        """How often sets of classes hold the true one, and how large they are, where they are asked for."""
        if self.interval is None:
            return []
        known, sets = (real >= 0), self._sets(p)
        inside = sets[np.arange(len(real)), real][known]
        return [proportion("coverage", inside), mean_score("classes in a set", sets.sum(1)[known], "lower")]

    def _sets(self, p: np.ndarray) -> np.ndarray:
        """(n, K or more) bool: the classes that a row is one of, at the level that is asked for (Sadinle et al. 2019),
        the answered one among them."""
        assert self.misses is not None and self.interval is not None
        sets = 1 - p.astype(np.float64) <= self.misses.within(self.interval)
        sets[:, len(self.classes) :] = False  # never answered
        sets[np.arange(len(p)), self.answered(p)] = True
        return sets

    def _cut(self, truth: Answers, answers: Answers) -> float | None:
        """From what probability on the class that is looked for is best answered, by the chosen metric."""
        if self.metric is None or not self.metrics[self.metric].decides or len(self.classes) != 2:
            return None
        real, p = self._both(truth, answers)
        kept = (real >= 0) & (real < 2)
        w = truth.get(WEIGHT)
        return threshold(
            self.metric, p[kept, self.positive], real[kept] == self.positive, None if w is None else w[kept]
        )

    def uncalibrate(self) -> None:
        self.temperature, self.doubt, self.threshold, self.misses = 1.0, 0.0, None, None

    def calibrate(self, truth: Answers, answers: Answers) -> list[str]:
        real, p = self._both(truth, answers)
        kept = (real >= 0) & (real < len(self.classes))
        odds, w = np.log(np.maximum(p[kept, : len(self.classes)], 1e-30)), self._counts(truth)[kept]
        self.temperature, self.doubt = best_doubt(odds, self.prior, real[kept], w)
        answers = {**answers, **self.finish({"outputs": np.log(np.maximum(answers["probabilities"], 1e-30))})}
        real, p = self._both(truth, answers)
        self.misses = Misses.of(1 - p[np.arange(len(real)), real][real >= 0])
        self.threshold = self._cut(truth, answers)
        if self.threshold is None:
            return []
        name, by = self.names[self.positive], self.metrics[self.metric or ""].title
        return [f"{name} is answered from a probability of {self.threshold:.3g} on, by {by} on the validation rows"]

    def guide(self, truth: Answers, answers: Answers) -> float:
        """What early stopping looks at: accuracy, or the chosen metric (where answers are best parted), and the log
        loss where that is the same."""
        if self.metric is not None:
            before, self.threshold = self.threshold, self._cut(truth, answers)
            value, self.threshold = self._metric_guide(truth, answers), before
            return value - 0.05 * float(self.loss_rows(truth, answers).mean())
        right = self.per_row(truth, answers) * self.shares(truth)
        return float(right.mean() - 0.05 * self.loss_rows(truth, answers).mean())

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        cut, self.threshold = self.threshold, None
        found = self.scores(truth, {"probabilities": np.tile(self.frequencies, (len(truth[self.target]), 1))})
        self.threshold = cut
        return found

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        real, p = self._both(truth, answers)
        return metrics.correct_rows(real, p, self._said(p, answers))

    def loss_rows(self, truth: Answers, answers: Answers) -> np.ndarray:
        """In nats, as the model was taught to count rows and classes."""
        real, p = self._both(truth, answers)
        return metrics.log_loss_rows(real, p) * self._counts(truth)[real != -100]

    def _counts(self, truth: Answers) -> np.ndarray:
        """(n,): how much each row counts in the loss."""
        real, last = truth[self.target], len(self.classes) - 1
        w = np.ones(len(real)) * self.shares(truth)
        if self.class_weight is None:
            return w
        return w * np.where((real >= 0) & (real <= last), self.class_weight[real.clip(0, last)], 1.0)

    def columns(self, answers: Answers) -> dict[str, Any]:
        """The class and its probability, and those of all classes; of more than 50 those of the likeliest five."""
        p = answers["probabilities"]
        order = np.argsort(-p, axis=1, kind="stable")
        ranked = [[self.classes[i] for i in row] for row in order[:, :LIKELIEST].T]
        answer = self._said(p, answers)
        told: dict[str, Any] = {"probability": p[np.arange(len(p)), answer]}
        if self.interval is not None:
            sets = self._sets(p)
            told["one of"] = [[c for c, there in zip(self.classes, row) if there] for row in sets]
        if len(self.classes) <= MOST_SHOWN:
            told |= {f"p({name})": p[:, i] for i, name in enumerate(self.names)}
        else:
            for rank in range(1, len(ranked)):
                told |= {f"answer {rank + 1}": ranked[rank], f"probability {rank + 1}": -np.sort(-p, axis=1)[:, rank]}
        return beside({self.target: [self.classes[i] for i in answer]}, told)

    def untold(self) -> str:
        few = f"of {len(self.classes):,} classes each row tells the likeliest {LIKELIEST}, with their probabilities"
        return few if len(self.classes) > MOST_SHOWN else ""

    @property
    def names(self) -> list[str]:
        """The classes in print, no two alike."""
        taken = {str(c) for c in self.classes if c is not None}
        return [unlike("blank", taken) if c is None else str(c) for c in self.classes]

    def details(self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers) -> list[Section]:
        real, p = self._both(truth, answers)
        return of_classes(real, p, self.names, self.counts, self._said(p, answers)) + super().details(
            rows, index, truth, answers
        )

    def picture(self, truth: Answers, answers: Answers) -> tuple[str, bytes]:
        real, p = self._both(truth, answers)
        new = ["never learnt"] if real.max(initial=0) >= len(self.classes) else []
        answered = self._said(p[:, : len(self.classes)], answers)
        real = np.minimum(real, len(self.classes))
        return "Confusion", pictures.confusion_matrix(real, answered, [*self.names, *new])

    def describe(self) -> str:
        top = int(np.argmax(self.counts))
        return f"{len(self.classes)} classes, largest {self.names[top]} {self.frequencies[top]:.0%}"

    def to_json(self) -> dict:
        weight = None if self.class_weight is None else self.class_weight.tolist()
        told = {"class_weight": weight, "metric": self.metric, "threshold": self.threshold, "positive": self.positive}
        told |= {"temperature": self.temperature, "doubt": self.doubt or None}
        return {"task": self.name, "counts": list(self.counts)} | {k: v for k, v in told.items() if v is not None}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Classify:
        task = cls.learn(schema)
        task.counts = state.get("counts", task.counts)
        task.class_weight = np.asarray(state["class_weight"]) if "class_weight" in state else None
        task.metric, task.threshold = state.get("metric"), state.get("threshold")
        task.positive, task.temperature = state.get("positive", 1), state.get("temperature", 1.0)
        task.doubt = state.get("doubt", 0.0)
        return task


TASKS = (Classify, ClassifyMany)
