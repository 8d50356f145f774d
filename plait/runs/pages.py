"""The report of a run, page by page, from what the run measured."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from plait import __version__
from plait.evaluate import pictures
from plait.evaluate.intervals import number
from plait.evaluate.report import Example, Examples, Section, Table, write_report
from plait.runs.assemble import Recipe
from plait.runs.assess import Assessment
from plait.runs.console import clock
from plait.runs.prepare import Prepared
from plait.runs.settings import Settings
from plait.tasks import Retrieve
from plait.train.loop import History, Plan

SHOWN = 6  # examples right, and as many wrong


class Ran(NamedTuple):
    """All that a report tells of: what went in, how it was trained, what was measured."""

    data: Prepared
    made: Recipe
    plan: Plan
    settings: Settings
    history: History
    found: dict[str, Assessment]
    cost: dict
    seconds: dict
    machine: str
    command: str


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
        "scores": [s for s in main.scores if "recall" in s.name] if isinstance(data.task, Retrieve) else main.scores,
        "baseline": {
            s.name: ("chance" if isinstance(data.task, Retrieve) else "majority", s.value) for s in main.baseline
        },
    }
    sections = [
        *(part for split, found in ran.found.items() for part in _scores(found, split)),
        *extra,
        *_learning(ran.history),
        *_answers(data, main),
        _columns(data),
        _bad(data),
        _cost(ran),
        Section(
            "Again",
            "lines",
            [ran.command, f"seed {ran.settings.seed}, data {data.fingerprint}", "settings: config.json"],
        ),
    ]
    write_report(path, facts, sections)


def _scores(found: Assessment, split: str) -> list[Section]:
    chance = {s.name: s.value for s in found.baseline}
    rows = [(s.name, s, chance.get(s.name)) for s in found.scores]
    table = Table(("score", "value [95% interval]", "without a model"), rows)
    out = [Section(f"Scores on {len(found.index):,} {split} rows", "table", table)]
    if found.alone:
        bars = [("everything", found.scores[0]), *((f"{k} only", s) for k, s in found.alone.items())]
        bars += [(f"no {k}", s) for k, s in found.absent.items()]
        main = found.scores[0].name
        line = ("majority", chance[main]) if main in chance else None
        gain = f"gain of fusion over {found.best_alone} alone: {found.gain.value:+.3f} [{found.gain.low:+.3f}, {found.gain.high:+.3f}]"
        out.append(Section("What each modality gives", "picture", (pictures.score_bars(bars, line), gain)))
    return out


def _learning(history: History) -> list[Section]:
    if len(history.rows) < 2:
        return []
    picture = pictures.curves(history.rows, ["loss"], "score")
    best = f"best epoch {history.best_epoch} of {len(history.rows)}; ended: {history.stopped}"
    return [Section("Training", "picture", (picture, best))]


def _answers(data: Prepared, found: Assessment) -> list[Section]:
    if isinstance(data.task, Retrieve):
        return [_retrieved(data, found)]
    drawn = data.task.picture(found.truth, found.answers)  # None where these rows show nothing
    out = [Section(drawn[0], "picture", drawn[1])] if drawn else []
    names = data.schema.inputs[:6]
    columns = data.task.columns(found.answers)
    label = next(iter(columns))
    answers, probability = columns[label], columns.get("probability")
    truths = data.table.take(found.index)
    value = data.task.per_row(found.truth, found.answers)
    good, poor = np.argsort(-value, kind="stable")[:SHOWN], np.argsort(value, kind="stable")[:SHOWN]
    exact = set(np.unique(value)) <= {0.0, 1.0}
    shown = [i for i in good if not exact or value[i] == 1] + [i for i in poor if not exact or value[i] == 0]
    rows = []
    for i in shown:
        truth = truths.column(data.task.target)[int(i)].as_py() if isinstance(data.task.target, str) else None
        cells = [_cell(data, n, int(found.index[i])) for n in names]
        answer = answers[i] if isinstance(answers[i], (str, bool, list)) else number(float(answers[i]))
        sure = None if probability is None else float(probability[i])
        rows.append(Example(cells, truth, answer, sure, bool(value[i]) if exact else None))
    if rows:
        out.append(Section("Examples: the best and the worst answers", "examples", Examples(names, rows)))
    return out


def _retrieved(data: Prepared, found: Assessment) -> Section:
    """For some of the asking texts, the first answers."""
    (ask, reply), rows, items, (asked, offered) = next(iter(data.task._directions(found.truth, found.answers, None)))
    some = rows[np.unique(np.linspace(0, len(rows) - 1, min(8, len(rows))).astype(int))]
    sheet = []
    for q in some:
        best = items[np.argsort(-(found.answers[items, reply] @ found.answers[q, ask]), kind="stable")[:8]]
        cells = [
            (
                _picture(data, data.task.names[reply], int(found.index[i])),
                "",
                bool(found.truth[i, 0] == found.truth[q, 0]),
            )
            for i in best
        ]
        title = data.table.column(data.task.names[ask])[int(found.index[q])].as_py()
        sheet.append((title if isinstance(title, str) else data.task.names[ask], cells))
    caption = "each row: a query and its nearest answers, the right ones framed blue"
    return Section("What is found", "picture", (pictures.retrieval_sheet(sheet), caption))


def _picture(data: Prepared, column: str, row: int) -> np.ndarray | None:
    slot = next(s for s in data.schema.slots if column in s.columns)
    if slot.kind != "image":
        return None
    return data.rows.batch(np.array([row]))[slot.name][0].numpy()


def _cell(data: Prepared, column: str, row: int) -> object:
    image = _picture(data, column, row)
    if image is not None:
        if not data.rows.presence()[next(s.name for s in data.schema.slots if column in s.columns)][row]:
            return None
        buffer = io.BytesIO()
        Image.fromarray((image.transpose(1, 2, 0) * 255).round().astype(np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()
    value = data.table.column(column)[row].as_py()
    if value is None or isinstance(value, (bytes, dict)):
        return None if value is None else "(sound)"
    return pictures.shorten(value, 120)


def _columns(data: Prepared) -> Section:
    rows = [(d["name"], d["kind"], d["use"], d["why"]) for d in data.schema.describe()]
    return Section("Columns", "table", Table(("column", "kind", "use", "why"), rows))


def _bad(data: Prepared) -> Section:
    rows = [
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
        ("system", ran.made.name),
        ("parameters", f"{ran.cost['parameters']:,}"),
        ("rows a batch", ran.plan.batch_size),
        ("learning rate", f"{ran.plan.lr:g}"),
        ("precision", "bfloat16" if ran.plan.precision == "bf16" else "float32"),
        ("training", clock(ran.history.seconds)),
        *((part, clock(s)) for part, s in ran.seconds.items() if part != "training in all"),
        ("memory", f"{ran.cost['memory_gb']:.1f} GB"),
    ]
    return Section("Time and memory", "table", Table(("what", "value"), rows))
