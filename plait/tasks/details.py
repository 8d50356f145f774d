"""What a report says beyond the scores of answers that are classes or numbers: where they are worse, how far their
probabilities can be believed, and what each threshold gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pyarrow as pa

from plait.data.kinds import KINDS
from plait.data.kinds.number import NumberKind
from plait.data.rows import Rows
from plait.evaluate import charts
from plait.evaluate.intervals import mean_score
from plait.evaluate.report import Section, Table
from plait.evaluate.slices import Slice, by_class, by_names, by_numbers, worst

MOST_SLICES, MOST_CLASSES, CURVES = 8, 50, 7
ENOUGH = 40  # rows, for groups of probabilities


def slices_of(rows: Rows, index: np.ndarray) -> list[Slice]:
    """The rows `index` by each input column: by size, by name, and by whether there is anything."""
    found: list[Slice] = []
    there = rows.presence()
    for slot in rows.schema.slots:
        for name in slot.columns:
            column = rows.schema.column(name)
            if name in rows.absent:
                continue
            if slot.kind == "number" and column.kind == "number":
                values, real = rows.plain(name)
                sizes = np.full(len(values), np.nan)
                kind = cast(NumberKind, KINDS["number"])
                sizes[real[:, 0]] = kind.undo(values[real[:, 0], 0].astype(np.float64), column.params)
                found += by_numbers(name, sizes[index])
            elif slot.kind == "category":
                cells = rows.table.column(name).take(pa.array(index)).to_pylist()
                found += by_names(name, cells)
            else:
                present = np.asarray(there[slot.name] if KINDS[slot.kind].own_slot else rows.plain(name)[1].any(1))
                found += by_names(name, ["there" if p else None for p in present[index]])
    return found


def worse(
    slices: Sequence[Slice], figure: np.ndarray, name: str, better: str, residual: np.ndarray | None = None
) -> list[Section]:
    """The slices that are worst by `figure` (n,); residual (n,): truth less prediction."""
    lines = []
    for part, score in worst(slices, figure, name, better, MOST_SLICES):
        more = [] if residual is None else [mean_score("residual", residual[part.rows], "lower")]
        lines.append((part.column, part.what, len(part.rows), score, *more))
    if not lines:
        return []
    titles = ("column", "cells", "rows", f"{name} [95% interval]")
    also = () if residual is None else ("mean of truth − prediction",)
    note = (
        f"all rows: {figure.mean():.3g}. A slice whose interval holds that may be worse by chance, and of many slices "
        "some are"
    )
    return [Section("Where it is worse", "table", Table((*titles, *also), lines, note))]


def of_classes(
    truth: np.ndarray, p: np.ndarray, names: list[str], counts: Sequence[float], answer: np.ndarray
) -> list[Section]:
    """Classes one by one, reliability, and each class against the rest. truth (n,) may hold classes beyond those that
    p (n, K) is of; answer (n,). counts (K,): in the training rows, by their weights where they have any."""
    K = len(names)
    order = np.argsort(-np.asarray(counts), kind="stable")[:MOST_CLASSES]
    told = by_class(truth, answer, K)
    lines = [(names[k], *told[k][:3], round(counts[k]), told[k][3]) for k in sorted(order)]
    new = int((truth >= K).sum())
    lines += [("never learnt", None, None, None, 0, new)] if new else []
    head = ("class", "precision", "recall", "F1", "in training", "in these rows")
    note = f"the {MOST_CLASSES} most frequent of {K:,} classes" if K > MOST_CLASSES else ""
    out = [Section("Class by class", "table", Table(head, lines, note))]
    one = [1] if K == 2 else range(K)
    parts = [(names[k], truth == k, p[:, k]) for k in one]
    if len(truth) >= ENOUGH:
        if K == 2:
            believed = charts.reliability(p[:, 1], truth == 1, f"probability of {names[1]}")
        else:
            believed = charts.reliability(p[:, :K].max(1), answer == truth, "probability of the answer")
        out.append(Section("Can its probabilities be believed?", "chart", [believed]))
    return out + thresholds(parts)


def thresholds(parts: list[charts.Part]) -> list[Section]:
    """Curves of a few classes or labels, each against the rest."""
    drawn = [c for c in (charts.roc(parts), charts.precision_recall(parts)) if c] if len(parts) <= CURVES else []
    return [Section("At every threshold", "chart", drawn)] if drawn else []


def of_labels(truth: np.ndarray, said: np.ndarray, labels: list[str], rates: list[float]) -> list[Section]:
    """Labels one by one; truth (n, K or more) of 1, 0 and -100 = unknown, said likewise, bool."""
    lines = []
    for k in np.argsort(-np.asarray(rates), kind="stable")[:MOST_CLASSES]:
        known = truth[:, k] != -100
        (_, (precision, recall, f1, count)) = by_class(truth[known, k], said[known, k].astype(int), 2)
        lines.append((labels[k], precision, recall, f1, f"{rates[k]:.1%}", count, int(known.sum())))
    head = ("label", "precision", "recall", "F1", "of the training rows", "in these rows", "of known")
    note = f"the {MOST_CLASSES} most frequent of {len(labels):,} labels" if len(labels) > MOST_CLASSES else ""
    return [Section("Label by label", "table", Table(head, lines, note))]
