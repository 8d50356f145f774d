"""Which rows judge a model. A small table is judged by all of its rows: a training for each fold, whole and in the
order that a fit has, and the scores of what these models say of rows that they never saw."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait.data.table import read_table
from plait.errors import DataError
from plait.evaluate.intervals import Score, number, over_folds
from plait.evaluate.metrics import paired_gain
from plait.runs.assess import Answered, Asked, Assessment, answer_all, gains
from plait.runs.beneath import rung_answers
from plait.runs.console import Console
from plait.runs.folder import CONFIG, write_json
from plait.runs.folds import FOLDS, Within
from plait.runs.predict import stream
from plait.runs.prepare import Prepared
from plait.runs.run import Run
from plait.runs.saved import load
from plait.runs.settings import Settings
from plait.runs.towers import Towers
from plait.tasks.base import Answers
from plait.tasks.rowwise import merge

SEEN = {"val": "these rows chose the best epoch", "train": "the model was trained on these rows"}
DONE = "fold.json"  # there once a fold's run has nothing more to do

Pair = tuple[Answers, Answers]


class Stopped(Exception):
    """The run was interrupted in a fold."""


class Part(Console):
    """Of one training among several: its progress, under the training's own name, and nothing else."""

    def __init__(self, whole: Console, name: str):
        super().__init__(whole.stream, quiet=whole.quiet)
        self.name = self.label = name

    def say(self, label: str, text: str = "") -> None:
        if label == self.name:
            super().say(label, text)

    def start(self, label: str, total: int) -> None:
        super().start(self.name, total)


def judge(
    data: Prepared,
    settings: Settings,
    source: Any,
    folder: Path,
    precision: str,
    device: torch.device,
    console: Console,
    fit: Callable[..., Any],
) -> Assessment | None:
    """Scores over all rows. Each fold is a run of its own beneath `folder`: one that was done is not done again, one
    that was begun goes on. fit: what makes a run. None where a fold leaves nothing to learn from, which is said.
    Raises Stopped where a run is interrupted."""
    folds, task, table = data.folds, data.task, read_table(source)
    how = {f.name: getattr(settings, f.name) for f in fields(Settings)} | {
        "folds": 1,
        "precision": precision,
        "rungs": 1,
    }
    how["minutes"] = settings.minutes and settings.minutes / 2 / len(folds)
    found: list[tuple[np.ndarray, Answered, Score]] = []
    reached: list[dict[str, Pair]] = []
    asked: list[Asked] = []
    once = 0
    for i, splits in enumerate(folds.splits):
        name = f"fold {i + 1}/{len(folds)}"
        towers = Towers(data.towers.towers, data.towers.folder)
        within = Within(splits, data.rows, towers)
        try:
            run = _run(table, folder / FOLDS / str(i), how, within, device, Part(console, name), fit)
            rows = run.rows(table, asked=True, share=data.rows, allow_outside=settings.allow_outside)
            run.task.derive(rows)
            index = splits["test"]
            index = index[run.task.known(rows)[index] & task.known(data.rows)[index]]
            if not len(index):
                continue
            own = answer_all(run.model, run.task, rows, run.schema, index, run.precision)
            simple = rung_answers(run.model, run.task, rows, index, run.precision)
        except DataError as error:
            if (folder / FOLDS / str(i)).exists():  # it could learn, and something else went wrong
                raise
            console.say("careful", f"{name} cannot be learnt ({error}): the table is not judged by folds")
            return None

        def mine(pair: Pair, run: Run = run, index: np.ndarray = index) -> Pair:
            return task.recast(run.task, *pair, data.rows, index)

        parts = ({k: mine(pair) for k, pair in each.items()} for each in (own.alone, own.absent))
        answered = Answered(mine(own.whole), *parts)
        reached.append({name: mine(pair) for name, pair in simple.items()})
        score = task.scores(*answered.whole)[0]
        console.say(name, f"{score.name} {number(score.value)} of {score.n:,} rows")
        found.append((index, answered, score))
        once += i < folds.count
        asked.append(Asked(run.model, run.task, rows, index, run.precision))

    def again(some: np.ndarray) -> Answers:
        """By the model that never saw the row."""
        told = []
        for row in some.tolist():
            a = next(a for a in asked if row in a.index)
            told += [a.task.finish(out) for _, out in stream(a.model, a.rows, np.array([row]), precision=a.precision)]
        return merge(told)

    out = _scored(data, found, once, again)
    names = [name for name in reached[0] if all(name in each for each in reached)]
    out.rungs = {name: _spread(data, [each[name] for each in reached], once, 1)[0] for name in names}
    out.asked = asked[:once]
    return out


