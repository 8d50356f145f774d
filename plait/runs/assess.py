"""How good a model is on rows of a table: whole, by each modality alone, and with each one absent."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import nn

from plait.data.kinds import KINDS
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.evaluate.intervals import Score
from plait.evaluate.metrics import paired_gain
from plait.runs.predict import outputs
from plait.tasks.base import Task
from plait.tasks.known import known_targets


@dataclass
class Assessment:
    """Scores with intervals on some rows. `answers` and `truth` are those rows'; alone and absent are main scores by
    modality."""

    index: np.ndarray
    truth: np.ndarray
    answers: np.ndarray
    scores: list[Score]
    baseline: list[Score]
    alone: dict[str, Score] = field(default_factory=dict)
    absent: dict[str, Score] = field(default_factory=dict)
    gain: Score | None = None
    best_alone: str | None = None

    def to_json(self) -> dict:
        """Plain JSON: everything but the rows."""
        return {
            "rows": len(self.index),
            "scores": [s.to_json() for s in self.scores],
            "baseline": [s.to_json() for s in self.baseline],
            "alone": {k: s.to_json() for k, s in self.alone.items()},
            "absent": {k: s.to_json() for k, s in self.absent.items()},
            "gain_of_fusion": self.gain and self.gain.to_json() | {"over": self.best_alone},
        }


def modalities(schema: Schema) -> dict[str, list[str]]:
    """{label: slots}: each media or vector column by its name, all numbers and categories together as "table"."""
    found: dict[str, list[str]] = {}
    plain = [s for s in schema.slots if not KINDS[s.kind].own_slot]
    for slot in schema.slots:
        if slot not in plain:
            found[slot.columns[0]] = [slot.name]
    if plain:
        columns = [c for s in plain for c in s.columns]
        found[columns[0] if len(columns) == 1 else "table"] = [s.name for s in plain]
    return found


def assess(
    model: nn.Module,
    task: Task,
    rows: Rows,
    schema: Schema,
    truth: np.ndarray,
    index: np.ndarray,
    precision: str,
    *,
    queries: np.ndarray | None = None,
    parts: bool = True,
) -> Assessment:
    """Scores on the rows `index`; truth (n, ...) is the whole table's. queries (n,) bool: the rows that ask, of a
    task that searches.

    parts: also measure each modality alone and each absent (one more pass over the rows for each).
    """
    known = index[known_targets(truth[index])]

    def answers(absent: list[str]) -> np.ndarray:
        return task.finish(outputs(model, rows, known, precision=precision, absent=absent, truth=truth))

    whole, target = answers([]), truth[known]
    ask = None if queries is None else queries[known]
    out = Assessment(known, target, whole, task.scores(target, whole, ask), task.baseline(target, whole, ask))
    groups = modalities(schema)
    if not parts or not task.answers_rows or len(groups) < 2:
        return out
    everything = [s.name for s in schema.slots]
    single = {label: answers([s for s in everything if s not in slots]) for label, slots in groups.items()}
    out.alone = {label: task.scores(target, own)[0] for label, own in single.items()}
    if len(groups) == 2:  # without the one is the other alone
        out.absent = dict(zip(groups, reversed(out.alone.values())))
    else:
        out.absent = {label: task.scores(target, answers(slots))[0] for label, slots in groups.items()}
    sign = -1 if out.scores[0].better == "lower" else 1
    out.best_alone = max(out.alone, key=lambda k: sign * out.alone[k].value)
    out.gain = paired_gain(task.per_row(target, whole), task.per_row(target, single[out.best_alone]))
    return out
