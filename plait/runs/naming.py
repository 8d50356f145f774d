"""Classes that nobody trained for, told by their names: by a run whose texts and rows lie in one space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch

from plait.core.roles import Embedder
from plait.data.kinds import KINDS
from plait.data.kinds.base import Place
from plait.data.schema import Schema, Slot
from plait.data.table import Table
from plait.errors import DataError, UsageError
from plait.runs.predict import outputs
from plait.runs.run import Run
from plait.tasks.caption import Caption
from plait.tasks.published import NONE, SURE, ClassifyByTexts, KnownClasses, label_column

AROUND = {"image": "a photo of a {}"}  # a name, by the kind of the rows; of other rows nothing
FEWEST = round(1 / SURE) - 1  # others, below which no row could be told from them


def named(
    run: Run,
    classes: Sequence[str],
    *,
    templates: Sequence[str] = (),
    none: Any = None,
    allow_outside: bool = False,
    progress=None,
) -> Run:
    """`run` as one that tells which of `classes` a row is: predict, evaluate (on a column `label`).

    Each class is the mean of the unit vectors of all templates with its name in the place of `{}`; probabilities are
    the softmax over its cosines times the factor that the model learnt (arXiv:2103.00020). templates: by default
    AROUND. The rows are the run's pictures or sounds; its texts where it reads nothing else.

    none: a table of rows that are of no class. A row is then `none of these` unless at most 5% of them, itself
    included, are as near to a class as it is: of rows of no class, if they are like these, at most 5% in the mean get
    one. How many rows of a class are lost by this is not known.
    A run that writes captions or answers says the likeliest of `classes` in each row, and how likely that is among
    them (of more than 128 those with the likeliest first words are compared); it takes no templates.
    Raises UsageError where the run reads no texts, or has classes of its own.
    """
    _refuse_odd(classes)
    if isinstance(run.task, Caption):
        if templates or none is not None:
            raise UsageError("templates and rows of no class are for runs that compare texts: this one writes them")
        return _closed(run, classes)
    texts, slot = _sides(run)
    templates = list(templates) or [AROUND.get(slot.kind, "{}")]
    if odd := [t for t in templates if "{}" not in t]:
        raise UsageError(f"the template {odd[0]!r} has no {{}} for the name of a class, as in 'a photo of a {{}}'")
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    rows = run.rows(Table(pa.table({texts.columns[0]: prompts}), None, "the classes"))
    if remarks := rows.notes or rows.bad.by_reason():
        raise UsageError(f"the model cannot read all classes in their templates: {remarks}; give shorter ones")
    vectors = run.vectors(rows, progress)[texts.name].reshape(len(classes), len(templates), -1).mean(1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scale = float(cast(Embedder, run.model.bound.system).logit_scale.detach().exp())
    column = run.schema.column(slot.columns[0])
    schema = Schema([column, label_column(list(classes))], [Slot(slot.name, slot.kind, list(slot.columns))])
    task = ClassifyByTexts(list(classes), slot.name, torch.from_numpy(vectors), scale)
    device = next(run.model.parameters()).device
    made = Run(run.folder, schema, task, task.model(run.model.bound).to(device).eval(), run.precision, used=run.used)
    if none is not None:
        rows = made.rows(none, allow_outside=allow_outside, progress=progress)
        index = np.flatnonzero(rows.presence()[slot.name])
        if len(index) < FEWEST:
            raise DataError(
                f"{rows.table.source} has {len(index)} readable rows of no class: expected {FEWEST} or more, of which "
                f"{SURE:.0%} can be told"
            )
        task.others = outputs(made.model, rows, index, precision=made.precision, progress=progress)["alike"]
    return made


def _closed(run: Run, texts: Sequence[str]) -> Run:
    """`run`, which writes texts, as one that writes one of these."""
    task = cast(Caption, run.task)
    place, kind = Place(), KINDS[Caption.asks]
    found = kind.encode_some(list(texts), task.text, place)
    read = [ids for ids in found if isinstance(ids, np.ndarray)]
    if len(read) < len(texts) or place.notes:
        raise UsageError(
            f"the model cannot write all of these: one is longer than {task.text['max_tokens']} tokens, or is nothing "
            "to its tokenizer; give others"
        )
    closed = torch.full((len(read), max(map(len, read))), -1)
    for row, ids in zip(closed, read):
        row[: len(ids)] = torch.from_numpy(ids.astype(np.int64))
    model = task.model(run.model.bound)
    model.closed = closed.clamp(min=0), closed >= 0
    return Run(run.folder, run.schema, task, model.eval(), run.precision, used=run.used)


def _refuse_odd(classes: Sequence[str]) -> None:
    if isinstance(classes, str):
        raise UsageError(f"classes: got the text {classes!r}, expected a list of names")
    odd = [c for c in classes if not isinstance(c, str) or not c.strip() or c == NONE]
    if odd or len(set(classes)) < max(2, len(classes)):
        raise UsageError(
            f"classes: got {', '.join(map(repr, classes)) or 'none'}, expected two or more different names, none of "
            f"them empty or {NONE!r}"
        )


def _sides(run: Run) -> tuple[Slot, Slot]:
    """The slot of the texts that name classes, and that of the rows."""
    if isinstance(run.task, KnownClasses):
        raise UsageError("this run has classes of its own: classes are named of one that reads texts, such as clip")
    sides = [s for s in run.schema.slots if s.name in run.task.sides]
    texts = next((s for s in sides if s.kind == "text"), None)
    if texts is None or getattr(run.model.bound.system, "logit_scale", None) is None:
        raise UsageError(
            f"this run ({run.task.name}) does not compare texts: classes are named of one that does, such as clip, a "
            "sentence encoder or a run of --task retrieve"
        )
    return texts, next((s for s in sides if s is not texts), texts)


def names_classes(run: Run) -> bool:
    """Whether `named` can be asked of the run."""
    try:
        _sides(run)
    except UsageError:
        return False
    return True
