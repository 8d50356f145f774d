"""How good a model is on rows of a table: whole, by each modality alone, and with each one absent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from plait.data.kinds import KINDS
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.errors import DataError
from plait.evaluate.intervals import Score
from plait.evaluate.metrics import paired_gain
from plait.runs.predict import answered, stream
from plait.tasks.base import Answers, Task, TaskModel
from plait.tasks.rowwise import merge


@dataclass
class Asked:
    """A model, and the rows that it was asked."""

    model: TaskModel
    task: Task
    rows: Rows
    index: np.ndarray
    precision: str


@dataclass
class Assessment:
    """Scores with intervals on some rows. `truth` and `answers` are what the task recorded of those rows; `again` gives
    the whole answers of some of them; alone and absent are main scores by modality. left_out: {why: how many} of these
    rows, or of what they hold, that no score counts. seen: what these rows had to do with the training, if anything.
    how: they were judged, and what the intervals cover, if not by one model that was trained on other rows. rungs: what
    simple models beneath reach, of folds. asked: which models answered which rows."""

    index: np.ndarray
    truth: Answers
    answers: Answers
    again: Callable[[np.ndarray], Answers]
    scores: list[Score]
    baseline: list[Score]
    alone: dict[str, Score] = field(default_factory=dict)
    absent: dict[str, Score] = field(default_factory=dict)
    gain: Score | None = None
    best_alone: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    seen: str = ""
    how: str = ""
    rungs: dict[str, Score] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    @property
    def beside(self) -> str:
        """What must stand beside the scores, or ""."""
        left = ", ".join(f"{count:,} x {why}" for why, count in self.left_out.items())
        return "; ".join(part for part in (left and f"not scored: {left}", self.seen) if part)

    def compare(self, alone: dict[str, Score], absent: dict[str, Score]) -> None:
        """Take the main scores by modality, and find the best one alone."""
        self.alone, self.absent = alone, absent
        sign = -1 if self.scores[0].better == "lower" else 1
        self.best_alone = max(alone, key=lambda k: sign * alone[k].value)

    def to_json(self) -> dict:
        """Plain JSON: everything but the rows."""
        return {
            "rows": len(self.index),
            "left_out": dict(self.left_out),
            "seen": self.seen,
            "how": self.how,
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
    model: TaskModel,
    task: Task,
    rows: Rows,
    schema: Schema,
    index: np.ndarray,
    precision: str,
    *,
    queries: np.ndarray | None = None,
    parts: bool = True,
    left_out: Mapping[str, int] = MappingProxyType({}),
    seen: str = "",
) -> Assessment:
    """Scores on the rows `index` that have a target. queries (n,) bool: the rows that ask, of a task that searches.
    left_out: what was left out of `index` before; seen: as in `Assessment`.

    parts: also measure each modality alone and each absent (one more pass over the rows for each).
    """
    known = index[task.known(rows)[index]]
    if not len(known):
        why = ", ".join(f"{count:,} x {why}" for why, count in task.unknown(rows, index).items())
        raise DataError(
            f"no row has a usable target ({', '.join(task.targets)}): there is nothing to compare with"
            + (f" ({why})" if why else "")
        )

    def again(some: np.ndarray) -> Answers:
        return merge([task.finish(out) for _, out in stream(model, rows, some, precision=precision)])

    found = answer_all(model, task, rows, schema, known, precision, parts)
    ask = None if queries is None else queries[known]
    lived, floor = task.lived(model)
    scores, baseline = lived + task.scores(*found.whole, ask), floor + task.baseline(*found.whole, ask)
    left = Counter(left_out) + Counter(task.unknown(rows, index[~task.known(rows)[index]]))
    left += Counter(task.aside(rows, known, *found.whole, ask))
    out = Assessment(known, *found.whole, again, scores, baseline, left_out=dict(left.most_common()), seen=seen)
    out.asked = [Asked(model, task, rows, known, precision)]
    if found.alone:
        alone, absent = ({k: task.scores(*own)[0] for k, own in each.items()} for each in (found.alone, found.absent))
        out.compare(alone, absent)
        out.gain = paired_gain(*gains(task, found, out.best_alone))
    return out


class Answered(NamedTuple):
    """Truth and answers as the task records them: by the whole, by each modality alone, and with each absent."""

    whole: tuple[Answers, Answers]
    alone: dict[str, tuple[Answers, Answers]]
    absent: dict[str, tuple[Answers, Answers]]


def answer_all(
    model: TaskModel, task: Task, rows: Rows, schema: Schema, index: np.ndarray, precision: str, parts: bool = True
) -> Answered:
    """The answers to the rows `index`. parts: as for `assess`; of two modalities, without the one is the other
    alone."""

    def answers(absent: list[str]) -> tuple[Answers, Answers]:
        return answered(task, model, rows, index, precision=precision, absent=absent)

    whole, groups = answers([]), modalities(schema)
    if not parts or not task.answers_rows or len(groups) < 2:
        return Answered(whole, {}, {})
    everything = [s.name for s in schema.slots]
    alone = {label: answers([s for s in everything if s not in slots]) for label, slots in groups.items()}
    if len(groups) == 2:
        return Answered(whole, alone, dict(zip(groups, reversed(alone.values()))))
    return Answered(whole, alone, {label: answers(slots) for label, slots in groups.items()})


def gains(task: Task, found: Answered, alone: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(n,) each: how good the answers of the whole are, and those of a modality alone, as far as rows count."""
    assert alone is not None
    shares = task.shares(found.whole[0])
    return task.per_row(*found.whole) * shares, task.per_row(*found.alone[alone]) * shares
