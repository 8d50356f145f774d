"""Labels: a list of any number of them in a cell -> one 0 or 1 for each that the training rows have."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from plait.data.kinds.base import Bad, FitOptions, Glance, Kind, Place, cells_of
from plait.data.stores import Fixed


class LabelsKind(Kind):
    """Never guessed: only whoever asks knows that a list is a set. As an input it is a vector of zeros and ones."""

    name, slot, own_slot = "labels", "vector", True

    def guess(self, glance: Glance) -> None:
        return None

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`values`: the labels in order; `counts`: how many cells have each, of `cells`."""
        cells = [set(cell) for cell in map(labels_of, cells_of(column)) if cell is not None]
        counts = Counter(label for cell in cells for label in cell)
        values = sorted(counts)
        return {"values": values, "width": len(values), "counts": [counts[v] for v in values], "cells": len(cells)}

    def width(self, params: dict) -> int:
        return params["width"]

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        has = labels_of(cell)
        if has is None:
            raise Bad("not a list of labels")
        return np.isin(params["values"], has).astype(np.float32)

    def store(self, rows: int, params: dict) -> Fixed:
        return Fixed(rows, (params["width"],), np.float32)

    def write(self, value: np.ndarray, params: dict) -> list[str]:
        return [label for label, there in zip(params["values"], value) if there >= 0.5]

    def target(self, x: Tensor, keep: Tensor | None, present: Tensor) -> Tensor:
        """(B, K) int64: 1, 0, and -100 in a row that knows none."""
        return x.to(torch.int64).masked_fill(~present[:, None], -100)


def labels_of(cell: Any) -> list[str] | None:
    """The labels of a list, or of one written as JSON; None of anything else."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    return [str(x) for x in cell] if isinstance(cell, list) else None
