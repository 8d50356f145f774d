"""Folds of a small table: which rows are held out by which of several trainings, so that each row is judged by a model
that never saw it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from plait.core.files import write_whole
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.split import folds_in_time, split_folds, split_in_time, split_rows
from plait.data.table import Table
from plait.errors import DataError, UsageError
from plait.runs.gather import classes
from plait.runs.manifest import read_checked
from plait.runs.settings import Settings
from plait.runs.towers import Towers
from plait.tasks.base import Task
from plait.tasks.registry import nouns
from plait.tasks.rowwise import AnswerTask

FEWEST, MOST = 40, 500  # rows with a target, between which tables are judged by folds unasked
USUAL, TWICE = 5, 100  # folds; below so many rows they are drawn twice

FOLDS = "folds"  # what scores by folds are called beside "test" and "val", and the folder of the folds' runs
FILE = "folds.safetensors"  # which rows are where, in a run's folder
FRACTIONS = (0.8, 0.1, 0.1)


@dataclass
class Folds:
    """count: folds of each of `sides`, which tell for each row of the table, as it was gathered, the fold that holds it
    out. splits: of each fold, one drawing after the other, {"train", "val", "test"}."""

    count: int = 0
    sides: list[np.ndarray] = field(default_factory=list)
    splits: list[dict[str, np.ndarray]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.splits)

    @property
    def ratio(self) -> float:
        """Rows that are held out by rows that are learnt from, in the mean of the folds."""
        return float(np.mean([len(s["test"]) / (len(s["train"]) + len(s["val"])) for s in self.splits]))

    def write(self, folder: Path) -> None:
        """Into the run's folder, so that it is not drawn again; nothing, where there are none."""
        if self:
            found = {f"{i}/{name}": rows for i, split in enumerate(self.splits) for name, rows in split.items()}
            found |= {f"side/{i}": side for i, side in enumerate(self.sides)}
            write_whole(folder / FILE, lambda path: save_file(found, path))

    @classmethod
    def read(cls, folder: Path) -> Folds:
        """Of a run that goes on. Raises DataError where they are damaged."""
        if not (folder / FILE).is_file():
            return cls()
        try:
            found = load(read_checked(folder / FILE))
            sides = [found[f"side/{i}"] for i in range(sum(key.startswith("side/") for key in found))]
            count = int(sides[0].max()) + 1
            splits = [{n: found[f"{i}/{n}"] for n in ("train", "val", "test")} for i in range(count * len(sides))]
        except (SafetensorError, KeyError, IndexError, ValueError) as error:
            raise DataError(f"{folder / FILE} is damaged: {error}") from error
        return cls(count, sides, splits)

    def title(self) -> str:
        """How many there are, in words."""
        return f"{self.count} folds" + (f", drawn {len(self.sides)} times" if len(self.sides) > 1 else "")


@dataclass
class Within:
    """A run within another of the same table: its splits of the table's own rows, and what the other has read."""

    splits: dict[str, np.ndarray]
    rows: Rows
    towers: Towers | None = None


def draw_folds(table: Table, schema: Schema, settings: Settings, kind: type[Task], given: bool) -> Folds:
    """The folds that the settings ask for, or that a small table wants; none where the user says which rows judge.
    given: whether splits came in files of their own. Raises UsageError where folds are asked for and cannot be."""
    able = kind.answers_rows and bool(schema.targets)
    own = given or settings.split is not None or tuple(settings.fractions) != FRACTIONS
    open_ = not own and settings.time is None  # time may end in a few rows, and is asked for
    count, asked = settings.folds, settings.folds is not None and settings.folds > 1
    if asked and not able:
        raise UsageError(
            f"folds are for {nouns(lambda t: t.answers_rows)}, each with a target: this run does {kind.name}"
        )
    if asked and own:
        raise UsageError("--folds judges by all rows: leave out --val, --test, --split and fractions, or the folds")
    known = len(table) - _unknown(table, schema) if able else 0
    if count is None and able and open_ and issubclass(kind, AnswerTask) and FEWEST <= known < MOST:
        count = USUAL
    if count is None or count < 2:
        return Folds()
    if settings.time is not None:
        return _in_time(table, schema, settings, count)
    group, stratify = next((c.name for c in schema.used("group")), None), classes(table, schema)
    twice = settings.folds is None and known < TWICE
    sides = [
        split_folds(table, schema, count, seed=settings.seed + 7919 * i, group=group, stratify=stratify)
        for i in range(1 + twice)
    ]
    splits = []
    for side in sides:
        for fold in range(count):
            rest = np.flatnonzero(side != fold)
            if not asked and stratify is not None and len({stratify[i] for i in rest} - {None}) < 2:
                return Folds()  # a single row of its class: without it there is nothing to learn
            splits.append(learnt(table, schema, settings, rest) | {"test": np.flatnonzero(side == fold)})
    return Folds(count, sides, splits)


def _in_time(table: Table, schema: Schema, settings: Settings, count: int) -> Folds:
    """Each fold is later than all that its training has; the first rows are in none."""
    assert settings.time is not None
    side = folds_in_time(table, schema, settings.time, count)
    splits = [
        learnt(table, schema, settings, np.flatnonzero(side < fold)) | {"test": np.flatnonzero(side == fold)}
        for fold in range(count)
    ]
    return Folds(count, [side], splits)


def learnt(table: Table, schema: Schema, settings: Settings, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The `rows` as "train" and "val", the second of which watch the training."""
    train, val, _ = settings.fractions
    if settings.time is not None:
        part = split_in_time(table.take(rows), schema, settings.time, (train / (train + val), val / (train + val), 0.0))
        return {"train": rows[part["train"]], "val": rows[part["val"]]}
    stratify = classes(table, schema)
    part = split_rows(
        table.take(rows),
        schema,
        fractions=(train / (train + val), val / (train + val), 0.0),
        seed=settings.seed,
        group=next((c.name for c in schema.used("group")), None),
        stratify=None if stratify is None else [stratify[i] for i in rows],
    )
    return {"train": rows[part["train"]], "val": rows[part["val"]]}


def _unknown(table: Table, schema: Schema) -> int:
    """Rows without any target."""
    missing = [pc.is_null(table.column(name)).to_numpy(zero_copy_only=False) for name in schema.targets]
    return int(np.all(missing, axis=0).sum())
