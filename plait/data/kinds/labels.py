"""Labels: a list of any number of them in a cell -> one 0 or 1 for each that the training rows have."""

from __future__ import annotations

import ast
import json
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from plait.core.declared import WHOLE, Record
from plait.data.arrow import as_text
from plait.data.kinds.base import COUNT, Bad, FitOptions, Glance, Kind, Place, cells_of
from plait.data.stores import Fixed
from plait.data.words import labels


class LabelsKind(Kind):
    """Guessed of lists of texts by their type alone. As an input it is a vector of zeros and ones; asked for, one place
    more says whether there is a label that no training row has."""

    name, slot, own_slot = "labels", "vector", True
    learnt: ClassVar[Record] = Record(
        {"values": list, "width": COUNT, "counts": list[COUNT], "cells": COUNT, "mark": str | None}, {"asked": bool}
    )

    def guess(self, glance: Glance, asked: bool = False) -> str | None:
        """asked: labels may all be there once."""
        if not glance.is_text or not glance.mostly(r"^\s*\["):
            return None
        found = [labels_of(cell, None) for cell in glance.sample]
        if not all(cell is not None and all(isinstance(label, str) for label in cell) for cell in found):
            return None
        counts = Counter(label for cell in found for label in cell)
        if not counts or (not asked and 2 * len(counts) > sum(counts.values())):
            return None  # hardly any label is there twice
        return f"lists of {len(counts):,} different labels"

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`values`: the labels in order; `counts`: how many cells have each, of `cells`; `mark`: what stands between
        the labels of a text."""
        mark = _mark(cells_of(column, 2000))
        cells = [set(_words(cell)) for cell in (labels_of(c, mark) for c in cells_of(column)) if cell is not None]
        counts = Counter(label for cell in cells for label in cell)
        values = sorted(counts)
        found = {"values": values, "width": len(values), "counts": [counts[v] for v in values], "cells": len(cells)}
        return found | {"mark": mark}

    def fit_target(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        return self.fit(column, options) | {"asked": True}

    def width(self, params: dict) -> int:
        return params["width"] + params.get("asked", False)

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        has = labels_of(cell, params.get("mark"))
        if has is None:
            raise Bad("not a list of labels")
        at = [labels(tuple(params["values"])).find(label) for label in _words(has)]
        out = np.zeros(params["width"] + 1, np.float32)
        out[[-1 if i is None else i for i in at]] = 1.0
        if None in at:
            place.note("a label that no training row has")
        return out[: self.width(params)]

    def store(self, rows: int, params: dict) -> Fixed:
        return Fixed(rows, (self.width(params),), np.float32)

    def write(self, value: np.ndarray, params: dict) -> list[str]:
        return [label for label, there in zip(params["values"], value) if there >= 0.5]

    def target(self, x: Tensor, keep: Tensor | None, present: Tensor) -> Tensor:
        """(B, K + 1) int64: 1, 0, and -100 in a row that knows none."""
        return x.to(torch.int64).masked_fill(~present[:, None], -100)


def labels_of(cell: Any, mark: str | None) -> list | None:
    """The labels of a list, of one written as JSON or as Python does, or of a text with `mark` between them; None of
    anything else."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            try:
                cell = ast.literal_eval(cell.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return None
    elif isinstance(cell, str) and mark is not None:
        cell = cell.split(mark)
    return [label for label in cell if label is not None] if isinstance(cell, list) else None


def _words(labels: list) -> list[str]:
    texts = (str(int(v)) if isinstance(v, float) and v == v // 1 and abs(v) < WHOLE else as_text(v) for v in labels)
    return [word for text in texts if (word := " ".join(text.split()))]


def _mark(cells: list) -> str | None:
    """What most of the texts have between their parts; None where they are lists."""
    texts = [c for c in cells if isinstance(c, str) and not c.lstrip().startswith("[")]
    if not texts:
        return None
    return max(";|,", key=lambda mark: (sum(mark in text for text in texts), -";|,".index(mark)))
