"""The ladder of simple models in a run: learnt before training, and weighed against the network after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait.data.rows import Rows
from plait.evaluate.intervals import Score, number
from plait.evaluate.report import Section, Table
from plait.runs.aside import aside
from plait.runs.console import Console
from plait.runs.folder import LADDER
from plait.runs.manifest import rewriting
from plait.runs.predict import outputs, watched
from plait.runs.prepare import Prepared
from plait.tasks.base import Answers, Task
from plait.tasks.beneath import Ladder, Several, several
from plait.tasks.beneath.design import Parts, joined, parts
from plait.tasks.beneath.learn import Reader
from plait.tasks.rowwise import Answer, AnswerTask

CHUNK = 512  # rows that are decoded at once
SURE = 2.0  # standard errors: the epoch that answers is the best of many, so chance has had many tries
READ = ("number", "category", "text", "vector", "labels")  # kinds of which simple models see all
WHAT = {
    "classes": "log loss",
    "labels": "log loss a label",
    "number": "squared error, of the variance",
    "quantiles": "pinball loss, of the spread",
}
NAMES = {
    "linear": "linear",
    "kernel": "kernel",
    "trees": "boosted trees",
    "forest": "randomised trees",
    "both": "together",
    "each": "simple models",
}


def given(rows: Rows, index: np.ndarray) -> tuple[Parts, np.ndarray]:
    """What simple models read of some rows, and whether there is anything at all (n,)."""
    found, anything = [], []
    for start in range(0, len(index), CHUNK):
        batch = rows.batch(index[start : start + CHUNK])
        found.append(parts(batch, rows.schema))
        anything.append(np.any([p.numpy() for p in batch["present"].values()], axis=0))
    return joined(found), np.concatenate(anything) if anything else np.zeros(0, bool)


def asked(model: Answer, rows: Rows, index: np.ndarray) -> np.ndarray:
    """What is asked of some rows, as simple models see it."""
    return model.target({"target": rows.target(index)}).numpy()


def climb(model: Any, data: Prepared, folder: Path, seed: int, console: Console) -> Callable[[], None] | None:
    """Give `model` its ladder: that of the folder, of a run that goes on, or one that is learnt now and written.

    Where there are more rows than simple models learn from, an epoch takes longer than they do: they are then learnt
    beside the first one, and what is returned waits for them."""
    if not isinstance(model, Answer) or not data.laddered:
        return None
    if (folder / LADDER).exists():
        model.ladder = several.read(folder / LADDER, data.schema)
        if model.ladder.relearnt:  # from the rows that are about to judge it
            _again(model, data, data.splits["train"], seed)
            model.ladder.relearnt = False
        return None
    begun = time.monotonic()
    task = data.task
    assert isinstance(task, AnswerTask)
    index = data.splits["train"]
    y, weight = asked(model, data.rows, index), data.weights
    weight = None if weight is None else weight[index]
    read, asks = partial(_read, data.rows, index), task.simple()
    many, whole = several.counted(y, asks)

    def learn(read: Reader) -> Ladder | Several | None:
        return several.climb(read, y, asks, task.targets, data.schema, seed, weight)

    def keep(found: Ladder | Several | None) -> None:
        if found is None:
            return
        model.ladder = found
        write(model, folder)
        some = f" on {many:,} of {whole:,} rows" if many < whole else ""
        console.say("beneath", f"{_reached(found)}, out of fold{some}, in {time.monotonic() - begun:.0f} s")

    if many == whole:
        keep(learn(read))
        return None
    held = read(several.drawn(y, asks, seed))  # rows are read by one thread
    console.say("beneath", f"simple models learn from {many:,} of {whole:,} rows while the network begins")
    coming = aside(lambda: learn(lambda _: held))
    return lambda: keep(coming.result())


def _read(rows: Rows, index: np.ndarray, some: np.ndarray) -> Parts:
    """What simple models read of some of the rows `index`."""
    return given(rows, index[some])[0]


def _reached(found: Ladder | Several) -> str:
    if isinstance(found, Several):
        each = {f"{name} ": one for name, one in zip(found.names, found.ladders) if one is not None}
    else:
        each = {"": found}

    def losses(one: Ladder) -> str:
        return ", ".join(f"{NAMES[rung]} {number(loss)}" for rung, loss in one.told.items() if np.isfinite(loss))

    what = WHAT[next(iter(each.values())).asked.name]
    return f"{what}: {'; '.join(name + losses(one) for name, one in each.items())}"


def truth_of(task: Task, rows: Rows, index: np.ndarray) -> Answers:
    """What the task records of some rows, answers aside."""
    batch: dict = {"target": rows.target(index)}
    if rows.weights is not None:
        batch["weight"] = torch.from_numpy(rows.weights[index]).float()
    return task.record(batch, {})[0]


class Beneath:
    """The ladder's answers for the rows that watch a training, and what the network adds to them."""

    def __init__(self, model: Answer, task: Task, rows: Rows, index: np.ndarray):
        assert model.ladder is not None
        self.task, self.ladder = task, model.ladder
        seen, anything = given(rows, index)
        self.answers = self.ladder.beneath(seen, anything)
        self.truth = truth_of(task, rows, index)
        weight = task.row_weights(rows)
        self.weight = None if weight is None else weight[index]
        self.whole = all(slot.kind in READ for slot in rows.schema.slots)  # simple models read all that there is
        self.y = asked(model, rows, index)

    def guide(self, network: np.ndarray) -> float:
        """The task's guide of both together."""
        before: Any = self.ladder.network
        self.ladder.join(self.answers, network, self.y, SURE, self.weight)
        whole = self.ladder.whole(self.answers, network)
        self.ladder.network = before
        return self.task.guide(self.truth, self.task.finish({"outputs": whole}))

    def alone(self, network: np.ndarray) -> dict[str, float]:
        """The guide of the network itself, where it reads what simple models do not see whole: while it gets better it
        may still get ahead."""
        if self.whole:
            return {}
        return {"alone": self.task.guide(self.truth, self.task.finish({"outputs": network}))}

    def settle(self, network: np.ndarray) -> str:
        """Decide how much the network says; a sentence on it."""
        sure = self.ladder.join(self.answers, network, self.y, SURE, self.weight)
        if isinstance(self.ladder, Several) and self.ladder.heard:
            by = [name for name, (_, b) in zip(self.ladder.names, self.ladder.network) if b]
            return f"the network answers with them: {', '.join(by)}"
        if self.ladder.heard:
            return f"the network answers with them: it lowers the loss on validation rows by {sure:.1f} standard errors"
        return (
            "the simple models answer alone: the network added nothing on the validation rows that is more than noise"
        )


