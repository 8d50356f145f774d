"""What a task says of itself beside its head and its scores; a task says otherwise where it differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import nn

from plait.data.rows import Rows


class Pace(NamedTuple):
    """patient: nothing may improve for a long time before it does, so that training is never stopped early."""

    batch: int
    epochs: int
    lr: float
    patient: bool = False


class Common:
    """Defaults of all tasks.

    of_text: the target is a text, also where it looks like classes or numbers. auto: the system that `auto` stands for,
    if not plait's own.
    longest: the share of the inputs that are read whole, the rest is cut. whole: augmentation must not take parts away.
    needs: what the system must be told of the task, arguments of `plait.runs.assemble.recipe`.
    """

    of_text = False
    auto: str | None = None
    longest = 0.99
    whole = False
    needs: dict = {}

    @classmethod
    def options(cls, length: int, pieces: int | None, tokenizer: str | None) -> dict:
        """The arguments of `learn` that come from the settings: tokens of a text at most, pieces of words, a published
        tokenizer.json."""
        return {}

    def sift(
        self, splits: dict[str, np.ndarray], rows: Rows, truth: np.ndarray, make: Callable[[], nn.Module]
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """The splits without rows that cannot be used, and why how many of them are left out; make: builds the
        system."""
        return splits, {}

    def pace(self, rows: int, system: nn.Module, own: bool) -> Pace:
        """For so many training rows; own: whether the system is plait's. Narrow systems learn with larger steps."""
        batch = 32 if rows < 1500 else 64 if rows < 10_000 else 128
        lr = 1e-3 if own else float(np.clip(0.192 / getattr(system, "width", 384), 5e-4, 1e-3))
        return Pace(batch, int(np.clip(round(80_000 / rows), 8, 150)), lr)
