"""Everything that `fit` can be told, in one plain record that goes into the run folder."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from plait.errors import UsageError, nearest
from plait.tasks import CHOICES


@dataclass
class Settings:
    """The options of a run; defaults suit a table of a few thousand rows on a laptop. None means: decided from the
    data.

    inputs, target: column names; target may be several (several labels). kinds: {column: kind}, over the guess.
    task: classify, regress, retrieve, match, transcribe or caption. system: a model's name or a system's.
    val, test: tables of their own; split: a column that names the split; group: a column whose rows stay together.
    fractions: of train, val and test, where rows are drawn at random.
    minutes: a time budget. patience: epochs without improvement before stopping. ema: decay of a weight average.
    max_bad: stop when more than this share of the rows has a bad input cell.
    image_size: pixels; max_tokens: per text; tokenizer: a published tokenizer.json (None: learnt, or that of the weights).
    pieces: transcripts are spelled in about so many pieces of words, learnt from them; None: in characters.
    pretrained: True (published weights from the hub), or a path or URL.
    """

    inputs: list[str] | None = None
    target: str | list[str] | None = None
    task: str | None = None
    system: str = "auto"
    kinds: dict[str, str] = field(default_factory=dict)
    val: str | None = None
    test: str | None = None
    split: str | None = None
    group: str | None = None
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float = 0.05
    minutes: float | None = None
    patience: int | None = None
    ema: float | None = None
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0
    augment: float = 1.0
    max_bad: float = 1.0
    image_size: int | None = None
    max_tokens: int | None = None
    tokenizer: str | None = None
    pieces: int | None = None
    pretrained: bool | str = False
    allow_outside: bool = False
    workers: int = 2
    checkpoint_seconds: float = 60.0

    def __post_init__(self):
        if self.task is not None and self.task not in CHOICES:
            raise UsageError(f"unknown task {self.task!r}. {nearest(self.task, CHOICES)}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise UsageError(f"unknown precision {self.precision!r}: expected auto, fp32 or bf16")
        for name in ("epochs", "batch_size", "lr", "minutes", "patience", "image_size", "max_tokens", "pieces"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be above 0, got {value}")
        if not 0 <= self.max_bad <= 1:
            raise UsageError(f"max_bad is a share of the rows from 0 to 1 (or 0% to 100%), got {self.max_bad}")
        self.fractions = tuple(self.fractions)

    def to_json(self) -> dict:
        """Plain JSON."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict) -> Settings:
        """The settings that `to_json` gave."""
        return cls(**{k: v for k, v in data.items() if k in {f.name for f in fields(cls)}})


def share(text: str | float) -> float:
    """ "1%" or "0.01" -> 0.01."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*(%?)\s*", str(text))
    if not found:
        raise UsageError(f"got {text!r}, expected a share such as 1% or 0.01")
    return float(found[1]) / (100 if found[2] else 1)
