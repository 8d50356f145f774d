"""Columns side by side: what reads a large one spends its time in Arrow and NumPy, which leave Python to others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MANY = 100_000  # rows of a column, from where threads are worth it
THREADS = 2  # each holds what it makes of a column

T = TypeVar("T")
R = TypeVar("R")


def each(work: Callable[[T], R], items: Iterable[T], rows: int) -> list[R]:
    """`work` of each item, in their order, in threads where columns have many rows. The first fault, in that order, is
    raised."""
    if rows < MANY:
        return [work(item) for item in items]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))
