"""Vectors: lists of numbers of one length, or JSON text "[...]" -> float32 (F,), standardised."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from plait.core.declared import Record
from plait.data.kinds.base import SIZE, SPREAD, Bad, FitOptions, Glance, Kind, Place, cells_of, counted
from plait.data.stores import Fixed
from plait.parts.scaling import HUGE, Standardise
from plait.parts.tokenizers.features import VectorTokens


class VectorKind(Kind):
    """The length is the most common one of the training rows; other lengths, and cells with NaN or infinity, are
    bad."""

    name, slot, own_slot, straight = "vector", "vector", True, True
    learnt: ClassVar[Record] = Record({"width": SIZE, "mean": list[float], "std": list[SPREAD]})

    def guess(self, glance: Glance) -> str | None:
        if pa.types.is_list(glance.column.type):
            return f"type {glance.column.type}"
        if not glance.is_text or not glance.mostly(r"^\s*\["):
            return None
        share = glance.share(_is_vector)
        return counted(round(share * glance.count), glance.count, "are lists of numbers") if share >= 0.9 else None

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`width`, and `mean` and `std` (lists of that length)."""
        cells = [v for v in map(_try, cells_of(column, 20_000)) if v is not None]
        if not cells:
            return {"width": 1, "mean": [0.0], "std": [1.0]}
        width = Counter(len(v) for v in cells).most_common(1)[0][0]
        stack = np.clip(np.stack([v for v in cells if len(v) == width]), -HUGE, HUGE)
        std = stack.std(0)
        return {"width": int(width), "mean": stack.mean(0).tolist(), "std": np.where(std > 1e-12, std, 1.0).tolist()}

    def width(self, params: dict) -> int:
        return params["width"]

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        value = read_vector(cell)
        if len(value) != params["width"]:
            raise Bad(f"a vector of another length than {params['width']}")
        return self.preprocess(params)(torch.from_numpy(value)).numpy()

    def store(self, rows: int, params: dict) -> Fixed:
        return Fixed(rows, (params["width"],), np.float32)

    def write(self, value: np.ndarray, params: dict) -> list[float]:
        return self.preprocess(params).inverse(torch.from_numpy(np.asarray(value))).tolist()

    def preprocess(self, params: dict) -> nn.Module:
        return Standardise(params["mean"], params["std"])

    def shape(self, columns: dict[str, dict]) -> dict:
        (params,) = columns.values()
        return {"width": params["width"]}

    def tokens(self, width: int, features: int) -> nn.Module:
        """One token for the whole."""
        return VectorTokens(features, width)


def read_vector(cell: Any) -> np.ndarray:
    """A list of numbers, or one written as JSON, as float64. Raises Bad."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise Bad("not a vector") from error
    if not isinstance(cell, list) or not cell or not all(isinstance(x, (int, float)) for x in cell):
        raise Bad("an empty vector" if cell == [] else "not a vector")
    try:
        value = np.asarray(cell, dtype=np.float64)
    except OverflowError as error:
        raise Bad("not a finite number") from error
    if not np.isfinite(value).all():
        raise Bad("not a finite number")
    return value


def _try(cell: Any) -> np.ndarray | None:
    try:
        return read_vector(cell)
    except Bad:
        return None


def _is_vector(cell: Any) -> bool:
    return _try(cell) is not None
