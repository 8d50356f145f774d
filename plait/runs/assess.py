"""How good a model is on rows of a table: whole, by each modality alone, and with each one absent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from plait.data.kinds import KINDS
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.errors import DataError
from plait.evaluate.intervals import Score
from plait.evaluate.metrics import paired_gain
from plait.runs.predict import answered, merge, stream
from plait.tasks.base import Answers, Task, TaskModel


@dataclass
class Assessment:
    """Scores with intervals on some rows. `truth` and `answers` are what the task recorded of those rows; `again` gives
    the whole answers of some of them; alone and absent are main scores by modality. left_out: {why: how many} of these
    rows, or of what they hold, that no score counts. seen: what these rows had to do with the training, if anything."""

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

    @property
    def beside(self) -> str:
        """What must stand beside the scores, or ""."""
        left = ", ".join(f"{count:,} x {why}" for why, count in self.left_out.items())
        return "; ".join(part for part in (left and f"not scored: {left}", self.seen) if part)

    def to_json(self) -> dict:
        """Plain JSON: everything but the rows."""
        return {
            "rows": len(self.index),
            "left_out": dict(self.left_out),
            "seen": self.seen,
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

    def answers(absent: list[str]) -> tuple[Answers, Answers]:
        return answered(task, model, rows, known, precision=precision, absent=absent)

    def again(some: np.ndarray) -> Answers:
        return merge([task.finish(out) for _, out in stream(model, rows, some, precision=precision)])

    whole, ask = answers([]), None if queries is None else queries[known]
    lived, floor = task.lived(model)
    scores, baseline = lived + task.scores(*whole, ask), floor + task.baseline(*whole, ask)
    left = Counter(left_out) + Counter(task.unknown(rows, index[~task.known(rows)[index]]))
    left += Counter(task.aside(rows, known, *whole, ask))
    out = Assessment(known, *whole, again, scores, baseline, left_out=dict(left.most_common()), seen=seen)
    groups = modalities(schema)
    if not parts or not task.answers_rows or len(groups) < 2:
        return out
    everything = [s.name for s in schema.slots]
    single = {label: answers([s for s in everything if s not in slots]) for label, slots in groups.items()}
    out.alone = {label: task.scores(*own)[0] for label, own in single.items()}
    if len(groups) == 2:  # without the one is the other alone
        out.absent = dict(zip(groups, reversed(out.alone.values())))
    else:
        out.absent = {label: task.scores(*answers(slots))[0] for label, slots in groups.items()}
    sign = -1 if out.scores[0].better == "lower" else 1
    out.best_alone = max(out.alone, key=lambda k: sign * out.alone[k].value)
    shares = task.shares(whole[0])
    out.gain = paired_gain(task.per_row(*whole) * shares, task.per_row(*single[out.best_alone]) * shares)
    return out
