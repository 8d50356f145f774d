"""Rows of a batch: nested dicts of tensors with the rows first."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from plait.errors import PlaitError


def count_rows(batch: dict) -> int:
    """The number of rows of a batch: the first dimension of its first tensor."""
    for value in batch.values():
        if isinstance(value, Tensor):
            return value.shape[0]
        if isinstance(value, dict) and value:
            return count_rows(value)
    raise PlaitError("a batch without any tensor: expected a dict of tensors with the rows first")


def some_rows(value: Any, part: slice) -> Any:
    """The same of some rows; what has none stays as it is."""
    if isinstance(value, dict):
        return {k: some_rows(v, part) for k, v in value.items()}
    return value[part] if isinstance(value, Tensor | list | tuple) else value
