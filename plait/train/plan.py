"""What a training run is told, asks for and returns: `Plan`, `Job`, `Progress`, `History`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from plait.errors import UsageError


@dataclass
class Plan:
    """How to train: plain numbers, written into every checkpoint."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 0.05
    warmup: float = 0.05  # share of the steps
    clip: float | None = 1.0  # largest norm of the gradients
    ema: float | None = None  # decay of an average of the weights, which is then what is scored and kept
    patience: int | None = None  # epochs without a better score before stopping
    least_gain: float = 0.0  # what a score must be better by for that
    least_alone: float = 0.0  # what a score that the job notes as `alone` must be better by
    enough: float | None = None  # the score of faultless answers: nothing is waited for behind it
    minutes: float | None = None  # time budget; the schedule then follows whichever is further, steps or clock
    precision: str = "fp32"  # or "bf16"
    seed: int = 0
    checkpoint_seconds: float = 60.0  # 0: after every step

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise UsageError(f"precision: got {self.precision!r}, expected fp32 or bf16")
        for name in ("epochs", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name}: got {getattr(self, name)}, expected more than 0")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"ema: got {self.ema}, expected a decay between 0 and 1, such as 0.999")


class Job(Protocol):
    """What is trained. `model(batch, generator)` returns named losses (scalars), which the trainer sums.

    The model's parameters are the trainer's; what else changes from step to step (a momentum teacher, a queue) lives in
    `state`, is changed in `after_step`, and is saved with each checkpoint.
    """

    model: Any  # an nn.Module
    state: nn.Module | None
    steps_per_epoch: int

    def batches(self, epoch: int, start: int) -> Iterator[dict]:
        """The batches of epoch 0, 1, ... from number `start` on: always the same ones for the same seed and epoch."""

    def score(self, model: nn.Module) -> tuple[float, dict]:
        """How good the model is on rows kept for this (higher is better), and what to write down. In eval mode, without
        gradients, under the plan's precision: outputs may be bfloat16."""

    def after_step(self) -> None:
        """Called after each change of the weights."""


class Progress(Protocol):
    """Who watches. `update` gets step, total, epoch, loss, lr, rows_per_s, memory_gb, seconds_left; `epoch` a row of
    metrics.jsonl."""

    def update(self, now: dict) -> None: ...

    def epoch(self, row: dict) -> None: ...


@dataclass
class History:
    """What happened: a row per epoch (the first is 1), the best one, why it ended, and the seconds of all sessions
    together."""

    rows: list[dict] = field(default_factory=list)
    best_epoch: int | None = None
    stopped: str = "finished"  # "early", "minutes", "interrupted"
    seconds: float = 0.0
