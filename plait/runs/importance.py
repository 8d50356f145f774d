"""What each column is worth to a model: how much worse its answers are where the column's cells are other rows'."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch

from plait.data.kinds import KINDS
from plait.data.rows import Rows
from plait.evaluate.intervals import Score, mean_score
from plait.runs.assess import Asked
from plait.runs.predict import answered
from plait.tasks.rowwise import AnswerTask

ROWS, REPEATS, SECONDS = 400, 3, 5.0  # rows at most, drawings of each column, and how long all of it may take


class Importance(NamedTuple):
    """columns: (name, how much the cost of an answer rises) from the most important on. cost: what that is. rows: of
    how many. left: columns that there was no time for."""

    columns: list[tuple[str, Score]]
    cost: str
    rows: int
    left: list[str]


class Shuffled:
    """Rows of which one column's cells are those of other rows. partner (n,): whose."""

    def __init__(self, rows: Rows, column: str, partner: np.ndarray):
        self.rows, self.partner = rows, partner
        self.slot = next(s for s in rows.schema.slots if column in s.columns)
        widths = [KINDS[c.kind].width(c.params) for c in map(rows.schema.column, self.slot.columns)]
        ends, at = np.cumsum([0, *widths]), self.slot.columns.index(column)
        self.part = None if KINDS[self.slot.kind].own_slot else slice(int(ends[at]), int(ends[at + 1]))

    def batch(self, index: np.ndarray) -> dict:
        """As `Rows.batch`."""
        mine, theirs, name = self.rows.batch(index), self.rows.batch(self.partner[index]), self.slot.name
        if self.part is None:
            for found, other in ((mine, theirs), *((mine[k], theirs[k]) for k in ("keep", "present"))):
                found |= {name: other[name]} if name in other else {}
            return mine
        for found, other in ((mine, theirs), (mine["keep"], theirs["keep"])):
            found[name] = torch.cat(
                [found[name][:, : self.part.start], other[name][:, self.part], found[name][:, self.part.stop :]], 1
            )
        mine["present"][name] = mine["keep"][name].any(1)
        return mine


def importance(asked: Sequence[Asked], seed: int = 0, seconds: float = SECONDS) -> Importance | None:
    """Of each column that the models were asked by; each model is asked the rows that it was judged by, of at most 400
    in all. The interval is of the rows. None of a task that answers no rows with classes or numbers, and of one column.
    """
    task, begun, rng = asked[0].task, time.monotonic(), np.random.default_rng(seed)
    columns = [name for name in asked[0].rows.schema.inputs if name not in asked[0].rows.absent]
    if not isinstance(task, AnswerTask) or len(columns) < 2:
        return None
    share = min(1.0, ROWS / sum(len(a.index) for a in asked))
    samples = [rng.permutation(a.index)[: max(2, round(share * len(a.index)))] for a in asked]
    own = np.concatenate([_cost(a, a.rows, index) for a, index in zip(asked, samples)])
    found: list[tuple[str, Score]] = []
    left: list[str] = []
    for name in columns:
        if time.monotonic() - begun > seconds:
            left.append(name)
            continue
        rises = []
        for _ in range(REPEATS):
            parts = []
            for a, index in zip(asked, samples):
                partner = np.arange(len(a.rows))
                partner[index] = rng.permutation(a.index)[: len(index)]
                parts.append(_cost(a, cast(Rows, Shuffled(a.rows, name, partner)), index))
            rises.append(np.concatenate(parts) - own)
        found.append((name, mean_score("rise", np.mean(rises, 0), "higher")))
    return Importance(sorted(found, key=lambda f: -f[1].value), task.costs, len(own), left)


def _cost(a: Asked, rows: Rows, index: np.ndarray) -> np.ndarray:
    assert isinstance(a.task, AnswerTask)
    return a.task.cost(*answered(a.task, a.model, rows, index, precision=a.precision))
