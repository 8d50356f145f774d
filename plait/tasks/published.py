"""What published weights do without training: give vectors, tell their own classes, or such as texts name.

No table is learnt from, so that none of these is a choice of `--task`: `plait use` makes runs of them.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from plait.data.schema import Column, Schema
from plait.evaluate.intervals import Score
from plait.tasks.base import Answers, Objective, Task, TaskModel
from plait.tasks.bind import BackboneBound, Bound
from plait.tasks.classify import Classify

LABEL = "label"  # the column of classes
NONE = "none of these"
NO_CLASS = 1e-6  # by how much that is likelier than each class in a row that cannot be read
SURE = 0.05  # the share of rows of no class that is given one all the same


class Embed(Task):
    """A vector for each row; what lies near each other is alike. sides: the slots."""

    name = choice = "embed"
    noun = "embedding"
    roles = ("embedder", "backbone")
    needs_target = False
    verb = "search"
    answers_rows = False
    mute = (
        "this run gives vectors and answers nothing by itself: plait embed, plait search or, where it reads texts, "
        "plait predict with --classes"
    )

    def __init__(self, sides: tuple[str, ...]):
        self.sides = tuple(sides)

    @classmethod
    def learn(cls, schema: Schema) -> Embed:
        return cls(tuple(s.name for s in schema.slots))

    def model(self, bound: Bound, objective: Objective | None = None) -> TaskModel:
        return TaskModel(bound)

    def describe(self) -> str:
        return "vectors"

    def to_json(self) -> dict:
        return {"task": self.name}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Embed:
        return cls.learn(schema)

    def _silent(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(self.mute)

    finish = scores = baseline = guide = columns = _silent


class KnownClasses(Classify):
    """One of `classes`, which nothing here was trained to tell. slot: the input. A row that cannot be read gets no
    class: its answer is wrong, and as likely as that of any class.

    Answers are `probabilities` (n, K) and `there` (n,) bool.
    """

    floor: ClassVar[str] = "chance"
    weighs = spans = False

    def __init__(self, classes: list, slot: str):
        super().__init__(LABEL, classes, [1] * len(classes))
        self.slot = slot

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        there = outputs["there"]
        found = super().finish({"outputs": outputs["outputs"].astype(np.float64)})["probabilities"]
        return {"probabilities": np.where(there[:, None], found, 1 / len(self.classes)), "there": there}

    def _both(self, truth: Answers, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
        """With one class more, which is answered in rows that cannot be read and true of none."""
        real, p = super()._both(truth, answers)
        there = answers.get("there", np.ones(len(p), bool))
        if there.all():
            return real, p
        k = len(self.classes)
        p = np.column_stack([p, np.zeros(len(p))])
        p[~there] = 0.0
        p[~there, :k] = (1 - NO_CLASS) / (k + 1)
        p[~there, -1] = 1 - p[~there, :k].sum(1)
        return real, p

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        """By chance."""
        k, n = len(self.classes), int((truth[self.target] >= 0).sum())
        chance = {"accuracy": (1 / k, "higher"), "log loss": (float(np.log(k)), "lower")}
        return [Score(name, value, value, value, n, better) for name, (value, better) in chance.items()]

    def columns(self, answers: Answers) -> dict[str, Any]:
        """Nothing in rows that cannot be read."""
        there = answers["there"]
        told = super().columns({"probabilities": answers["probabilities"]})
        return {name: [c if real else None for c, real in zip(_plain(cells), there)] for name, cells in told.items()}

    def describe(self) -> str:
        return f"{len(self.classes):,} classes"


def label_column(classes: list) -> Column:
    """The column of such classes."""
    params = {"values": [str(c) for c in classes], "classes": classes, "counts": [1] * len(classes)}
    return Column(LABEL, "category", "classes that are known", "target", params)


def _plain(cells: Any) -> list:
    return cells.tolist() if isinstance(cells, np.ndarray) else cells


class OwnHead(TaskModel):
    """The answers of a backbone's own classifier."""

    bound: BackboneBound

    def answer(self, batch: dict) -> dict[str, Tensor]:
        """`outputs` (B, K): logits; `there` (B,) bool: whether there is anything to answer for."""
        ready = self.bound.prepared(batch)
        (slot,) = self.bound.takes
        outputs = cast(nn.Module, self.bound.system)(ready[slot], ready["keep"].get(slot))
        return {"outputs": outputs.float(), "there": ready["present"][slot]}


