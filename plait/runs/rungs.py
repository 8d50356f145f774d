"""What each rung gained on the same rows: no towers, frozen ones, ones that learn. One of them answers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plait.data.rows import Rows
from plait.evaluate.intervals import Score
from plait.evaluate.metrics import paired_gain
from plait.evaluate.report import Section, Table
from plait.runs.climb import ADAPTERS, ALL
from plait.runs.console import Console, clock
from plait.runs.folder import read_json, write_json
from plait.runs.predict import answered
from plait.runs.prepare import Prepared
from plait.runs.run import Run

BELOW, ABOVE = "from_nothing", "on_towers"  # the folder of the one that does not answer, in that of the one that does
TITLES = {
    BELOW: "from nothing",
    ABOVE: "on frozen towers",
    ADAPTERS: "on towers with adapters",
    ALL: "on towers of which all learns",
}
ANSWERS = {
    BELOW: "the model from nothing answers: towers gained no more than noise",
    ABOVE: "frozen towers answer",
    ADAPTERS: "towers with adapters answer",
    ALL: "towers of which all has learnt answer",
}


class Step(NamedTuple):
    """What a rung gained in validation loss (its standard error beside it) over the one that answered until then."""

    rung: str
    over: str
    gain: float
    error: float
    kept: bool

    def __str__(self) -> str:
        low, high = (-self.gain + side * self.error for side in (-2, 2))
        which = "kept" if self.kept else "no more than noise"
        return f"validation loss {-self.gain:+.3f} [{low:+.3f}, {high:+.3f}] {TITLES[self.rung]}: {which}"


class Rungs:
    """Runs on the same rows, from the least to the most that learns. A rung is kept where its loss on the validation
    rows is lower than that of the one kept below, by two standard errors."""

    def __init__(self, data: Prepared, console: Console):
        self.data, self.console = data, console
        self.runs: dict[str, Run] = {}
        self.losses: dict[str, np.ndarray] = {}  # (n,) of the validation rows
        self.steps: list[Step] = []
        self.left_out: dict[str, str] = {}
        self.kept = BELOW

    def add(self, rung: str, run: Run) -> None:
        """The next rung, and what it gained."""
        self.runs[rung], self.losses[rung] = run, self._losses(run)
        if rung == BELOW:
            return
        gain = self.losses[self.kept] - self.losses[rung]
        mean, error = float(gain.mean()), float(gain.std() / max(len(gain) - 1, 1) ** 0.5)
        step = Step(rung, self.kept, mean, error, mean > 0 and mean >= 2 * error)
        self.steps.append(step)
        self.kept = rung if step.kept else self.kept
        self.console.say("rungs", str(step))

    def skip(self, rung: str, why: str) -> None:
        """The next rung was not tried."""
        self.left_out[rung] = why
        self.console.say("rungs", f"{TITLES[rung]}: left out, {why}")

    @property
    def start(self) -> Run:
        """What towers that learn begin as: the highest rung on towers that was kept, or the frozen ones."""
        return self.runs[ABOVE if self.kept == BELOW else self.kept]

    def settle(self, run: Run) -> Run:
        """The run that answers. All reports say so, and the folder of `run` is the one that answers, which holds the
        others."""
        self.console.say("rungs", ANSWERS[self.kept])
        facts, section, remark = self._facts(), self._table(), self._why()
        for found in self.runs.values():
            write_json(found.folder / "report.json", read_json(found.folder / "report.json") | {"rungs": facts})
            assert found.report is not None  # all were just trained
            found.report([section, remark])
        kept = self.runs[self.kept]
        return kept if kept is run else _swapped(run, kept)

    def _facts(self) -> dict[str, Any]:
        tried = {s.rung: s for s in self.steps}
        below = tried[ABOVE]
        told: dict[str, Any] = {"answers": self.kept, "left_out": self.left_out, "splits": {}}
        told["validation_loss_gain"] = {"mean": below.gain, "standard_error": below.error, "rows": self._rows()}
        told["rungs"] = [
            {"rung": name, "validation_loss": float(self.losses[name].mean()), "seconds": _seconds(run)}
            | ({"learns": run.learns} if run.learns else {})
            | (tried[name]._asdict() if name in tried else {})
            for name, run in self.runs.items()
        ]
        for split in self._splits():
            found = {name: self._headline(name, split).to_json() for name in self.runs}
            told["splits"][split] = found | {"gain": self._paired(ABOVE, BELOW, split).to_json()}
            for step in self.steps:
                told["splits"][split][f"gain_{step.rung}"] = self._paired(step.rung, step.over, split).to_json()
            self._say(split)
        return told

    def _say(self, split: str) -> None:
        scores = "   ".join(f"{self._headline(n, split).value:.3f} {TITLES[n]}" for n in self.runs)
        self.console.say("", f"{split}: {self._headline(BELOW, split).name} {scores}")

    def _table(self) -> Section:
        lines: list[tuple] = []
        for split in self._splits():
            for name in self.runs:
                score = self._headline(name, split)
                lines.append((f"{TITLES[name]}, {split}", score.name, score))
            for step in self.steps:
                won = self._paired(step.rung, step.over, split)
                lines.append((f"gain by row, {TITLES[step.rung]} over {TITLES[step.over]}, {split}", "", won))
        return Section("Which rung answers", "table", Table(("model", "score", "value [95% interval]"), lines))

    def _why(self) -> Section:
        said = [f"{ANSWERS[self.kept]}, by {self._rows()} validation rows", *map(str, self.steps)]
        said += [
            f"{TITLES[name]}: trained for {clock(_seconds(run))}{_learning(run)}" for name, run in self.runs.items()
        ]
        said += [f"{TITLES[name]}: left out, {why}" for name, why in self.left_out.items()]
        return Section("Why", "lines", said)

    def _splits(self) -> list[str]:
        """What the runs were scored on apart; by folds, each of which was weighed itself, they have one score."""
        below, above = (self.runs[name].assessments for name in (BELOW, ABOVE))
        return [split for split in below if below[split] is not above[split]]

    def _rows(self) -> int:
        return len(self.losses[BELOW])

    def _headline(self, rung: str, split: str) -> Score:
        run = self.runs[rung]
        return run.task.headline(run.assessments[split].scores)[0]

    def _paired(self, rung: str, over: str, split: str) -> Score:
        run, other = self.runs[rung], self.runs[over]
        ours, theirs = run.assessments[split], other.assessments[split]
        shares = run.task.shares(ours.truth)
        a, b = run.task.per_row(ours.truth, ours.answers), run.task.per_row(theirs.truth, theirs.answers)
        return paired_gain(a * shares, b * shares)

    def _losses(self, run: Run) -> np.ndarray:
        """(n,): of the rows that watched the training."""
        if run.losses is not None:
            return run.losses
        data, rows, watch = self.data, self.data.rows, self.data.splits["val"]
        if run.rows_read is not None:
            rows = run.rows_read
        elif run.schema is not data.schema:
            rows = Rows(data.table, run.schema, allow_outside=rows.allow_outside, workers=rows.workers, asked=True)
            run.task.derive(rows.scan())
        return run.task.loss_rows(*answered(run.task, run.model, rows, watch, precision=run.precision))


def _seconds(run: Run) -> float:
    return run.history.seconds if run.history else 0.0


def _learning(run: Run) -> str:
    return f", {run.learns['share']:.2%} of the towers' parameters" if run.learns else ""


def _swapped(run: Run, kept: Run) -> Run:
    """`kept`, in the place of the run that holds it, which it then holds. Two renames, so that no file is ever of one
    and the next of the other."""
    place, inner = run.folder, kept.folder
    aside = place.with_name(f"{place.name}.{inner.name}")
    inner.rename(aside)
    try:
        place.rename(aside / ABOVE)
    except OSError:
        aside.rename(inner)
        raise
    aside.rename(place)
    run.folder, kept.folder = place / ABOVE, place
    for found in (run, kept):
        found.towers.moved(found.folder)
        report = found.report
        assert isinstance(report, partial)
        found.report = partial(report.func, Path(found.folder) / "report.html", *report.args[1:])
    return kept
