"""Rows as a report shows them: their cells, and the best and the worst answers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from plait.data.rows import Rows
from plait.evaluate import style
from plait.evaluate.intervals import number
from plait.evaluate.report import Example, Examples, Section

SHOWN = 6  # examples right, and as many wrong


def examples(
    rows: Rows, index: np.ndarray, told: dict[str, Any], value: np.ndarray, target: str | None
) -> list[Section]:
    """The best and the worst answers among the rows `index`. told: columns of predictions, the answer first; value (n,)
    how good each is; target: the column that holds the truth, if it is one."""
    names = rows.schema.inputs[:6]
    first, *more = told
    answers, probability = told[first], next((told[n] for n in more if n.rstrip("_") == "probability"), None)
    truths = rows.table.take(index)
    good, poor = np.argsort(-value, kind="stable")[:SHOWN], np.argsort(value, kind="stable")[:SHOWN]
    exact = set(np.unique(value)) <= {0.0, 1.0}
    shown = [i for i in good if not exact or value[i] == 1] + [i for i in poor if not exact or value[i] == 0]
    lines = []
    for i in shown:
        truth = truths.column(target)[int(i)].as_py() if target is not None else None
        cells = [_cell(rows, n, int(index[i])) for n in names]
        said = "blank" if answers[i] is None else answers[i]
        answer = said if isinstance(said, (str, bool, list)) else number(float(said))
        sure = None if probability is None else float(probability[i])
        lines.append(Example(cells, truth, answer, sure, bool(value[i]) if exact else None))
    return [Section("Examples: the best and the worst answers", "examples", Examples(names, lines))] if lines else []


def picture_of(rows: Rows, column: str, row: int) -> np.ndarray | None:
    """(3, H, W) in [0, 1] as the model reads the cell; None where the column holds no pictures."""
    slot = next(s for s in rows.schema.slots if column in s.columns)
    return rows.batch(np.array([row]))[slot.name][0].numpy() if slot.kind == "image" else None


def _cell(rows: Rows, column: str, row: int) -> object:
    image = picture_of(rows, column, row)
    if image is not None:
        if not rows.presence()[next(s.name for s in rows.schema.slots if column in s.columns)][row]:
            return None
        buffer = io.BytesIO()
        Image.fromarray((image.transpose(1, 2, 0) * 255).round().astype(np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()
    value = rows.table.column(column)[row].as_py()
    if value is None or isinstance(value, (bytes, dict)):
        kind = rows.schema.column(column).kind
        return None if value is None else "(sound)" if kind == "audio" else f"({kind})"
    return f"{value:.6g}" if isinstance(value, float) else style.shorten(value, 120)
