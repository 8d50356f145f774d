"""A trained model's outputs for rows of a table: in order, one per row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from plait.data.arrow import text_bytes
from plait.data.columns import Column
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.errors import DataError, UsageError
from plait.tasks.base import Answers, Task, TaskModel, unlike
from plait.tasks.conformal import checked_level
from plait.tasks.registry import nouns
from plait.tasks.rowwise import merge
from plait.train.parallel import to_device


def without(batch: dict, slots: Iterable[str]) -> dict:
    """The batch with these slots marked absent."""
    gone = set(slots)
    return {**batch, "present": {s: torch.zeros_like(p) if s in gone else p for s, p in batch["present"].items()}}


def watched(model: TaskModel, batch: dict) -> dict[str, Tensor]:
    """What is watched while a model learns: its network alone, without what answers beside it."""
    return model.watched(batch)


def asked_how(
    task: Task,
    model: TaskModel,
    *,
    beam: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    interval: float | None = None,
) -> None:
    """Tell the model how answers are looked for, as far as its task has a choice. Raises UsageError where it has none,
    and for what cannot be."""
    if beam and not task.beams:
        raise UsageError(f"a beam is for {nouns(lambda t: t.beams)}: this run does {task.name}")
    if beam < 0:
        raise UsageError(f"beam: got {beam}, expected 0 or more")
    if not task.draws and (guidance is not None or steps is not None or seed):
        able = nouns(lambda t: t.draws)
        raise UsageError(f"guidance, steps and a seed are for {able}: this run does {task.name}")
    if steps is not None and steps < 1:
        raise UsageError(f"steps: got {steps}, expected 1 or more")
    if guidance is not None and not 0 <= guidance < float("inf"):
        raise UsageError(f"guidance: got {guidance}, expected a number from 0 on")
    if not 0 <= seed < 2**31:
        raise UsageError(f"seed: got {seed}, expected 0 to {2**31 - 1}")
    if interval is not None and not task.spans:
        raise UsageError(f"intervals are for {nouns(lambda t: t.spans)}: this run does {task.name}")
    if interval is not None and task.misses is None:
        raise UsageError(
            "this run does not know how far off it is: it was trained without validation rows, or changed since. "
            "Train it with rows that watch (--val, or those that fit keeps)"
        )
    task.interval = None if interval is None else checked_level(interval)
    if task.interval is not None and task.misses is not None:
        task.misses.within(task.interval)  # raises where the rows are too few
    if task.beams:
        model.beam = beam
    if task.draws:
        model.guidance, model.steps, model.seed = guidance, steps, seed


OF_TRUTH = ("loss", "error", "usual")  # outputs that say something of the truth, which may not be there
Call = Callable[[Any, dict], dict[str, Tensor]]


def stream(
    model: TaskModel,
    rows: Rows,
    index: np.ndarray,
    *,
    batch_size: int = 128,
    precision: str = "fp32",
    absent: Iterable[str] = (),
    call: Call | None = None,
    progress: Callable[[int, int], None] | None = None,
    strict: bool = True,
) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
    """Batch by batch of the rows `index`, in that order: the batch, and what `model.answer` (or `call(model, batch)`)
    gives for it, as numpy, numbers as float32. absent: slots taken away from what the model sees. strict: raises
    DataError for NaN."""
    device = next(model.parameters()).device
    call = call or (lambda m, b: m.answer(b))
    training = model.training
    model.eval()
    try:
        for start in range(0, len(index), batch_size):
            batch = rows.batch(index[start : start + batch_size])
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                out = call(model, without(to_device(batch, device), absent))
            found = {k: (v.float() if v.is_floating_point() else v).cpu().numpy() for k, v in out.items()}
            if strict:
                _refuse_nan(found)
            yield batch, found
            if progress:
                progress(min(start + batch_size, len(index)), len(index))
    finally:
        model.train(training)


def _refuse_nan(out: dict[str, np.ndarray]) -> None:
    """No input makes a trained model's outputs NaN, but weights do."""
    for name, values in out.items():
        if name not in OF_TRUTH and values.dtype.kind == "f" and np.isnan(values).any():
            rows = int(np.isnan(values).reshape(len(values), -1).any(1).sum())
            raise DataError(
                f"the model gives no numbers ({name} is NaN in {rows:,} of {len(values):,} rows): its weights are "
                "damaged, or its training came apart. plait verify RUN says whether the files are as they were written"
            )


def outputs(model: TaskModel, rows: Rows, index: np.ndarray, **how) -> dict[str, np.ndarray]:
    """All of `stream`'s outputs, end to end."""
    return merge([out for _, out in stream(model, rows, index, **how)])


def answered(task: Task, model: TaskModel, rows: Rows, index: np.ndarray, **how) -> tuple[Answers, Answers]:
    """What the task records of truth and answers for the rows `index`, end to end. how: as for `stream`."""
    kept = [task.record(batch, task.finish(out)) for batch, out in stream(model, rows, index, **how)]
    return merge([truth for truth, _ in kept]), merge([answers for _, answers in kept])


def answer_table(schema: Schema, told: Answers, unread: list[str], others: Iterable[str] = ()) -> pa.Table:
    """Answers as a table: `row`, what is told of each, and `unread`.

    An answer is called as its target, and of the type that the training table has; what else is told is called neither
    so nor as any other column of that table, nor as one of `others` (those of the table that is answered), so that all
    can stand side by side.
    """
    targets = {c.name: c for c in schema.used("target")}
    taken, cells = {c.name for c in schema.columns} | set(others), {}
    for name, found in told.items():
        free = name if name in targets else unlike(name, taken | (set(told) if name in taken else set()))
        cells[free] = _typed(found, targets.get(name))
        taken.add(free)
    row, bad = (unlike(name, taken) for name in ("row", "unread"))
    return pa.table({row: pa.array(np.arange(len(unread)))} | cells | {bad: pa.array(unread, pa.string())})


def _typed(cells: Any, column: Column | None) -> pa.Array:
    array = pa.array(cells)
    if column is None or column.kind not in ("category", "ordinal") or "type" not in column.style:
        return array
    if column.style.get("ranked"):
        order = pa.array(column.params["classes"])
        return pa.DictionaryArray.from_arrays(pc.index_in(array, value_set=order), order, ordered=True)
    try:
        if column.style["type"] in ("binary", "large_binary"):
            return pa.array([None if c is None else text_bytes(c) for c in array.to_pylist()], column.style["type"])
        return array.cast(pa.type_for_alias(column.style["type"]))
    except (ValueError, pa.ArrowException):  # a type whose cells are told as texts
        return array
