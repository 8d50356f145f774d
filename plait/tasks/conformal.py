"""How far answers may be off: split conformal prediction (Vovk, Gammerman and Shafer 2005; Lei et al. 2018) by rows
that nothing was trained on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plait.errors import UsageError

MOST = 1000  # misses that are kept


class Misses(NamedTuple):
    """How far off the answers of `rows` rows were: values (m,), ascending, and the rank from 1 of each among all."""

    rows: int
    ranks: list[int]
    values: list[float]

    @classmethod
    def of(cls, misses: np.ndarray) -> Misses:
        """Of misses (n,); of more than 1,000 evenly spaced ones are kept."""
        ordered = np.sort(np.asarray(misses, np.float64))
        n = len(ordered)
        at = np.unique(np.linspace(0, n - 1, min(n, MOST)).round().astype(np.int64)) if n else np.zeros(0, np.int64)
        return cls(n, (at + 1).tolist(), ordered[at].tolist())

    def within(self, level: float) -> float:
        """What a new row's miss is not above, in at least a share `level` of all draws of these rows and it. Raises
        UsageError where there are too few rows for that."""
        rank = int(np.ceil((self.rows + 1) * level - 1e-9))
        if rank > self.rows:
            need = int(np.ceil(level / (1 - level) - 1e-9))
            raise UsageError(
                f"intervals of {level:.4g} need at least {need:,} validation rows, and this run has {self.rows:,}: "
                "ask for less, or train with more rows to watch"
            )
        return self.values[int(np.searchsorted(self.ranks, rank))]


def checked_level(level: float) -> float:
    """A share between 0 and 1."""
    if not 0 < level < 1:
        raise UsageError(f"interval: got {level:g}, expected a share between 0 and 1, such as 90%")
    return level
