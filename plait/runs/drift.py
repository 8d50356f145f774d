"""New rows beside those that a run was trained on: what of them has drifted, and what the run scores on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plait import __version__
from plait.data.digest import row_digests
from plait.data.kinds import KINDS
from plait.data.rows import Rows
from plait.data.table import Table, read_table
from plait.errors import DataError, PlaitError, UsageError
from plait.evaluate.intervals import Score, from_influence, number
from plait.evaluate.metrics import auroc_influence
from plait.evaluate.report import Section, write_report
from plait.evaluate.report import Table as Grid
from plait.runs.beneath import given
from plait.runs.declared import read_config
from plait.runs.folder import read_json
from plait.runs.gather import gather
from plait.runs.moved import LEVEL, Moved, moved
from plait.runs.run import Run
from plait.runs.saved import load
from plait.runs.settings import IN_MEMORY, TABLES, Settings
from plait.runs.stored import fingerprints, read_stored
from plait.tasks.beneath.asked import Classes
from plait.tasks.beneath.design import Parts, joined
from plait.tasks.beneath.folds import taken
from plait.tasks.beneath.learn import climb

MOST = 2000  # rows of each side that are read
NAMED = 4  # columns that the sentence names


@dataclass
class Drift:
    """New rows beside the training rows of a run. columns: their measures; auc: how well simple models that learnt on
    half of both tell the other half apart (Lopez-Paz and Oquab 2017), None of too few rows. scores: of the new rows,
    empty without a target; before: those that the run was reported with, {split, scores}. rows: that were read of the
    new table and of the training rows; copies: new rows that are training rows too; said: what to know besides."""

    run: Path
    source: str
    sentence: str
    columns: list[Moved]
    auc: Score | None
    rows: tuple[int, int]
    copies: int
    scores: list[Score] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def to_json(self) -> dict:
        """Plain JSON."""
        return {
            "run": str(self.run),
            "table": self.source,
            "sentence": self.sentence,
            "auc": self.auc and self.auc.to_json(),
            "rows": self.rows[0],
            "training_rows": self.rows[1],
            "copies": self.copies,
            "columns": [c.to_json() for c in self.columns],
            "scores": [s.to_json() for s in self.scores],
            "before": self.before,
            "said": self.said,
        }

    def write(self, path: str | Path) -> None:
        """Write one HTML file that opens offline."""
        sections = [Section("What has drifted", "text", "\n\n".join([self.sentence, *self.said]))]
        if self.scores:
            old = {s["name"]: Score(**s) for s in self.before.get("scores", [])}
            head = (
                "score",
                "on these rows [95% interval]",
                f"when it was trained, {self.before.get('split', '')} rows",
            )
            sections.append(Section("Scores", "table", Grid(head, [(s.name, s, old.get(s.name)) for s in self.scores])))
        sections.append(Section("Column by column", "table", self._grid()))
        facts = {"title": f"Drift: {self.source}", "command": f"plait report {self.run} {self.source}"}
        facts |= {"version": __version__, "date": datetime.now().strftime("%Y-%m-%d %H:%M")}
        write_report(path, facts | {"scores": [self.auc] if self.auc else []}, sections)

    def _grid(self) -> Grid:
        lines = []
        for c in self.columns:
            far = (None, None) if c.distance is None else (c.distance.value, c.distance.chance)
            shares = [None if s is None else f"{s:.1%}" for s in (c.unseen, c.missing[1], c.missing[0])]
            lines.append((c.column, c.kind, c.what, *far, "drifted" if c.beyond else "", c.psi, *shares))
        note = (
            "distance, from 0 to 1: Kolmogorov-Smirnov's of numbers, total variation of classes, and of words the "
            "share no training row has, less what is usual of such texts. On rows drawn as the training rows were, "
            f"anything is called drifted in {LEVEL:.0%} of reports. PSI: population stability index."
        )
        head = ("column", "kind", "measure", "distance", "chance", "", "PSI", "never seen", "missing", "missing before")
        return Grid(head, lines, note)


def drift(
    run: Run | str | Path, source: Any, *, train: Any = None, allow_outside: bool = False, progress=None
) -> Drift:
    """Tell how far the rows of `source` lie from those that `run` was trained on.

    train: the table that the run was trained on; None: the file that its folder names. It must be that table, by its
    digests; of both sides at most 2,000 rows are read, drawn at random.

    Raises UsageError where the run was trained on no table, or on one that is not there; DataError for another one.
    """
    run = run if isinstance(run, Run) else load(run)
    before = reference(run, train, allow_outside)
    after = run._table(source)
    new = run.rows(_some(after), allow_outside=allow_outside, progress=progress)
    said = list(run.last_said)
    old = run.rows(_some(before), allow_outside=allow_outside, progress=progress)
    if max(len(before), len(after)) > MOST:
        said.append(f"{len(new):,} of {len(after):,} new rows were read, and {len(old):,} of {len(before):,} others")
    names = [n for n in run.schema.inputs if after.has(n)]
    digests = [row_digests(rows.table, run.schema, names) for rows in (old, new)]
    if copies := int(np.isin(digests[1], digests[0]).sum()):
        said.append(f"{copies:,} of the new rows stand among the training rows")
    targets = [c for c in run.schema.used("target") if after.has(c.name) and not KINDS[c.kind].own_slot]
    found = moved([*run.schema.used("input"), *targets], old, new)
    found.sort(key=lambda c: (c.distance is None, not c.beyond, -c.distance.value if c.distance else 0.0))
    auc = told_apart((old, new), digests)
    scores = _scores(run, after, said, allow_outside=allow_outside, progress=progress)
    told = read_json(run.folder / "report.json").get("splits", {})
    earlier = {"split": next(iter(told)), "scores": next(iter(told.values()))["scores"]} if told else {}
    lacking = [n for n in run.schema.inputs if not after.has(n)]
    words = sentence(len(new), len(old), auc, found, lacking)
    return Drift(run.folder, after.source, words, found, auc, (len(new), len(old)), copies, scores, earlier, said)


def reference(run: Run, train: Any = None, allow_outside: bool = False) -> Table:
    """The training rows of a run, read as it reads them, of the table that it was trained on and of no other."""
    config = read_config(run.folder)
    if "used" in config:
        raise UsageError(f"{run.folder} holds a published model, which was trained on no table: nothing has drifted")
    source, settings = config.get("source") if train is None else train, Settings.from_json(config["settings"])
    if source is None or (isinstance(source, str) and source == IN_MEMORY):
        raise UsageError(f"{run.folder} was trained on a table in memory: give that table as well (--train TABLE)")
    if memory := [name for name in TABLES if getattr(settings, name) == IN_MEMORY]:
        raise UsageError(f"{run.folder} was trained with a {memory[0]} table in memory: its rows cannot be told again")
    try:
        first = read_table(source)
    except (PlaitError, OSError) as error:
        if train is not None:
            raise
        raise UsageError(f"the training table of {run.folder} cannot be read ({error}): name it by --train") from error
    run.schema.allow_outside = allow_outside or settings.allow_outside
    stored = read_stored(run.folder, config)
    if lacking := [name for name in stored.prints["columns"] if not first.has(name)]:
        raise DataError(f"{first.source} is not the table of {run.folder}: it lacks the column {lacking[0]!r}")
    table, parts = gather(first, run.schema, settings)
    if why := stored.changed(fingerprints(table, run.schema, parts)):
        raise DataError(
            f"{first.source} is not the table that {run.folder} was trained on: {why}. Give that table by --train"
        )
    return table.take(stored.drawn["train"])


def _some(table: Table) -> Table:
    if len(table) <= MOST:
        return table
    return table.take(np.sort(np.random.default_rng(0).choice(len(table), MOST, replace=False)))


def told_apart(sides: tuple[Rows, Rows], digests: list[np.ndarray]) -> Score | None:
    """AUROC of telling the second side from the first, by simple models that learnt on half of both, and the other way
    round; rows that are copies stand in one half. None of too few rows, or of nothing that simple models can read."""
    seen = [given(rows, np.arange(len(rows))) for rows in sides]
    parts: Parts = joined([part for part, _ in seen])
    anything = np.concatenate([there for _, there in seen])
    new = np.repeat([0, 1], [len(rows) for rows in sides])
    half = np.asarray([digest[-1:] < b"\x80" for digest in np.concatenate(digests)])
    found, schema = [], sides[0].schema
    for side in (half, ~half):
        learn, ask = np.flatnonzero(side), np.flatnonzero(~side)
        if min(np.bincount(new[learn], minlength=2).min(), np.bincount(new[ask], minlength=2).min()) < 2:
            return None
        ladder = climb(partial(taken, taken(parts, learn)), new[learn], Classes(2), schema, 0)
        if ladder is None:
            return None
        odds = ladder.beneath(taken(parts, ask), anything[ask])
        found.append((len(ask), *auroc_influence(new[ask] == 1, odds[:, 1] - odds[:, 0])))
    n = sum(rows for rows, _, _ in found)
    value = sum(rows * one for rows, one, _ in found) / n
    influence = np.concatenate([rows / n * one for rows, _, one in found])
    return from_influence("AUROC of new rows against training rows", value, influence, n, int(np.bincount(new).min()))


def sentence(rows: int, others: int, auc: Score | None, columns: list[Moved], lacking: list[str]) -> str:
    """What to know, in plain words. columns: those that moved by most first."""
    names = dict.fromkeys(c.column for c in columns if c.beyond)
    most = {c.column: c for c in reversed(columns) if c.beyond}
    told = ", ".join(f"{n} ({most[n].what}: {number(most[n].distance.value)})" for n in [*names][:NAMED])  # type: ignore
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    gone = f" Not there: {', '.join(lacking)}." if lacking else ""
    sides = f"{rows:,} new rows from {others:,} training rows"
    if auc is None:
        start = f"Too few rows, or nothing readable, to tell {sides} by a classifier."
    elif auc.low > 0.5:
        how = (
            "hardly" if auc.value < 0.6 else "often" if auc.value < 0.75 else "mostly" if auc.value < 0.95 else "surely"
        )
        start = (
            f"A classifier can {how} tell {sides}: AUROC {number(auc.value)} [{number(auc.low)}, {number(auc.high)}]."
        )
    else:
        span = f"AUROC {number(auc.value)} [{number(auc.low)}, {number(auc.high)}]"
        start = f"A classifier cannot tell {sides}: {span}."
    moved = f" Drifted: {told}{more}." if told else " No column lies beyond what chance does."
    return start + moved + gone


def _scores(run: Run, after: Table, said: list[str], **how: Any) -> list[Score]:
    """What the run scores on all new rows, where they have a target."""
    if run.task.mute:
        return []
    lacking = [n for n in run.task.targets if not after.has(n)]
    empty = [n for n in run.task.targets if n not in lacking and after.column(n).null_count == len(after)]
    if lacking or empty:
        said.append(f"no scores: {', '.join(map(repr, lacking or empty))} is not known of any new row")
        return []
    found = run.evaluate(after, **how)
    if found.beside:
        said.append(found.beside)
    return found.scores
