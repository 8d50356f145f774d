"""Two runs on the same rows: which is better, by how much, and where they differ most."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.kinds import KINDS
from plait.data.table import read_table
from plait.errors import UsageError
from plait.evaluate.intervals import Score
from plait.evaluate.metrics import paired_gain, paired_permutation_p
from plait.runs.assess import Assessment, assess
from plait.runs.folder import CONFIG, read_json
from plait.runs.run import Run
from plait.runs.saved import load
from plait.runs.stored import read_stored


@dataclass
class Comparison:
    """a and b: what each scores on the same rows; gain: of b over a by row, `p` that it is chance (a paired permutation
    test). rows: those where one is better than the other by most, as plain JSON: `row`, `truth`, the answers `a` and
    `b`, and `gain`, by how much b's loss is lower."""

    a: Assessment
    b: Assessment
    gain: Score
    p: float
    rows: list[dict]

    def to_json(self) -> dict:
        """Plain JSON."""
        scores = {name: [s.to_json() for s in found.scores] for name, found in (("a", self.a), ("b", self.b))}
        return {"rows": len(self.a.index), **scores, "gain": self.gain.to_json(), "p": self.p, "differ": self.rows}


def compare(
    first: Run | str | Path, second: Run | str | Path, source: Any = None, *, most: int = 10,
    allow_outside: bool = False, progress=None,
) -> Comparison:  # fmt: skip
    """Compare two runs that answer the same target.

    source: a table with the target; None: the table that both were trained on, and of it the rows that neither was
    trained on or watched by, which both keep for their reports. most: how many rows are listed.

    Raises UsageError for runs that answer other things, or have no answer of each row.
    """
    runs = [found if isinstance(found, Run) else load(found) for found in (first, second)]
    a, b = runs
    for run in runs:
        if run.task.mute or not run.task.answers_rows:
            raise UsageError(f"{run.folder} does {run.task.name}, which has no answer of each row: compare its scores")
    if (a.task.name, a.task.targets) != (b.task.name, b.task.targets):
        said = [f"{run.folder} does {run.task.name} of {', '.join(run.task.targets)}" for run in runs]
        raise UsageError(f"{said[0]} and {said[1]}: give two runs that answer the same")
    only = None
    if source is None:
        source, only = _kept(runs)
    table = read_table(source)
    read = [run.rows(table, asked=True, allow_outside=allow_outside, progress=progress) for run in runs]
    known = np.ones(len(table), bool)
    for run, rows in zip(runs, read):
        run.task.derive(rows)
        known &= run.task.known(rows)
    index = np.flatnonzero(known) if only is None else only[known[only]]
    both = list(zip(runs, read))
    found = [assess(run.model, run.task, rows, run.schema, index, run.precision, parts=False) for run, rows in both]
    value = [run.task.per_row(f.truth, f.answers) * run.task.shares(f.truth) for run, f in zip(runs, found)]
    loss = [run.task.loss_rows(f.truth, f.answers) for run, f in zip(runs, found)]
    if not len(value[0]) == len(value[1]) == len(index):
        raise UsageError("the two runs do not score the same rows: their targets were learnt too differently")
    gain = loss[0] - loss[1]
    order = np.argsort(-np.abs(gain), kind="stable")[:most]
    told = [next(iter(run.task.columns(f.answers).values())) for run, f in zip(runs, found)]
    targets = [t for t in a.task.targets if t in table.names and not KINDS[a.schema.column(t).kind].media]
    truth = {t: read[0].table.column(t).take(index[order]).to_pylist() for t in targets}
    truths = list(zip(*truth.values())) if len(truth) > 1 else next(iter(truth.values()), [None] * len(order))
    rows_told = [
        {
            "row": int(index[i]),
            "truth": truths[at],
            "a": _plain(told[0][i]),
            "b": _plain(told[1][i]),
            "gain": float(gain[i]),
        }
        for at, i in enumerate(order)
        if gain[i] != 0
    ]
    better, sure = paired_gain(value[1], value[0]), paired_permutation_p(value[1], value[0])
    return Comparison(found[0], found[1], better, sure, rows_told)


def _plain(cell: Any) -> Any:
    return cell.item() if isinstance(cell, np.generic) else "(file)" if isinstance(cell, bytes) else cell


def _kept(runs: list[Run]) -> tuple[str, np.ndarray]:
    """The table that both runs were trained on, and its rows that both kept for the report."""
    configs = [read_json(run.folder / CONFIG) for run in runs]
    sources = [config.get("source") for config in configs]
    if sources[0] is None or sources[0] != sources[1] or any(c["settings"].get("test") for c in configs):
        raise UsageError("the runs were not trained on one file: give the table to compare them on")
    tests = [read_stored(r.folder, c).used.get("test", np.zeros(0, np.int64)) for r, c in zip(runs, configs)]
    both = np.intersect1d(tests[0], tests[1])
    if not len(both):
        raise UsageError(
            "there is no row that both runs kept for the report: give a table that neither was trained on (or train "
            "both with the same --seed or --split, and without folds)"
        )
    return sources[0], both
