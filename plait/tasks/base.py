"""What a task is: everything that a run asks of it, and what it answers where a task does not say otherwise. Over 400
lines, as all that is told in one place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from plait.core.roles import Model
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import UsageError
from plait.evaluate.chosen import Metric
from plait.evaluate.intervals import Score
from plait.evaluate.report import Section
from plait.tasks.bind import Bound
from plait.tasks.conformal import Misses
from plait.tasks.examples import examples

Answers = dict[str, Any]  # by name: arrays (n, ...) or lists of n, a row each
WEIGHT = "\0weight"  # in truth: how much each row counts (n,); no column is called so


def unlike(name: str, taken: Container[str]) -> str:
    """The name, or one that is not taken."""
    while name in taken:
        name += "_"
    return name


def beside(answer: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """An answer's columns and what is said of it, whose names give way to those of the answer."""
    out = dict(answer)
    for name, cells in more.items():
        out[unlike(name, out)] = cells
    return out


class Pace(NamedTuple):
    """patient: nothing may improve for a long time before it does, so that training is never stopped early. ema: the
    decay by which weights are averaged, where the settings do not say. warmup: the share of the steps in which the rate
    grows."""

    batch: int
    epochs: int
    lr: float
    patient: bool = False
    ema: float | None = None
    warmup: float = 0.05


class Objective(NamedTuple):
    """A system's own objective. losses(model, batch, state, generator) -> named losses; make_state(model, seed) -> what
    it remembers between steps (a momentum teacher, a queue); after_step(model, state) moves that on."""

    losses: Callable[[Any, dict, nn.Module | None, torch.Generator], dict[str, Tensor]]
    make_state: Callable[[Any, int], nn.Module] | None = None
    after_step: Callable[[Any, nn.Module], None] | None = None


class TaskModel(nn.Module):
    """A bound system with what the task puts around it: batches in; outputs, or in training named losses, out.

    forward is the loss, so that wrappers for several devices see the call that they hook. `state` is what the loss
    remembers between steps; it is no part of this model's weights, and is saved with each checkpoint.
    """

    bound: Bound
    first: str = ""  # what `learn_first` does, in words; "": nothing
    beam: int = 0  # how many beginnings of a text are followed at once, of a task that `beams`
    guidance: float | None = None  # of a task that `draws`, with `steps` and `seed`; None: as the task has it
    steps: int | None = None
    seed: int = 0
    ladder: Any = None  # of simple models beneath, of tasks that answer rows
    micro_batch: int | None = None  # rows that are read at once in training; None: all of a batch
    whole: str = "the loss of its rows does not compare them: a smaller --batch-size needs less memory"  # why so
    silent: bool = False  # what was trained was found to add nothing, and does not answer

    def __init__(self, bound: Bound):
        super().__init__()
        self.bound = bound

    @property
    def state(self) -> nn.Module | None:
        return None

    def answer(self, batch: dict) -> dict[str, Tensor]:
        """Outputs (B, ...) by name, which the task's `finish` turns into answers."""
        raise NotImplementedError

    def watched(self, batch: dict) -> dict[str, Tensor]:
        """What the validation rows are asked while training, for the task's `guide`: the answer, unless that takes
        long."""
        return self.answer(batch)

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        """Named losses, each a scalar; `batch["target"]` is there, {name: (B, ...)}, NaN or -100 where nothing is."""
        raise NotImplementedError

    def before_training(self, rows: Rows, index: np.ndarray, seed: int) -> None:
        """What is done once, before the first step of a run (and again when one is resumed), with the training rows
        `index`."""

    def learn_first(self, rows: Rows, index: np.ndarray, seed: int) -> None:
        """What takes long, is done once after `before_training`, on the device, and stands in the weights: a resumed
        run has it in its checkpoint."""

    def after_step(self) -> None:
        """What is done after each step of the optimizer."""