def _run(
    table: Any, out: Path, how: dict, within: Within, device: torch.device, console: Console, fit: Callable[..., Any]
) -> Run:
    """The run of a fold: loaded, gone on with, or made."""
    if (out / DONE).is_file():
        return load(out, device=device)
    begun = (out / CONFIG).is_file()
    if not begun:
        shutil.rmtree(out, ignore_errors=True)  # what a kill left before it was a run
    run = fit(table, out=out, resume=begun, console=console, within=within, **({} if begun else how))
    if run.stopped == "interrupted":
        raise Stopped(console.label)
    write_json(out / DONE, {"stopped": run.stopped})
    return run


def _scored(
    data: Prepared,
    found: list[tuple[np.ndarray, Answered, Score]],
    once: int,
    again: Callable[[np.ndarray], Answers],
) -> Assessment:
    """One assessment of all folds, of which the first `once` are one drawing: pictures and examples are of that."""
    task, folds = data.task, data.folds
    index = np.concatenate([rows for rows, _, _ in found[:once]])
    whole = [answered.whole for _, answered, _ in found]

    first = _pool(whole[:once])
    left = sum((Counter(why) for why in data.left_out.values()), Counter())
    left += Counter(task.aside(data.rows, index, *first))
    left += Counter({"row of the earliest, which are learnt from alone": sum(data.sizes().values()) - len(index)})
    own = [score.value for _, _, score in found]
    how = (
        f"{len(index):,} rows, each judged by a model that never saw it ({folds.title()}, {found[0][2].name} from "
        f"{number(min(own))} to {number(max(own))}); the intervals cover other rows to learn from and to judge, and "
        "other first weights"
    )
    baseline = task.baseline(*first)
    truth, answers = first
    out = Assessment(
        index, truth, answers, again, _spread(data, whole, once), baseline, left_out=dict(left.most_common()), how=how
    )
    if found[0][1].alone:
        labels = list(found[0][1].alone)
        alone, absent = (
            {
                label: _spread(data, [getattr(each, which)[label] for _, each, _ in found], once, 1)[0]
                for label in labels
            }
            for which in ("alone", "absent")
        )
        out.compare(alone, absent)
        pairs = [gains(task, answered, out.best_alone) for _, answered, _ in found]
        rows = [whole - alone for whole, alone in pairs]
        (out.gain,) = spread(rows, once, folds.ratio, _gain)
    return out


def _spread(data: Prepared, pairs: Sequence[Pair], once: int, most: int | None = None) -> list[Score]:
    return spread(pairs, once, data.folds.ratio, lambda pair: data.task.scores(*pair)[:most])


def _gain(rows: np.ndarray) -> list[Score]:
    return [paired_gain(rows, np.zeros(len(rows)))]


def spread(folds: Sequence[Any], once: int, ratio: float, of: Callable[[Any], list[Score]]) -> list[Score]:
    """Scores of what all folds have, with intervals that cover the trainings (`over_folds`). folds: truth and answers
    of each, or an array of its rows; once: how many of them are one drawing of all rows."""
    first, every = of(_pool(folds[:once])), {s.name: s.value for s in of(_pool(folds))}
    without = [
        {s.name: s.value for s in of(_pool([*folds[:j], *folds[j + 1 :]]))} for j in range(len(folds)) if len(folds) > 1
    ]
    return [
        over_folds(s, every[s.name], np.asarray([w.get(s.name, np.nan) for w in without]), ratio)
        for s in first
        if s.name in every
    ]


def _pool(folds: Sequence[Any]) -> Any:
    """The rows of several folds, end to end."""
    if isinstance(folds[0], np.ndarray):
        return np.concatenate(folds)
    return merge([truth for truth, _ in folds]), merge([answers for _, answers in folds])


def evaluated_rows(data: Prepared) -> dict[str, np.ndarray]:
    """The rows that the report speaks of: the test rows and those of other splits never trained on; failing these, the
    validation rows."""
    held = {name: rows for name, rows in data.splits.items() if name not in ("train", "val") and len(rows)}
    for name in ("val", "train"):
        if not held:
            held = {name: data.splits[name]} if len(data.splits[name]) else {}
    return held


def seen(name: str, data: Prepared) -> str:
    """What the rows of this split had to do with the training, and which others no score can count."""
    said = [SEEN[name]] if name in SEEN else []
    for other, why in data.left_out.items():
        if other not in ("train", "val") and not len(data.splits[other]) and why:
            left = ", ".join(f"{count:,} x {what}" for what, count in why.items())
            said.append(f"no {other} row can be scored: {left}")
    return "; ".join(said)
