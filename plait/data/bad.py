"""Cells that hold something unusable."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from plait.core.files import write_whole
from plait.data.arrow import as_text


class BadCells:
    """The cells that hold something unusable: row, column, kind, reason, and the value's beginning. Each cell is listed
    once."""

    def __init__(self) -> None:
        self.cells: dict[tuple[int, str], tuple[str, str, str]] = {}
        self.reasons: dict[str, Counter[str]] = {}
        self.lock = threading.Lock()

    def add(self, row: int, column: str, kind: str, reason: str, value: Any) -> None:
        """List one cell; a second reason for the same cell is not kept."""
        if isinstance(value, dict):
            value = value["path"] if value.get("path") is not None else value.get("bytes")
        shown = f"<{len(value)} bytes: {value[:16].hex()}>" if isinstance(value, bytes) else as_text(value)[:200]
        with self.lock:
            if (key := (int(row), column)) not in self.cells:
                self.cells[key] = (kind, reason, shown)
                self.reasons.setdefault(column, Counter())[reason] += 1

    def take(self, other: BadCells, column: str) -> None:
        """List the cells of a column that another lists."""
        self.cells |= {key: cell for key, cell in other.cells.items() if key[1] == column}
        if column in other.reasons:
            self.reasons[column] = other.reasons[column].copy()

    def count(self) -> int:
        """The number of bad cells."""
        return len(self.cells)

    def rows(self) -> np.ndarray:
        """The rows with at least one bad cell, sorted."""
        return np.unique(np.fromiter((row for row, _ in self.cells), dtype=np.int64, count=len(self.cells)))

    def by_reason(self, column: str | None = None) -> dict[str, int]:
        """{reason: cells}, the most frequent first; of one column or of all."""
        if column is not None:
            found = self.reasons.get(column, Counter())
        else:
            found = sum(self.reasons.values(), Counter())
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def write(self, path: str | Path) -> Path:
        """Write all of them as Parquet (row, column, kind, reason, value), also when there are none. Replaces the file
        in one step."""
        keys = sorted(self.cells)
        lines = [(*key, *self.cells[key]) for key in keys]
        types = [
            ("row", pa.int64()),
            ("column", pa.string()),
            ("kind", pa.string()),
            ("reason", pa.string()),
            ("value", pa.string()),
        ]
        arrays = [pa.array([line[i] for line in lines], kind) for i, (_, kind) in enumerate(types)]
        table = pa.Table.from_arrays(arrays, names=[name for name, _ in types])
        return write_whole(path, lambda part: pa.parquet.write_table(table, part))
