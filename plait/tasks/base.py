"""What a task is: everything that a run asks of it, and what it answers where a task does not say otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import UsageError
from plait.evaluate.intervals import Score
from plait.evaluate.report import Section
from plait.tasks.bind import Bound
from plait.tasks.examples import examples

BadTargets = list[tuple[int, str, str]]  # row, reason, the cell's beginning
MISSING = "target missing"  # the reason that is no fault: the row is left out without a word of its own


class Pace(NamedTuple):
    """patient: nothing may improve for a long time before it does, so that training is never stopped early."""

    batch: int
    epochs: int
    lr: float
    patient: bool = False


class TextOptions(NamedTuple):
    """What the settings say of texts that a task learns: tokens of one at most, about how many pieces its words are
    spelled in (None: characters), a published tokenizer.json."""

    length: int = 256
    pieces: int | None = None
    tokenizer: str | None = None


class Objective(NamedTuple):
    """A system's own objective. losses(model, batch, state, generator) -> named losses; make_state(model, seed) -> what
    it remembers between steps (a momentum teacher, a queue); after_step(model, state) moves that on."""

    losses: Callable[[nn.Module, dict, nn.Module | None, torch.Generator], dict[str, Tensor]]
    make_state: Callable[[nn.Module, int], nn.Module] | None = None
    after_step: Callable[[nn.Module, nn.Module], None] | None = None


class TaskModel(nn.Module):
    """A bound system with what the task puts around it: batches in; outputs, or in training named losses, out.

    forward is the loss, so that wrappers for several devices see the call that they hook. `state` is what the loss
    remembers between steps; it is no part of this model's weights, and is saved with each checkpoint.
    """

    def __init__(self, bound: Bound):
        super().__init__()
        self.bound = bound

    @property
    def state(self) -> nn.Module | None:
        return None

    def answer(self, batch: dict) -> Tensor:
        """(B, ...) float32 outputs, which the task's `finish` turns into answers."""
        raise NotImplementedError

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        """Named losses, each a scalar; `batch["target"]` is there."""
        raise NotImplementedError

    def before_training(self, rows: Rows, truth: np.ndarray, index: np.ndarray, seed: int) -> None:
        """What is done once, before the first step of a run (and again when one is resumed), with the training rows
        `index`."""

    def after_step(self) -> None:
        """What is done after each step of the optimizer."""


