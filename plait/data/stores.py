"""Where encoded cells lie: compact, filled from several threads, read by index arrays without a Python loop."""

from __future__ import annotations

import threading

import numpy as np
import torch

LONG = 1024  # above this, copying row by row beats an index for every sample (measured: 2 to 4 times)


class Fixed:
    """Cells of one shape: pictures (uint8, read as float32 / 255) and vectors (float32)."""

    def __init__(self, rows: int, shape: tuple[int, ...], dtype: type, scale: float = 1.0):
        self.data = np.zeros((rows, *shape), dtype)  # zero pages cost nothing until written
        self.scale = scale
        self.nbytes = self.data.nbytes

    def replace(self, row: int, cell: np.ndarray) -> None:
        """Keep the cell of one row."""
        self.data[row] = cell

    def seal(self) -> None:
        """Called once after the last put."""

    def batch(self, index: np.ndarray) -> tuple[torch.Tensor, None]:
        """The rows `index` (B,) as float32 (B, *shape); rows that were never put are zeros."""
        picked = torch.from_numpy(self.data[index]).to(torch.float32)
        return (picked if self.scale == 1.0 else picked.mul_(self.scale)), None


class Ragged:
    """Cells of different lengths, end to end in one array: token ids (int32, read as int64), sounds (int16, read as
    float32 / 32767), and whatever is read as float32 times `scale`. shape: of one place in a cell."""

    def __init__(
        self, rows: int, dtype: type, step: int, most: int, pad: int = 0, scale: float | None = None, shape: tuple = ()
    ):
        self.rows, self.dtype, self.step, self.most, self.pad, self.scale = rows, dtype, step, most, pad, scale
        self.shape = shape
        self.cells: dict[int, np.ndarray] = {}
        self.nbytes = 0
        self.lock = threading.Lock()

    def replace(self, row: int, cell: np.ndarray) -> None:
        """Keep the cell of one row."""
        with self.lock:
            self.cells[row] = cell
            self.nbytes += cell.nbytes

    def seal(self) -> None:
        """Lay the cells end to end. Called once after the last put."""
        self.length = np.zeros(self.rows, np.int64)
        for row, cell in self.cells.items():
            self.length[row] = len(cell)
        self.start = np.concatenate([[0], np.cumsum(self.length)[:-1]]) if self.rows else np.zeros(0, np.int64)
        self.flat = np.concatenate(
            [self.cells[row] for row in sorted(self.cells)] or [np.zeros((0, *self.shape), self.dtype)]
        )
        self.cells = {}

    def batch(self, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows `index` (B,) padded to (B, N, *shape), and keep (B, N). N is the longest of them rounded up to
        `step`, at most `most`."""
        length = self.length[index]
        longest = int(length.max(initial=1))
        n = min(-(-max(longest, 1) // self.step) * self.step, self.most)
        keep = np.arange(n) < length[:, None]  # (B, N)
        picked = np.full((*keep.shape, *self.shape), self.pad, self.dtype)
        if n <= LONG:
            picked[keep] = self.flat[(self.start[index][:, None] + np.arange(n))[keep]]
        else:
            for row, first, size in zip(picked, self.start[index], length):
                row[:size] = self.flat[first : first + size]
        cells = torch.from_numpy(picked)
        cells = cells.to(torch.int64) if self.scale is None else cells.to(torch.float32).mul_(self.scale)
        return cells, torch.from_numpy(keep)
