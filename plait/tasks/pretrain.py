"""What is hidden here? Learning from rows without a target: parts of what is read are hidden, and guessed."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from plait.core.roles import Model
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.evaluate.intervals import Score, mean_score
from plait.tasks.base import Answers, Objective, Pace, Task, TaskModel
from plait.tasks.bind import Bound, MaskedBound
from plait.tasks.known import mean_over

ROLES = ("masked",)


class Guesser(TaskModel):
    """A system of the role `masked`. What is hidden is drawn anew in each step of training, and of a row that is asked
    always the same."""

    bound: MaskedBound

    def guesses(self, batch: dict, luck: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        device = batch["row"].device
        return self.bound.system.guess(self.bound.prepared(batch), {k: v.to(device) for k, v in luck.items()})

    def answer(self, batch: dict) -> dict[str, Tensor]:
        """`NAME` and `blind NAME` (B,) of everything that is guessed, 0 in rows that have nothing of that, and `there
        NAME` (B,) bool: whether they have."""
        places, found = self.bound.system.places(batch), []
        for row in batch["row"].tolist():
            g = torch.Generator().manual_seed(row)
            found.append({slot: torch.rand(n, generator=g) for slot, n in places.items()})
        costs = self.guesses(batch, {slot: torch.stack([row[slot] for row in found]) for slot in places})
        told = costs["costs"] | {f"blind {name}": cost for name, cost in costs["blind"].items()}
        there = {f"there {name}": ~cost.isnan() for name, cost in told.items()}
        return {name: cost.nan_to_num(0.0) for name, cost in told.items()} | there

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        rows, places = len(batch["row"]), self.bound.system.places(batch)
        luck = {slot: torch.rand(rows, n, generator=generator) for slot, n in places.items()}
        costs = self.guesses(batch, luck)["costs"]
        return {name: mean_over(cost.nan_to_num(0.0), ~cost.isnan()) for name, cost in costs.items()}


class Pretrain(Task):
    """What is hidden of the inputs, guessed. Answers are, for each sort of guess, what it cost (n,), and what the
    simplest would have; NaN where a row has nothing of that."""

    name = choice = "pretrain"
    noun = "guesses of what is hidden"
    roles: ClassVar[tuple[str, ...]] = ROLES
    needs_target = False
    answers_rows = False
    floor = "blind"

    target: list[str]

    def __init__(self, inputs: list[str]):
        self.target, self.inputs = [], inputs

    @classmethod
    def learn(cls, schema: Schema) -> Pretrain:
        return cls([name for slot in schema.slots for name in slot.columns])

    def known(self, rows: Rows) -> np.ndarray:
        """All rows of which anything can be read."""
        return np.asarray(np.stack(list(rows.presence().values())).any(0))

    def pace(self, rows: int, system: Model, own: bool) -> Pace:
        return super().pace(rows, system, own)._replace(patient=True)

    def model(self, bound: Bound, objective: Objective | None = None) -> Guesser:
        return Guesser(bound)

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        told = [name for name in outputs if not name.startswith("there ")]
        return {n: np.where(outputs[f"there {n}"], outputs[n].astype(np.float64), np.nan) for n in told}

    def record(self, batch: dict, answers: Answers) -> tuple[Answers, Answers]:
        return {"row": batch["row"].numpy()}, answers

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return [_mean(name, cost) for name, cost in answers.items() if not name.startswith("blind ")]

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        """What guesses cost that look at next to nothing."""
        return [_mean(name[6:], cost) for name, cost in answers.items() if name.startswith("blind ")]

    def guide(self, truth: Answers, answers: Answers) -> float:
        return -sum(score.value for score in self.scores(truth, answers))

    def columns(self, answers: Answers) -> dict[str, Any]:
        """What each row's guesses cost: the more, the less it is like what was learnt from."""
        return {f"{name} cost": cost for name, cost in answers.items() if not name.startswith("blind ")}

    def sections(self, *_: Any) -> list:
        return []

    def describe(self) -> str:
        return f"what is hidden of {', '.join(self.inputs)}"

    def title(self) -> str:
        return self.describe()

    def to_json(self) -> dict:
        return {"task": self.name}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Pretrain:
        return cls.learn(schema)


def _mean(name: str, cost: np.ndarray) -> Score:
    """Over the rows that have any."""
    there = ~np.isnan(cost)
    return mean_score(f"{name} cost", cost[there], "lower")


TASKS = (Pretrain,)
