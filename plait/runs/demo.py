"""The demo: the main job on a sample that every installation carries in its fonts."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.compute as pc

from plait.data.samples import glyphs
from plait.data.table import Table, read_table
from plait.evaluate.intervals import Score, number
from plait.evaluate.report import Section
from plait.evaluate.report import Table as Lines
from plait.runs.assess import Assessment
from plait.runs.console import Console, clock
from plait.runs.fit import fit
from plait.runs.run import Run

QUERIES = ("greek small letter theta", "black heart suit", "rightwards arrow", "latin capital letter a with ring above")
REGULAR = "DejaVuSans"
EPOCHS, RATE, AUGMENT = 16, 1.5e-3, 0.4


def demo(out: str | Path, console: Console | None = None, *, minutes: float | None = None) -> dict:
    """Build the sample `glyphs`, train two towers on it, evaluate on unseen typefaces and unseen characters, search,
    and report.

    Writes only into `out`: glyphs.parquet, run/ (with report.html), hits.png. Returns the figures.
    """
    console, out, begun = console or Console(), Path(out), time.monotonic()
    console.say("sample", "drawing characters in twelve typefaces with their Unicode names")
    path = glyphs(out)
    if (out / "run" / "config.json").exists():
        shutil.rmtree(out / "run")  # of an earlier demo
    options: dict[str, Any] = {"task": "retrieve", "inputs": ["image", "text"], "split": "split"}
    options |= {"epochs": EPOCHS, "lr": RATE, "augment": AUGMENT, "minutes": minutes}
    run = cast(Run, fit(path, out=out / "run", console=console, **options))
    if run.stopped == "interrupted":
        return {"stopped": run.stopped, "run": str(run.folder)}
    table = read_table(path)
    figures, sections = {}, []
    for title, found in (
        ("Typefaces never trained on", run.evaluate(_rows(table, split="typefaces"))),
        ("Characters never trained on, among all characters", unseen_characters(run, table)),
    ):
        lines = _lines(found, run.task.headline(found.scores))
        sections.append(
            Section(title, "table", Lines(("score", "value [95% interval]", "chance", "times chance"), lines))
        )
        console.say("", f"{title}:")
        for _, score, chance, times in lines:
            console.say("", f"  {score}   chance {number(chance)}, {times:.0f} times")
        figures[title] = {
            name: {"value": s.value, "low": s.low, "high": s.high, "chance": c} for name, s, c, _ in lines
        }
    hits = out / "hits.png"
    where = _rows(table, typeface=REGULAR)
    nearest = run.search_many(where, [{"text": q} for q in QUERIES], k=8, show=hits)
    characters = where.column("character").to_pylist()
    for query, best in zip(QUERIES, nearest):
        console.say("search", f"{query}: {' '.join(characters[h.row] for h in best)}")
    sections.append(Section("Four questions, and the pictures found", "picture", hits.read_bytes()))
    assert run.report is not None  # it was just trained
    run.report(sections)
    seconds = time.monotonic() - begun
    console.say("done", f"in {clock(seconds)}: {run.folder / 'report.html'}, {hits}")
    return {"seconds": seconds, "scores": figures, "report": str(run.folder / "report.html"), "hits": str(hits)}


def unseen_characters(run: Run, table: Table) -> Assessment:
    """Unseen characters in the regular typeface, to be found among all characters in that typeface, and the other way
    round."""
    regular = _rows(table, typeface=REGULAR)
    unseen = np.asarray(regular.column("split").to_pylist(), dtype=object) == "characters"
    return run.evaluate(regular.take(np.flatnonzero(unseen)), gallery=regular.take(np.flatnonzero(~unseen)))


def _rows(table: Table, **equal: str) -> Table:
    """The rows whose columns have these values."""
    ((name, value),) = equal.items()
    return table.take(np.flatnonzero(pc.equal(table.column(name), value).to_numpy(zero_copy_only=False)))


def _lines(found: Assessment, scores: list[Score]) -> list[tuple]:
    chance = {s.name: s.value for s in found.baseline}
    return [(s.name, s, chance[s.name], s.value / chance[s.name]) for s in scores]