def watch(model: Any, task: Task, rows: Rows, index: np.ndarray) -> Beneath | None:
    """Of a model that has a ladder."""
    return Beneath(model, task, rows, index) if isinstance(model, Answer) and model.ladder else None


def write(model: Any, folder: Path) -> None:
    """Write the ladder, of a model that has one."""
    if model.ladder is not None:
        with rewriting(folder / LADDER):
            model.ladder.save(folder / LADDER)


def relearn(
    model: Any, data: Prepared, folder: Path, seed: int, precision: str
) -> Callable[[], tuple[Answers, Answers]] | None:
    """Learn the rungs once more on all rows but those that the report speaks of, and write them. After this nothing is
    weighed by the rows that watched.

    Returns what gives truth and answers, out of fold, of rows that the task can learn from how sure it may be: all of
    these, or those that watched where the network answers too, which has seen the others. None where there are none.
    """
    if not isinstance(model, Answer) or model.ladder is None or not isinstance(data.task, AnswerTask):
        return None
    if not len(data.splits.get("test", ())) and not data.folds:
        return None
    task, rows, ladder = data.task, data.rows, model.ladder
    index = np.sort(np.concatenate([data.splits["train"], data.splits["val"]]))
    read = partial(_read, rows, index)
    y, weight = asked(model, rows, index), None if data.weights is None else data.weights[index]
    held = several.out_of_fold(ladder, read, y, seed, weight)
    several.again(ladder, read, y, seed, weight)
    ladder.relearnt = True
    write(model, folder)
    if held is None:
        return None
    kept = np.isin(index, data.splits["val"]) if ladder.heard else np.ones(len(index), bool)
    held, index, network = held[kept], index[kept], None
    anything = given(rows, index)[1]
    if ladder.heard:
        network = outputs(model, rows, index, precision=precision, call=watched)["outputs"]
    whole = np.where(anything[:, None], ladder.whole(held, network), model.nothing.cpu().numpy())
    return lambda: (truth_of(task, rows, index), task.finish({"outputs": whole}))


def _again(model: Answer, data: Prepared, index: np.ndarray, seed: int) -> None:
    assert model.ladder is not None and isinstance(data.task, AnswerTask)
    weight = None if data.weights is None else data.weights[index]
    read = partial(_read, data.rows, index)
    several.again(model.ladder, read, asked(model, data.rows, index), seed, weight)


def rungs(model: Any, task: Task, rows: Rows, index: np.ndarray, precision: str) -> dict[str, Score]:
    """{rung: the main score on some rows}: of each simple model, of them together, and of the network alone."""
    found = rung_answers(model, task, rows, index, precision)
    return {name: task.scores(*pair)[0] for name, pair in found.items()}


def rung_answers(
    model: Any, task: Task, rows: Rows, index: np.ndarray, precision: str
) -> dict[str, tuple[Answers, Answers]]:
    """{rung: truth and its answers} to some rows."""
    if not isinstance(model, Answer) or model.ladder is None:
        return {}
    simple, truth = model.ladder, truth_of(task, rows, index)
    seen, anything = given(rows, index)
    found = {NAMES[name]: z for name, z in simple.each(seen, anything).items()}
    if simple.heard:
        found["the network"] = outputs(model, rows, index, precision=precision, call=watched)["outputs"]
    return {name: (truth, task.finish({"outputs": z})) for name, z in found.items()}


def ladder(found: dict[str, Score], whole: Score, split: str) -> list[Section]:
    """The part of the report that tells what each reaches."""
    if not found:
        return []
    lines = [*found.items(), ("what answers", whole)]
    table = Table(("model", f"{whole.name} [95% interval]"), lines)
    return [Section(f"What simple models reach on {split} rows, and what answers", "table", table)]


def of_targets(model: Any) -> list[Section]:
    """The part of the report that tells of each ladder, where there are several."""
    found = getattr(model, "ladder", None)
    if not isinstance(found, Several):
        return []
    tried = [name for name in NAMES if any(one and name in one.told for one in found.ladders)]
    lines = []
    for name, one, (_, network) in zip(found.names, found.ladders, found.network):
        told = {} if one is None else one.told
        who = [NAMES[rung] for rung in ([] if one is None else one.rungs)] + ["the network"] * bool(network)
        lines.append((name, *(number(told[k]) if k in told else "" for k in tried), " and ".join(who)))
    head = ("target", *(NAMES[name] for name in tried), "answers")
    note = "squared errors out of fold on the training rows, of the target's variance"
    return [Section("What stands beneath each target", "table", Table(head, lines, note))]