class ClassifyPublished(KnownClasses):
    """The classes that published weights were trained to tell; their names, or numbers from 0, stand in the schema."""

    name = "classify_published"
    roles = ("backbone",)

    @property
    def sides(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.slot,)

    @classmethod
    def learn(cls, schema: Schema) -> ClassifyPublished:
        (slot,) = schema.slots
        return cls(schema.column(LABEL).params["classes"], slot.name)

    def model(self, bound: Bound, objective: Objective | None = None) -> TaskModel:  # type: ignore[override]
        return OwnHead(bound)


class ByTexts(TaskModel):
    """Rows against classes that texts name. texts (K, E): a unit vector each. scale: the factor of a cosine."""

    texts: Tensor

    def __init__(self, bound: Bound, slot: str, texts: Tensor, scale: float):
        super().__init__(bound)
        self.slot, self.scale = slot, scale
        self.register_buffer("texts", texts)

    def answer(self, batch: dict) -> dict[str, Tensor]:
        """`outputs` (B, K): logits; `alike` (B,): the cosine of the nearest class; `there` (B,) bool."""
        vectors = F.normalize(self.bound.vectors(batch)[self.slot].float(), dim=-1)
        cosines = vectors @ self.texts.mT
        present = batch["present"][self.slot]
        return {"outputs": self.scale * cosines, "alike": cosines.amax(1), "there": present}


class ClassifyByTexts(KnownClasses):
    """Classes that texts name, of rows that lie in one space with them (zero-shot, arXiv:2103.00020).

    others (m,): the cosine of the nearest class of each of some rows that are of no class. With these a row is given a
    class only where at most a share `SURE` of them, the row itself counted among them, is as near to one: if it is of
    no class, and no other than the others, that happens in at most that share of all draws (split conformal testing:
    Vovk, Gammerman, Shafer, 2005). Answers have `alike` (n,) too.
    """

    name = "classify_by_texts"

    def __init__(self, classes: list, slot: str, texts: Tensor, scale: float, others: np.ndarray | None = None):
        super().__init__(classes, slot)
        self.texts, self.scale, self.others = texts, scale, others

    def model(self, bound: Bound, objective: Objective | None = None) -> TaskModel:  # type: ignore[override]
        return ByTexts(bound, self.slot, self.texts, self.scale)

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        return super().finish(outputs) | {"alike": outputs["alike"]}

    def columns(self, answers: Answers) -> dict[str, Any]:
        """With others also `none`: the share of them that is as near to a class."""
        told = super().columns(answers)
        if self.others is None:
            return told
        share = share_as_near(answers["alike"], self.others)
        unlike = answers["there"] & (share > SURE)
        told[self.target] = [NONE if none else c for c, none in zip(told[self.target], unlike)]
        told["probability"] = [None if none else p for p, none in zip(told["probability"], unlike)]
        return told | {"none": [s if real else None for s, real in zip(share.tolist(), answers["there"])]}

    def to_json(self) -> dict:
        raise NotImplementedError("classes that texts name are made anew for each table, and not saved")


def share_as_near(alike: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,): of m others and the row itself, the share that is at least as near as the row (n,)."""
    nearer = len(others) - np.searchsorted(np.sort(others), alike, side="left")
    return (1 + nearer) / (1 + len(others))


USED: dict[str, type[Task]] = {task.name: task for task in (Embed, ClassifyPublished)}