class Task(ABC):
    """What a table's columns ask of a model. What is learnt of the target columns stands in the schema, as for inputs;
    what else a task learnt from the training rows is plain JSON in `to_json`.

    Answers come batch by batch: `finish` makes them of what the model gives, and `record` says what of them, and of the
    truth, is kept for the scores. Both are dicts of arrays and lists, a row each.

    name: of this class; choice: what `--task` calls it, mostly the same. noun: as in "a gallery is for retrieval".
    roles: of a system that it can use, the best first. auto: the system that `auto` stands for, if not plait's own.
    asks: the kind that target columns are taken for, whatever they look like; None: no column is asked for.
    needs_target: a table without a target column has nothing for it.
    longest: the share of the inputs that are read whole, the rest is cut. whole: augmentation must not take parts away.
    verb: the command a run is used with next. floor: what a score without a model is called. beams: its model has
    `beam`, how many beginnings of a text it follows at once. draws: its answers are drawn anew with each `seed`, in so
    many `steps`, by what the inputs ask for times `guidance`. answers_rows: each row has an answer of its own, which
    fewer modalities can give as well. one_vocabulary: texts that are given and texts that are asked for are of the same
    words, and stand in one sequence. sides: the slots that find each other, of a task whose verb is search.
    shows: answers can be drawn onto pictures. mute: why it answers nothing and is worth no score, if that is so.
    on_towers: plait's own system can answer from vectors of frozen towers. weighs: rows may count differently.
    rejects: a column may hold what does not answer its row.
    spans: it can say how far answers may be off; misses: of the validation rows, interval: the share that is asked for.
    metrics: those that can be chosen to judge it by; metric: the name of the chosen one.
    """

    name: ClassVar[str]
    choice: ClassVar[str]
    noun: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]
    asks: ClassVar[str | None] = None
    auto: ClassVar[str | None] = None
    needs_target: ClassVar[bool] = True
    longest: ClassVar[float] = 0.99
    whole: ClassVar[bool] = False
    verb: ClassVar[str] = "predict"
    floor: ClassVar[str] = "majority"
    beams: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    answers_rows: ClassVar[bool] = True
    shows: ClassVar[bool] = False
    mute: ClassVar[str] = ""
    on_towers: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    rejects: ClassVar[bool] = False
    metrics: ClassVar[Mapping[str, Metric]] = {}
    metric: str | None = None
    spans: ClassVar[bool] = False
    misses: Misses | None = None
    interval: float | None = None
    one_vocabulary: ClassVar[bool] = False

    target: str | list[str]
    sides: tuple[str, ...] = ()

    # -- of the table, before anything is learnt

    @classmethod
    def variant(cls, schema: Schema, table: Table) -> type[Task]:
        """The class that this table's target asks for: this one or one of the same `choice`; the schema then takes the
        target for what that asks. Raises UsageError where there is no target, or are too many."""
        if cls.needs_target and not schema.targets:
            raise UsageError(f"--task {cls.choice} needs a target: name the column to predict with --target")
        if len(schema.targets) > 1:
            raise UsageError(f"--task {cls.choice} takes one target, got {', '.join(schema.targets)}")
        schema.ask(cls.asks)
        return cls

    @classmethod
    def by(cls, role: str | None) -> type[Task]:
        """The class of this `choice` that works with a system of that role: this one, unless roles answer otherwise."""
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
    def learn(cls, schema: Schema) -> Task:
        """The task as the training rows have it, which the schema has learnt. Raises DataError where there is nothing
        to learn."""

    def derive(self, rows: Rows) -> None:  # noqa: B027 (most tasks have nothing to add)
        """What is asked that stands in no column is put into `rows.derived`."""

    def known(self, rows: Rows) -> np.ndarray:
        """(n,) bool: the rows with a target."""
        return rows.known()

    def weigh(self, rows: Rows, train: np.ndarray, classes: dict[str, float] | str | None) -> None:  # noqa: B027
        """Learn of the training rows what they say when each counts by its weight, and each class by its own
        (`classes`: {class: weight}, or "balanced"). Of a task that `weighs`. Raises UsageError for an unknown class."""

    def judge(self, metric: str | None, positive: str | None, rows: Rows, watch: np.ndarray) -> None:
        """Be judged by `metric` (early stopping, the first score, where answers are parted), of two classes by how
        `positive` is found. Raises UsageError for what the task has not, or what the rows `watch` do not define."""
        if metric is not None or positive is not None:
            raise UsageError(f"a metric can be chosen for classification and regression: this run does {self.name}")

    def ask_quantiles(self, levels: Sequence[float]) -> None:
        """Also answer below what a share of the truths lies, for each of the levels."""
        raise UsageError(f"quantiles are for a target that is a number: this run does {self.name}")

    def row_weights(self, rows: Rows) -> np.ndarray | None:
        """(n,): what each row counts in the loss; None: all alike."""
        return rows.weights

    def unknown(self, rows: Rows, index: np.ndarray) -> dict[str, int]:
        """{why: how many} of the rows `index`, which have no target that is known: no score counts them."""
        parts = dict.fromkeys(self.targets, "target") | {c.name: "weight" for c in rows.schema.used("weight")}
        targets, why = rows.targeted(), []
        for row in index:
            found = ((part, rows.bad.cells.get((int(row), name))) for name, part in parts.items())
            empty = "no weight" if targets[row] else "no target"
            why.append(next((f"{part}: {cell[1]}" for part, cell in found if cell), empty))
        return dict(Counter(why).most_common())

    def aside(
        self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers, queries: np.ndarray | None = None
    ) -> dict[str, int]:
        """{what: how many} of the rows `index`, which truth and answers belong to, that no score counts all the
        same."""
        return {}

    @property
    def needs(self) -> dict[str, Any]:
        """What the system must be told of the task: arguments of `plait.runs.assemble.recipe`."""
        return {}

    def sift(
        self, splits: dict[str, np.ndarray], rows: Rows, make: Callable[[], Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """The splits without rows that cannot be used, and why how many of them are left out; make: builds the
        system."""
        return splits, {}

    # -- the model, and how it is trained

    @abstractmethod
    def model(self, bound: Bound, objective: Objective | None = None) -> TaskModel:
        """The task's model around a bound system. objective: the system's own, where it has one; a task that has a loss
        of its own leaves it alone."""

    def pace(self, rows: int, system: Model, own: bool) -> Pace:
        """For so many training rows; own: whether the system is plait's. Narrow systems learn with larger steps."""
        batch = 32 if rows < 1500 else 64 if rows < 10_000 else 128
        lr = 1e-3 if own else float(np.clip(0.192 / getattr(system, "width", 384), 5e-4, 1e-3))
        return Pace(batch, int(np.clip(round(80_000 / rows), 8, 150)), lr, warmup=0.1 if own else 0.05)

    def settle(
        self,
        model: TaskModel,
        schema: Schema,
        found: Callable[[Callable[[TaskModel, dict], dict[str, Tensor]] | None], tuple[Answers, Answers]],
    ) -> str:
        """What is done once, after the last step, and a sentence on it, or "". found(call): truth and answers of the
        validation rows by `call(model, batch)`, or by `answer`."""
        return ""

    def uncalibrate(self) -> None:
        """Forget what `calibrate` learnt."""
        self.misses = None

    def calibrate(self, truth: Answers, answers: Answers) -> list[str]:
        """Learn of the trained model's answers to the validation rows how sure it may sound and where to part answers;
        sentences on it."""
        return []

    # -- answers and what they are worth

    @abstractmethod
    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        """The model's outputs for some rows as answers."""

    def record(self, batch: dict, answers: Answers) -> tuple[Answers, Answers]:
        """Truth and answers as the scores want them, of the rows of a batch."""
        truth = {name: t.numpy() for name, t in batch["target"].items()}
        return truth | ({WEIGHT: batch["weight"].numpy()} if self.weighs and "weight" in batch else {}), answers

    def recast(
        self, other: Task, truth: Answers, answers: Answers, rows: Rows, index: np.ndarray
    ) -> tuple[Answers, Answers]:
        """What `other`, the same task learnt from other rows, recorded of the rows `index`, as this one would have
        recorded it: in its own classes, of its own `rows`. Of a task that answers rows."""
        return truth, answers

    @abstractmethod
    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        """The main one first. queries (n,) bool: the rows that ask, of a task that searches."""

    @abstractmethod
    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        """What these rows score without a model."""

    def lived(self, model: TaskModel) -> tuple[list[Score], list[Score]]:
        """What the model scores outside of any table, and what one without it scores there; they go before the rows'
        own."""
        return [], []

    @abstractmethod
    def guide(self, truth: Answers, answers: Answers) -> float:
        """What early stopping looks at: higher is better."""

    @abstractmethod
    def columns(self, answers: Answers) -> dict[str, Any]:
        """The columns of a table of predictions, the answer first; bytes are those of a file."""

    def untold(self) -> str:
        """What `columns` leaves out, in a sentence, or ""."""
        return ""

    def shown(self, batch: dict, answers: Answers) -> list[bytes]:
        """A PNG of each row, its answer drawn onto its picture; of a task that `shows`."""
        raise NotImplementedError(f"{self.name} draws no answers")

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        """(n,) how good each answer is, so that its mean is a score; of a task that answers rows."""
        raise NotImplementedError(f"{self.name} answers no single rows")

    def loss_rows(self, truth: Answers, answers: Answers) -> np.ndarray:
        """(n,) how bad each answer is, finely; of a task that answers rows."""
        return 1 - self.per_row(truth, answers)

    def shares(self, truth: Answers) -> np.ndarray | float:
        """What to multiply the rows' own figures by, so that their mean is the weighted one."""
        return truth[WEIGHT] / max(truth[WEIGHT].mean(), 1e-300) if WEIGHT in truth else 1.0

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

    def picture(self, truth: Answers, answers: Answers) -> tuple[str, bytes | tuple[bytes, str]] | None:
        """A title and a picture (PNG, with or without a caption) of all answers; None where these rows show nothing."""
        return None

    def details(self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers) -> list[Section]:
        """What the report says of the answers, between their picture and examples."""
        return []

    def sections(
        self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers, again: Callable[[np.ndarray], Answers]
    ) -> list[Section]:
        """The part of the report that shows answers: of the rows `index`, which truth and answers belong to.
        again(rows): their answers anew, of a task that records less."""
        drawn = self.picture(truth, answers)
        told, value = self.columns(answers), self.per_row(truth, answers)
        column = self.target if isinstance(self.target, str) else None
        return [
            *([Section(drawn[0], "picture", drawn[1])] if drawn else []),
            *self.details(rows, index, truth, answers),
            *examples(rows, index, told, value, column),
        ]

    # -- plain JSON

    @abstractmethod
    def to_json(self) -> dict:
        """All that `from_json` needs, and `task`, the name."""

    @classmethod
    @abstractmethod
    def from_json(cls, state: dict, schema: Schema) -> Task:
        """The task that `to_json` told, with what its schema has learnt."""