class Task(ABC):
    """What a table's columns ask of a model. Its attributes that are no class attributes are what it learnt from the
    training rows, plain JSON in `to_json`.

    name: of this class; choice: what `--task` calls it, mostly the same. noun: as in "a gallery is for retrieval".
    roles: of a system that it can use, the best first. auto: the system that `auto` stands for, if not plait's own.
    dtype: of `truth`. of_text: the target is a text, also where it looks like classes or numbers. needs_target: a table
    without a target column has nothing for it.
    longest: the share of the inputs that are read whole, the rest is cut. whole: augmentation must not take parts away.
    verb: the command a run is used with next. floor: what a score without a model is called. beams: its model has
    `beam`, how many beginnings of a text it follows at once. answers_rows: each row has an answer of its own, which
    fewer modalities can give as well. sides: the slots that find each other, of a task whose verb is search.
    """

    name: ClassVar[str]
    choice: ClassVar[str]
    noun: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]
    dtype: ClassVar[type]
    auto: ClassVar[str | None] = None
    of_text: ClassVar[bool] = False
    needs_target: ClassVar[bool] = True
    longest: ClassVar[float] = 0.99
    whole: ClassVar[bool] = False
    verb: ClassVar[str] = "predict"
    floor: ClassVar[str] = "majority"
    beams: ClassVar[bool] = False
    answers_rows: ClassVar[bool] = True

    target: str | list[str]
    sides: tuple[str, ...] = ()

    # -- of the table, before anything is learnt

    @classmethod
    def variant(cls, schema: Schema, table: Table) -> type[Task]:
        """The class that this table's target asks for: this one or one of the same `choice`. Raises UsageError where
        there is no target, or are too many."""
        if cls.needs_target and not schema.targets:
            raise UsageError(f"--task {cls.choice} needs a target: name the column to predict with --target")
        if len(schema.targets) > 1:
            raise UsageError(f"--task {cls.choice} takes one target, got {', '.join(schema.targets)}")
        return cls

    @classmethod
    def extend(
        cls, table: Table, schema: Schema, splits: dict[str, np.ndarray], seed: int
    ) -> tuple[Table, dict[str, np.ndarray]]:
        """The table and its splits with the rows that the task draws itself; a column that these bring is put into
        `schema`."""
        return table, splits

    # -- what is learnt of the target

    @classmethod
    @abstractmethod
    def learn(cls, table: Table, schema: Schema, rows: np.ndarray, options: TextOptions) -> Task:
        """The task as the training `rows` have it. Raises DataError where there is nothing to learn."""

    @abstractmethod
    def encode(self, table: Table, schema: Schema) -> tuple[np.ndarray, BadTargets]:
        """truth (n, ...): NaN or -100 where there is none; and the cells that are no target, with the reason."""

    @property
    def needs(self) -> dict[str, Any]:
        """What the system must be told of the task: arguments of `plait.runs.assemble.recipe`."""
        return {}

    def sift(
        self, splits: dict[str, np.ndarray], rows: Rows, truth: np.ndarray, make: Callable[[], nn.Module]
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """The splits without rows that cannot be used, and why how many of them are left out; make: builds the
        system."""
        return splits, {}

    # -- the model, and how it is trained

    @abstractmethod
    def model(self, bound: Bound, objective: Objective | None = None) -> TaskModel:
        """The task's model around a bound system. objective: the system's own, where it has one; a task that has a loss
        of its own leaves it alone."""

    def pace(self, rows: int, system: nn.Module, own: bool) -> Pace:
        """For so many training rows; own: whether the system is plait's. Narrow systems learn with larger steps."""
        batch = 32 if rows < 1500 else 64 if rows < 10_000 else 128
        lr = 1e-3 if own else float(np.clip(0.192 / getattr(system, "width", 384), 5e-4, 1e-3))
        return Pace(batch, int(np.clip(round(80_000 / rows), 8, 150)), lr)

    def settle(
        self,
        model: TaskModel,
        schema: Schema,
        truth: np.ndarray,
        outputs: Callable[[Callable[[TaskModel, dict], Tensor] | None], np.ndarray],
    ) -> str:
        """What is done once, after the last step, and a sentence on it, or "". truth: of the validation rows;
        outputs(call): what `call(model, batch)`, or `answer`, gives for them."""
        return ""

    # -- answers and what they are worth

    @abstractmethod
    def finish(self, outputs: np.ndarray) -> np.ndarray:
        """The model's outputs (n, ...) as answers (n, ...)."""

    @abstractmethod
    def scores(self, truth: np.ndarray, answers: np.ndarray, queries: np.ndarray | None = None) -> list[Score]:
        """The main one first. queries (n,) bool: the rows that ask, of a task that searches."""

    @abstractmethod
    def baseline(self, truth: np.ndarray, answers: np.ndarray, queries: np.ndarray | None = None) -> list[Score]:
        """What these rows score without a model."""

    @abstractmethod
    def guide(self, truth: np.ndarray, answers: np.ndarray) -> float:
        """What early stopping looks at: higher is better."""

    @abstractmethod
    def columns(self, answers: np.ndarray) -> dict[str, Any]:
        """The columns of a table of predictions: the answer first."""

    def per_row(self, truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """(n,) how good each answer is, so that its mean is a score; of a task that answers rows."""
        raise NotImplementedError(f"{self.name} answers no single rows")

    def loss_rows(self, truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """(n,) how bad each answer is, finely; of a task that answers rows."""
        return 1 - self.per_row(truth, answers)

    # -- how it is told

    @property
    def targets(self) -> list[str]:
        """The columns that hold the truth."""
        return [self.target] if isinstance(self.target, str) else self.target

    @abstractmethod
    def describe(self) -> str:
        """What was learnt of the target, in a few words."""

    def title(self) -> str:
        """What is learnt, in a line."""
        return f"{self.target}: {self.describe()}"

    def headline(self, scores: list[Score]) -> list[Score]:
        """The scores that the command line tells, a line each."""
        return scores[:1]

    def leading(self, scores: list[Score]) -> list[Score]:
        """The scores at the head of a report."""
        return scores

    def picture(self, truth: np.ndarray, answers: np.ndarray) -> tuple[str, bytes | tuple[bytes, str]] | None:
        """A title and a picture (PNG, with or without a caption) of all answers; None where these rows show nothing."""
        return None

    def sections(self, rows: Rows, index: np.ndarray, truth: np.ndarray, answers: np.ndarray) -> list[Section]:
        """The part of the report that shows answers: of the rows `index`, which truth and answers belong to."""
        drawn = self.picture(truth, answers)
        told, value = self.columns(answers), self.per_row(truth, answers)
        column = self.target if isinstance(self.target, str) else None
        return [
            *([Section(drawn[0], "picture", drawn[1])] if drawn else []),
            *examples(rows, index, told, value, column),
        ]

    # -- plain JSON

    @abstractmethod
    def to_json(self) -> dict:
        """All that `from_json` needs, and `task`, the name."""

    @classmethod
    @abstractmethod
    def from_json(cls, state: dict) -> Task:
        """The task that `to_json` told."""
