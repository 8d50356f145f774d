"""The report of a run, page by page, from what the run measured."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from plait import __version__
from plait.evaluate import pictures
from plait.evaluate.intervals import Score
from plait.evaluate.report import Section, Table, write_report
from plait.runs.assemble import BoundRecipe
from plait.runs.assess import Assessment
from plait.runs.beneath import ladder
from plait.runs.console import clock
from plait.runs.folds import FOLDS
from plait.runs.importance import importance
from plait.runs.manifest import rewriting
from plait.runs.prepare import Prepared
from plait.runs.settings import Settings
from plait.train.loop import History, Plan


class Ran(NamedTuple):
    """All that a report tells of: what went in, how it was trained, what was measured."""

    data: Prepared
    made: BoundRecipe
    plan: Plan
    settings: Settings
    history: History
    found: dict[str, Assessment]
    cost: dict
    seconds: dict
    machine: str
    command: str
    rungs: dict[str, dict[str, Score]]  # by split: what simple models reach beneath the network
    silent: bool = False  # the network does not answer
    beneath: Sequence[Section] = ()  # what stands beneath each of several targets


def report(path: Path, ran: Ran, extra: Sequence[Section] = ()) -> None:
    """Write `path`, one HTML file that opens offline. extra: sections that come right after the scores."""
    data, main = ran.data, next(iter(ran.found.values()))
    facts = {
        "title": f"{data.task.name}: {data.table.source}",
        "command": ran.command,
        "version": __version__,
        "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "seed": ran.settings.seed,
        "machine": ran.machine,
        "scores": data.task.leading(main.scores),
        "beside": main.beside,
        "how": main.how,
        "baseline": {s.name: (data.task.floor, s.value) for s in main.baseline},
    }
    sections = [
        *(part for split, found in ran.found.items() for part in _scores(found, split, data.task.floor)),
        *(
            part
            for split, found in ran.found.items()
            for part in ladder(ran.rungs.get(split, {}), found.scores[0], split)
        ),
        *ran.beneath,
        *extra,
        *_learning(ran.history, ran.silent),
        *data.task.sections(data.rows, main.index, main.truth, main.answers, main.again),
        *_importance(ran),
        _columns(data),
        _bad(data),
        _cost(ran),
        Section(
            "Again",
            "lines",
            [
                again(ran.command, ran.plan.precision),
                f"seed {ran.settings.seed}, precision {ran.plan.precision}, data {data.fingerprint}",
                "settings: config.json",
            ],
        ),
    ]
    with rewriting(path):
        write_report(path, facts, sections)


def again(command: str, precision: str) -> str:
    """The command, with the precision that was chosen for it where it names none; a run that goes on has it."""
    words = shlex.split(command)
    named = any(word.split("=")[0] in ("--precision", "--resume") for word in words)
    return command if words[1:2] != ["fit"] or named else f"{command} --precision {precision}"


def _scores(found: Assessment, split: str, floor: str) -> list[Section]:
    chance = {s.name: s.value for s in found.baseline}
    rows = [(s.name, s, chance.get(s.name), s.n) for s in found.scores]
    note = "; ".join(part for part in (found.how, found.beside) if part)
    table = Table(("score", "value [95% interval]", "without a model", "rows"), rows, note)
    which = f"all {len(found.index):,} rows, in folds" if split == FOLDS else f"{len(found.index):,} {split} rows"
    out = [Section(f"Scores on {which}", "table", table)]
    if found.alone and found.gain is not None:
        bars = [("everything", found.scores[0]), *((f"{k} only", s) for k, s in found.alone.items())]
        bars += [(f"no {k}", s) for k, s in found.absent.items()]
        main = found.scores[0].name
        line = (floor, chance[main]) if main in chance else None
        span = f"[{found.gain.low:+.3f}, {found.gain.high:+.3f}]"
        gain = f"gain of fusion over {found.best_alone} alone: {found.gain.value:+.3f} {span}"
        out.append(Section("What each modality gives", "picture", (pictures.score_bars(bars, line), gain)))
    return out


def _importance(ran: Ran) -> list[Section]:
    found = importance(next(iter(ran.found.values())).asked, ran.settings.seed)
    if found is None or not found.columns:
        return []
    title = f"rise of {found.cost} [95% interval]"
    left = f" No time for {', '.join(found.left)}." if found.left else ""
    note = (
        f"where a column's cells are those of other rows, three times for {found.rows:,} rows. What another column "
        f"says as well is not missed.{left}"
    )
    return [Section("What each column is worth", "table", Table(("column", title), found.columns, note))]


def _learning(history: History, silent: bool) -> list[Section]:
    if len(history.rows) < 2:
        return []
    picture = pictures.curves(history.rows, ["loss"], "validation score (higher is better)")
    best = f"best epoch {history.best_epoch} of {len(history.rows)}; ended: {history.stopped}"
    title = "Training of the network, which was left out: simple models answer" if silent else "Training"
    return [Section(title, "picture", (picture, best))]


def _columns(data: Prepared) -> Section:
    n, rows = len(data.table), []
    for d in data.schema.describe():
        gone = data.table.column(d["name"]).null_count if d["name"] in data.table.names else None
        bad = sum(data.rows.bad.by_reason(d["name"]).values()) if gone is not None else 0
        missing = None if gone is None else f"{gone + bad:,} ({(gone + bad) / max(n, 1):.1%})" if gone + bad else "0"
        rows.append((d["name"], d["kind"], d["use"], missing, d["why"]))
    return Section("Columns", "table", Table(("column", "kind", "use", "missing or unusable", "why"), rows))


def _bad(data: Prepared) -> Section:
    rows: list[tuple[str, str, int | None]] = [
        (c.name, reason, count)
        for c in data.schema.columns
        for reason, count in data.rows.bad.by_reason(c.name).items()
    ]
    rows += [(name, remark, count) for name, remarks in data.rows.notes.items() for remark, count in remarks.items()]
    rows += [("", remark, None) for remark in data.remarks()]
    if not rows:
        return Section("Input that could not be used", "text", "Every cell could be read.")
    title = "Input that could not be used, and remarks (each cell: bad_rows.parquet)"
    return Section(title, "table", Table(("column", "what", "cells"), rows))


def _cost(ran: Ran) -> Section:
    rows = [
        ("system", ran.made.title),
        ("parameters", f"{ran.cost['parameters']:,}"),
        ("rows a batch", ran.plan.batch_size),
        ("learning rate", f"{ran.plan.lr:g}"),
        ("precision", "bfloat16" if ran.plan.precision == "bf16" else "float32"),
        ("training", clock(ran.history.seconds)),
        *((part, clock(s)) for part, s in ran.seconds.items() if part != "training in all"),
        ("memory", f"{ran.cost['memory_gb']:.1f} GB"),
    ]
    return Section("Time and memory", "table", Table(("what", "value"), rows))
